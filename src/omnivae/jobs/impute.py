"""Missing pixels, filled in by what a model expects given the others."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Independent

from omnivae.report.latent_ops import device_of, evaluating
from omnivae.training.corruption import FILL
from omnivae.training.device import Precision

log = logging.getLogger(__name__)

Method = Literal["importance", "gibbs"]
#: Pixel values decoded at once.
BUDGET = 2**22
#: A result of less reliability is warned about.
UNRELIABLE = 0.01


@dataclass(frozen=True)
class Imputation:
    """Images without holes.

    Attributes:
        x: observed pixels as they were, missing ones as their conditional expectation, ``[B, C, *S]``.
        reliability: of each image, ``[B]``: the effective share of the samples, ``1 / (K sum w²)`` for importance weights, the
            share of accepted proposals for Gibbs. Near zero, the result hangs on a few samples: use more, or the other method.
    """

    x: Tensor
    reliability: Tensor


@torch.no_grad()
def impute(
    model: Any,
    x: Tensor,
    mask: Tensor,
    *,
    method: Method = "importance",
    num_samples: int = 1000,
    burn_in: int = 100,
    cond: Tensor | None = None,
    seed: int = 0,
) -> Imputation:
    """Fill missing pixels with their conditional expectation given the observed ones, E[x_missing | x_observed].

    "importance": the mean of E[x|z_k] over K samples of q(z|x with zeros in the holes), weighted by
    ``w_k ~ p(x_observed|z_k) p(z_k) / q(z_k)`` and normalised (Mattei & Frellsen, MIWAE, 2019, eq. 10); right for every encoder as
    K grows, and good at once for a model that was trained with ``training.corrupt: missing``.

    "gibbs": a chain that encodes the filled image, decodes, draws the missing pixels and keeps the observed ones (Rezende et al.,
    2014, appendix F), each code accepted with the probability that makes the chain exact (Mattei & Frellsen, Leveraging the
    exact likelihood of deep latent variable models, 2018, algorithm 1); the mean over ``num_samples`` steps after
    ``burn_in``. For models trained on whole images.

    Args:
        model: a VAE with a posterior that has a density; used in evaluation mode and left as it was.
        x: images in the value range, ``[B, C, *S]``; what stands in the holes does not matter.
        mask: 1 where a pixel is known, 0 where it is missing, ``[B, 1, *S]``.
        method: "importance" or "gibbs".
        num_samples: samples, or steps of the chain, >= 1.
        burn_in: steps of the chain that are dropped; the first half of them accept every code, to come near quickly.
        cond: condition, ``[B, E]``.
        seed: of the samples; the global random state is left as it was.

    Returns:
        The images, and how far they can be trusted.

    Raises:
        ValueError: for a mask of another shape or with other values than 0 and 1, a model without densities, a likelihood that does
            not split into pixels, or arguments out of range.
    """
    _check(model, x, mask, method, num_samples, burn_in)
    device = device_of(model)
    x, known = x.to(device), mask.to(device, x.dtype)
    cond = None if cond is None else cond.to(device)
    low, high = model.value_range
    holes = torch.full_like(x, min(max(FILL, low), high))
    x = torch.where(known.bool(), x, holes)
    with evaluating(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        if method == "importance":
            expected, reliability = _importance(model, x, known, cond, num_samples)
        else:
            expected, reliability = _gibbs(model, x, known, cond, num_samples, burn_in)
    return Imputation(torch.where(known.bool(), x, expected.to(x)), reliability)


def impute_files(
    model: str | Path,
    files: Sequence[str | Path],
    mask: str | Path,
    output: str | Path,
    *,
    method: Method = "importance",
    num_samples: int = 1000,
    cond: str | None = None,
    seed: int = 0,
    precision: Precision = "32",
) -> dict[Path, float]:
    """Fill the holes of image files; observed pixels, names and formats stay as they were.

    Args:
        model: a model directory or a run.
        files: images.
        mask: a picture of their size, or a folder with one of the same name for each: black where a pixel is missing, anything else
            where it is known.
        output: directory to write to.
        method: see :func:`impute`.
        num_samples: see :func:`impute`.
        cond: what the images are, for a conditional model: a class, or ``name=value`` separated by commas.
        seed: of the samples.
        precision: of the networks.

    Returns:
        Each file written, and the reliability of its imputation.

    Raises:
        FileNotFoundError: when a mask is missing.
        ValueError: for a mask of another size, or an image that the model would have to resize.
    """
    from omnivae.data import read_header, read_image, save_like
    from omnivae.jobs.conditions import told
    from omnivae.jobs.evaluate import load
    from omnivae.jobs.reconstruct import list_files, read_for, reading_options

    loaded = load(model, precision)
    own = told(loaded, cond)
    row = None if own is None else own[None]
    options = reading_options(loaded)
    written = {}
    for source, name in list_files(files, Path(output)):
        header = read_header(source, str(source), options)
        x = read_for(loaded, source)
        if tuple(x.shape[2:]) != (header.height, header.width):
            raise ValueError(
                f"{source} is {header.height} x {header.width} and the model takes {x.shape[2]} x {x.shape[3]}; resize image and "
                "mask first, so that observed pixels can be kept"
            )
        place = Path(mask) / name if Path(mask).is_dir() else Path(mask)
        if not place.is_file():
            raise FileNotFoundError(f"no mask {place} for {source}")
        picture = torch.from_numpy(read_image(place, str(place)).astype("float64"))
        if tuple(picture.shape[:2]) != tuple(x.shape[2:]):
            raise ValueError(
                f"the mask {place} is {picture.shape[0]} x {picture.shape[1]} and its image {x.shape[2]} x {x.shape[3]}: resize one"
            )
        known = (picture > 0).any(-1)[None, None]
        result = impute(loaded, x, known.to(x), method=method, num_samples=num_samples, cond=row, seed=seed)
        target = Path(output) / name
        save_like(
            result.x[0].float().cpu().clamp(*loaded.value_range),
            target,
            header,
            value_range=loaded.value_range,
            options=options,
            alpha=None,
        )
        written[target] = float(result.reliability[0])
        if written[target] < UNRELIABLE:
            what = "weights leave few samples that count" if method == "importance" else "chain hardly moves"
            log.warning(
                "%s: the %s; take more samples, or the other --method, and trust the result accordingly", source, what
            )
    return written


# -- inside


def _check(model: Any, x: Tensor, mask: Tensor, method: str, num_samples: int, burn_in: int) -> None:
    if method not in ("importance", "gibbs"):
        raise ValueError(f"got method={method!r}; expected 'importance' or 'gibbs'")
    if num_samples < 1 or burn_in < 0:
        raise ValueError(f"got num_samples={num_samples}, burn_in={burn_in}; expected at least 1 sample and 0 steps")
    expected = (len(x), 1, *x.shape[2:])
    if tuple(mask.shape) != expected:
        raise ValueError(f"got a mask of shape {tuple(mask.shape)}; expected {expected}, 1 where a pixel is known")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            "the mask has values other than 0 and 1; expected 1 where a pixel is known and 0 where it is missing"
        )
    if "density" not in getattr(model.posterior, "provides", {"density"}) or model.prior is None:
        raise ValueError(
            f"imputation weighs samples by their density, which {type(model.posterior).__name__} does not have; use a model with a "
            "gaussian posterior"
        )


def _observed(likelihood: Any, x: Tensor, known: Tensor) -> Tensor:
    """Return the log-density of the known pixels, ``[K, B]`` float64."""
    if not isinstance(likelihood, Independent):
        raise ValueError(
            f"imputation needs a likelihood that splits into pixels, and {type(likelihood).__name__} does not; use a model with a "
            "gaussian, laplace or bernoulli one"
        )
    return (likelihood.base_dist.log_prob(x) * known).double().flatten(2).sum(2)


def _importance(model: Any, x: Tensor, known: Tensor, cond: Tensor | None, num_samples: int) -> tuple[Tensor, Tensor]:
    q = model.encode(x, cond)
    prior = model.prior(q.shape, model.encode, cond)
    step = max(1, BUDGET // x.numel())
    # Sums relative to the largest weight so far, so that none overflows however many there are.
    largest = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    total, squares = torch.zeros_like(largest), torch.zeros_like(largest)
    mean = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    shape = (-1, *[1] * (x.ndim - 1))
    for start in range(0, num_samples, step):
        z, log_q = q.rsample(min(step, num_samples - start))
        likelihood = model.likelihood(z, cond, size=q.input_size)
        log_w = _observed(likelihood, x, known) + prior.log_prob(z).double() - log_q.double()
        top = torch.maximum(largest, log_w.max(0).values)
        scale, w = (largest - top).exp(), (log_w - top).exp()
        total, squares = total * scale + w.sum(0), squares * scale**2 + w.square().sum(0)
        weighted = (w.reshape(*w.shape, *[1] * (x.ndim - 1)) * likelihood.mean.double()).sum(0)
        mean, largest = mean * scale.reshape(shape) + weighted, top
    return mean / total.reshape(shape), total.square() / squares / num_samples


def _gibbs(
    model: Any, x: Tensor, known: Tensor, cond: Tensor | None, num_samples: int, burn_in: int
) -> tuple[Tensor, Tensor]:
    everywhere = torch.ones_like(known)
    q = model.encode(x, cond)
    prior = model.prior(q.shape, model.encode, cond)
    z = q.rsample(1)[0]
    mean = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    accepted = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    current = model.likelihood(z, cond, size=q.input_size)
    for step in range(burn_in + num_samples):
        # Missing pixels given the code, then the code given all pixels.
        drawn = current.sample()[0]
        x = torch.where(known.bool(), x, drawn.to(x))
        q = model.encode(x, cond)
        proposal, log_q = q.rsample(1)
        offered = model.likelihood(proposal, cond, size=q.input_size)
        gain = _observed(offered, x, everywhere) + prior.log_prob(proposal).double() - log_q.double()
        gain = gain - _observed(current, x, everywhere) - prior.log_prob(z).double() + q.log_prob(z).double()
        take = torch.rand(len(x), dtype=torch.float64, device=x.device).log() < gain[0]
        if step < burn_in // 2:
            # From a first code of zeros-filled holes most proposals would be refused: every one is taken until the chain is near.
            take = torch.ones_like(take)
        z = torch.where(take.reshape(1, -1, *[1] * (z.ndim - 2)), proposal, z)
        current = model.likelihood(z, cond, size=q.input_size)
        if step >= burn_in:
            # The expectation given the code in place of a draw: the same mean with less noise.
            mean += current.mean[0].double()
            accepted += take
    return mean / num_samples, accepted / num_samples
