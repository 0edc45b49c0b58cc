import itertools

import numpy as np
import pytest
import torch

from omnivae.data import WORLDS, DataConfig, collate, load_data, world
from omnivae.data.worlds.moving_sprites import NUM_FRAMES, SIDE, path
from omnivae.data.worlds.shapes3d import hue_to_rgb, planes

SIZES = {
    "dsprites": (3, 6, 40, 32, 32),  # Matthey et al., 2017
    "shapes3d": (10, 10, 10, 8, 4, 15),  # Burgess and Kim, 2018
    "moving_sprites": (3, 4, 6, 8, 8, 8, 4),
}


@pytest.mark.parametrize("name", WORLDS)
def test_pictures_are_addressed_by_factors_and_by_number(name):
    made = world(name)
    assert made.factor_sizes == SIZES[name]
    assert made.num_images == np.prod(SIZES[name])
    index = np.random.default_rng(0).integers(made.num_images, size=6)
    factors = made.factors(index)
    assert np.array_equal(made.index(factors), index)
    # the last factor varies fastest
    assert made.factors([1])[0].tolist() == [0] * (made.num_factors - 1) + [1]
    images = made.render(factors)
    assert images.shape == (6, *made.image_shape, made.channels)
    assert images.dtype == np.uint8
    alone = np.concatenate([made.render(row[None]) for row in factors])
    assert np.array_equal(images, alone)
    values = made.factor_values(factors)
    for i, of in enumerate(made.values):
        assert (values[:, i] == of[factors[:, i]]).all()
        assert (np.diff(of) > 0).all()


@pytest.mark.parametrize("name", WORLDS)
def test_every_factor_changes_the_picture(name):
    made = world(name)
    for row in made.sample(3, seed=1):
        for i, size in enumerate(made.factor_sizes):
            rows = np.repeat(row[None], size, axis=0)
            rows[:, i] = np.arange(size)
            # of dSprites' orientations the last is a full turn, and a half turn of an ellipse is none
            symmetric = {"dsprites": 2}.get(name) == i
            distinct = len(np.unique(made.render(rows).reshape(size, -1), axis=0))
            assert distinct == size if not symmetric else distinct >= size // 2


@pytest.mark.parametrize("name", WORLDS)
def test_a_batch_is_what_its_items_are(name):
    splits = load_data(DataConfig(name, limit=50), value_range=(-1.0, 1.0))
    made = world(name)
    assert splits.image_size == made.image_shape
    together, alone = splits.train.__getitems__([4, 9]), [splits.train[4], splits.train[9]]
    for a, b in zip(together, alone, strict=True):
        assert a["key"] == b["key"]
        assert torch.equal(a["x"], b["x"])
        assert torch.equal(a["label"], b["label"])
    number = int(splits.train.indices[4])
    assert together[0]["key"] == f"{name}/{number:06d}"
    assert together[0]["label"].tolist() == made.factors([number])[0].tolist()
    expected = made.render(made.factors([number]))[0].astype(np.float32) / 255 * 2 - 1
    np.testing.assert_allclose(together[0]["x"].numpy(), np.moveaxis(expected, -1, 0), atol=1e-6)
    assert collate(together)["x"].shape == (2, made.channels, *made.image_shape)


def test_hues_tint_their_own_surface_alone():
    made, base = world("shapes3d"), np.array([1, 4, 8, 4, 2, 3])
    surfaces = planes(4, 2, 3).reshape(64, 64, 4) > 0
    for i in range(3):
        other = base.copy()
        other[i] = (base[i] + 3) % 10
        a, b = made.render(np.stack([base, other]))
        changed = (a != b).any(-1)
        assert changed.any()
        assert not changed[~surfaces[..., i]].any()


def test_colours_of_hues():
    red, green, blue = hue_to_rgb(np.array([0.0, 1 / 3, 2 / 3]))
    np.testing.assert_allclose([red, green, blue], 0.15 + 0.85 * np.eye(3), atol=1e-12)
    np.testing.assert_allclose(hue_to_rgb(np.array(1 / 6)), [1, 1, 0.15])


def test_perspective_of_the_sphere():
    # A sphere of radius r at distance d covers a disc of tan(asin(r / d)) of the view's half width, up to its tilt.
    object_share = planes(7, 2, 7).reshape(64, 64, 4)[..., 2] > 0
    height = 3.6 - 1.1 * 1.25
    distance = np.hypot(8.5, height)
    radius = np.tan(np.arcsin(1.1 * 1.25 / distance)) / 0.38 * 32
    columns = np.flatnonzero(object_share.any(0))
    assert abs((columns[-1] - columns[0] + 1) / 2 - radius) < 1
    # seen straight on, left and right are alike
    assert np.array_equal(object_share, object_share[:, ::-1])


def test_the_lamp_casts_a_shadow():
    """The floor is ambient (0.42 of white) where the object hides the lamp, and brighter elsewhere."""
    floor = planes(7, 0, 7).reshape(64, 64, 4)[..., 0]
    whole = floor[floor > 0.4 * 255]
    assert (np.abs(whole / 255 - 0.42) < 1e-3).sum() > 20
    assert (whole / 255 > 0.6).sum() > 500


def test_sprites_fly_straight_and_bounce():
    made = world("moving_sprites")
    factors = made.sample(200, seed=2)
    centres = path(factors)
    assert centres.min() >= 6
    assert centres.max() <= SIDE - 6
    steps = np.abs(np.diff(centres, axis=1))
    speed = made.factor_values(factors)[:, -1]
    straight = np.isclose(np.linalg.norm(steps, axis=-1), speed[:, None])
    # a frame in which it bounces is the exception
    assert straight.mean() > 0.8
    assert straight[:, 0].any()
    # the disc's brightness is centred where its path says
    videos = made.render(factors).max(-1).astype(float)
    rows = factors[:, 0] == 1
    pixel = np.arange(SIDE) + 0.5
    total = videos[rows].sum((2, 3))
    np.testing.assert_allclose((videos[rows] * pixel).sum((2, 3)) / total, centres[rows][..., 0], atol=0.05)


def test_no_two_paths_are_the_same():
    """Position, direction and speed can be told from the frames."""
    grid = np.array(list(itertools.product(range(8), range(8), range(8), range(4))))
    rows = np.concatenate([np.zeros((len(grid), 3), dtype=np.int64), grid], axis=1)
    paths = np.round(path(rows).reshape(len(rows), NUM_FRAMES * 2), 3)
    assert len(np.unique(paths, axis=0)) == len(rows)


def test_what_does_not_fit_is_refused():
    made = world("shapes3d")
    with pytest.raises(ValueError, match=r"shape \(1, 5\); expected \[N, 6\]: floor_hue, wall_hue"):
        made.render(np.zeros((1, 5)))
    with pytest.raises(ValueError, match="out of its range"):
        made.render(np.array([[0, 0, 0, 0, 4, 0]]))
    with pytest.raises(ValueError, match="out of its range"):
        made.render(np.array([[0, 0, 0, 0, 0.5, 0]]))
    with pytest.raises(ValueError, match="479,999"):
        made.factors([480_000])
    with pytest.raises(ValueError, match=r"unknown world 'shape3d'; did you mean 'shapes3d'"):
        world("shape3d")
    with pytest.raises(
        ValueError, match=r"data.image_size=64 and moving_sprites, whose videos of 16 frames of 32 x 32"
    ):
        load_data(DataConfig("moving_sprites", image_size=64))
    with pytest.raises(ValueError, match=r"data.format='shapes3d' with data.path='pictures'"):
        DataConfig("pictures", format="shapes3d")
