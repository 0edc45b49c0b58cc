"""Tiny untrained models and random images in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from omnivae.models import VAE
from omnivae.recipes.convolutional import conv_vae


def tiny_model(channels: int = 1, latent: str = "vector") -> VAE:
    torch.manual_seed(0)
    return conv_vae(
        in_channels=channels, image_size=8, latent_dim=5, channels=(4, 8), norm="none", latent=latent
    ).eval()


class MemoryDataset:
    """Blurred noise in [-1, 1], labelled in turn."""

    def __init__(self, count: int = 14, channels: int = 1, labels: int | None = 3, key: str = "image") -> None:
        g = torch.Generator().manual_seed(1)
        noise = torch.rand(count, channels, 8, 8, generator=g) * 2 - 1
        self.x: Tensor = torch.nn.functional.avg_pool2d(noise, 3, 1, 1).clamp(-1, 1)
        self.labels = labels
        self.key = key

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, object]:
        item: dict[str, object] = {"x": self.x[index], "key": f"{self.key}/{index}"}
        if self.labels is not None:
            item["label"] = torch.tensor(index % self.labels)
        return item
