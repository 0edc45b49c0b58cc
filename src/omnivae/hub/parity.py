"""Proof that two models compute the same: outputs on random and structured inputs, and layer by layer where they part.

That every weight found a place says nothing about the function: sizes may double by another interpolation, convolutions pad
on the other side, an activation stand where none did. Only numbers show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omnivae.hub.layouts import Architecture, Reference
from omnivae.models.vae import VAE
from omnivae.types import strides

#: Largest root-mean-square difference, relative to the output's spread, that counts as equal in float32: rounding of the
#: models measured stays below 2e-6. Every wrong operator gives 1e-2 and more; an eps of 1e-5 for 1e-6 gives 5e-6 to 1e-2,
#: depending on the weights, and below the tolerance it makes no difference to anybody.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Difference:
    """How far apart two tensors are.

    Attributes:
        name: of the output or layer.
        max_abs: largest absolute difference.
        relative: root-mean-square difference over the standard deviation of the reference (its size, where it is constant).
    """

    name: str
    max_abs: float
    relative: float

    def equal(self, tolerance: float = TOLERANCE) -> bool:
        """Whether they are equal up to rounding."""
        return self.relative <= tolerance

    def to_data(self) -> dict[str, Any]:
        """Return plain data for a JSON file."""
        return {"name": self.name, "max_abs": self.max_abs, "relative": self.relative}


@dataclass(frozen=True)
class Proof:
    """The comparison of a model with the original implementation.

    Attributes:
        reference: library, version and class of the original.
        outputs: mean, log-variance and reconstruction for each input.
        layers: layers that both have, in the order in which the original runs them.
        tolerance: largest relative difference that counts as equal.
    """

    reference: str
    outputs: tuple[Difference, ...]
    layers: tuple[Difference, ...]
    tolerance: float

    @property
    def equal(self) -> bool:
        """Whether all outputs are equal up to rounding."""
        return all(d.equal(self.tolerance) for d in self.outputs)

    @property
    def first(self) -> Difference | None:
        """The first layer that differs, in the order of the original."""
        return next((d for d in self.layers if not d.equal(self.tolerance)), None)

    @property
    def worst(self) -> Difference:
        """The output that differs most."""
        return max(self.outputs, key=lambda d: d.relative if math.isfinite(d.relative) else math.inf)

    def summary(self) -> str:
        """Return the verdict in one or two lines."""
        worst = self.worst
        figures = f"max abs {worst.max_abs:.1e}, relative {worst.relative:.1e} ({worst.name})"
        if self.equal:
            return (
                f"equal to {self.reference}: {len(self.outputs)} outputs and {len(self.layers)} layers within "
                f"{self.tolerance:g} of their spread; largest difference {figures}"
            )
        parted = f"; the first layer that differs is {self.first.name}" if self.first else ""
        return f"loaded but NOT EQUAL to {self.reference}: {figures}{parted}"

    def to_data(self) -> dict[str, Any]:
        """Return plain data for a JSON file."""
        return {
            "reference": self.reference,
            "equal": self.equal,
            "tolerance": self.tolerance,
            "outputs": [d.to_data() for d in self.outputs],
            "layers": [d.to_data() for d in self.layers],
        }


def difference(name: str, reference: Tensor, other: Tensor) -> Difference:
    """Return how far a tensor is from a reference.

    Args:
        name: what they are.
        reference: the original.
        other: of the same shape; of another one it is infinitely far.

    Returns:
        The figures.

    Example:
        >>> difference("x", torch.tensor([0.0, 2.0]), torch.tensor([0.0, 2.0])).max_abs
        0.0
    """
    if reference.shape != other.shape:
        return Difference(f"{name} {list(other.shape)} for {list(reference.shape)}", math.inf, math.inf)
    a, b = reference.double(), other.double()
    spread = float(a.std(correction=0)) or float(a.square().mean().sqrt()) or 1.0
    return Difference(name, float((a - b).abs().max()), float((a - b).square().mean().sqrt()) / spread)


def inputs_for(model: VAE, *, size: Sequence[int] | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Return one random and one structured image of odd proportions for a model.

    Args:
        model: says channels, strides and, where it has one, its canvas.
        size: spatial size; a few strides along each axis by default, each another number of them.
        seed: of the random one.

    Returns:
        Name to ``[1, C, *S]`` in the model's value range.
    """
    if size is None:
        size = model.image_size or _whole(model)
    low, high = model.value_range
    generator = torch.Generator().manual_seed(seed)
    shape = (1, model.in_channels, *size)
    noise = torch.rand(shape, generator=generator)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in size], indexing="ij")
    radius = torch.stack(axes).square().sum(0).sqrt()
    # A ramp, a ball and a checkerboard of single pixels: smooth parts, edges and the highest frequency.
    checker = (
        sum(torch.arange(n).reshape([-1 if i == j else 1 for j in range(len(size))]) for i, n in enumerate(size)) % 2
    )
    picture = 0.25 * (axes[0] + 1) + 0.35 * (radius < 0.6) + 0.15 * checker * (axes[-1] > 0.3)
    planes = [picture.roll(c, dims=-1) for c in range(model.in_channels)]
    structured = torch.stack(planes).unsqueeze(0)
    return {"noise": low + (high - low) * noise, "structure": low + (high - low) * structured.clamp(0, 1)}


