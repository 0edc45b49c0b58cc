"""What a step does: learning rate, clipping, accumulation, the moving average, frozen parts."""

import copy
import itertools
import math

import pytest
import torch
from training_toys import Images, assert_equal_tensors, last_checkpoint, run, toy_model, training_rows

from omnivae.losses import KL, NLL, Loss
from omnivae.training import TrainingConfig, VAEModule
from omnivae.training.ema import Ema


class LinearPull(Loss):
    """``scale`` times the sum of all decoder and encoder means: a gradient of known direction."""

    abstract = True

    def __init__(self, weight=1.0, scale=1.0):
        super().__init__(weight)
        self.scale = scale

    def forward(self, output, batch):
        return self.scale * (output.mean.sum(1).mean() + output.reconstruction.flatten(1).sum(1).mean())


# -- learning rate


def rates(directory):
    return [row["train/lr"] for row in training_rows(directory)]


def test_warm_up_is_linear_and_constant_after(tmp_path):
    run(tmp_path, max_steps=6, warmup_steps=3, learning_rate=0.01)
    values = rates(tmp_path)
    assert values[3:] == pytest.approx([0.01] * 3)
    steps = [b - a for a, b in itertools.pairwise(values[:4])]
    assert steps == pytest.approx([values[0]] * 3, rel=1e-4)  # equal increments, the first from zero
    assert 0 < values[0] < 0.01


