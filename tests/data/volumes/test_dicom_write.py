"""Series that are written: the same volume when read again, by us and by others, and nobody's."""

import math

import numpy as np
import pydicom
import pytest
from dicom_slices import affine_of, enhanced, hounsfield, save, series

from omnivae.data.volumes import find_series, read_dicom, write_dicom
from omnivae.files import CannotWrite
from omnivae.volume import Volume

pytest.importorskip("pydicom")

TILT = math.radians(18.5)
TILTED = (1.0, 0.0, 0.0, 0.0, math.cos(TILT), -math.sin(TILT))
OBLIQUE = tuple(np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0][:, :2].T.ravel().tolist())


def same(a, b):
    """Bit for bit: the affine, all that follows from it, type and values."""
    assert a.affine.tobytes() == b.affine.tobytes()
    assert (a.spacing, a.orientation, a.size, a.unit) == (b.spacing, b.orientation, b.size, b.unit)
    assert a.array.dtype == b.array.dtype
    np.testing.assert_array_equal(a.array, b.array)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stored": np.int16, "intercept": 0},
        {"step": (0, 0, -1.25)},
        {"spacing": (0.482421875, 0.3)},
        {"spacing": (1 / 3, 0.7), "origin": (-1234.5678901, 0.1, 987.6543210987)},
        {"orientation": OBLIQUE, "step": tuple(np.cross(OBLIQUE[:3], OBLIQUE[3:]) * 1.7)},
        {"orientation": TILTED},
        {"orientation": (0, 1, 0, 0, 0, -1), "step": (-3.3, 0, 0)},
        {"modality": "MR", "slope": 4.25885225885225, "intercept": -3.5},
        {"modality": "MR", "slope": [0.1 + 0.05 * k for k in range(6)], "intercept": [7.0 - k for k in range(6)]},
        {"modality": "MR", "slope": None, "stored": np.uint16},
        {"modality": "PT", "slope": 0.37, "intercept": 0},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_what_was_read_is_read_again_bit_for_bit(tmp_path, options):
    values = hounsfield() if options.get("modality", "CT") == "CT" else np.abs(hounsfield()) + 10
    before = read_dicom(save(tmp_path / "in", series(values, **options)))
    write_dicom(before, tmp_path / "out", like=tmp_path / "in")
    after = read_dicom(tmp_path / "out")
    same(before, after)
    assert after.origin["modality"] == options.get("modality", "CT")
    write_dicom(after, tmp_path / "again")
    same(before, read_dicom(tmp_path / "again"))


def test_the_frames_of_a_multi_frame_file_are_written_as_slices(tmp_path):
    (tmp_path / "in").mkdir()
    enhanced(np.abs(hounsfield())).save_as(tmp_path / "in" / "multi.dcm", enforce_file_format=True)
    before = read_dicom(tmp_path / "in")
    assert len(write_dicom(before, tmp_path / "out", like=tmp_path / "in")) == 6
    same(before, read_dicom(tmp_path / "out"))


def test_int32_beyond_16_bits_is_kept_where_its_range_allows(tmp_path):
    values = np.array([-1024, 0, 64000], np.int32).reshape(1, 3, 1, 1) * np.ones((1, 1, 4, 3), np.int32)
    volume = Volume(values, np.diag([-1.0, -1.0, 2.0, 1.0]), unit="HU")
    write_dicom(volume, tmp_path / "out")
    same(volume, read_dicom(tmp_path / "out"))


def test_floats_are_rounded_to_a_stated_step_and_whole_units_stay_whole(tmp_path, caplog):
    rng = np.random.default_rng(0)
    whole = rng.integers(-1024, 3000, (1, 7, 5, 6)).astype(np.float32)
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    write_dicom(Volume(whole, affine, unit="HU"), tmp_path / "whole")
    np.testing.assert_array_equal(read_dicom(tmp_path / "whole").array, whole)
    assert not caplog.records
    fine = whole + rng.uniform(0, 0.5, whole.shape).astype(np.float32)
    files = write_dicom(Volume(fine, affine, unit="HU"), tmp_path / "fine")
    error = np.abs(read_dicom(tmp_path / "fine").array - fine).max()
    assert 0 < error <= 1 / 32  # half of the step, 4,096 HU in 65,536 steps
    assert "largest error" in caplog.text
    assert f"largest error {error:.3g}" in pydicom.dcmread(files[0]).DerivationDescription


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e7])
def test_floats_of_any_range_are_rounded_to_16_bits(tmp_path, scale):
    values = (np.random.default_rng(0).normal(size=(1, 7, 5, 6)) * scale).astype(np.float32)
    volume = Volume(values, np.eye(4))
    write_dicom(volume, tmp_path / "out")
    again = read_dicom(tmp_path / "out").array
    assert np.abs(again - values).max() <= np.ptp(values) / 65535


