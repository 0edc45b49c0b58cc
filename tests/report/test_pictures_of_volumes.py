"""A model of volumes gets a report as well: planes, and where one picture stands for a volume its middle slice."""

from __future__ import annotations

import numpy as np
import torch

import omnivae
from omnivae.recipes.convolutional import conv_vae
from omnivae.report import write_report
from omnivae.report.planes import planes
from omnivae.report.volume_section import middle
from omnivae.volume import Volume


def test_report_on_volumes(tmp_path):
    torch.manual_seed(0)
    model = conv_vae(in_channels=1, image_size=8, latent_dim=3, channels=(2, 4), dim=3, norm="none")
    items = [{"x": torch.rand(1, 8, 8, 8), "key": str(i)} for i in range(4)]
    text = write_report(model, items, tmp_path / "r.html", num_images=2).read_text(encoding="utf-8")
    assert "8 × 8 × 8 voxels" in text


def test_one_slice_stands_for_a_volume_as_its_axial_plane_is_drawn():
    model = omnivae.MaisiVAE(num_channels=(8,), num_res_blocks=(1,), norm_num_groups=4, attention_levels=(False,))
    x = torch.rand(2, 3, 1, 4, 5, 6)
    model.statistics["intensity"] = {"unit": "HU", "window": [-1000, 1000], "range": [0, 1], "orientation": "RAS"}
    (axial, *_) = planes(Volume(x[1, 2].numpy(), np.eye(4)))
    assert axial.name == "axial"
    np.testing.assert_array_equal(middle(model, x)[1, 2].numpy(), axial.pixels)
    model.statistics["intensity"] = {"unit": "arbitrary", "percentiles": [0, 99.5], "range": [0, 1]}
    torch.testing.assert_close(middle(model, x), x[..., 2, :, :])
    images = torch.rand(2, 3, 8, 8)
    assert middle(omnivae.conv_vae(channels=(4,), image_size=8), images) is images