def test_cosine_falls_from_the_peak_to_zero(tmp_path):
    run(tmp_path, max_steps=8, warmup_steps=0, schedule="cosine", learning_rate=0.01)
    expected = [0.01 * 0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert rates(tmp_path) == pytest.approx(expected, rel=1e-5)


def test_cosine_after_a_warm_up(tmp_path):
    run(tmp_path, max_steps=8, warmup_steps=4, schedule="cosine", learning_rate=0.01)
    expected = [0.01 * 0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert rates(tmp_path)[4:] == pytest.approx(expected, rel=1e-5)
    assert rates(tmp_path)[:4] == sorted(rates(tmp_path)[:4])


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_the_first_step_of_adam_is_the_learning_rate_in_every_weight(optimizer, tmp_path):
    model = toy_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run(tmp_path, model, max_steps=1, optimizer=optimizer, learning_rate=1e-3, gradient_clip=0)
    moved = torch.cat([(p.detach() - before[name]).abs().flatten() for name, p in model.named_parameters()])
    # m / (sqrt(v) + eps) is the gradient's sign at the first step.
    assert float(moved.median()) == pytest.approx(1e-3, rel=1e-2)
    assert float(moved.max()) <= 1e-3 * 1.01


def test_weight_decay_is_decoupled(tmp_path):
    plain, decayed = toy_model(), toy_model()
    before = copy.deepcopy(plain.state_dict())
    run(tmp_path / "a", plain, max_steps=1, learning_rate=0.01)
    run(tmp_path / "b", decayed, max_steps=1, learning_rate=0.01, weight_decay=0.5)
    for name, p in decayed.named_parameters():
        torch.testing.assert_close(p, plain.get_parameter(name) - 0.01 * 0.5 * before[name], atol=1e-6, rtol=1e-5)


# -- clipping


def gradients_after_clipping(scale, **config):
    """Return the gradients that the optimiser would get, and those before."""
    model = toy_model()
    module = VAEModule(
        model, {"pull": LinearPull(scale=scale)}, TrainingConfig(**config), total_steps=1, steps_per_epoch=1
    )
    x = torch.stack([Images()[i]["x"] for i in range(4)])
    torch.manual_seed(0)
    LinearPull(scale=scale)(model.train()(x), {"x": x}).backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    module.on_before_optimizer_step(optimizer)
    module.configure_gradient_clipping(optimizer)
    return before, [p.grad for p in model.parameters() if p.grad is not None]


def norm(gradients):
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def test_the_global_norm_is_clipped():
    before, after = gradients_after_clipping(100.0, gradient_clip=0.7)
    assert norm(before) > 0.7
    assert norm(after) == pytest.approx(0.7, rel=1e-4)
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b * 0.7 / norm(before), rtol=1e-4, atol=1e-7)


def test_a_small_gradient_is_left_alone():
    before, after = gradients_after_clipping(1e-4, gradient_clip=1.0)
    assert norm(before) < 1.0
    for a, b in zip(after, before, strict=True):
        assert torch.equal(a, b)


def test_clipping_by_value_clips_each_element():
    before, after = gradients_after_clipping(100.0, gradient_clip=0.5, gradient_clip_algorithm="value")
    for a, b in zip(after, before, strict=True):
        assert torch.equal(a, b.clamp(-0.5, 0.5))


def test_zero_switches_clipping_off():
    before, after = gradients_after_clipping(100.0, gradient_clip=0)
    for a, b in zip(after, before, strict=True):
        assert torch.equal(a, b)


def test_the_logged_norm_is_the_one_before_clipping(tmp_path):
    run(tmp_path / "a", losses={"pull": LinearPull(scale=100.0)}, max_steps=1, gradient_clip=0.5)
    run(tmp_path / "b", losses={"pull": LinearPull(scale=100.0)}, max_steps=1, gradient_clip=0)
    clipped, free = training_rows(tmp_path / "a")[0], training_rows(tmp_path / "b")[0]
    assert clipped["train/grad_norm"] == free["train/grad_norm"] > 0.5


def test_clipping_bounds_what_the_optimiser_sees(tmp_path):
    run(tmp_path, losses={"pull": LinearPull(scale=1e3)}, max_steps=1, gradient_clip=0.25)
    states = last_checkpoint(tmp_path)["optimizer_states"][0]["state"]
    # After one step Adam's first moment is (1 - beta1) times the gradient.
    assert norm([s["exp_avg"] / 0.1 for s in states.values()]) == pytest.approx(0.25, rel=1e-3)


# -- accumulation


def test_accumulated_gradients_are_those_of_the_joint_batch(tmp_path):
    # The posterior's mode instead of a sample would hide nothing here: a deterministic loss on the mean and logvar.
    class Deterministic(Loss):
        abstract = True

        def forward(self, output, batch):
            posterior = output.latents[0].posterior
            return KL()(output, batch) + (posterior.mean.sum(1) * batch["x"].flatten(1).sum(1)).mean()

    losses = {"deterministic": Deterministic()}
    joint, split = toy_model(), toy_model()
    common = {"max_steps": 3, "gradient_clip": 0, "ema": 0.0}
    run(tmp_path / "joint", joint, losses, batch_size=8, **common)
    run(tmp_path / "split", split, losses, batch_size=4, accumulate=2, **common)
    first = [last_checkpoint(tmp_path / name)["optimizer_states"][0]["state"] for name in ("joint", "split")]
    for i in first[0]:
        torch.testing.assert_close(first[1][i]["exp_avg"], first[0][i]["exp_avg"], atol=1e-6, rtol=1e-5)
    assert [r["step"] for r in training_rows(tmp_path / "split")] == [1, 2, 3]
    norms = [[r["train/grad_norm"] for r in training_rows(tmp_path / name)] for name in ("joint", "split")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


def test_accumulation_counts_optimiser_steps(tmp_path):
    result, _, _ = run(tmp_path, max_steps=5, accumulate=3, batch_size=2)
    assert result.step == 5
    assert last_checkpoint(tmp_path)["global_step"] == 5
    assert [r["step"] for r in training_rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_the_logged_terms_of_an_accumulated_step_are_those_of_its_joint_batch(tmp_path):
    class Brightness(Loss):
        abstract = True

        def forward(self, output, batch):
            return batch["x"].mean() + 0 * output.mean.sum()

    run(tmp_path / "joint", losses={"brightness": Brightness()}, batch_size=8, max_steps=3)
    run(tmp_path / "split", losses={"brightness": Brightness()}, batch_size=4, accumulate=2, max_steps=3)
    logged = [[r["train/total"] for r in training_rows(tmp_path / name)] for name in ("joint", "split")]
    assert logged[1] == pytest.approx(logged[0], abs=1e-6)


# -- moving average


@pytest.mark.parametrize("decay", [0.25, 0.999])
def test_the_average_follows_its_formula(decay, tmp_path):
    history = []

    class Watch(KL):
        abstract = True

        def forward(self, output, batch):
            history.append({name: p.detach().double().clone() for name, p in model.named_parameters()})
            return super().forward(output, batch)

    model = toy_model()
    # history[k] holds the weights after k steps; the average that is saved at step 5 is the one compared.
    _, _, saved = run(tmp_path, model, {"nll": NLL(), "w": Watch()}, max_steps=6, ema=decay, checkpoint_every=5)
    for name in history[0]:
        # The first update takes the weights after step 1 as they are; later ones have decay min(ema, (1 + n) / (10 + n)).
        average = history[1][name]
        for n in range(1, 5):
            d = min(decay, (1 + n) / (10 + n))
            average = d * average + (1 - d) * history[n + 1][name]
        torch.testing.assert_close(saved[0][name].double(), average, atol=1e-6, rtol=1e-5)
        assert not torch.equal(saved[0][name].double(), history[5][name])


def test_the_update_alone():
    averaged, current = [torch.tensor([1.0]), torch.tensor(3)], [torch.tensor([2.0]), torch.tensor(8)]
    Ema(0.5)._update(averaged, current, torch.tensor(100))
    assert averaged[0].item() == pytest.approx(1.5)
    assert averaged[1].item() == 8


def test_without_an_average_the_weights_themselves_are_saved(tmp_path):
    _, model, saved = run(tmp_path, max_steps=3, ema=0)
    assert_equal_tensors(dict(saved[-1]), dict(model.state_dict()))


def test_the_average_holds_normalisation_statistics_too(tmp_path):
    _, model, saved = run(tmp_path, toy_model("batch"), max_steps=4, ema=0.5)
    assert list(saved[-1]) == list(model.state_dict())
    for name in (n for n in saved[-1] if n.endswith("running_var")):
        assert not torch.equal(saved[-1][name], torch.ones_like(saved[-1][name]))


# -- frozen parts


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_frozen_parts_do_not_change_and_the_others_do(ema, tmp_path):
    model = toy_model("batch")
    before = copy.deepcopy(model.state_dict())
    drawn = []
    _, _, saved = run(
        tmp_path,
        model,
        max_steps=4,
        ema=ema,
        freeze=("encoder", "posterior"),
        weight_decay=0.1,
        val=Images(8, seed=1),
        checkpoint_every=2,
        draw_every=2,
        draw=lambda m, step: drawn.append(step),
    )
    assert drawn == [2, 4]
    for state in (model.state_dict(), saved[-1]):
        same = {name for name in before if torch.equal(state[name], before[name])}
        frozen = {name for name in before if name.startswith(("encoder.", "posterior."))}
        assert any("running_mean" in name for name in frozen)
        assert frozen <= same
        assert {name for name in before if name.startswith("decoder.")} & same == set()


def test_freezing_something_that_is_not_there_names_the_parts(tmp_path):
    with pytest.raises(ValueError, match=r"training\.freeze='encodr'; this model has encoder, posterior, decoder"):
        run(tmp_path, max_steps=1, freeze=("encodr",))


def test_freezing_everything_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="freeze"):
        run(tmp_path, max_steps=1, freeze=("encoder", "posterior", "decoder", "likelihood_head"))
