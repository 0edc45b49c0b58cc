import numpy as np
import pytest

from omnivae.data import DataConfig, load_data, render_dsprites
from omnivae.data.worlds import DSPRITES


def centre(image):
    y, x = np.nonzero(image)
    return (x.min() + x.max()) / 2, (y.min() + y.max()) / 2


def test_numbering_is_the_originals():
    # The published bases of the index: 245760, 40960, 1024, 32, 1.
    factors = np.array([[2, 3, 17, 5, 9]])
    index = (factors * np.array([245760, 40960, 1024, 32, 1])).sum(1)
    assert DSPRITES.factors(index).tolist() == factors.tolist()
    assert DSPRITES.num_images == 737280


def test_values_are_the_originals():
    first, last = DSPRITES.factor_values(np.array([[0, 0, 0, 0, 0], [2, 5, 39, 31, 31]]))
    np.testing.assert_allclose(first, [1, 0.5, 0, 0, 0])
    np.testing.assert_allclose(last, [3, 1.0, 2 * np.pi, 1, 1])
    np.testing.assert_allclose(
        DSPRITES.factor_values(np.array([[0, 1, 1, 1, 0]]))[0, 1:4], [0.6, 2 * np.pi / 39, 1 / 31]
    )


def test_mean_pixel_is_the_originals():
    index = np.random.default_rng(0).integers(0, DSPRITES.num_images, 3000)
    assert abs(render_dsprites(DSPRITES.factors(index)).mean() - 0.0425) < 5e-4


def test_shapes_scale_turn_and_move():
    base = np.array([0, 5, 0, 16, 16])
    square, ellipse, heart = render_dsprites(np.array([[s, *base[1:]] for s in range(3)]))
    assert square.max() == 1
    assert square.dtype == np.uint8
    rows, columns = np.nonzero(square)
    assert square.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == 361
    # pi a b for the ellipse; the heart is symmetric, notched at the top and pointed at the bottom
    assert abs(ellipse.sum() - np.pi * 12.5 * 6.25) < 8
    assert np.array_equal(heart[:, 23:42], heart[:, 23:42][:, ::-1])
    top, bottom = np.nonzero(heart.any(1))[0][[0, -1]]
    assert heart[top, 32] == 0
    assert heart[bottom].sum() == heart[bottom, 32] == 1
    # scale: area goes with its square
    half = render_dsprites(np.array([[2, 0, 0, 16, 16]]))[0]
    assert abs(half.sum() / heart.sum() - 0.25) < 0.03
    # a full turn is no turn, a quarter turn swaps the axes
    for shape in range(3):
        turned = render_dsprites(np.array([[shape, 5, 39, 16, 16]]))[0]
        assert np.array_equal(turned, (square, ellipse, heart)[shape])
    # x to the right, y downwards, one pixel a step
    x0, y0 = centre(square)
    right, down = render_dsprites(np.array([[0, 5, 0, 20, 16], [0, 5, 0, 16, 10]]))
    assert centre(right) == (x0 + 4, y0)
    assert centre(down) == (x0, y0 - 6)


def test_no_sprite_leaves_the_frame():
    grid = np.stack(np.meshgrid(range(3), [5], range(40), [0, 31], [0, 31], indexing="ij"), -1).reshape(-1, 5)
    images = render_dsprites(grid)
    assert images[:, [0, -1]].max() == 0
    assert images[:, :, [0, -1]].max() == 0


def test_bad_factors_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2,\); expected \[N, 5\]: shape, scale"):
        render_dsprites(np.array([1, 2]))
    with pytest.raises(ValueError, match="out of its range"):
        render_dsprites(np.array([[3, 0, 0, 0, 0]]))


def test_dataset_has_factors_and_disjoint_splits():
    splits = load_data(DataConfig("dsprites"), value_range=(0.0, 1.0))
    counts = [len(part) for part in (splits.train, splits.val, splits.test)]
    assert counts == [589824, 73728, 73728]
    assert (
        len(np.unique(np.concatenate([splits.train.indices, splits.val.indices, splits.test.indices])))
        == DSPRITES.num_images
    )
    item = splits.val[3]
    number = int(splits.val.indices[3])
    assert item["key"] == f"dsprites/{number:06d}"
    assert item["label"].tolist() == DSPRITES.factors(np.array([number]))[0].tolist()
    assert np.array_equal(item["x"][0].numpy(), render_dsprites(DSPRITES.factors(np.array([number])))[0])
    np.testing.assert_allclose(splits.val.factor_values[3], DSPRITES.factor_values(item["label"].numpy()[None])[0])
    small = load_data(DataConfig("dsprites", image_size=32))
    assert small.train[0]["x"].shape == (1, 32, 32)
