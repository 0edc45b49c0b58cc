"""A model of volumes gets a report as well: every picture shows a strip of slices."""

from __future__ import annotations

import torch

from omnivae.recipes.convolutional import conv_vae
from omnivae.report import write_report


def test_report_on_volumes(tmp_path):
    torch.manual_seed(0)
    model = conv_vae(in_channels=1, image_size=8, latent_dim=3, channels=(2, 4), dim=3, norm="none")
    items = [{"x": torch.rand(1, 8, 8, 8), "key": str(i)} for i in range(4)]
    text = write_report(model, items, tmp_path / "r.html", num_images=2).read_text(encoding="utf-8")
    assert "8 × 8 × 8 voxels" in text
