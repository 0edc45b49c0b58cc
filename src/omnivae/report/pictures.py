"""Whole pictures of a model: what a run draws while it goes on, and the traversals of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from omnivae.report.clips import clip_grid
from omnivae.report.collect import Chosen, encode_all
from omnivae.report.figures import MAX_TILE, comparison_grid, traversal_grid
from omnivae.report.latent_ops import check_varies, device_of, evaluating, has_alpha, order_by_kl, reconstruct, traverse
from omnivae.report.volume_section import flat, is_clips, middle

if TYPE_CHECKING:
    from PIL.Image import Image


_MOST_VOLUMES = 3


@torch.no_grad()
def run_picture(
    model: Any, x: Tensor, *, cond: Tensor | None = None, seed: int = 0, spacing: Tensor | Sequence[float] | None = None
) -> Image:
    """Draw originals, reconstructions, error maps, and as many samples from the prior.

    Of volumes, of which three at most are drawn, each picture is three planes in true proportions; of as many clips it is a
    column for each of a few frames.

    Args:
        model: a VAE; used in evaluation mode and left as it was.
        x: images in the model's value range, ``[N, C, H, W]``, or volumes ``[N, C, D, H, W]``.
        cond: condition of the images and of the samples, ``[N, E]``.
        seed: seed of the samples, so that pictures of different steps show the same draws.
        spacing: of the voxels of volumes, ``[3]`` or ``[N, 3]``.

    Returns:
        A picture, ready to be saved.
    """
    from PIL import Image as images

    planar = x.ndim == 4
    if not planar:
        x, cond = x[:_MOST_VOLUMES], None if cond is None else cond[:_MOST_VOLUMES]
    with evaluating(model):
        generator = torch.Generator().manual_seed(seed)
        # A model without a prior (a plain autoencoder, a quantised one) has nothing to draw from.
        draws = getattr(model, "prior", model) is not None
        size = tuple(x.shape[2:])
        samples = model.sample(len(x), size=size, cond=cond, generator=generator).cpu() if draws else None
    decoded = reconstruct(model, x, cond).cpu()
    if not planar and is_clips(model):
        return images.fromarray(clip_grid(x.cpu(), decoded, model.value_range, samples=samples, alpha=has_alpha(model)))
    x, decoded = (flat(model, v, spacing) for v in (x.cpu(), decoded))
    grid = comparison_grid(
        x,
        decoded,
        model.value_range,
        samples=None if samples is None else flat(model, samples, spacing),
        max_tile=MAX_TILE if planar else 2 * MAX_TILE,
        alpha=has_alpha(model),
    )
    return images.fromarray(grid)


@torch.no_grad()
def traverse_model(
    model: Any,
    x: Tensor,
    references: Tensor,
    *,
    num_dimensions: int = 10,
    span: float = 3.0,
    steps: int = 9,
    reach: Literal["aggregate", "prior"] = "aggregate",
    cond: Tensor | None = None,
    reference_cond: Tensor | None = None,
    factors: Sequence[str] | None = None,
) -> Image:
    """Draw the traversals of an image's most informative latent dimensions, labelled with their KL.

    Args:
        model: a VAE; used in evaluation mode and left as it was.
        x: the image whose other dimensions are kept, ``[C, H, W]``.
        references: images whose latents give each dimension's KL, mean and standard deviation (of the aggregate
            posterior), ``[N, C, H, W]``.
        num_dimensions: rows, >= 1; all dimensions where the latent has fewer.
        span: standard deviations on each side of the mean, > 0.
        steps: images in a row, >= 2.
        reach: whose mean and standard deviation a row spans: "aggregate" for the aggregate posterior's (where images
            really are), "prior" for the prior's (where samples come from).
        cond: condition of ``x``, ``[E]``.
        reference_cond: condition of each reference ``[N, E]``; that of ``x`` by default.
        factors: what every latent dimension tells of (see :func:`omnivae.report.factors.labels_of`), for the labels.

    Returns:
        A picture, ready to be saved.

    Raises:
        ValueError: for no reference, fewer than one dimension, an unknown ``reach``, a prior without moments, or latents that
            have no dimensions to vary (codes, points of a sphere, categories).
    """
    from PIL import Image as images

    check_varies(model)

    if num_dimensions < 1 or not len(references):
        raise ValueError(f"got num_dimensions={num_dimensions}, {len(references)} references; expected at least 1 each")
    if reach not in ("aggregate", "prior"):
        raise ValueError(f"got reach={reach!r}; expected 'aggregate' or 'prior'")
    conds = [cond] * len(references) if reference_cond is None else list(reference_cond)
    items = [{"x": x, "key": str(i), "cond": c} for i, (x, c) in enumerate(zip(references, conds, strict=True))]
    with evaluating(model):
        encoded = encode_all(model, Chosen(items, list(range(len(items)))), device_of(model))
    order = order_by_kl(encoded.kl, len(encoded.centre))[:num_dimensions]
    statistics = (encoded.centre, encoded.spread)
    if reach == "prior":
        statistics = prior_moments(model, encoded.latent_shape, cond)
    frames = traverse(model, x, dimensions=order, span=span, steps=steps, statistics=statistics, cond=cond)
    grid = traversal_grid(
        middle(model, frames.cpu()),
        model.value_range,
        dimensions=order,
        kl=encoded.kl,
        factors=factors,
        span=span,
        max_tile=160,
        alpha=has_alpha(model),
    )
    return images.fromarray(grid)


def prior_moments(model: Any, latent_shape: tuple[int, ...], cond: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each latent dimension under the prior, ``[D]`` each.

    Args:
        model: a VAE.
        latent_shape: of one latent, ``(C, *S)``; a channel's positions are averaged.
        cond: condition, ``[E]``.

    Returns:
        Two tensors on the CPU.

    Raises:
        ValueError: for a model without a prior, or a prior whose moments are not known (a flow's).
    """
    if getattr(model, "prior", None) is None:
        raise ValueError("this model has no prior to span; traverse the aggregate posterior's range instead")
    known = None if cond is None else cond[None].to(device_of(model))
    prior = model.prior(torch.Size((1, *latent_shape)), model.encode, known)
    try:
        mean, variance = (t[0].unsqueeze(-1).flatten(1).cpu() for t in (prior.mean, prior.variance))
    except NotImplementedError as error:
        raise ValueError(
            f"the moments of {type(model.prior).__name__} are not known; traverse the aggregate posterior's range instead"
        ) from error
    centre = mean.mean(1)
    second = (mean.square() + variance).mean(1)
    return centre, (second - centre.square()).clamp(min=0).sqrt()