def test_other_readers_read_the_same_volume(tmp_path):
    sitk, highdicom = pytest.importorskip("SimpleITK"), pytest.importorskip("highdicom")
    step = tuple(np.cross(OBLIQUE[:3], OBLIQUE[3:]) * 1.7)
    volume = read_dicom(save(tmp_path / "in", series(hounsfield(), orientation=OBLIQUE, step=step)))
    files = write_dicom(volume, tmp_path / "out")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "out")))
    image = reader.Execute()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), volume.array[0])
    flip = np.diag([-1.0, -1.0, 1.0])
    theirs = flip @ (np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing())
    np.testing.assert_allclose(theirs, volume.affine[:3, :3], atol=1e-6)
    np.testing.assert_allclose(flip @ image.GetOrigin(), volume.affine[:3, 3], atol=1e-6)
    built = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in files])
    # highdicom's axes are slices, rows, columns; its order of slices may be the other way round.
    world = np.diag([-1.0, -1.0, 1.0, 1.0]) @ built.affine
    array = built.array.transpose(2, 1, 0)
    corner = np.linalg.inv(volume.affine) @ world @ [0, 0, 0, 1]
    if corner[2] > 0.5:
        array = array[..., ::-1]
    np.testing.assert_allclose(corner[:2], 0, atol=1e-6)
    np.testing.assert_array_equal(array, volume.array[0])


def test_each_file_is_what_the_standard_asks_of_it(tmp_path):
    source = save(tmp_path / "in", series(hounsfield(), WindowCenter=50, WindowWidth=350, KVP=120))
    files = [
        pydicom.dcmread(p) for p in write_dicom(read_dicom(source), tmp_path / "out", like=source, description="made")
    ]
    originals = [pydicom.dcmread(p) for p in sorted(source.iterdir())]
    assert len({f.SOPInstanceUID for f in files}) == 6
    assert len({f.SeriesInstanceUID for f in files}) == 1
    assert not {f.SOPInstanceUID for f in files} & {f.SOPInstanceUID for f in originals}
    for number, file in enumerate(files, 1):
        assert file.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert file.SOPInstanceUID == file.file_meta.MediaStorageSOPInstanceUID
        assert (file.InstanceNumber, file.SeriesDescription, file.KVP, file.WindowCenter) == (number, "made", 120, 50)
        assert file.PatientIdentityRemoved == "YES"
        assert file.RescaleType == "HU"
        assert file.SpacingBetweenSlices == 2.5
        for key in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            assert file[key].value != originals[0][key].value


SECRETS = (
    "SECRETNAME",
    "SECRETID77",
    "19481231",
    "SECRETSITE",
    "SECRETPRIVATE",
    "SECRETTEXT",
    "1.2.826.0.1.3680043.7777",
)


def secret_series(folder):
    uid = SECRETS[-1]
    slices = series(
        hounsfield(), patient="SECRETID77", name="SECRETNAME^Jane", series_uid=f"{uid}.1", study_uid=f"{uid}.2"
    )
    for k, data in enumerate(slices):
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{uid}.3.{k}"
        data.PatientBirthDate = data.StudyDate = data.AcquisitionDate = "19481231"
        data.InstitutionName = data.StationName = "SECRETSITE"
        data.PatientComments = data.SeriesDescription = data.ProtocolName = "SECRETTEXT"
        data.private_block(0x0029, "SECRETPRIVATE", create=True).add_new(0x01, "LO", "SECRETPRIVATE")
        other = pydicom.Dataset()
        other.ReferencedSOPInstanceUID, other.PatientID = f"{uid}.4", "SECRETID77"
        data.ReferencedImageSequence = [other]
    return save(folder, slices, stem=f"{uid}.")


def test_nothing_of_the_patient_is_in_the_bytes(tmp_path, caplog):
    source = secret_series(tmp_path / "in")
    volume = read_dicom(source)
    for n, like in enumerate((None, source, find_series(source)[0])):
        for path in write_dicom(volume, tmp_path / f"out{n}", like=like):
            content = path.read_bytes()
            assert not [word for word in SECRETS if word.encode() in content or word in path.name]
            assert not [e for e in pydicom.dcmread(path).iterall() if e.tag.is_private]
    assert not [word for word in SECRETS if word in caplog.text]


