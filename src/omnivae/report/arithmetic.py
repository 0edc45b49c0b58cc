"""Arithmetic with codes: the vector from images without an attribute to images with it, added to another image's code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omnivae.report.collect import Chosen, batch_size_for
from omnivae.report.latent_ops import device_of, evaluating


@dataclass(frozen=True)
class AttributeVector:
    """The mean code of images with an attribute minus that of images without it.

    Attributes:
        vector: ``[C, *S]``, on the CPU.
        num_plus: images with the attribute.
        num_minus: images without it.
        separation: AUROC of the codes' projection onto the vector, on the same images: 0.5 says that the two groups
            differ by nothing along it. With few images in many dimensions it is too high.
    """

    vector: Tensor
    num_plus: int
    num_minus: int
    separation: float


@torch.no_grad()
def attribute_vector(model: Any, plus: Any, minus: Any) -> AttributeVector:
    """Return ``mean E(x+) - mean E(x-)`` over two groups of images (Larsen et al., Autoencoding beyond pixels, 2016, section 4.2).

    Args:
        model: a VAE; used in evaluation mode and left as it was.
        plus: map-style, items with ``x [C, *S]`` (and ``cond``): images with the attribute.
        minus: the same without it.

    Returns:
        The vector, and how well it separates the groups.

    Raises:
        ValueError: for an empty group, or images whose codes differ in shape.

    Example:
        >>> import omnivae
        >>> model = omnivae.conv_vae(in_channels=1, image_size=8, latent_dim=3)
        >>> bright = [{"x": torch.ones(1, 8, 8)}]
        >>> attribute_vector(model, bright, bright).vector
        tensor([0., 0., 0.])
    """
    if not len(plus) or not len(minus):
        raise ValueError(
            f"got {len(plus)} images with the attribute and {len(minus)} without; expected at least one each"
        )
    with evaluating(model):
        groups = [_codes(model, group) for group in (plus, minus)]
    shapes = {tuple(code.shape) for group in groups for code in group}
    if len(shapes) > 1:
        raise ValueError(
            f"the codes of these images have shapes {' and '.join(map(str, sorted(shapes)[:2]))}; expected images of one size"
        )
    with_it, without = (torch.stack(group) for group in groups)
    vector = with_it.double().mean(0) - without.double().mean(0)
    a, b = ((codes.double() * vector).flatten(1).sum(1) for codes in (with_it, without))
    above = (a[:, None] > b).double() + 0.5 * (a[:, None] == b).double()
    return AttributeVector(vector.float(), len(a), len(b), float(above.mean()))


@torch.no_grad()
def add_attribute(
    model: Any, x: Tensor, vector: Tensor, strengths: Sequence[float] = (-1.0, 0.0, 1.0), *, cond: Tensor | None = None
) -> Tensor:
    """Decode an image's code plus multiples of a vector.

    Args:
        model: a VAE; used in evaluation mode and left as it was.
        x: the image, ``[C, *S]``.
        vector: of its code's shape, ``[C, *S]``.
        strengths: the multiples; 0 decodes the image's own code.
        cond: condition, ``[E]``.

    Returns:
        ``[len(strengths), C, *S]``.

    Raises:
        ValueError: for no strength, or a vector of another shape than the code.
    """
    if not len(strengths):
        raise ValueError("got no strength; expected at least one number, such as 1")
    device = device_of(model)
    known = None if cond is None else cond[None].to(device)
    with evaluating(model):
        q = model.encode(x[None].to(device), known)
        z = q.mode()
        if z.shape[1:] != vector.shape:
            raise ValueError(
                f"the code of this image has shape {tuple(z.shape[1:])} and the vector {tuple(vector.shape)}; expected an image of "
                "the size of those that the vector was made from"
            )
        frames = []
        for strength in strengths:
            moved = (z + strength * vector.to(z)).to(z.dtype)
            frames.append(model.decode(moved, known, size=q.input_size))
        return torch.cat(frames)


def _codes(model: Any, group: Any) -> list[Tensor]:
    items = Chosen(group, list(range(len(group))))
    device = device_of(model)
    found: list[Tensor] = []
    index = 0
    while index < len(items):
        batch = [items[index]]
        room = batch_size_for(batch[0]["x"].shape[1:])
        while len(batch) < room and index + len(batch) < len(items):
            item = items[index + len(batch)]
            if item["x"].shape != batch[0]["x"].shape:
                break
            batch.append(item)
        index += len(batch)
        x = torch.stack([item["x"] for item in batch]).to(device)
        cond = None if batch[0].get("cond") is None else torch.stack([item["cond"] for item in batch]).to(device)
        found += list(model.encode(x, cond).mode().float().cpu())
    return found
