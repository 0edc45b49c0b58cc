"""Walks through the latent space: reconstructions, interpolations and traversals, without gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from omnivae.metrics import Inference, kl_per_dimension
from omnivae.report.collect import batch_size_for


@torch.no_grad()
def reconstruct(model: Any, x: Tensor, cond: Tensor | None = None) -> Tensor:
    """Decode the posterior modes of images.

    Args:
        model: a VAE; used in evaluation mode and left as it was.
        x: images in the model's value range, ``[B, C, *S]``.
        cond: condition, ``[B, E]``.

    Returns:
        ``[B, C, *S]``, as decoded: not clamped to the value range.
    """
    with evaluating(model):
        return model.decode(model.encode(x.to(device_of(model)), cond), cond)


@torch.no_grad()
def interpolate(
    model: Any,
    x1: Tensor,
    x2: Tensor,
    *,
    steps: int = 10,
    mode: Literal["linear", "spherical"] | None = None,
    cond: Tensor | None = None,
) -> Tensor:
    """Decode a path between the posterior modes of two images, at ``linspace(0, 1, steps)``.

    Between codes there is nothing that a decoder of codes has seen: on a quantised model each step takes the nearest codes.

    Args:
        model: a VAE; used in evaluation mode and left as it was.
        x1: first image, ``[C, *S]``.
        x2: second image, of the same shape.
        steps: number of images on the path, >= 2, both ends included.
        mode: "linear" for ``(1 - a) z1 + a z2``; "spherical" for the great circle (Shoemake, Animating rotation with
            quaternion curves, 1985), which keeps the norm that a Gaussian prior expects in high dimensions. By default linear,
            and spherical where latents are points of a sphere.
        cond: condition of both images ``[E]``, or of each ``[2, E]``; on the way it goes from one to the other in a line.

    Returns:
        ``[steps, C, *S]``; the ends are the two reconstructions.

    Raises:
        ValueError: for images of unequal shape, fewer than two steps, an unknown mode, or one that leaves the latents' support:
            the line that of a sphere, the circle that of categories.
    """
    if x1.shape != x2.shape:
        raise ValueError(
            f"got images of shape {tuple(x1.shape)} and {tuple(x2.shape)}; expected equal shapes: resize one"
        )
    if steps < 2:
        raise ValueError(f"got steps={steps}; expected at least the two ends")
    if mode not in (None, "linear", "spherical"):
        raise ValueError(f"got mode={mode!r}; expected 'linear' or 'spherical'")
    mode = mode or natural_mode(model)
    _check_stays_inside(model, mode)
    device = device_of(model)
    pair = torch.stack([x1, x2]).to(device)
    with evaluating(model):
        ends = cond.to(device) if cond is not None and cond.ndim == 2 else _repeat(cond, 2, device)
        q = model.encode(pair, ends)
        z1, z2 = q.mode()
        alpha = torch.linspace(0, 1, steps, dtype=z1.dtype, device=device).reshape(-1, *[1] * z1.ndim)
        path = (1 - alpha) * z1 + alpha * z2 if mode == "linear" else great_circle(z1, z2, alpha)
        if in_codes(model):
            # The ends are codes already; residual codebooks might find others for the same sum.
            path = torch.cat([z1[None], model.posterior.snap(path[1:-1]), z2[None]])
        if ends is not None:
            ends = torch.lerp(ends[:1], ends[1:], torch.linspace(0, 1, steps, dtype=ends.dtype, device=device)[:, None])
        return _decode(model, path, ends, q.input_size)


@torch.no_grad()
def traverse(
    model: Any,
    x: Tensor,
    *,
    dimensions: Sequence[int] | None = None,
    span: float = 3.0,
    steps: int = 9,
    statistics: tuple[Tensor, Tensor] | None = None,
    cond: Tensor | None = None,
) -> Tensor:
    """Decode an image's latent with one dimension at a time set to values across its range.

    Args:
        model: a VAE; used in evaluation mode and left as it was.
        x: the image whose other dimensions are kept, ``[C, *S]``.
        dimensions: which dimensions, one row each; by default all, by falling KL of this image.
        span: how far to go, in standard deviations to either side of the mean, > 0.
        steps: number of values, >= 2.
        statistics: mean and standard deviation of each dimension over the data (of the aggregate posterior), ``[D]``
            each; the standard normal's by default.
        cond: condition, ``[E]``.

    Returns:
        ``[len(dimensions), steps, C, *S]``. A dimension of a spatial latent is a channel; it is set to the value at all
        positions alike.

    Raises:
        ValueError: for a dimension that the latent lacks, fewer than two steps, a span that is not positive, or a model whose
            latents have no dimensions to vary (see :func:`check_varies`).
    """
    check_varies(model)
    if steps < 2 or not span > 0:
        raise ValueError(f"got steps={steps}, span={span}; expected at least 2 steps and a positive span")
    device = device_of(model)
    with evaluating(model):
        inference = Inference(model, x[None].to(device), ["x"], cond=_repeat(cond, 1, device))
        q = inference.posterior
        z = q.mode()
        if dimensions is None:
            dimensions = order_by_kl(kl_per_dimension(inference), z.shape[1])
        wrong = [d for d in dimensions if not 0 <= d < z.shape[1]]
        if wrong:
            raise ValueError(f"got latent dimension {wrong[0]}; this model has dimensions 0 to {z.shape[1] - 1}")
        mean, std = statistics or (torch.zeros(z.shape[1]), torch.ones(z.shape[1]))
        rows = []
        for d in dimensions:
            values = float(mean[d]) + float(std[d]) * torch.linspace(-span, span, steps)
            moved = z.repeat(steps, *[1] * (z.ndim - 1))
            moved[:, d] = values.to(z).reshape(-1, *[1] * (z.ndim - 2))
            rows.append(_decode(model, moved, cond, q.input_size))
        return torch.stack(rows)


def order_by_kl(kl: Tensor | Sequence[float] | None, num_dimensions: int) -> list[int]:
    """Return the dimensions by falling KL.

    Args:
        kl: KL of each dimension in nats, ``[D]``; ``None`` or empty where it is not defined.
        num_dimensions: D.

    Returns:
        A permutation of ``range(D)``; the identity where there is no KL.

    Example:
        >>> order_by_kl([0.1, 2.0, 0.5], 3)
        [1, 2, 0]
    """
    if kl is None or not len(kl):
        return list(range(num_dimensions))
    return torch.argsort(torch.as_tensor(kl), descending=True, stable=True).tolist()


def in_codes(model: Any) -> bool:
    """Return whether a model's latents are codes."""
    return hasattr(getattr(model, "posterior", None), "snap")


