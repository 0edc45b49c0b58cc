"""How well a model that infers classes names them."""

from __future__ import annotations

from torch import Tensor

from omnivae.metrics.inference import Inference
from omnivae.metrics.registry import metric


@metric(
    unit="",
    better="higher",
    meaning="Share of images whose label the model's own classifier finds.",
    scope="inference",
    masks=True,
)
def class_accuracy(inference: Inference) -> Tensor:
    """Return whether the likeliest class under q(y|x) is the image's own, 1 or 0, ``[B]`` float64.

    Kingma et al., Semi-supervised Learning with Deep Generative Models, 2014, table 1 (there as an error).

    Args:
        inference: of a model with ``classify``, and images with labels.

    Raises:
        ValueError: for a model that infers no classes, or images without labels.
    """
    classify = getattr(inference.model, "classify", None)
    if classify is None:
        raise ValueError(
            f"class_accuracy needs a model that infers classes, and {type(inference.model).__name__} does not: train one with the "
            "recipe m2_vae, or measure probe_accuracy"
        )
    cond = inference.cond
    if cond is None or not bool(cond.any(dim=1).all()):
        raise ValueError(
            "class_accuracy needs the label of every image: set data.cond to label, or leave the metric out"
        )
    return (classify(inference.x).argmax(1) == cond.argmax(1)).double()
