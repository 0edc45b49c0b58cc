"""Rules about data and machine: value range, images without contrast, waiting, bad steps, interrupted runs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from omnivae.jobs.doctor.records import Record
from omnivae.jobs.doctor.registry import Finding, number, rule

#: Share of the value range that images should fill.
USED_RANGE = 0.25
#: Share of pixels at the ends of the range that reconstructions may have beyond the images.
SATURATED = 0.3
#: Share of a step's time spent waiting for images.
WAITING = 0.2
#: Speed at the end relative to the beginning.
SLOWER = 0.5
#: Share of updates that were skipped beyond which it is no accident.
SKIPPED = 0.01


@rule("data_range", "the values of the images")
def data_range(record: Record) -> Iterator[Finding]:
    """Images outside the range, or in a corner of it; without contrast; channels that hold nothing."""
    look = record.look
    if look is None:
        return
    low, high = look.value_range
    slack = 1e-3 * (high - low)
    seen = f"{look.images} images hold values from {number(look.low)} to {number(look.high)}"
    values = f"{seen}; the model is made for [{low:g}, {high:g}]"
    bernoulli = str(record.option("model.likelihood", "")) == "bernoulli"
    if look.low < low - slack or look.high > high + slack:
        yield Finding(
            "data_range",
            "critical",
            values,
            "a Bernoulli likelihood is not defined there" if bernoulli else "the model cannot reach these values",
            "say which stored values are black and white, and cut off what lies beyond",
            ("--data.input_range '[0, 255]'", "--data.clip true"),
        )
    elif look.high - look.low < USED_RANGE * (high - low):
        yield Finding(
            "data_range",
            "warning",
            values,
            "the images fill a corner of the range: the loss sees almost no contrast",
            "say which stored values are black and white (12-bit pictures in 16-bit files end at 4,095, for instance)",
            ("--data.input_range '[0, 4095]'",),
        )
    if look.constant:
        yield Finding(
            "data_range",
            "warning" if len(look.constant) < look.images else "critical",
            f"{len(look.constant)} of {look.images} images have no contrast, the first is {look.constant[0]}",
            "images of one value teach nothing, and normalisation divides by their deviation",
            "leave them out of the data",
        )
    if look.constant_channels:
        yield Finding(
            "data_range",
            "warning",
            f"channel {', '.join(map(str, look.constant_channels))} is the same everywhere in {look.images} images",
            "a channel without content costs capacity and flatters every metric",
            "store the images without it, or convert them",
            ("--data.channels 1",),
        )


@rule("saturation", "reconstructions at the ends of the range")
def saturation(record: Record) -> Iterator[Finding]:
    """Reconstructions are black or white where the images are not."""
    look = record.look
    if look is None or look.saturated is None or look.saturated <= look.saturated_data + SATURATED:
        return
    yield Finding(
        "saturation",
        "warning",
        f"{look.saturated:.0%} of the reconstructed values lie at the ends of the range, {look.saturated_data:.0%} of the images'",
        "the decoder's output is saturated: its gradients are gone there",
        "check that images are read into the range that the likelihood expects, and lower the learning rate",
    )


@rule("waiting_for_data", "the share of time spent waiting for images", needs=["train/data_wait_share"])
def waiting_for_data(record: Record) -> Iterator[Finding]:
    """The accelerator waits for the disk."""
    share = record.curves["train/data_wait_share"].level(0.3)
    if share > WAITING:
        workers = int(record.option("data.num_workers", 0))
        yield Finding(
            "waiting_for_data",
            "warning" if share > 0.5 else "note",
            f"{share:.0%} of the time of a step is spent waiting for images",
            "reading and decoding is the bottleneck",
            "read in more processes, and keep decoded images in memory",
            (
                f"--data.num_workers {max(2, 2 * workers)}",
                *(() if record.option("data.cache") is True else ("--data.cache true",)),
            ),
        )


@rule("slowing_down", "images a second over the run", needs=["train/images_per_s"], rows=50)
def slowing_down(record: Record) -> Iterator[Finding]:
    """A run that is far slower at its end than it was."""
    speed = record.curves["train/images_per_s"]
    before, after = speed.level(0.1, 0.3), speed.level(0.9)
    if after < SLOWER * before:
        yield Finding(
            "slowing_down",
            "warning",
            f"{number(before)} images/s at first, {number(after)} at the end",
            "something uses the machine up: another program, memory that runs out, a disk that slows down, heat",
            "look at the machine's memory, disk and other programs; repeating the command continues the run",
        )


@rule("bad_steps", "steps with a loss or gradient that is not finite")
def bad_steps(record: Record) -> Iterator[Finding]:
    """Flight records, and updates that were skipped."""
    skipped = record.curves.get("train/skipped_updates")
    count = int(np.nanmax(skipped.values)) if skipped is not None and len(skipped.finite) else 0
    if count:
        share = count / max(1, record.step)
        yield Finding(
            "bad_steps",
            "warning" if share > SKIPPED else "note",
            f"{count} updates were skipped ({share:.2%} of the steps)",
            "their loss or gradient was not finite",
            "see the flight records for the images and the cause",
        )
    for flight in record.flights[-3:]:
        stopped = flight.get("policy", "stop") == "stop"
        over = record.step > int(flight.get("step") or 0)
        where = " in ".join(str(flight[key]) for key in ("term", "module") if flight.get(key))
        files = [str(file) for file in flight.get("files") or []]
        named = f", images {', '.join(files[:3])}{' and more' if len(files) > 3 else ''}" if files else ""
        replay = flight.get("replay")
        yield Finding(
            "bad_steps",
            "critical" if stopped and not over else "note",
            f"step {flight.get('step', '?')} went bad{f' ({where})' if where else ''}{named}; record: {flight.get('path')}",
            str(flight.get("summary") or "the record names no cause"),
            str(flight.get("advice") or "look at the record")
            + (f"; `{replay}` computes the step again" if replay else ""),
        )


@rule("interrupted", "whether the run came to its end")
def interrupted(record: Record) -> Iterator[Finding]:
    """A run that was stopped in the middle."""
    total = record.total_steps
    if total is None or record.step >= total - int(record.option("training.log_every", 1)):
        return
    again = f"omnivae train --config {record.directory / 'config.yaml'} --output {record.directory}"
    yield Finding(
        "interrupted",
        "note",
        f"step {record.step} of {total}",
        "the run is still going, or was stopped before its end",
        f"continue it: `{again}` goes on from the last checkpoint"
        if record.checkpoint
        else f"no checkpoint had been written yet: `{again}` starts it anew",
    )
