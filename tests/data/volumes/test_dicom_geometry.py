"""Slices that form a volume, and every way in which they do not: each named, none believed."""

import math

import numpy as np
import pytest
from dicom_slices import affine_of, hounsfield, save, series

from omnivae.data.volumes import dicom_header, find_series, read_dicom, remove_tilt
from omnivae.volume import Volume

pytest.importorskip("pydicom")

TILT = math.radians(18.5)
TILTED = (1.0, 0.0, 0.0, 0.0, math.cos(TILT), -math.sin(TILT))
OBLIQUE = tuple(np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0][:, :2].T.ravel().tolist())


def normal_of(orientation):
    return np.cross(orientation[:3], orientation[3:])


def names(path):
    (info,) = find_series(path)
    return {p.name for p in info.problems}


def test_array_and_affine_are_those_of_the_standard_whatever_the_files_are_called(tmp_path):
    values = hounsfield()
    slices = series(values)
    save(tmp_path, [slices[i] for i in (3, 0, 5, 1, 4, 2)])
    volume = read_dicom(tmp_path)
    np.testing.assert_array_equal(volume.array[0], values)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.affine, affine_of())
    assert volume.spacing == (0.7, 0.8, 2.5)  # never the thickness of 9 mm
    assert (volume.unit, volume.orientation, volume.problems) == ("HU", "LPS", ())


def test_slices_that_go_down_are_sorted_along_the_normal(tmp_path):
    values = hounsfield()
    volume = read_dicom(save(tmp_path, series(values, step=(0, 0, -2.5))))
    np.testing.assert_array_equal(volume.array[0], values[..., ::-1])
    np.testing.assert_allclose(volume.affine, affine_of(origin=(-10, 20, -42.5)), atol=1e-9)


