"""Rules about optimisation: gradients, learning rate, bad steps."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from omnivae.jobs.doctor.records import Curve, Record
from omnivae.jobs.doctor.registry import Finding, number, number_plain, rule
from omnivae.jobs.doctor.trends import gain, loss_curve, scatter

#: Usual gradient norms before clipping (document 4); losses summed over an image may lie above.
GRADIENT_LOW, GRADIENT_HIGH = 0.1, 10.0
#: Steps of the last fifth that must lie outside, for it to be the rule and not a moment.
PERSISTENT = 0.9
#: Growth (shrinkage) of the gradient norm between the middle and the end of a run.
GRADIENT_TREND = 10.0
#: A spike is so many times the median of its surroundings; so many of them are a pattern.
SPIKE, SPIKE_SHARE = 10.0, 0.01
#: Share of steps that are clipped beyond which the clip sets the length of every step.
CLIPPED = 0.95
#: A loss that has given back this share of what it had gained has diverged.
GIVEN_BACK = 0.5
#: Rises of the smoothed loss by this share of its whole fall, and how many make an oscillation.
RISE, RISES = 0.2, 3
#: Fall of the loss, relative to where it began, below which a run has hardly moved.
HARDLY = 0.05
#: Parameters from which a model should not start at its full learning rate (Goyal et al., Accurate, Large Minibatch SGD, 2017).
LARGE_MODEL = 20_000_000


@rule("gradient_norm", "the size of gradients before clipping", needs=["train/grad_norm"])
def gradient_norm(record: Record) -> Iterator[Finding]:
    """Persistently outside [0.1, 10], growing or vanishing."""
    norm = record.curves["train/grad_norm"]
    middle, end, last = norm.level(0.3, 0.6), norm.level(0.9), norm.part(0.8)
    if not len(last) or not math.isfinite(middle):
        return
    rate = record.option("training.learning_rate", 1e-4)
    clip = float(record.option("training.gradient_clip", 1.0))
    if end > GRADIENT_TREND * max(middle, 1e-12) and end > GRADIENT_HIGH:
        yield Finding(
            "gradient_norm",
            "warning",
            f"the gradient norm grew from {number(middle)} (middle of the run) to {number(end)} (end)",
            "gradients explode",
            "lower the learning rate, and keep clipping on",
            (f"--training.learning_rate {number_plain(rate / 3)}", *(() if clip else ("--training.gradient_clip 1",))),
        )
    elif np.mean(last > GRADIENT_HIGH) > PERSISTENT:
        # Summed over an image and with Adam, whose steps do not depend on the gradient's scale, this is usual.
        harmless = _fall(record) > HARDLY and not _diverged(record)
        clipped = f", above the clip of {number(clip)} in {np.mean(last > clip):.0%} of the steps" if clip else ""
        yield Finding(
            "gradient_norm",
            "note" if harmless else "warning",
            f"the gradient norm is {number(float(np.median(last)))} at the end, above {number(GRADIENT_HIGH)}{clipped}",
            "usual for losses that are summed over an image, and harmless with Adam as long as the loss falls, which it does"
            if harmless
            else "gradients are large and the loss does not fall",
            "nothing to do; means over the pixels (per_element) give norms that can be compared between image sizes"
            if harmless
            else "lower the learning rate",
            () if harmless else (f"--training.learning_rate {number_plain(rate / 3)}",),
        )
    elif np.mean(last < GRADIENT_LOW) > PERSISTENT:
        stuck = _fall(record) < HARDLY
        yield Finding(
            "gradient_norm",
            "warning" if stuck else "note",
            f"the gradient norm is {number(float(np.median(last)))} at the end, below {number(GRADIENT_LOW)}",
            "gradients vanish and the loss hardly falls"
            if stuck
            else "gradients are small: losses that are means over the pixels "
            "have such gradients, and so do converged runs",
            "raise the learning rate, or look at the weights of the losses: they may all be tiny"
            if stuck
            else "nothing to do with Adam, whose steps do not depend on the gradient's scale",
            (f"--training.learning_rate {number_plain(rate * 3)}",) if stuck else (),
        )
    elif (
        clip and record.option("training.gradient_clip_algorithm", "norm") == "norm" and np.mean(last > clip) > CLIPPED
    ):
        yield Finding(
            "gradient_norm",
            "note",
            f"{np.mean(last > clip):.0%} of the last steps are clipped to {number(clip)}; the median norm is "
            f"{number(float(np.median(last)))}",
            "the clip sets the length of every step, where it is meant for outliers",
            "set it above the usual norm",
            (f"--training.gradient_clip {number_plain(2 * float(np.median(last)))}",),
        )


@rule("gradient_spikes", "single large gradients", needs=["train/grad_norm"], rows=100)
def gradient_spikes(record: Record) -> Iterator[Finding]:
    """Steps whose gradient is many times that of their surroundings."""
    norm = record.curves["train/grad_norm"]
    parts = np.array_split(norm.values, min(40, len(norm) // 10))
    medians = np.concatenate([np.full(len(p), np.nanmedian(p)) for p in parts])
    spikes = norm.values > SPIKE * medians
    if np.mean(spikes) > SPIKE_SHARE:
        first = int(norm.steps[np.argmax(spikes)])
        clip = float(record.option("training.gradient_clip", 1.0))
        yield Finding(
            "gradient_spikes",
            "note" if clip else "warning",
            f"{int(spikes.sum())} of {len(norm)} gradients are more than {SPIKE:g} times the usual, the first at step {first}",
            "single batches push the weights; clipping bounds what they do"
            if clip
            else "single batches push the weights, unclipped",
            "look at the images of these steps; a lower learning rate and larger batches help"
            if clip
            else "clip gradients",
            () if clip else ("--training.gradient_clip 1",),
        )


@rule("learning_rate_high", "whether the loss falls steadily", needs=["train/total"])
def learning_rate_high(record: Record) -> Iterator[Finding]:
    """The loss diverges, oscillates or stops being finite."""
    total, rate = record.curves["train/total"], record.option("training.learning_rate", 1e-4)
    lower = (f"--training.learning_rate {number_plain(rate / 3)}",)
    bad = ~np.isfinite(total.values)
    if bad.any():
        step = int(total.steps[np.argmax(bad)])
        yield Finding(
            "learning_rate_high",
            "critical",
            f"the loss is {total.values[np.argmax(bad)]} at step {step}",
            "training has broken down",
            "lower the learning rate, and look for extreme values in the images",
            lower,
        )
        return
    smooth = loss_curve(record, "train")
    gained, back, best = gain(smooth)
    if back > GIVEN_BACK and gained > 0 and back * gained > 3 * scatter(smooth):
        at = int(smooth.steps[int(np.argmin(smooth.values))])
        yield Finding(
            "learning_rate_high",
            "critical" if back > 1 else "warning",
            f"the training loss was {number(best)} at step {at} and is {number(float(smooth.values[-1]))} at the end",
            f"it has given back {back:.0%} of what it had gained: the run diverges",
            "lower the learning rate; checkpoints/best is from before",
            lower,
        )
        return
    rises = _rises(smooth)
    if rises >= RISES:
        yield Finding(
            "learning_rate_high",
            "warning",
            f"the smoothed training loss rose {rises} times by more than {RISE:.0%} of its whole fall",
            "the loss oscillates: steps are too long",
            "lower the learning rate, or take larger batches",
            (*lower, f"--training.batch_size {2 * int(record.option('training.batch_size', 32))}"),
        )


@rule("learning_rate_low", "whether the loss falls fast enough", needs=["train/total"], rows=40)
def learning_rate_low(record: Record) -> Iterator[Finding]:
    """The loss has hardly moved and falls in a straight line."""
    smooth, rate = loss_curve(record, "train"), record.option("training.learning_rate", 1e-4)
    if len(smooth) < 10 or not np.isfinite(smooth.values).all():
        return
    start, end = float(smooth.values[0]), float(smooth.values[-1])
    fall = (start - end) / max(abs(start), 1e-12)
    late = slice(len(smooth) // 2, None)
    x, y = smooth.steps[late].astype(float), smooth.values[late]
    correlation = float(np.corrcoef(x, y)[0, 1]) if np.std(y) > 0 else 0.0
    first, second = start - float(smooth.values[len(smooth) // 2]), float(smooth.values[len(smooth) // 2]) - end
    if 0 < fall < HARDLY and correlation < -0.9 and second > 0.5 * first:
        yield Finding(
            "learning_rate_low",
            "warning",
            f"the loss fell by {fall:.1%} in {record.step} steps, from {number(start)} to {number(end)}, in a straight line",
            "steps are too short: the run has hardly begun to learn",
            "raise the learning rate",
            (f"--training.learning_rate {number_plain(rate * 3)}",),
        )


@rule("warmup", "the start of the learning rate")
def warmup(record: Record) -> Iterator[Finding]:
    """A large model that starts at its full learning rate."""
    steps = record.option("training.warmup_steps")
    if steps == 0 and (record.parameters or 0) >= LARGE_MODEL:
        yield Finding(
            "warmup",
            "note",
            f"no warm-up, for {number((record.parameters or 0) / 1e6)} million parameters",
            "the first steps of Adam are its least certain; large models can be thrown off by them",
            "warm the learning rate up",
            (f"--training.warmup_steps {min(1000, max(1, (record.total_steps or 20000) // 20))}",),
        )


@rule("schedule_ended", "the end of the learning rate", needs=["train/lr"])
def schedule_ended(record: Record) -> Iterator[Finding]:
    """Steps at a learning rate of next to nothing."""
    lr = record.curves["train/lr"]
    idle = lr.values < 0.01 * np.nanmax(lr.values)
    idle[: len(idle) // 2] = False
    if np.mean(idle) > 0.15:
        yield Finding(
            "schedule_ended",
            "note",
            f"the learning rate is below 1 % of its peak from step {int(lr.steps[np.argmax(idle)])} on",
            "the schedule had ended: these steps changed next to nothing",
            "take a constant schedule to go on for longer",
            ("--training.schedule constant",),
        )


def _diverged(record: Record) -> bool:
    return "train/total" in record.curves and gain(loss_curve(record, "train"))[1] > GIVEN_BACK


def _fall(record: Record) -> float:
    """Return how far the loss has fallen, relative to its start."""
    if "train/total" not in record.curves:
        return math.nan
    values = loss_curve(record, "train").values
    return float((values[0] - values[-1]) / max(abs(values[0]), 1e-12))


def _rises(smooth: Curve) -> int:
    """Count rises from a valley to the next peak by more than ``RISE`` of the whole fall, and beyond the scatter."""
    values = smooth.values
    need = max(RISE * (float(values[0]) - float(np.min(values))), 1e-12)
    count, valley = 0, float(values[0])
    peak = -math.inf
    for value in values:
        if value - valley > need:
            if peak == -math.inf:
                count += 1
            peak = max(peak, float(value))
            if value < peak - need:
                valley, peak = float(value), -math.inf
        elif peak > -math.inf and value < peak - need:
            valley, peak = float(value), -math.inf
        else:
            valley = min(valley, float(value))
    return count