def support(model: Any) -> str:
    """Return what a model's latents are: "codes", points of a "sphere", "one-hot" categories, or "real" vectors."""
    return "codes" if in_codes(model) else getattr(getattr(model, "posterior", None), "support", "real")


def natural_mode(model: Any) -> Literal["linear", "spherical"]:
    """Return the way between two latents that stays among them: the great circle on a sphere, else the line."""
    return "spherical" if support(model) == "sphere" else "linear"


def check_varies(model: Any) -> None:
    """Refuse to set one dimension of a latent by itself where that would make it no latent.

    Args:
        model: a VAE.

    Raises:
        ValueError: for codes, points of a sphere, and one-hot categories; names two ways out.
    """
    why = {
        "codes": "a latent of codes has no dimensions to vary: {head} knows one code or another, and nothing between",
        "sphere": "a point of a sphere has no dimension to vary by itself: another value takes it off the sphere of {head}",
        "one-hot": "a one-hot latent has no dimensions to vary: {head} knows one category or another, and nothing between",
    }.get(support(model))
    if why is None:
        return
    draw = "from a prior over the codes (omnivae prior, omnivae sample)" if in_codes(model) else "(omnivae sample)"
    raise ValueError(
        f"{why.format(head=type(model.posterior).__name__)}; walk between two images instead (omnivae interpolate), or draw images "
        f"{draw}"
    )


def great_circle(z1: Tensor, z2: Tensor, alpha: Tensor) -> Tensor:
    """Return the latents on the great circle between two (Shoemake, Animating rotation with quaternion curves, 1985).

    ``sin((1 - a) θ) / sin θ z1 + sin(a θ) / sin θ z2`` with the angle θ between the two as vectors.

    Args:
        z1: latent at ``a = 0``, any shape.
        z2: latent at ``a = 1``, of the same shape.
        alpha: the ``a``, in [0, 1], ``[steps, 1, ...]`` with one axis of 1 for each axis of a latent.

    Returns:
        ``[steps, *shape]``; the straight line between parallel or opposite latents, which have no one great circle.

    Example:
        >>> middle = great_circle(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([[0.5]]))
        >>> round(float(middle.norm()), 4)
        2.0
    """
    cosine = torch.nn.functional.cosine_similarity(z1.double().flatten(), z2.double().flatten(), dim=0).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if float(angle.sin()) < 1e-6:
        # Parallel or opposite latents: there is no one great circle, and the line is its limit.
        return (1 - alpha) * z1 + alpha * z2
    a = alpha.double()
    return ((torch.sin((1 - a) * angle) * z1 + torch.sin(a * angle) * z2) / angle.sin()).to(z1.dtype)


# -- inside


def _check_stays_inside(model: Any, mode: str) -> None:
    if mode == "linear" and support(model) == "sphere":
        raise ValueError(
            "a straight line between two points of a sphere leaves it, and the decoder has seen nothing else: take "
            "mode='spherical', which is the default here, or a model of real vectors such as conv_vae"
        )
    if mode == "spherical" and support(model) == "one-hot":
        raise ValueError(
            "a great circle between two one-hot latents leaves the probabilities that the decoder has seen: take mode='linear', "
            "which is the default, or a model of real vectors such as conv_vae"
        )


def _decode(model: Any, z: Tensor, cond: Tensor | None, size: Sequence[int]) -> Tensor:
    """Decode in parts, so that a walk through large images needs no more memory than a few of them."""
    conds = cond if cond is None or cond.ndim == 2 else _repeat(cond, len(z), z.device)
    parts = [slice(start, start + batch_size_for(size)) for start in range(0, len(z), batch_size_for(size))]
    return torch.cat([model.decode(z[p], None if conds is None else conds[p], size=size) for p in parts])


def _repeat(cond: Tensor | None, n: int, device: torch.device) -> Tensor | None:
    return None if cond is None else cond.to(device).expand(n, *cond.shape)


def has_alpha(model: Any) -> bool:
    """Return whether the last channel of the images that a model was trained on is alpha."""
    return bool(getattr(model, "statistics", {}).get("data", {}).get("alpha", False))


def device_of(model: Any) -> torch.device:
    """Return the device of a model's parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode, and every part of it back into its own mode afterwards."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
