"""Corrupted inputs with clean targets: denoising VAEs, and training with missing pixels.

Vincent et al., Extracting and composing robust features with denoising autoencoders, 2008; Im et al., Denoising Criterion for
Variational Auto-Encoding Framework, 2017; Mattei & Frellsen, MIWAE: Deep Generative Modelling and Imputation of Incomplete Data
Sets, 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, cast, get_args

import torch
from torch import Tensor

from omnivae.types import Batch

Kind = Literal["none", "gaussian", "salt_and_pepper", "mask", "missing"]
#: Kinds that leave a clean target to be recovered.
DENOISING = ("gaussian", "salt_and_pepper", "mask")
#: What stands where a pixel is not known: MIWAE's zero, inside either value range.
FILL = 0.0


@dataclass(frozen=True)
class Corruption:
    """What happens to images on their way into the encoder; the reconstruction is compared with the images themselves.

    Results are clipped to the value range, as a stored picture would be.

    Args:
        kind: "gaussian" noise; "salt_and_pepper", pixels set to black or white (all channels alike); "mask", pixels set to 0;
            "missing", the same, and what is missing does not count in the loss either (losses must know masks: nll, iwae, l1,
            mse); "none".
        strength: of "gaussian", the standard deviation as a share of the value range's width; of the others, the share of pixels.

    Raises:
        ValueError: for an unknown kind, or a strength out of its range.

    Example:
        >>> batch = Corruption("mask", 0.5)({"x": torch.ones(1, 3, 4, 4)}, (0.0, 1.0))
        >>> sorted(batch), batch["target"].mean()
        (['target', 'x'], tensor(1.))
    """

    kind: Kind = "none"
    strength: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"got training.corrupt={self.kind!r}; expected {', '.join(get_args(Kind))}")
        highest = float("inf") if self.kind == "gaussian" else 1.0
        if self.kind == "none" and self.strength != 0:
            raise ValueError(
                f"got training.corrupt_strength={self.strength:g} without a corruption; say training.corrupt too, such as gaussian"
            )
        if self.kind != "none" and not 0 < self.strength < highest:
            raise ValueError(
                f"got training.corrupt_strength={self.strength:g} for {self.kind}; expected "
                + (
                    "a standard deviation > 0, such as 0.2"
                    if self.kind == "gaussian"
                    else "a share of pixels between 0 and 1, such as 0.5"
                )
            )

    def __call__(self, batch: Batch, value_range: tuple[float, float]) -> Batch:
        """Return the batch with corrupted images, drawn from torch's global generator.

        Args:
            batch: clean images; a target that it has stays.
            value_range: lowest and highest pixel value.

        Returns:
            The same batch where the kind is "none"; otherwise a new one, with ``target``, and ``mask`` where pixels are missing.
        """
        if self.kind == "none":
            return batch
        x = batch["x"]
        corrupted, known = self.corrupt(x, value_range)
        changed = {**batch, "x": corrupted, "target": batch.get("target", x)}
        if self.kind == "missing":
            mask = batch.get("mask")
            changed["mask"] = known if mask is None else known * mask
        return cast(Batch, changed)

    def corrupt(
        self, x: Tensor, value_range: tuple[float, float], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return corrupted images, and which pixels were left alone.

        Args:
            x: ``[B, C, *S]``.
            value_range: lowest and highest pixel value.
            generator: source of the noise on the images' device; torch's global one by default.

        Returns:
            Images, and 1 where a pixel is as it was ``[B, 1, *S]`` (nowhere, under Gaussian noise).
        """
        low, high = value_range
        if self.kind == "gaussian":
            noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
            return (x + self.strength * (high - low) * noise).clamp(low, high), torch.zeros_like(x[:, :1])
        u = torch.rand((len(x), 1, *x.shape[2:]), dtype=x.dtype, device=x.device, generator=generator)
        kept = u >= self.strength
        if self.kind == "salt_and_pepper":
            extreme = torch.where(u < self.strength / 2, low, high).to(x)
            return torch.where(kept, x, extreme), kept.to(x)
        fill = min(max(FILL, low), high)
        return torch.where(kept, x, torch.full_like(x, fill)), kept.to(x)

    def to_dict(self) -> dict[str, Any]:
        """Return kind and strength, for ``statistics.json``."""
        return asdict(self)

    @classmethod
    def of(cls, statistics: Mapping[str, Any]) -> Self:
        """Return what a model was trained under.

        Args:
            statistics: of the model.

        Returns:
            The corruption; "none" where the statistics hold none.
        """
        return cls(**statistics.get("corruption", {}))
