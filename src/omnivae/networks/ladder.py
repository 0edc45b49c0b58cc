"""Networks of VAEs with several vector latents: a deterministic pass up to one feature vector a level, and a walk down.

Sønderby et al., Ladder Variational Autoencoders, 2016 (https://arxiv.org/abs/1602.02282).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from omnivae.component import Component
from omnivae.networks.layers import refuse_cond, without_autocast
from omnivae.types import Network

LadderNorm = Literal["batch", "none"]


class LadderEncoder(nn.Module, Component):
    """Images to one feature vector for each level, each computed from the one below (Sønderby et al., 2016, eq. 11).

    Args:
        stem: network from images to a flat feature vector, the features of the lowest level.
        widths: width of the features of every level above the lowest, going up; one level more than there are widths.
        norm: "batch" or "none".

    Example:
        >>> from omnivae.networks import MLPEncoder
        >>> up = LadderEncoder(MLPEncoder(1, (4, 4), (32,)), (16, 8))
        >>> [tuple(f.shape) for f in up(torch.zeros(2, 1, 4, 4))]
        [(2, 8), (2, 16), (2, 32)]
    """

    def __init__(self, stem: Network, widths: Sequence[int], *, norm: LadderNorm = "batch") -> None:
        super().__init__()
        _check(widths, norm)
        self.stem = stem
        self.dim: int = stem.dim  # type: ignore[attr-defined]
        self.in_channels = stem.in_channels
        self.stride = stem.stride
        self.level_features = (*tuple(widths)[::-1], stem.out_channels)
        self.layers = nn.ModuleList(mlp(i, o, norm) for i, o in pairwise((stem.out_channels, *widths)))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return features, those of the top level first.

        Args:
            x: ``[B, in_channels, *S]``.
            cond: not supported; must be ``None``.

        Returns:
            ``[B, width]`` for each level.

        Raises:
            ValueError: for a condition.
        """
        refuse_cond(self, cond)
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(found[-1]))
        return tuple(found[::-1])


class LadderDecoder(nn.Module, Component):
    """A walk down the levels: at each the parameters of its prior and its posterior, then z, then a hidden vector.

    The first level's prior is the standard normal; the others' is a function of the hidden vector.

    Args:
        head: network from the last hidden vector to likelihood parameters; its input has ``widths[-1]`` channels.
        level_channels: size of z at each level, the top one first.
        level_features: size of the encoder's features at each level, the top one first.
        widths: size of the hidden vector below each level.
        norm: "batch" or "none".
        skip: whether a hidden vector is made from z and the hidden vector above (``p(x|z_1, z_2)``), or from z alone
            (``p(z_l|z_l-1)``, as in the ladder).
        top_down: whether a posterior sees the levels above (``q(z_l|x, z_<l)``), or the image only.

    Raises:
        ValueError: for lists of different lengths or a head of another width.

    Example:
        >>> from omnivae.networks import MLPDecoder
        >>> down = LadderDecoder(MLPDecoder(32, 1, (4, 4), (64,)), (2, 8), (16, 64), (24, 32))
        >>> down(3, (), None, lambda level, prior, posterior: prior.chunk(2, 1)[0]).shape
        torch.Size([3, 1, 4, 4])
    """

    def __init__(
        self,
        head: Network,
        level_channels: Sequence[int],
        level_features: Sequence[int],
        widths: Sequence[int],
        *,
        norm: LadderNorm = "batch",
        skip: bool = True,
        top_down: bool = True,
    ) -> None:
        super().__init__()
        _check(widths, norm)
        if not len(level_channels) == len(level_features) == len(widths) or min(level_channels) < 1:
            raise ValueError(
                f"got level_channels={tuple(level_channels)}, level_features={tuple(level_features)}, widths={tuple(widths)}; "
                "expected one positive number of each a level"
            )
        if head.in_channels != widths[-1]:
            raise ValueError(f"got a head of {head.in_channels} inputs; the last hidden vector has {widths[-1]}")
        self.dim: int = head.dim  # type: ignore[attr-defined]
        self.level_channels = tuple(level_channels)
        self.level_scales = (1,) * len(widths)
        self.in_channels = sum(level_channels)
        self.out_channels = head.out_channels
        self.stride = head.stride
        self.skip, self.top_down = skip, top_down
        above = (0, *widths[:-1])
        self.priors = nn.ModuleList(
            nn.Linear(w, 2 * c) for w, c in zip(above[1:], self.level_channels[1:], strict=True)
        )
        self.posteriors = nn.ModuleList(
            nn.Linear(f + (w if top_down else 0), 2 * c)
            for f, w, c in zip(level_features, above, self.level_channels, strict=True)
        )
        self.layers = nn.ModuleList(
            mlp(c + (w if skip else 0), o, norm) for c, w, o in zip(self.level_channels, above, widths, strict=True)
        )
        self.head = head

    def forward(
        self,
        batch: int,
        grid: tuple[int, ...],
        features: tuple[Tensor, ...] | None,
        choose: Callable[[int, Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        """Return likelihood parameters.

        Args:
            batch: number of rows N.
            grid: ``()``: these latents are vectors.
            features: of the encoder, ``[N, width]`` each; ``None`` without an image.
            choose: from a level, its prior's parameters ``[N, 2C]`` and its posterior's to z ``[N, C]``.

        Returns:
            ``[N, out_channels, *S]``.
        """
        like: Tensor = self.posteriors[0].weight  # type: ignore[assignment]
        h = None
        for level, layer in enumerate(self.layers):
            prior = (
                like.new_zeros(batch, 2 * self.level_channels[0])
                if h is None
                else in_full_precision(self.priors[level - 1], h)
            )
            posterior = None
            if features is not None:
                known = features[level] if h is None or not self.top_down else torch.cat([features[level], h], 1)
                posterior = in_full_precision(self.posteriors[level], known)
            z = choose(level, prior, posterior).to(like.dtype)
            h = layer(z if h is None or not self.skip else torch.cat([z, h], 1))
        return self.head(h)  # type: ignore[arg-type]


def in_full_precision(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer in the precision of its weights: under autocast a bf16 log-variance would quantise the KL.

    Args:
        layer: with a ``weight``.
        x: its input.

    Returns:
        Its output.
    """
    weight: Any = layer.weight
    with without_autocast(x):
        return layer(x.to(weight.dtype))


def mlp(in_channels: int, out_channels: int, norm: LadderNorm) -> nn.Sequential:
    """Return two linear layers, each normalised and rectified, leaking a tenth (Sønderby et al., 2016, section 3).

    Args:
        in_channels: size of the input.
        out_channels: size of both layers.
        norm: "batch" or "none".
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, inputs in enumerate((in_channels, out_channels)):
        # A bias before batch normalisation would be subtracted again.
        layers[f"linear{i}"] = nn.Linear(inputs, out_channels, bias=norm != "batch")
        if norm == "batch":
            layers[f"norm{i}"] = nn.BatchNorm1d(out_channels)
        layers[f"act{i}"] = nn.LeakyReLU(0.1)
    return nn.Sequential(layers)


def _check(widths: Sequence[int], norm: str) -> None:
    if not widths or min(widths) < 1:
        raise ValueError(f"got widths={tuple(widths)}; expected positive numbers, one a level")
    if norm not in ("batch", "none"):
        raise ValueError(f"got norm={norm!r}; expected 'batch' or 'none'")