def test_identifiers_are_kept_on_request_but_never_private_elements(tmp_path):
    source = secret_series(tmp_path / "in")
    files = write_dicom(read_dicom(source), tmp_path / "out", like=source, keep_identifiers=True)
    originals = [pydicom.dcmread(path) for path in sorted(source.iterdir())]
    for path, original in zip(files, originals, strict=True):
        file = pydicom.dcmread(path)
        assert (file.PatientName, file.PatientID) == ("SECRETNAME^Jane", "SECRETID77")
        assert file.StudyInstanceUID == original.StudyInstanceUID
        assert file.FrameOfReferenceUID == original.FrameOfReferenceUID
        assert file.SeriesInstanceUID != original.SeriesInstanceUID
        assert file.SourceImageSequence[0].ReferencedSOPInstanceUID == original.SOPInstanceUID
        assert file.PatientIdentityRemoved == "NO"
        assert b"SECRETPRIVATE" not in path.read_bytes()
    with pytest.raises(ValueError, match="without a source"):
        write_dicom(read_dicom(source), tmp_path / "out2", keep_identifiers=True)


def test_a_left_handed_volume_comes_back_in_the_same_place_of_the_world(tmp_path):
    values = hounsfield()[None]
    volume = Volume(values, np.diag([1.0, -1.5, 2.0, 1.0]), unit="HU")  # right, posterior, up: left-handed
    write_dicom(volume, tmp_path / "out")
    again = read_dicom(tmp_path / "out")
    np.testing.assert_array_equal(again.array, values[..., ::-1])
    np.testing.assert_allclose(again.affine @ [2, 3, 0, 1], volume.affine @ [2, 3, 5, 1], atol=1e-9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"array": np.zeros((2, 3, 3, 3), np.int16)}, "2 channels"),
        ({"space": "stage"}, "stage space"),
        ({"array": np.full((1, 3, 3, 3), np.nan, np.float32)}, "not finite"),
        ({"affine": np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])}, "right angle"),
        ({"origin": {"modality": "US"}}, "modality US"),
    ],
)
def test_volumes_that_dicom_cannot_hold_are_refused(tmp_path, change, said):
    volume = Volume(**{"array": np.zeros((1, 3, 3, 3), np.int16), "affine": np.eye(4), **change})
    with pytest.raises(ValueError, match=said):
        write_dicom(volume, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    volume = Volume(np.zeros((1, 3, 3, 3), np.int16), np.eye(4))
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        write_dicom(volume, tmp_path)
    (tmp_path / "empty").mkdir()
    assert len(write_dicom(volume, tmp_path / "empty")) == 3
    with pytest.raises(ValueError, match="64"):
        write_dicom(volume, tmp_path / "other", description="x" * 65)


def test_a_series_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    volume = Volume(np.zeros((1, 3, 3, 3), np.int16), np.eye(4))
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CannotWrite, match="No space left"):
        write_dicom(volume, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", range(12))
def test_any_geometry_is_read_right_and_comes_back_bit_for_bit(tmp_path, seed):
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    orientation = [float(f"{c:.13f}") for c in axes[:, :2].T.ravel()]
    spacing = rng.uniform(0.1, 5, 2).round(int(rng.integers(1, 9)))
    normal = np.cross(orientation[:3], orientation[3:])
    drift = axes[:, :2] @ rng.uniform(-0.4, 0.4, 2) * rng.integers(0, 2)  # a tilt, every other time
    step = (normal + drift) * rng.uniform(0.3, 8)
    origin = rng.uniform(-1000, 1000, 3)
    values = rng.integers(-1024, 3000, (5, 4, 6)).astype(np.int16)
    slices = series(values, orientation=orientation, spacing=tuple(spacing), origin=origin, step=step)
    volume = read_dicom(save(tmp_path / "in", [slices[i] for i in rng.permutation(6)]))
    np.testing.assert_array_equal(volume.array[0], values)
    # Positions are written with eleven digits.
    truth = affine_of(orientation, spacing, origin, step)
    np.testing.assert_allclose(volume.affine, truth, atol=2e-7)
    write_dicom(volume, tmp_path / "out")
    same(volume, read_dicom(tmp_path / "out"))
