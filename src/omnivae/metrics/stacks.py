"""What seeing a clip in stacks of frames costs, next to seeing all of it at once."""

from __future__ import annotations

from torch import Tensor

from omnivae.metrics.inference import Inference
from omnivae.metrics.registry import metric


@metric(
    unit="",
    better="lower",
    meaning=(
        "RMS difference between the reconstruction in stacks of frames and that of the whole clip, over the value range's width, "
        "in the frames on both sides of each boundary; 0 where stacks leave no trace."
    ),
    scope="inference",
)
def stack_boundary(inference: Inference) -> Tensor:
    """Return the boundary error of each clip.

    Args:
        inference: a batch of clips and a model that sees stacks (:class:`omnivae.models.StackedVAE`).

    Returns:
        ``[B]``, 0 or more.

    Raises:
        ValueError: for a model without stacks, or clips that fit into one.
    """
    model, x = inference.model, inference.x
    if not hasattr(model, "stacking"):
        raise ValueError(
            f"stack_boundary is of models that see stacks of frames, such as VideoVAE; leave it out for a {type(model).__name__}"
        )
    boundaries = model.boundaries(x.shape[2])
    if not boundaries:
        raise ValueError(
            f"stack_boundary compares stacks with the whole clip, and this model sees these {x.shape[2]} frames at once; leave it "
            "out, or set model.stack_size to less"
        )
    with model.stacking(None):
        whole = model.decode(model.encode(x, inference.cond), inference.cond).clamp(*model.value_range)
    low, high = model.value_range
    beside = sorted({frame for b in boundaries for frame in (b - 1, b)})
    difference = (inference.reconstruction - whole)[:, :, beside].double() / (high - low)
    return difference.square().flatten(1).mean(1).sqrt()
