"""Eight faults are injected into a run; each must stop it, or be skipped, with the right diagnosis."""

import json
import math

import pytest
import torch
from torch import nn
from training_toys import Images, run, tensors_of, toy_losses, toy_model, training_rows

from omnivae.component import Component
from omnivae.losses import GAN, KL, NLL
from omnivae.models import VAE
from omnivae.training import TrainingConfig, fit, replay
from omnivae.training.diagnosis import Diagnosis

BAD = 13  # the image that carries the fault; every image is seen once within six steps of four


class NamedImages(Images):
    def __getitem__(self, index):
        return {"x": self.x[index], "key": f"folder/{index:02d}.png"}

    @property
    def keys(self):
        return [f"folder/{index:02d}.png" for index in range(len(self))]


class RgbImages(NamedImages):
    def __init__(self):
        self.x = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Standardise(nn.Module, Component):
    """A first layer as people write it: every channel of every image to mean 0 and deviation 1, no epsilon."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.normalise = PerChannel()
        self.dim, self.in_channels = encoder.dim, encoder.in_channels
        self.out_channels, self.stride = encoder.out_channels, encoder.stride

    def forward(self, x, cond=None):
        return self.encoder(self.normalise(x), cond)


class PerChannel(nn.Module):
    def forward(self, x):
        axes = (2, 3)
        return (x - x.mean(axes, keepdim=True)) / x.std(axes, keepdim=True)


class Amplified(nn.Module, Component):
    """Multiplies by 1e6 and divides again: the identity in float32, infinite in float16.

    As a posterior head it is beyond the guards that take such parts of encoder and decoder out of float16.
    """

    def __init__(self, head):
        super().__init__()
        self.head = head
        self.up, self.down = nn.Conv1d(1, 1, 1, bias=False), nn.Conv1d(1, 1, 1, bias=False)
        nn.init.constant_(self.up.weight, 1e6)
        nn.init.constant_(self.down.weight, 1e-6)
        self.latent_dim, self.provides = head.latent_dim, head.provides

    def forward(self, features):
        return self.head(self.down(self.up(features.unsqueeze(1))).squeeze(1))


def with_encoder(wrap, **arguments):
    model = toy_model(**arguments)
    return VAE(
        wrap(model.encoder), model.posterior, model.decoder, model.likelihood_head,
        prior=model.prior, value_range=model.value_range, image_size=model.image_size,
    )  # fmt: skip


def inf_pixel():
    data = NamedImages()
    data.x[BAD, 0, 2, 5] = math.inf
    return {"train": data}


def nan_pixel():
    data = NamedImages()
    data.x[BAD, 0, 2, 5] = math.nan
    return {"train": data}


def huge_learning_rate():
    return {"train": NamedImages(), "learning_rate": 1e30, "gradient_clip": 0.0}


def constant_image():
    data = NamedImages()
    data.x[BAD] = 0.25
    return {"train": data, "model": with_encoder(Standardise)}


def zero_variance_channel():
    data = RgbImages()
    data.x[BAD, 1] = -1.0
    return {"train": data, "model": with_encoder(Standardise, in_channels=3)}


def exploding_log_variance():
    model = toy_model()
    with torch.no_grad():
        model.posterior.projection.bias[3:] = 200.0
    return {"train": NamedImages(), "model": model, "learning_rate": 1e-4}


def float16_overflow():
    plain = toy_model()
    model = VAE(
        plain.encoder, Amplified(plain.posterior), plain.decoder, plain.likelihood_head,
        prior=plain.prior, value_range=plain.value_range, image_size=plain.image_size,
    )  # fmt: skip
    return {"train": NamedImages(), "model": model, "precision": "16"}


class Corrupt(NamedImages):
    def __getitem__(self, index):
        if index == BAD:
            raise ValueError("photos/13.png is damaged and cannot be decoded (broken data stream): repair or remove it")
        return super().__getitem__(index)


def corrupt_file():
    return {"train": Corrupt()}


FAULTS = {
    # fault: (injection, cause, what the sentence must name)
    "inf pixel": (inf_pixel, "input", r"folder/13\.png \(1 of 64 values is inf, the first at channel 0, position \(2, 5\)\)"),
    "NaN pixel": (nan_pixel, "input", r"folder/13\.png \(1 of 64 values is nan, the first at channel 0, position \(2, 5\)\)"),
    "huge learning rate": (huge_learning_rate, "learning_rate", r"lower training\.learning_rate \(it was 1e\+30"),
    "one constant image": (constant_image, "constant_image", r"folder/13\.png has no contrast \(every value is 0\.25\)"),
    "zero-variance channel": (
        zero_variance_channel, "constant_channel", r"folder/13\.png has a channel without contrast \(channel 1 holds",
    ),
    "exploding log-variance": (exploding_log_variance, "log_variance", r"100 % of the posterior's log-variances"),
    "float16 overflow": (float16_overflow, "float16_overflow", r"65,504 \(first in posterior\.up, forward\).*precision to bf16"),
    "corrupt file mid-epoch": (corrupt_file, "data", r"folder/13\.png: photos/13\.png is damaged"),
}  # fmt: skip


def records(directory):
    return [json.loads(path.read_text()) for path in sorted(directory.glob("flight/*/record.json"))]


def inject(fault, directory, **settings):
    arguments = dict(FAULTS[fault][0]())
    model, train = arguments.pop("model", None), arguments.pop("train")
    return run(directory, model, train=train, **({"max_steps": 12, "checkpoint_every": 1} | settings | arguments))


@pytest.mark.parametrize("fault", FAULTS)
def test_the_run_stops_with_the_right_diagnosis(fault, tmp_path, capsys):
    _, cause, pattern = FAULTS[fault]
    with pytest.raises((FloatingPointError, ValueError), match=pattern) as raised:
        inject(fault, tmp_path)
    (record,) = records(tmp_path)
    assert record["cause"] == cause
    assert str(tmp_path / "flight") in str(raised.value)
    # Nothing of the fault has reached what was saved.
    checkpoint = tmp_path / "checkpoints" / "last.safetensors"
    if record["checkpoint"] is not None:
        assert record["checkpoint"] == {"path": str(checkpoint), "step": record["step"] - 1}
        assert f"step {record['step'] - 1}" in str(raised.value)
    if cause == "data":
        assert record["replay"] is None
    else:
        again, found = replay_by_hand(tmp_path, fault)
        assert (again["cause"], found.cause) == (cause, cause)
        assert (found.module, found.where, found.files) == (record["module"], record["where"], record["files"])
    with capsys.disabled():
        files = ", ".join(record["files"]) or "-"
        place = record["module"] or record["term"]
        print(f"\n  {fault:<24} step {record['step']}  {record['cause']:<17} {place:<22} {files}", end="")


def replay_by_hand(directory, fault):
    (folder,) = (directory / "flight").iterdir()
    return replay(folder)


@pytest.mark.parametrize("fault", ["inf pixel", "NaN pixel", "one constant image", "zero-variance channel"])
def test_skipping_leaves_out_the_bad_updates_and_counts_them(fault, tmp_path):
    result, model, _ = inject(fault, tmp_path, on_nonfinite="skip", ema=0.0)
    assert result.complete
    # Twelve steps are two epochs: the bad image comes twice.
    table = training_rows(tmp_path)
    assert [row["train/skipped_updates"] for row in table][-1] == 2
    assert all(bool(torch.isfinite(t).all()) for t in tensors_of(dict(model.state_dict())).values())
    assert [r["cause"] for r in records(tmp_path)] == [FAULTS[fault][1]] * 2


def test_a_skipped_update_changes_nothing_at_all(tmp_path):
    """Weights, moments and running statistics after a skipped step are those before it."""
    data = NamedImages()
    data.x[BAD] = 0.25

    states = {}

    def keep(model, step):
        states[step] = {k: v.clone() for k, v in model.state_dict().items()}

    model = with_encoder(Standardise, norm="batch")
    run(tmp_path, model, train=data, draw=keep, draw_every=1, max_steps=6, ema=0.0, on_nonfinite="skip")
    (record,) = records(tmp_path)
    step = record["step"]
    before, after = states.get(step - 1), states[step]
    assert before is not None
    assert [name for name in after if not torch.equal(before[name], after[name])] == []
    others = [s for s in range(2, 7) if s != step]
    assert all(any(not torch.equal(states[s - 1][n], states[s][n]) for n in after) for s in others)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_discriminator_is_spared_too(accumulate, tmp_path):
    data = NamedImages()
    data.x[BAD, 0, 0, 0] = math.nan
    gan = GAN(weight=0.1, channels=4, num_layers=1)
    settings = {"max_steps": 6 // accumulate, "on_nonfinite": "skip", "accumulate": accumulate, "ema": 0.0}
    run(tmp_path, losses={"nll": NLL(), "gan": gan}, train=data, **settings)
    assert [row["train/skipped_updates"] for row in training_rows(tmp_path)][-1] == 1
    assert all(bool(torch.isfinite(p).all()) for p in gan.parameters())


def test_a_run_that_only_skips_stops(tmp_path):
    data = NamedImages()
    data.x[:] = math.nan
    with pytest.raises(FloatingPointError, match="and 20 updates before it") as stopped:
        run(tmp_path, train=data, max_steps=40, on_nonfinite="skip")
    # The first records and the last one hold what a replay needs: no command is named that cannot work.
    assert "flight record: " in str(stopped.value)
    assert "omnivae replay" in str(stopped.value)


def test_the_learning_rate_that_is_proposed_is_one_to_train_with(tmp_path):
    with pytest.raises(FloatingPointError, match=r"it was 1e\+30; try 0\.001\)"):
        run(tmp_path, train=NamedImages(), max_steps=6, learning_rate=1e30)


def test_the_checkpoint_kept_is_from_before_the_updates_that_were_skipped(tmp_path):
    data = NamedImages()

    def spoil(model, step):
        if step == 6:
            data.x[:] = math.nan

    with pytest.raises(FloatingPointError, match=r"the last good checkpoint is of step 6\b"):
        run(tmp_path, train=data, max_steps=40, on_nonfinite="skip", checkpoint_every=2, draw=spoil, draw_every=1)
    # The step at which the run stopped can be replayed, although the room for others was used up.
    stopped = max(records(tmp_path), key=lambda record: record["step"])
    assert stopped["step"] == 27
    assert replay(stopped["replay"].removeprefix("omnivae replay "))[1].cause == "input"


def test_a_record_that_cannot_be_written_does_not_hide_the_diagnosis(tmp_path, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "flight").write_text("a file where the folder should be")
    with pytest.raises(FloatingPointError, match=r"folder/13\.png"):
        inject("NaN pixel", tmp_path / "run")
    assert any(message.startswith("no flight record: ") for message in caplog.messages)


def test_skipping_survives_an_interruption(tmp_path):
    data = NamedImages()
    data.x[BAD] = math.nan
    run(tmp_path, train=data, max_steps=6, on_nonfinite="skip", checkpoint_every=1)
    run(tmp_path, train=data, max_steps=12, on_nonfinite="skip", checkpoint_every=1)
    assert [row["train/skipped_updates"] for row in training_rows(tmp_path)][-1] == 2


def test_a_healthy_run_leaves_no_record(tmp_path):
    run(tmp_path, train=NamedImages(), max_steps=6)
    assert not (tmp_path / "flight").exists()


def test_images_without_contrast_that_do_no_harm_are_only_mentioned(tmp_path, caplog):
    data = NamedImages()
    data.x[BAD] = 0.25
    with caplog.at_level("WARNING", logger="omnivae"):
        result, _, _ = run(tmp_path, train=data, max_steps=12)
    assert result.complete
    assert [m for m in caplog.messages if "folder/13.png" in m] == [
        "folder/13.png: every value is 0.25; it is trained on as it is"
    ]


def test_a_fault_in_an_accumulated_batch_is_found_in_its_own_batch(tmp_path):
    data = NamedImages()
    data.x[BAD, 0, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"folder/13\.png"):
        run(tmp_path, train=data, max_steps=6, accumulate=2, batch_size=2)
    (record,) = records(tmp_path)
    assert [len(names) for names in record["batch"]] == [2, 2]
    assert record["files"] == ["folder/13.png"]


def test_workers_name_the_file_too(tmp_path):
    with pytest.raises(ValueError, match=r"folder/13\.png: photos/13\.png is damaged"):
        fit(
            toy_model(), toy_losses(), Corrupt(), None,
            config=TrainingConfig(batch_size=4, max_steps=12, precision="32"),
            directory=tmp_path, save_model=lambda model: None, num_workers=1, progress=False,
        )  # fmt: skip
    assert records(tmp_path)[0]["files"] == ["folder/13.png"]


def test_a_mistake_in_the_code_is_no_fault_of_the_numbers(tmp_path):
    class Wrong(NLL):
        abstract = True

        def forward(self, output, batch):
            raise ValueError("a mistake")

    with pytest.raises(ValueError, match=r"^a mistake$"):
        run(tmp_path, losses={"nll": Wrong()}, train=NamedImages(), max_steps=2)
    assert not (tmp_path / "flight").exists()


def test_bad_validation_images_are_named(tmp_path):
    val = NamedImages(8, seed=1)
    val.x[3, 0, 0, 0] = math.inf
    with pytest.raises(ValueError, match=r"validation image folder/03\.png: 1 of 64 values is inf"):
        run(tmp_path, train=NamedImages(), val=val, max_steps=4, validate_every=2)


def test_the_cause_of_a_gradient_alone_is_found_in_the_backward_pass(tmp_path):
    class Root(NLL):
        """The square root of zero: finite, with an infinite slope."""

        abstract = True

        def forward(self, output, batch):
            return super().forward(output, batch) + (output.mean * 0).abs().sum().sqrt()

    with pytest.raises(FloatingPointError, match="gradient went bad at step 1"):
        run(tmp_path, losses={"nll": Root(), "kl": KL()}, train=NamedImages(), max_steps=3)
    (record,) = records(tmp_path)
    assert (record["term"], record["where"]) == ("gradient", "backward")
    assert record["module"] is not None


def test_diagnoses_are_plain_data():
    assert Diagnosis("unknown", "s", "a").files == []