def test_an_oblique_volume_has_the_geometry_that_simpleitk_gives_it(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    step = normal_of(OBLIQUE) * 1.7
    save(tmp_path, series(hounsfield(), orientation=OBLIQUE, step=step))
    ours = read_dicom(tmp_path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    theirs = reader.Execute()
    np.testing.assert_array_equal(ours.array[0], sitk.GetArrayFromImage(theirs).transpose(2, 1, 0))
    direction = np.reshape(theirs.GetDirection(), (3, 3)) * theirs.GetSpacing()
    np.testing.assert_allclose(ours.affine[:3, :3], np.diag([-1, -1, 1]) @ direction, atol=1e-5)
    np.testing.assert_allclose(ours.affine[:3, 3], np.diag([-1, -1, 1]) @ theirs.GetOrigin(), atol=1e-5)
    assert ours.shear < 1e-6


def test_a_tilted_gantry_is_a_sheared_affine(tmp_path):
    save(tmp_path, series(hounsfield(), orientation=TILTED))
    volume = read_dicom(tmp_path)
    np.testing.assert_allclose(volume.affine[:3, 2], (0, 0, 2.5), atol=1e-12)
    np.testing.assert_allclose(volume.affine, affine_of(orientation=TILTED), atol=1e-9)
    assert volume.shear == pytest.approx(18.5)
    assert any(p.startswith("gantry tilt: 18.50 degrees") for p in volume.problems)


@pytest.mark.slow  # importing MONAI
def test_monai_has_the_same_sheared_affine(tmp_path):
    monai = pytest.importorskip("monai.data.image_reader")
    volume = read_dicom(save(tmp_path, series(hounsfield(), orientation=TILTED)))
    reader = monai.PydicomReader()
    array, facts = reader.get_data(reader.read(str(tmp_path)))
    np.testing.assert_allclose(volume.affine, facts["affine"], atol=1e-6)
    np.testing.assert_array_equal(volume.array[0], array)


def test_a_missing_slice_is_named_and_refused(tmp_path):
    slices = series(hounsfield())
    del slices[3]
    save(tmp_path, slices)
    with pytest.raises(
        ValueError, match=r"missing slices: 1 between slice 3 and slice 5 .* usual distance is 2\.5 mm.*on_gaps"
    ):
        read_dicom(tmp_path)
    assert names(tmp_path) == {"missing slices"}
    assert not find_series(tmp_path)[0].readable


def test_a_missing_slice_of_a_tilted_series_is_found_too(tmp_path):
    slices = series(hounsfield(), orientation=TILTED)
    del slices[2]
    save(tmp_path, slices)
    with pytest.raises(ValueError, match="missing slices: 1 between slice 2 and slice 4"):
        read_dicom(tmp_path)


def test_gaps_are_filled_linearly_and_only_on_request(tmp_path):
    ramp = np.arange(0, 800, 100, dtype=np.int16) * np.ones((4, 3, 1), np.int16)  # grows by 100 HU a slice
    slices = series(ramp)
    del slices[3:5]
    save(tmp_path, slices)
    volume = read_dicom(tmp_path, on_gaps="resample")
    np.testing.assert_array_equal(volume.array[0], ramp)
    np.testing.assert_array_equal(volume.affine, affine_of())
    assert "resampled: 2 of 8 slices were interpolated linearly between measured ones" in volume.problems
    assert dicom_header(tmp_path).shape == volume.array.shape


def test_unequal_distances_are_refused_and_resampled_linearly(tmp_path):
    z = np.array([0.0, 2.0, 4.0, 5.5, 8.0, 10.0])
    values = (100 * z * np.ones((4, 3, 1))).astype(np.int16)
    save(tmp_path, series(values, positions=[(0, 0, p) for p in z]))
    with pytest.raises(ValueError, match=r"non-uniform spacing: 1\.5 mm between slice 3 and slice 4, 2\.5 mm between"):
        read_dicom(tmp_path)
    volume = read_dicom(tmp_path, on_gaps="resample")
    assert volume.spacing[2] == pytest.approx(2)
    np.testing.assert_array_equal(volume.array[0, 0, 0], [0, 200, 400, 600, 800, 1000])


def test_a_hole_too_wide_is_never_filled(tmp_path):
    slices = series(hounsfield(slices=9))
    del slices[2:7]
    save(tmp_path, slices)
    with pytest.raises(ValueError, match="wide hole"):
        read_dicom(tmp_path, on_gaps="resample")


def test_distances_that_drift_by_less_than_the_tolerance_each_are_refused(tmp_path):
    gaps = np.r_[np.full(60, 1.0), np.full(60, 1.009)]
    z = np.r_[0, np.cumsum(gaps)]
    save(tmp_path, series(hounsfield(4, 3, len(z)), positions=[(0, 0, p) for p in z]))
    with pytest.raises(ValueError, match="non-uniform spacing"):
        read_dicom(tmp_path)


def test_positions_rounded_by_the_scanner_are_a_volume(tmp_path):
    z = np.round(np.arange(12) * 0.625, 2)
    volume = read_dicom(save(tmp_path, series(hounsfield(slices=12), positions=[(0, 0, p) for p in z])))
    assert volume.spacing[2] == pytest.approx(0.625, abs=1e-3)
    assert volume.problems == ()


def test_a_slice_moved_in_its_plane_is_refused(tmp_path):
    positions = [(0.0, 4.0 if k == 2 else 0.0, 2.5 * k) for k in range(6)]
    save(tmp_path, series(hounsfield(), positions=positions))
    with pytest.raises(ValueError, match="shifted slices: slice 3"):
        read_dicom(tmp_path, on_gaps="resample")


def test_copies_of_a_slice_are_dropped_and_noted(tmp_path):
    values = hounsfield()
    slices = series(values)
    volume = read_dicom(save(tmp_path, [*slices, slices[2]]))
    np.testing.assert_array_equal(volume.array[0], values)
    assert volume.problems == ("doubled slices: slice 3 was there 2 times, bit for bit; one was kept",)
    assert names(tmp_path) == {"doubled slices"}


@pytest.mark.parametrize("what", ["pixels", "intercept"])
def test_different_slices_at_one_place_are_refused(tmp_path, what):
    values = hounsfield()
    slices = series(values)
    other = series(values[..., 2:3] + (what == "pixels"), series_uid=slices[0].SeriesInstanceUID, origin=(-10, 20, -25),
                   study_uid=slices[0].StudyInstanceUID, intercept=-1024)[0]  # fmt: skip
    if what == "intercept":
        other.RescaleIntercept = -1000
    save(tmp_path, [*slices, other])
    with pytest.raises(ValueError, match="lie at one place and differ"):
        read_dicom(tmp_path)


def test_slices_that_are_all_at_one_place_are_no_volume(tmp_path):
    save(tmp_path, series(hounsfield(slices=4), step=(0, 0, 0)))
    with pytest.raises(ValueError, match="one position: all 4 slices lie at one place"):
        read_dicom(tmp_path, on_gaps="resample")


def test_two_slices_that_changed_places_are_named(tmp_path):
    slices = series(hounsfield(slices=10))
    slices[3].ImagePositionPatient, slices[4].ImagePositionPatient = (
        slices[4].ImagePositionPatient,
        slices[3].ImagePositionPatient,
    )
    save(tmp_path, slices)
    with pytest.raises(ValueError, match=r"out-of-order slices: slice [45] lie"):
        read_dicom(tmp_path)
    volume = read_dicom(tmp_path, on_order="positions")
    assert any(p.startswith("out-of-order slices") for p in volume.problems)


def test_interleaved_instance_numbers_are_no_contradiction(tmp_path):
    values = hounsfield(slices=8)
    slices = series(values)
    for number, k in enumerate((0, 2, 4, 6, 1, 3, 5, 7), 1):
        slices[k].InstanceNumber = number
    volume = read_dicom(save(tmp_path, slices))
    np.testing.assert_array_equal(volume.array[0], values)
    assert volume.problems == ("instance numbers: they do not follow the positions; slices are ordered by position",)


def test_a_single_slice_needs_a_distance_that_somebody_says(tmp_path):
    values = hounsfield(slices=1)
    save(tmp_path, series(values))
    with pytest.raises(ValueError, match=r"one slice: .*read_dicom\(path, slice_spacing=3\.0\)"):
        read_dicom(tmp_path)
    volume = read_dicom(tmp_path, slice_spacing=4.0)
    assert volume.size == (7, 5, 1)
    assert volume.spacing[2] == 4.0
    assert any("given, not measured" in p for p in volume.problems)
    with pytest.raises(ValueError, match="above 0"):
        read_dicom(tmp_path, slice_spacing=0)


def test_a_header_that_says_another_distance_is_not_believed(tmp_path):
    volume = read_dicom(save(tmp_path, series(hounsfield(), SpacingBetweenSlices=3.0)))
    assert volume.spacing[2] == 2.5
    assert volume.problems == ("distance: SpacingBetweenSlices says 3 mm; positions say 2.5 mm and are believed",)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"PixelSpacing": [0.0, 0.7]}, "no spacing"),
        ({"PixelSpacing": None}, "no spacing"),
        ({"ImagePositionPatient": None}, "no positions"),
        ({"ImageOrientationPatient": None}, "no positions"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "no orientation"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "no orientation"),
    ],
)
def test_headers_without_geometry_are_refused(tmp_path, broken, said):
    save(tmp_path, series(hounsfield(), **broken))
    with pytest.raises(ValueError, match=said):
        read_dicom(tmp_path)
    with pytest.raises(ValueError, match=said):
        dicom_header(tmp_path)
    assert names(tmp_path) == {said}


