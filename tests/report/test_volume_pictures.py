"""Planes of volumes stand upright whatever the order of the stored axes, in true proportions; pictures say what they show."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from omnivae.report.planes import planes, triptych
from omnivae.report.volumes import (
    Layer,
    comparison_pictures,
    difference_layer,
    display_range,
    slices_picture,
    thumbnail,
)
from omnivae.volume import Volume


def stored_as(orientation: str, spacing: tuple[float, float, float] = (1.0, 2.0, 3.0)) -> Volume:
    """The same body, whose value is 100 R + 10 A + S in mm from its corner, with its axes stored in another order."""
    size = {"R": 4, "A": 5, "S": 6}
    step = dict(zip("RAS", spacing, strict=True))
    opposite = dict(zip("LPI", "RAS", strict=True))
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, letter in enumerate(orientation):
        main = opposite.get(letter, letter)
        row = "RAS".index(main)
        affine[row, axis] = step[main] * (1 if letter == main else -1)
        affine[row, 3] = 0 if letter == main else step[main] * (size[main] - 1)
    shape = tuple(size[opposite.get(letter, letter)] for letter in orientation)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    values = grid @ np.array([100.0, 10.0, 1.0])
    return Volume(values[None], affine)


def every_orientation() -> list[str]:
    return [
        "".join(letters)
        for order in itertools.permutations(("RL", "AP", "SI"))
        for letters in itertools.product(*order)
    ]


@pytest.mark.parametrize("orientation", every_orientation())
def test_patients_are_upright_in_every_orientation(orientation):
    volume = stored_as(orientation)
    assert volume.orientation == orientation
    inverse = np.linalg.inv(volume.affine)
    at = np.rint(inverse[:3, :3] @ [2.0, 4.0, 9.0] + inverse[:3, 3]).astype(int)  # R 2, A 4, S 9 mm
    axial, coronal, sagittal = planes(volume, at)
    right, front, head = np.arange(3, -1, -1) * 1.0, np.arange(4, -1, -1) * 2.0, np.arange(5, -1, -1) * 3.0
    # Right of the patient on the left, front at the top; head at the top; front on the left.
    np.testing.assert_allclose(axial.pixels[0], 100 * right[None] + 10 * front[:, None] + 9)
    np.testing.assert_allclose(coronal.pixels[0], 100 * right[None] + 40 + head[:, None])
    np.testing.assert_allclose(sagittal.pixels[0], 200 + 10 * front[None] + head[:, None])
    assert [p.letters for p in (axial, coronal, sagittal)] == [
        ("R", "L", "A", "P"),
        ("R", "L", "S", "I"),
        ("A", "P", "S", "I"),
    ]
    assert [p.extent for p in (axial, coronal, sagittal)] == [(10, 4), (18, 4), (18, 10)]


def test_planes_of_a_stage_are_in_the_order_of_the_file():
    volume = Volume(np.arange(24.0).reshape(1, 2, 3, 4), np.diag([4.0, 0.5, 0.5, 1.0]), space="stage")
    yx, zx, zy = planes(volume, (1, 0, 3))
    assert (yx.name, zx.name, zy.name) == ("yx", "zx", "zy")
    np.testing.assert_array_equal(yx.pixels, volume.array[:, 1])
    np.testing.assert_array_equal(zx.pixels, volume.array[:, :, 0])
    np.testing.assert_array_equal(zy.pixels, volume.array[..., 3])
    assert zx.spacing == (4.0, 0.5)
    assert yx.letters == ("", "", "", "")
    with pytest.raises(ValueError, match="three indices inside"):
        planes(volume, (2, 0, 0))


def test_a_thick_slice_is_as_tall_as_it_is():
    # 10 slices of 4 mm are as tall as 40 rows of 1 mm.
    volume = Volume(np.zeros((1, 40, 40, 10)), np.diag([1.0, 1.0, 4.0, 1.0]))
    assert thumbnail(volume, side=80).shape == (80, 3 * 84, 3)
    x = torch.zeros(2, 1, 40, 40, 10)
    assert triptych(x, (1, 1, 4), patient=True, side=40).shape == (2, 1, 40, 3 * 40 + 2 * 2)


def test_a_triptych_shows_the_middle_planes():
    x = torch.rand(1, 2, 4, 6, 8)
    drawn = triptych(x, side=8)
    assert drawn.shape == (1, 2, 6, 8 + 2 + 8 + 2 + 6)
    torch.testing.assert_close(drawn[..., :8], x[:, :, 2])
    torch.testing.assert_close(drawn[:, :, 1:5, 10:18], x[:, :, :, 3])
    assert drawn[:, :, 0, 10:].isnan().all()


def test_pictures_of_ct_come_in_three_windows_and_a_difference():
    rng = np.random.default_rng(0)
    volume = Volume(
        rng.integers(-1000, 1000, (1, 12, 10, 8)).astype(np.int16), np.diag([-1.0, -1.0, 3.0, 1.0]), unit="HU"
    )
    other = volume.with_array(volume.array + np.float32(30))
    pictures = comparison_pictures(volume, other)
    assert [title for title, _ in pictures] == [
        "lung window, -600/1500 HU",
        "soft tissue window, 40/400 HU",
        "bone window, 400/1800 HU",
        "difference, reconstruction minus original",
    ]
    for _, png in pictures:
        picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        assert picture.shape[1] == 1500
        assert picture.std() > 5
    layer = difference_layer(volume, other)
    assert (layer.low, layer.high, layer.unit) == (-50.0, 50.0, "HU")
    # The whole volume is 30 HU too bright: its difference is red, more red than blue by the same amount everywhere.
    picture = np.asarray(Image.open(io.BytesIO(pictures[-1][1])).convert("RGB")).astype(int)
    middle = picture[picture.shape[0] // 2, 300]
    assert middle[0] > middle[2] + 30


def test_display_range_and_shapes_that_do_not_fit():
    flat = Volume(np.full((1, 4, 4, 4), 7, np.uint16), np.eye(4), space="stage")
    assert display_range(flat) == (6.5, 7.5)
    assert display_range(flat.with_array(flat.array.astype(np.int16), unit="HU")) == (-1000.0, 1000.0)
    spread = flat.with_array(np.arange(64, dtype=np.float32).reshape(1, 4, 4, 4))
    assert display_range(spread) == pytest.approx(tuple(np.percentile(np.arange(64), [0.5, 99.5])))
    other = Volume(np.zeros((1, 4, 4, 5)), np.eye(4), space="stage")
    with pytest.raises(ValueError, match="all of one size"):
        slices_picture([Layer("a", flat, 0, 1), Layer("b", other, 0, 1)])


def test_several_channels_are_laid_over_each_other():
    array = np.zeros((3, 4, 16, 16), np.float32)
    array[0, :, :8] = 1  # the upper half in the first channel's colour, magenta
    picture = thumbnail(Volume(array, np.eye(4), space="stage"), side=64)
    np.testing.assert_array_equal(picture[10, 10], [255, 0, 255])
