"""Parts that keep their weights for some epochs, and parts that learn at a rate of their own."""

import pytest
import torch
from torch import nn
from training_toys import Images, assert_equal_tensors, last_checkpoint, rows, run, tensors_of, toy_model, training_rows

from omnivae.training import TrainingConfig
from omnivae.training.freezing import Freezing, rate_groups

# 24 images in batches of 4: six steps are an epoch.
PHASE = {"freeze": ("encoder", "posterior"), "freeze_epochs": 2}


def moved(before, after):
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_phase_keeps_weights_bit_equal_and_then_lets_them_learn(tmp_path, norm):
    model = toy_model(norm)
    seen = {0: state(model)}
    run(
        tmp_path,
        model,
        max_steps=15,
        ema=0,
        weight_decay=0.1,
        draw_every=1,
        draw=lambda trained, step: seen.update({step: state(trained)}),
        **PHASE,
    )
    assert moved(seen[0], seen[12]) == {"decoder", "likelihood_head"}
    assert moved(seen[12], seen[13]) == {"encoder", "posterior", "decoder", "likelihood_head"}
    if norm == "batch":
        statistics = [name for name in seen[0] if name.startswith("encoder.") and "running_mean" in name]
        assert statistics
        assert all(
            torch.equal(seen[0][n], seen[12][n]) and not torch.equal(seen[12][n], seen[13][n]) for n in statistics
        )


def test_after_the_phase_a_part_moves_at_its_lower_rate(tmp_path):
    model = toy_model()
    seen = {}
    run(
        tmp_path,
        model,
        max_steps=13,
        ema=0,
        gradient_clip=0,
        lr_multipliers={"encoder": 0.1},
        draw_every=1,
        draw=lambda trained, step: seen.update({step: state(trained)}),
        **PHASE,
    )
    # Adam's first update of a parameter is the learning rate times the sign of its gradient.
    for name, expected in (("encoder", 1e-3), ("posterior", 1e-2)):
        steps = [(seen[13][n] - seen[12][n]).abs().max().item() for n in seen[13] if n.startswith(f"{name}.")]
        assert max(steps) == pytest.approx(expected, rel=1e-3)
    assert rows(tmp_path)[-1]["train/lr"] == pytest.approx(1e-2)


@pytest.mark.parametrize("stop", [5, 12, 14])
def test_a_run_that_is_continued_continues_its_phase(tmp_path, stop):
    options = PHASE | {"lr_multipliers": {"encoder": 0.5, "decoder": 2.0}, "checkpoint_every": 1}
    _, whole, _ = run(tmp_path / "whole", max_steps=18, **options)
    run(tmp_path / "parts", max_steps=stop, **options)
    _, parts, _ = run(tmp_path / "parts", max_steps=18, **options)
    assert_equal_tensors(parts.state_dict(), whole.state_dict())
    assert_equal_tensors(
        tensors_of(last_checkpoint(tmp_path / "parts")), tensors_of(last_checkpoint(tmp_path / "whole"))
    )
    assert len(training_rows(tmp_path / "parts")) == len(training_rows(tmp_path / "whole"))


def test_a_part_of_a_part_has_the_last_word_about_its_rate():
    vae = nn.Sequential(nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)), nn.Linear(1, 1))
    groups, rates = rate_groups(vae, vae, {"0.1": 3.0, "0": 0.5})
    assert rates == [1.0, 0.5, 3.0]
    assert groups[1]["params"][0] is vae[0][0].weight
    assert groups[2]["params"][0] is vae[0][1].weight
    assert sum(len(g["params"]) for g in groups) == 4


def test_with_several_processes_gradients_are_dropped_instead():
    vae = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    freezing = Freezing(vae, ["0"], steps=2, joint=True)
    for step in range(3):
        freezing.begin(step)
        vae(torch.ones(1, 1)).sum().backward()
        assert all(p.grad is not None for p in vae.parameters())
        freezing.drop_gradients(step)
        assert (vae[0].weight.grad is None) is (step < 2)
        assert vae[1].weight.grad is not None
        assert vae[0].training is (step == 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_epochs": 2}, "nothing in training.freeze"),
        ({"freeze": ("encoder",), "freeze_epochs": 0}, "at least 1"),
        ({"lr_multipliers": {"encoder": 0.0}}, r"lr_multipliers\.encoder=0.0"),
        ({"lr_multipliers": {"encoder": -1.0}}, "number > 0"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)


def test_parts_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"training\.lr_multipliers='unet'; this model has encoder"):
        run(tmp_path / "a", max_steps=1, lr_multipliers={"unet": 1.0})
    everything = ("encoder", "posterior", "decoder", "likelihood_head")
    with pytest.raises(ValueError, match="leaves nothing to train"):
        run(tmp_path / "b", max_steps=1, freeze=everything, freeze_epochs=1)


def test_the_model_of_a_phase_is_validated_and_averaged(tmp_path):
    _, _, saved = run(
        tmp_path, toy_model("batch"), max_steps=14, ema=0.9, val=Images(8, seed=1), validate_every=3, **PHASE
    )
    assert all(torch.isfinite(t).all() for t in saved[-1].values())