def test_removing_a_tilt_equals_the_world_it_was_cut_from(tmp_path):
    # Values linear in the world: linear interpolation must give them back exactly wherever the source reaches.
    affine = affine_of(orientation=TILTED)
    size = (9, 12, 5)
    weights = np.array([3.0, -2.0, 1.5])

    def world(affine, size):
        index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
        return index @ affine[:3, :3].T + affine[:3, 3]

    tilted = Volume((world(affine, size) @ weights)[None], affine)
    upright = remove_tilt(tilted)
    assert upright.shear < 1e-6
    assert upright.size[0] == 9
    assert upright.size[1] > 12
    assert upright.spacing == pytest.approx((0.7, 0.8, 2.5 * math.cos(TILT)))
    truth = world(upright.affine, upright.size)
    inside = np.linalg.inv(affine) @ np.c_[truth.reshape(-1, 3), np.ones(truth[..., 0].size)].T
    covered = np.all((inside[:3] >= -1e-6) & (inside[:3] <= np.array(size)[:, None] - 1 + 1e-6), axis=0).reshape(
        upright.size
    )
    np.testing.assert_allclose(upright.array[0][covered], (truth @ weights)[covered], atol=1e-9)
    assert (upright.array[0][~covered] == tilted.array.min()).all()
    assert covered.sum() >= 9 * 11 * 5
    assert any(p.startswith("tilt removed") for p in upright.problems)


def test_read_removes_a_tilt_on_request_and_fills_with_air(tmp_path):
    save(tmp_path, series(np.full((4, 6, 5), 100, np.int16), orientation=TILTED))
    volume = read_dicom(tmp_path, tilt="remove")
    assert volume.array.dtype == np.int16
    assert set(np.unique(volume.array)) == {-1024, 100}
    assert volume.shear < 1e-6


def test_nothing_is_moved_where_there_is_no_tilt(tmp_path):
    volume = read_dicom(save(tmp_path, series(hounsfield())))
    assert remove_tilt(volume) is volume
