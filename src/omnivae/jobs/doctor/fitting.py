"""Rules about fit: overfitting, underfitting, opponents, blur, other resolutions."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from omnivae.jobs.doctor.records import Record
from omnivae.jobs.doctor.registry import Finding, number, number_plain, rule
from omnivae.jobs.doctor.trends import loss_curve, scatter

#: Validations in a row that must lie above the best one, each beyond the scatter.
CONSECUTIVE = 3
#: Share of the whole improvement that the last fifth of a run still brought.
STILL = 0.05
#: A discriminator's loss below this share of that of a coin toss has won.
WON = 0.1
#: Share of the loss that belongs to the opponent beyond which it draws textures of its own.
GAN_SHARE = 0.5
#: PSNR in dB below which reconstructions of photographs look soft, and the size from which that matters.
SOFT_PSNR, SOFT_SIZE = 24.0, 48
#: Loss of a discriminator that cannot tell the two apart: its output is 0, half way between 0 and 1 for least squares.
COIN_TOSS = {"hinge": 1.0, "least_squares": 0.25, "vanilla": math.log(2)}
SHARP = ("lpips", "ms_ssim", "gan", "vf")


@rule("overfitting", "validation against training", needs=["val/total", "train/total"], rows=5)
def overfitting(record: Record) -> Iterator[Finding]:
    """The validation loss rises for several validations while the training loss falls (Prechelt, Early Stopping, 1998)."""
    val, train = loss_curve(record, "val"), loss_curve(record, "train")
    best = int(np.argmin(val.values))
    after = val.values[best + 1 :]
    noise = scatter(val)
    if len(after) < CONSECUTIVE or not np.all(after[-CONSECUTIVE:] > val.values[best] + 2 * noise):
        return
    at_best = float(np.interp(val.steps[best], train.steps, train.values))
    if not train.values[-1] < at_best:
        return  # both rise: that is no overfitting
    gap = float(val.values[-1] - train.values[-1])
    if gap <= 0:
        return  # what was learnt by heart is better known than what was not
    yield Finding(
        "overfitting",
        "warning",
        f"the validation loss was best at step {int(val.steps[best])} ({number(float(val.values[best]))}) and is "
        f"{number(float(val.values[-1]))} now, while the training loss fell from {number(at_best)} to "
        f"{number(float(train.values[-1]))} (gap {number(gap)})",
        "the model learns its training images by heart",
        "use checkpoints/best, more images, augmentation or weight decay; or stop earlier",
        (
            *(() if record.option("data.flip") else ("--data.flip true",)),
            *(
                ()
                if record.option("data.random_crop") or record.option("data.image_size") is None
                else ("--data.random_crop true",)
            ),
            *(() if record.option("training.weight_decay") else ("--training.weight_decay 0.01",)),
            f"--training.max_steps {max(1, int(val.steps[best]))}",
        ),
    )


@rule("underfitting", "whether the run was long enough", needs=["train/total"], rows=40)
def underfitting(record: Record) -> Iterator[Finding]:
    """The loss was still falling when the run ended."""
    total = record.total_steps
    if total is None or record.step < total:
        return
    curve = loss_curve(record, "val") if len(record.curves.get("val/total", ())) >= 8 else loss_curve(record, "train")
    values = curve.values
    if len(values) < 8 or not np.isfinite(values).all():
        return
    late = values[int(0.8 * len(values)) - 1 :]
    whole, last = float(values[0] - values[-1]), float(late[0] - late[-1])
    if whole > 0 and last > STILL * whole and last > 3 * scatter(curve):
        longer = f"--training.max_steps {2 * total}"
        if record.option("training.max_steps") is None and record.option("training.num_epochs") is not None:
            longer = f"--training.num_epochs {2 * int(record.option('training.num_epochs'))}"
        yield Finding(
            "underfitting",
            "note",
            f"the last fifth of the run brought {last / whole:.0%} of its whole improvement",
            "the model was still learning when the run ended",
            "train longer; the same command with more steps continues the run",
            (longer,),
        )


@rule("opponent", "the balance with a discriminator")
def opponent(record: Record) -> Iterator[Finding]:
    """The discriminator has won, has learnt nothing, or outweighs the reconstruction (Esser et al., VQGAN, 2021)."""
    for column in sorted(record.curves):
        if not (column.startswith("train/") and column.endswith("_opponent")):
            continue
        name, curve = column.removeprefix("train/").removesuffix("_opponent"), record.curves[column]
        if len(curve) < 20:
            continue
        level, toss = curve.level(), COIN_TOSS.get(str(record.option(f"losses.{name}.loss", "hinge")), 1.0)
        # With an adaptive weight the logged one is balanced; what the user sets is the configured one.
        weight = record.option(f"losses.{name}.weight", 0.05)
        weight = float(weight) if isinstance(weight, (int, float)) else 0.05
        start = int(record.option(f"losses.{name}.start_step", 0))
        own = record.option(f"losses.{name}.discriminator_learning_rate")
        rate = float(own or record.option("training.learning_rate", 1e-4))
        lower = f"--losses.{name}.weight {number_plain(weight / 2)}"
        if level < WON * toss:
            yield Finding(
                "opponent",
                "warning",
                f"the discriminator's loss is {number(level)} at the end; a coin toss is {number(toss)}",
                "the discriminator has won: its gradients say only that everything is wrong, which gives artefacts, or one texture "
                "for all images",
                "lower the weight of the opponent, start it later, when reconstructions are good, or slow the discriminator down",
                (
                    lower,
                    f"--losses.{name}.start_step {max(2 * start, record.step // 2, 1)}",
                    f"--losses.{name}.discriminator_learning_rate {number_plain(rate / 4)}",
                ),
            )
        elif level > 0.98 * toss and curve.level(0.3, 0.6) > 0.98 * toss:
            yield Finding(
                "opponent",
                "note",
                f"the discriminator's loss is {number(level)}, that of a coin toss ({number(toss)})",
                "the discriminator tells nothing apart, so it teaches nothing",
                "let it learn faster",
                (f"--losses.{name}.discriminator_learning_rate {number_plain(4 * rate)}",),
            )
        if record.terms().get(name, 0.0) > GAN_SHARE:
            yield Finding(
                "opponent",
                "warning",
                f"the weighted '{name}' is {record.terms()[name]:.0%} of the loss",
                "the opponent outweighs the images: it draws textures and artefacts that are not there",
                "lower its weight, and train the decoder for longer in a second stage with the encoder frozen",
                (
                    lower,
                    "--training.freeze '[encoder, posterior]'",
                    f"--training.max_steps {2 * (record.total_steps or record.step)}",
                ),
            )


@rule("blur", "sharpness of reconstructions", needs=["val/psnr"], rows=3)
def blur(record: Record) -> Iterator[Finding]:
    """Low PSNR on images of some size, with losses that reward the mean of all plausible images."""
    psnr = record.curves["val/psnr"].level()
    size = int(record.option("data.image_size", 0) or record.option("model.input_resolution", 0) or 0)
    sharp = [
        name
        for name in SHARP
        if record.option(f"losses.{name}.weight", 0) not in (0, 0.0) and name in record.option("losses", {})
    ]
    if not (psnr < SOFT_PSNR and size >= SOFT_SIZE and not sharp):
        return
    yield Finding(
        "blur",
        "note",
        f"PSNR is {number(psnr)} dB on images of side {size}, with pixel losses only",
        "reconstructions are soft: a pixel loss rewards the mean of all plausible images, and the latent may be too small",
        "add a perceptual term, give the model more capacity or latent channels, or more transformer stages",
        ("--losses.ms_ssim.weight 0.5", f"--model.latent_dim {2 * int(record.option('model.latent_dim', 16))}"),
    )


@rule("extrapolation", "whether the model serves other resolutions")
def extrapolation(record: Record) -> Iterator[Finding]:
    """Position tables bind a transformer to the size that it was trained on."""
    if record.option("model.recipe", "transvae") != "transvae":
        return
    absolute, rope = record.option("model.use_absolute_positions", False), record.option("model.use_rope", True)
    if absolute or not rope:
        seen = "use_absolute_positions is true" if absolute else "use_rope is false"
        yield Finding(
            "extrapolation",
            "note",
            f"model.{seen}",
            "attention knows only the positions of the training size: larger images will be worse",
            "take rotary positions, which depend on differences only, and train anew",
            ("--model.use_rope true", "--model.use_absolute_positions false"),
        )
