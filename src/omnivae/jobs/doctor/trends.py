"""What the rules about losses share: a loss that can be compared along a run, its gain and its scatter."""

from __future__ import annotations

from typing import Literal

import numpy as np

from omnivae.jobs.doctor.records import Curve, Record


def loss_curve(record: Record, split: Literal["train", "val"]) -> Curve:
    """Return the total loss; minus the ELBO where the weights of the losses change on the way.

    Args:
        record: the run.
        split: "train" (smoothed) or "val".

    Returns:
        A curve whose points can be compared with each other.
    """
    changing = any(
        len(c.finite) and np.ptp(c.finite) > 1e-6 * abs(float(c.finite[-1]))
        for name, c in record.curves.items()
        if name.startswith("train/weight/") and name != "train/weight/gan"
    )
    elbo = record.curves.get(f"{split}/elbo")
    curve = Curve(elbo.steps, -elbo.values) if changing and elbo is not None else record.curves[f"{split}/total"]
    return curve.smooth() if split == "train" else curve


def gain(smooth: Curve) -> tuple[float, float, float]:
    """Return what the loss gained from its start to its best, which share of it is lost again, and the best."""
    values = smooth.values
    best = float(np.min(values))
    gained = float(values[0]) - best
    # A loss that only rises has gained nothing: it is measured by its own size.
    scale = gained if gained > 0 else 0.1 * max(abs(float(values[0])), 1e-12)
    return max(scale, 1e-12), (float(values[-1]) - best) / max(scale, 1e-12), best


def scatter(curve: Curve) -> float:
    """Return the scatter about the curve's own trend, as a standard deviation.

    From second differences, in which a straight trend cancels: ``1.4826 * median|d2| / sqrt(6)``.
    """
    bends = np.abs(np.diff(curve.values, n=2))
    return float(1.4826 * np.median(bends) / np.sqrt(6)) if len(bends) else 0.0