def _whole(model: VAE) -> list[int]:
    """Return a few strides along each axis, and one more where the model counts so (causal video)."""
    stride = strides(model.encoder, model.dim)
    size = model.padded_size([s * n for s, n in zip(stride, (2, 3, 2), strict=False)])
    more = model.padded_size([n + 1 for n in size])
    return [n + 1 if s > 1 and m == n + 1 else n for n, s, m in zip(size, stride, more, strict=True)]


@torch.no_grad()
def prove(
    model: VAE,
    reference: Reference,
    architecture: Architecture | None = None,
    *,
    inputs: Mapping[str, Tensor] | None = None,
    tolerance: float = TOLERANCE,
) -> Proof:
    """Compare a model with the original implementation on the same inputs.

    Args:
        model: ours, with the weights.
        reference: the original, with the same weights.
        architecture: gives the pairs of names for the comparison of layers; outputs only without it.
        inputs: name to ``[B, C, *S]``; :func:`inputs_for` by default.
        tolerance: largest relative difference that counts as equal.

    Returns:
        The proof, or where it fails.
    """
    inputs = inputs or inputs_for(model)
    pairs = _layer_pairs(architecture, reference.names) if architecture else {}
    outputs: list[Difference] = []
    layers: dict[str, Difference] = {}
    model.eval()
    for name, x in inputs.items():
        with _recorded(reference.module, pairs) as theirs:
            mean, logvar = reference.encode(x)
            image = reference.decode(mean)
        with _recorded(model, pairs.values()) as ours:
            posterior = model.encode(x)
            decoded = model.decode(mean)
        outputs.append(difference(f"mean of {name}", mean, posterior.mean))
        if logvar is not None:
            outputs.append(difference(f"log-variance of {name}", logvar, posterior.logvar))
        outputs.append(difference(f"reconstruction of {name}", image, decoded))
        for layer in theirs:  # in the order in which the original ran them
            if pairs[layer] in ours:
                found = difference(layer, theirs[layer], ours[pairs[layer]])
                if layer not in layers or found.relative > layers[layer].relative:
                    layers[layer] = found
    return Proof(reference.name, tuple(outputs), tuple(layers.values()), tolerance)


@torch.no_grad()
def compare(model: VAE, other: VAE, *, inputs: Mapping[str, Tensor] | None = None) -> tuple[Difference, Difference]:
    """Return how much two models of the same weights differ: in the mean, and in what they decode from the same latent.

    Args:
        model: what is assumed.
        other: an alternative.
        inputs: name to ``[B, C, *S]``; the structured one of :func:`inputs_for` by default.

    Returns:
        Difference of the means, and of the reconstructions.
    """
    x = (inputs or inputs_for(model))["structure"]
    mean = model.encode(x).mean
    return (
        difference("mean", mean, other.encode(x).mean),
        difference("reconstruction", model.decode(mean), other.decode(mean)),
    )


def _layer_pairs(architecture: Architecture, named: Mapping[str, str]) -> dict[str, str]:
    """Return their module -> our module for every module that has weights of its own in both."""
    pairs = {}
    for name, ours in architecture.names.items():
        theirs = named.get(name, name)
        if theirs.endswith(".weight") and ours.endswith(".weight"):
            pairs[theirs.removesuffix(".weight")] = ours.removesuffix(".weight")
    return pairs


@contextmanager
def _recorded(module: nn.Module, names: Any) -> Any:
    """Keep the first output of each named layer, in the order of the calls."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and name not in found:
                found[name] = output.detach().clone()  # what follows may work in place

        return hook

    known = dict(module.named_modules())
    handles = [known[name].register_forward_hook(keep(name)) for name in names if name in known]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
