"""Grids: shapes, pixels, and input that is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from omnivae.report import comparison_grid, image_grid, interpolation_grid, to_pixels, to_png, traversal_grid
from omnivae.report.figures import channel_grid


def test_value_range_becomes_black_to_white():
    x = torch.tensor([-1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 4)
    assert to_pixels(x)[0, 0, :, 0].tolist() == [0, 128, 255, 255]
    assert to_pixels(x, (0, 2))[0, 0, :, 2].tolist() == [0, 0, 128, 255]


def test_channels_are_shown_as_grey_overlay_or_rgb():
    high, low = torch.ones(1, 1, 1, 1), -torch.ones(1, 1, 1, 1)
    assert to_pixels(high)[0, 0, 0].tolist() == [255, 255, 255]
    assert to_pixels(torch.cat([high, low], 1))[0, 0, 0].tolist() == [255, 0, 255]
    assert to_pixels(torch.cat([high, low, low], 1))[0, 0, 0].tolist() == [255, 0, 0]
    # More channels are lights of their own colours: the third cyan, the fourth yellow, together white.
    assert to_pixels(torch.cat([low, low, high, low, low], 1))[0, 0, 0].tolist() == [0, 255, 255]
    assert to_pixels(torch.cat([low, low, high, high, low], 1))[0, 0, 0].tolist() == [255, 255, 255]
    assert to_pixels(torch.cat([low, low, low, high], 1))[0, 0, 0].tolist() == [255, 255, 0]
    seven = [to_pixels(torch.eye(7)[i].view(1, 7, 1, 1), (0, 1))[0, 0, 0].tolist() for i in range(7)]
    assert len({tuple(colour) for colour in seven[:6]}) == 6
    assert seven[6] == seven[0]


def test_alpha_lays_images_on_white():
    x = torch.tensor([1.0, 0.0, 0.0, 0.5]).view(1, 4, 1, 1)  # half-transparent red
    assert to_pixels(x, (0, 1), alpha=True)[0, 0, 0].tolist() == [255, 128, 128]
    assert to_pixels(x[:, 2:], (0, 1), alpha=True)[0, 0, 0].tolist() == [128, 128, 128]
    assert to_pixels(x[:, :3], (0, 1), alpha=True)[0, 0, 0].tolist() == [255, 0, 0]


def test_channels_alone_are_grey_and_named():
    x = torch.zeros(10, 8, 8)
    x[1] = 1
    grid = channel_grid(x, x / 2, (0, 1))
    tile = 96
    left = grid.shape[1] - 8 * tile - 7 * 4
    for row, value in ((0, 255), (1, 128)):
        line = grid[grid.shape[0] - (2 - row) * (tile + 4) + 4 + tile // 2, left:]
        centres = line[tile // 2 :: tile + 4]
        assert centres.tolist() == [[value * (i == 1)] * 3 for i in range(8)]


def test_clips_show_a_strip_of_frames_from_first_to_last():
    x = torch.arange(9.0).reshape(1, 1, 9, 1, 1).expand(1, 1, 9, 4, 6) / 8
    picture = to_pixels(x, (0, 1))
    assert picture.shape == (1, 4, 30, 3)
    assert picture[0, 0, ::6, 0].tolist() == [0, 64, 128, 191, 255]
    assert to_pixels(x[:, :, :2], (0, 1)).shape == (1, 4, 12, 3)
    assert to_pixels(x[:, :, :1], (0, 1)).shape == (1, 4, 6, 3)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_grid_holds_the_images_enlarged_without_smoothing(channels):
    x = torch.rand(3, channels, 8, 8) * 2 - 1
    grid = image_grid(x, columns=2)
    assert grid.dtype == np.uint8
    assert grid.shape == (96 * 2 + 4, 96 * 2 + 4, 3)
    assert (grid[:96, :96][6::12, 6::12] == to_pixels(x)[0]).all()
    assert (grid[100:, 100:] == 255).all()


def test_large_images_are_reduced_and_labels_add_a_line():
    x = torch.zeros(1, 3, 600, 300)
    assert image_grid(x).shape == (256, 128, 3)
    assert image_grid(x, labels=["a label that is far too long for its picture"]).shape[0] > 256
    with pytest.raises(ValueError, match="got 2 labels for 1 images"):
        image_grid(x, labels=["a", "b"])
    with pytest.raises(ValueError, match="got no image"):
        image_grid(x[:0])


def test_error_maps_share_one_scale():
    x = torch.zeros(2, 3, 8, 8)
    r = x.clone()
    r[0] += 0.25
    r[1] += 0.5
    grid = comparison_grid(x, r)
    assert grid.shape[0] == 3 * 96 + 2 * 4
    magma = [tuple(round(v * 255) for v in colormaps["magma"](u)[:3]) for u in (0.5, 1.0)]
    row = grid[-48]
    for colour in magma:
        assert (np.abs(row.astype(int) - colour).max(-1) <= 1).sum() >= 90


def test_identical_images_have_black_error_maps():
    x = torch.rand(2, 1, 8, 8)
    grid = comparison_grid(x, x, (0, 1), labels=["∞ dB", "∞ dB"], samples=x)
    assert np.isfinite(grid).all()
    with pytest.raises(ValueError, match="expected equal shapes"):
        comparison_grid(x, x[:1])


def test_walks_have_a_row_each():
    frames = torch.rand(2, 5, 1, 8, 8)
    plain = interpolation_grid(frames, (0, 1))
    with_ends = interpolation_grid(frames, (0, 1), ends=frames[:, [0, -1]])
    assert with_ends.shape[0] == plain.shape[0]
    assert with_ends.shape[1] > plain.shape[1] + 2 * 96
    rows = traversal_grid(frames, (0, 1), dimensions=[7, 3], kl=[0.0] * 8)
    assert rows.shape[0] == plain.shape[0]
    assert rows.shape[1] > plain.shape[1]


def test_png_round_trips():
    grid = image_grid(torch.rand(2, 3, 8, 8))
    assert (np.asarray(Image.open(io.BytesIO(to_png(grid)))) == grid).all()
