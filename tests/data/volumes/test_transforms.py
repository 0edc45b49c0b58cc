"""Transforms of volumes: exact affines, exact inverses, and agreement with nibabel, MONAI and interpolation by hand."""

import itertools
import json

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from omnivae.data.volumes import (
    Crop,
    CropForeground,
    Orient,
    Pad,
    Percentiles,
    Pipeline,
    Resample,
    Window,
    ZScore,
    contract_pipeline,
    contract_return,
    resample,
)
from omnivae.volume import Volume

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("zyx", [20, -8, 13], degrees=True).as_matrix() * [0.8, 0.9, 2.5]
OBLIQUE[:3, 3] = [-30, 12, 7]
TILTED = np.diag([-0.5, -0.5, 2.0, 1.0])
TILTED[1, 2] = 0.7


def world(volume):
    index = np.stack(np.meshgrid(*map(np.arange, volume.size), indexing="ij"), -1)
    return index @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def ramp(affine, size=(9, 8, 7)):
    """Return a volume whose values are a linear function of the place in the world: interpolation must reproduce it."""
    blank = Volume(np.zeros((1, *size)), affine)
    return blank.with_array((world(blank) @ [1.5, -2.25, 0.75] + 11)[None])


def noise(size=(9, 8, 7), affine=OBLIQUE, dtype=np.int16, **attributes):
    array = np.random.default_rng(1).integers(-1024, 2000, (1, *size)).astype(dtype)
    return Volume(array, affine, **attributes)


@pytest.mark.parametrize("code", ["RAS", "LPS", "LAS", "PIR", "SAR", "ILP", "RSA"])
@pytest.mark.parametrize("affine", [OBLIQUE, TILTED, np.diag([-1.0, 2, 3, 1])], ids=["oblique", "tilted", "axes"])
def test_orient_is_nibabels_and_exactly_invertible(code, affine):
    volume = noise(affine=affine)
    applied = Pipeline((Orient(code),))(volume)
    image = nibabel.Nifti1Image(volume.array[0], affine)
    now, wanted = nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(tuple(code))
    truth = image.as_reoriented(nibabel.orientations.ornt_transform(now, wanted))
    assert np.array_equal(applied.volume.array[0], np.asanyarray(truth.dataobj))
    np.testing.assert_allclose(applied.volume.affine, truth.affine, atol=1e-12)
    assert applied.volume.orientation == code
    back = applied.inverse(applied.volume)
    assert np.array_equal(back.array, volume.array)
    assert np.array_equal(back.affine, volume.affine)
    assert back.array.dtype == np.int16


@pytest.mark.parametrize("affine", [OBLIQUE, TILTED], ids=["oblique", "tilted"])
@pytest.mark.parametrize("deshear", [False, True])
@pytest.mark.parametrize("spacing", [None, 0.7, (1.1, None, 1.3)])
def test_resampling_is_interpolation_in_the_world(affine, deshear, spacing):
    volume = ramp(affine)
    out = Pipeline((Resample(spacing, deshear=deshear),))(volume).volume
    index = (world(out) - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    inside = ((index >= 0) & (index <= np.array(volume.size) - 1)).all(-1)
    assert inside.mean() > 0.2
    np.testing.assert_allclose(out.array[0][inside], (world(out) @ [1.5, -2.25, 0.75] + 11)[inside], atol=1e-9)
    wanted = spacing if isinstance(spacing, tuple) else (spacing,) * 3
    for got, asked, own in zip(out.spacing, wanted, volume.spacing, strict=True):
        assert got == pytest.approx(own if asked is None else asked, abs=1e-12)
    if deshear:
        assert out.shear < 1e-6
        # All of the sheared volume lies in the new one.
        corners = np.array([[a, b, c] for a, b, c in itertools.product(*[(0, n - 1) for n in volume.size])])
        places = corners @ affine[:3, :3].T + affine[:3, 3]
        at = (places - out.affine[:3, 3]) @ np.linalg.inv(out.affine[:3, :3]).T
        assert (at > -0.51).all()
        assert (at < np.array(out.size) - 0.49).all()


@pytest.mark.parametrize(("interpolation", "order"), [("linear", "sitkLinear"), ("nearest", "sitkNearestNeighbor")])
def test_resampling_is_itks(interpolation, order):
    sitk = pytest.importorskip("SimpleITK")
    volume = noise(affine=OBLIQUE, dtype=np.float64)
    target = np.diag([1.1, 0.7, 1.9, 1.0])
    target[:3, 3] = [-28.2, 15.3, 9.1]

    def image_of(array, affine):
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        return image

    size = (6, 7, 8)
    reference = image_of(np.zeros(size), target)
    truth = sitk.Resample(
        image_of(volume.array[0], OBLIQUE), reference, sitk.Transform(), getattr(sitk, order), -5000.0
    )
    truth = sitk.GetArrayFromImage(truth).transpose(2, 1, 0)
    out = resample(volume, size, target, interpolation=interpolation)
    index = (world(out) - OBLIQUE[:3, 3]) @ np.linalg.inv(OBLIQUE[:3, :3]).T
    inside = ((index > 0) & (index < np.array(volume.size) - 1)).all(-1)
    assert inside.sum() > 50
    np.testing.assert_allclose(out.array[0][inside], truth[inside], atol=1e-6)
    far = resample(volume, size, target, interpolation=interpolation, outside=-5000.0).array[0]
    beyond = ((index < -1) | (index > np.array(volume.size))).any(-1)
    assert beyond.any()
    assert (far[beyond] == -5000).all()


def test_resampling_there_and_back_returns_the_grid_and_smooth_values():
    blank = Volume(np.zeros((1, 24, 24, 12)), OBLIQUE)
    smooth = blank.with_array(np.sin(world(blank) @ [0.1, 0.05, 0.08])[None])
    applied = Pipeline((Resample(0.6),))(smooth)
    back = applied.inverse(applied.volume)
    assert np.array_equal(back.affine, smooth.affine)
    error = np.abs(back.array - smooth.array)[0]
    assert error[2:-2, 2:-2, 1:-1].max() < 0.005
    assert error.max() < 0.03  # at the border half a voxel is extrapolated
    same = Pipeline((Resample(smooth.spacing),))(smooth)
    assert same.volume.array is smooth.array
    assert same.facts["resampled"] is False


def test_the_new_grid_has_the_same_extent_and_centre():
    volume = Volume(np.zeros((1, 10, 10, 10)), np.diag([2.0, 2, 2, 1]))
    out = Pipeline((Resample(1.0),))(volume).volume
    assert out.size == (20, 20, 20)
    assert out.affine[:3, 3].tolist() == [-0.5] * 3  # the first voxel's edge stays at -1


def test_masks_go_along_by_nearest_neighbours_and_come_back():
    volume = noise((12, 10, 8), unit="HU")
    mask = Volume((np.random.default_rng(0).random((1, 12, 10, 8)) > 0.6).astype(np.uint8) * 7, OBLIQUE)
    applied = Pipeline((Orient("RAS"), Resample(0.5), Window(-1000, 1000), Pad(multiple=16)))(volume)
    moved = applied.repeat(mask)
    assert moved.size == applied.volume.size
    assert moved.array.dtype == np.uint8
    assert set(np.unique(moved.array)) == {0, 7}
    assert np.array_equal(moved.affine, applied.volume.affine)
    back = applied.inverse(moved, values=False, interpolation="nearest")
    assert np.array_equal(back.array, mask.array)  # 0.5 mm is finer than any of its spacings


def test_windows_map_and_return_hounsfield_units():
    volume = Volume(
        np.array([-3024, -1000, -500, 0, 250, 1000, 3000], np.int16).reshape(1, 7, 1, 1), np.eye(4), unit="HU"
    )
    applied = Pipeline((Window(-1000, 1000, (0, 1)),))(volume)
    assert applied.volume.array.ravel().tolist() == [0, 0, 0.25, 0.5, 0.625, 1, 1]
    assert applied.volume.unit == "arbitrary"
    assert applied.facts["below_window"] == pytest.approx(1 / 7)
    assert applied.facts["above_window"] == pytest.approx(1 / 7)
    back = applied.inverse(applied.volume)
    assert back.unit == "HU"
    assert back.array.ravel().tolist() == [-1000, -1000, -500, 0, 250, 1000, 1000]
    free = Pipeline((Window(-1000, 1000, (-1, 1), clip=False),))(volume)
    np.testing.assert_allclose(free.inverse(free.volume).array, volume.array, atol=1e-3)
    with pytest.raises(ValueError, match="read CT with unit='HU'"):
        Pipeline((Window(),))(volume.with_array(volume.array, unit="arbitrary"))


def test_percentiles_are_numpys_per_channel():
    array = np.random.default_rng(0).gamma(2, [[[[100]]], [[[900]]]], (2, 9, 9, 9))
    volume = Volume(array, np.eye(4))
    applied = Pipeline((Percentiles(1, 99, (-1, 1)),))(volume)
    for channel in range(2):
        low, high = np.percentile(array[channel], (1, 99))
        truth = np.clip(2 * (array[channel] - low) / (high - low) - 1, -1, 1)
        np.testing.assert_allclose(applied.volume.array[channel], truth, atol=1e-12)
        back = applied.inverse(applied.volume).array[channel]
        np.testing.assert_allclose(back, np.clip(array[channel], low, high), rtol=1e-12)
    with pytest.raises(ValueError, match="nearly all values are equal"):
        Pipeline((Percentiles(),))(Volume(np.ones((1, 3, 3, 3)), np.eye(4)))


@pytest.mark.parametrize(
    "transform", [Pad(multiple=(4, 8, 16)), Pad(size=12, mode="reflect"), Pad(size=13, mode="edge")]
)
def test_padding_keeps_the_place_of_every_voxel_and_is_undone(transform):
    volume = noise()
    applied = Pipeline((transform,))(volume)
    out = applied.volume
    at = np.rint((world(volume) - out.affine[:3, 3]) @ np.linalg.inv(out.affine[:3, :3]).T).astype(int)
    assert np.array_equal(out.array[0][tuple(at.reshape(-1, 3).T)], volume.array.ravel())
    assert np.array_equal(applied.inverse(out).array, volume.array)
    assert np.array_equal(applied.inverse(out).affine, volume.affine)
    assert out.array.min() == volume.array.min()


def test_crops_keep_the_place_of_every_voxel_and_come_back_into_their_place():
    volume = noise()
    applied = Pipeline((Crop((4, 5, 6), start=(2, 1, 0)),))(volume)
    assert np.array_equal(applied.volume.array, volume.array[:, 2:6, 1:6, 0:6])
    np.testing.assert_allclose(world(applied.volume), world(volume)[2:6, 1:6, 0:6], atol=1e-12)
    back = applied.inverse(applied.volume)
    assert np.array_equal(back.array[:, 2:6, 1:6, 0:6], applied.volume.array)
    outside = np.ones(back.array.shape, bool)
    outside[:, 2:6, 1:6, 0:6] = False
    assert set(back.array[outside]) == {volume.array.min()}
    assert Pipeline((Crop(100),))(volume).volume.size == volume.size
    with pytest.raises(ValueError, match="expected one within"):
        Pipeline((Crop(4, start=(7, 0, 0)),))(volume)


def test_the_foreground_is_found():
    array = np.full((1, 10, 11, 12), -1000, np.int16)
    array[0, 3:6, 4:9, 5] = 40
    applied = Pipeline((CropForeground(margin=1),))(Volume(array, np.eye(4), unit="HU"))
    assert applied.volume.size == (5, 7, 3)
    assert np.array_equal(applied.inverse(applied.volume).array, array)
    with pytest.raises(ValueError, match="no voxel lies above -500"):
        Pipeline((CropForeground(),))(Volume(np.full((1, 3, 3, 3), -1000), np.eye(4)))


def test_a_contract_there_and_back():
    volume = noise((13, 11, 9), affine=TILTED, unit="HU")
    contract = {"unit": "HU", "window": [-1024, 2000], "range": [-1, 1], "orientation": "RAS", "clip": True}
    pipeline = Pipeline((*contract_pipeline(contract).transforms, Pad(multiple=8)))
    applied = pipeline(volume)
    assert applied.volume.size == (16, 16, 16)
    back = applied.inverse(applied.volume.array)
    np.testing.assert_allclose(back.array, volume.array, atol=2e-3)
    assert np.array_equal(np.rint(back.array), volume.array)
    assert np.array_equal(back.affine, volume.affine)
    # A pipeline within a pipeline is a step like any other.
    nested = Pipeline((Pipeline(pipeline.transforms[:1]), *pipeline.transforms[1:]))(volume)
    assert np.array_equal(nested.volume.array, applied.volume.array)
    assert np.array_equal(np.rint(nested.inverse(nested.volume).array), volume.array)
    with pytest.raises(ValueError, match="expected channels and the transformed size"):
        applied.inverse(np.zeros((1, 3, 3, 3)))


@pytest.mark.parametrize("affine", [OBLIQUE, TILTED], ids=["oblique", "tilted"])
@pytest.mark.parametrize(
    "contract",
    [
        {"unit": "HU", "window": [-900, 1100], "orientation": "RAS"},
        {"unit": "HU", "window": [-900, 1100], "orientation": "PIR", "spacing": [1.3, 0.7, 2.0], "range": [-1, 1]},
        {"unit": "arbitrary", "percentiles": [1, 99.5], "orientation": "LAS"},
        {"unit": "arbitrary", "zscore": 3.0, "spacing": [2.0, 2.0, 2.0], "clip": False},
    ],
    ids=lambda c: "-".join(k for k in c if k in ("window", "percentiles", "zscore", "spacing")),
)
def test_the_way_back_is_found_without_the_values(contract, affine):
    """What a volume's geometry and window say, through JSON, is enough: the inverse is the same bit for bit."""
    volume = noise((13, 11, 9), affine=affine, unit=contract["unit"], dtype=np.float32)
    two = volume.with_array(np.concatenate([volume.array, 3 * volume.array + 90]))
    for some in (volume, two):
        applied = contract_pipeline(contract)(some)
        window, known = json.loads(json.dumps([applied.facts["window"], some.affine.tolist()]))
        geometry = Volume(np.zeros_like(some.array), np.array(known), unit=some.unit)
        again = contract_return(contract, geometry, window)
        assert (again.volume.size, again.volume.unit) == (applied.volume.size, applied.volume.unit)
        assert np.array_equal(again.volume.affine, applied.volume.affine)
        result = np.random.default_rng(0).random(applied.volume.array.shape, dtype=np.float32)
        one, other = applied.inverse(result), again.inverse(result)
        assert np.array_equal(one.array, other.array)
        assert (one.array.dtype, one.unit) == (other.array.dtype, other.unit)
        assert np.array_equal(one.affine, other.affine)


@pytest.mark.parametrize("clip", [True, False])
def test_zscores_there_and_back(clip):
    volume = noise((13, 11, 9), affine=TILTED)
    two = volume.with_array(np.concatenate([volume.array, 7 * volume.array + 900]))
    contract = {"unit": "arbitrary", "zscore": 1.0, "range": [-1, 1], "orientation": "RAS", "clip": clip}
    applied = contract_pipeline(contract)(two)
    values = two.array.reshape(2, -1).astype(np.float64)
    expected = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
    if clip:
        assert applied.volume.array.min() == -1
        assert applied.volume.array.max() == 1
        inside = (np.abs(expected) < 1).reshape(two.array.shape)
    else:
        seen = Orient("RAS").plan(two).forward(two.with_array(expected.reshape(two.array.shape)), "linear")
        np.testing.assert_allclose(applied.volume.array, seen.array, atol=1e-5)
        inside = np.ones(two.array.shape, bool)
    assert inside.mean() > 0.3
    back = applied.inverse(applied.volume.array)
    np.testing.assert_allclose(back.array[inside], two.array[inside], atol=0.02)
    assert np.array_equal(back.affine, two.affine)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Orient("RAR"), "one letter each"),
        (lambda: Resample(0), "above 0"),
        (lambda: Resample((1, 2)), "or three"),
        (lambda: Window(1000, -1000), "below the second"),
        (lambda: Percentiles(50, 20), "0 <= low < high"),
        (lambda: Pad(multiple=0), "at least 1"),
        (lambda: Crop((4, 4)), "or three"),
        (lambda: contract_pipeline({"window": [0, 1], "percentile": 3}), "percentile; expected keys"),
        (lambda: contract_pipeline({"range": [0, 1]}), "expected one of window, percentiles, zscore"),
        (lambda: contract_pipeline({"window": [0, 1], "zscore": 4.0}), "expected one of window, percentiles, zscore"),
        (lambda: ZScore(0), "a number above 0"),
        (lambda: ZScore().plan(Volume(np.full((1, 2, 2, 2), 7.0), np.eye(4))), "the same value 7 everywhere"),
        (lambda: Orient().plan(Volume(np.zeros((1, 2, 2, 2)), np.eye(4), space="stage")), "of patients only"),
    ],
)
def test_mistakes_are_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
