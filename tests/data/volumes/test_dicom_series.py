"""What a folder holds: series told apart, patients never mixed, what is no volume set aside and named."""

import multiprocessing
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dicom_slices import CAPTURE, affine_of, enhanced, hounsfield, save, series

from omnivae.data.volumes import find_series, read_dicom
from omnivae.data.volumes.dicom_files import list_items

pytest.importorskip("pydicom")


def test_two_series_of_one_folder_are_listed_and_one_is_chosen(tmp_path):
    first, second = hounsfield(seed=1), hounsfield(slices=4, seed=2)
    save(tmp_path / "a", series(first, study_uid="1.2.3"))
    save(tmp_path / "b" / "deep", series(second, study_uid="1.2.3", series_uid="1.2.3.4.5"))
    with pytest.raises(ValueError, match=r"2 series: 1: image CT 7x5x6, .*; 2: image CT 7x5x4, .*--series NUMBER"):
        read_dicom(tmp_path)
    np.testing.assert_array_equal(read_dicom(tmp_path, series=1).array[0], first)
    np.testing.assert_array_equal(read_dicom(tmp_path, series="2").array[0], second)
    np.testing.assert_array_equal(read_dicom(tmp_path, series="1.2.3.4.5").array[0], second)
    np.testing.assert_array_equal(read_dicom(tmp_path, series=find_series(tmp_path)[1]).array[0], second)
    for wrong in (3, "0", "1.2.3", ""):
        with pytest.raises(ValueError, match="choose one by its number"):
            read_dicom(tmp_path, series=wrong)


def test_two_patients_in_one_folder_are_an_error_that_names_nobody(tmp_path):
    shared = {"series_uid": "1.2.3.4.6", "study_uid": "1.2.3"}
    save(tmp_path, series(hounsfield(), patient="SECRET1", name="Roe^Richard", **shared))
    save(
        tmp_path,
        series(hounsfield(), patient="SECRET2", name="Doe^Jane", origin=(-10, 20, -15), **shared),
        stem="other",
    )
    with pytest.raises(ValueError, match=r"2 patients: .*\(patient 1\); .*\(patient 2\)") as error:
        read_dicom(tmp_path)
    assert not any(word in str(error.value) for word in ("SECRET", "Roe", "Doe", "1.2.3.4.6"))


def test_localizers_captures_and_reports_are_set_aside_and_named(tmp_path):
    values = hounsfield()
    save(tmp_path, series(values, study_uid="1.2.3"))
    localizer = ("ORIGINAL", "PRIMARY", "LOCALIZER")
    save(tmp_path, series(hounsfield(9, 9, 1), study_uid="1.2.3", image_type=localizer), "localizer")
    save(tmp_path, series(hounsfield(9, 8, 2), study_uid="1.2.3", SOPClassUID=CAPTURE), "capture")
    save(
        tmp_path, series(hounsfield(7, 5, 6), study_uid="1.2.3", image_type=("DERIVED", "SECONDARY", "MIP")), "derived"
    )
    dose = series(
        hounsfield(4, 4, 1), study_uid="1.2.3", modality="RTDOSE", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2"
    )
    save(tmp_path, dose, "dose")
    volume = read_dicom(tmp_path)
    np.testing.assert_array_equal(volume.array[0], values)
    aside = [p for p in volume.problems if p.startswith("set aside: ")]
    assert [p.split()[2] for p in aside] == ["derived", "localizer", "capture", "other"]
    assert [s.kind for s in find_series(tmp_path)] == ["image", "derived", "localizer", "capture", "other"]
    with pytest.raises(ValueError, match="no volume"):
        read_dicom(tmp_path, series=5)


def test_derived_images_are_read_where_there_is_nothing_else(tmp_path):
    save(tmp_path, series(hounsfield(), image_type=("DERIVED", "SECONDARY", "AXIAL")))
    assert read_dicom(tmp_path).size == (7, 5, 6)


def test_localizers_alone_are_read_only_when_chosen(tmp_path):
    save(tmp_path, series(hounsfield(), image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")))
    with pytest.raises(ValueError, match="no image series, only 1: localizer"):
        read_dicom(tmp_path)
    assert read_dicom(tmp_path, series=1).size == (7, 5, 6)


def test_two_orientations_under_one_uid_are_two_volumes(tmp_path):
    axial, sagittal = hounsfield(seed=1), hounsfield(seed=2)
    shared = {"series_uid": "1.2.3.4", "study_uid": "1.2.3"}
    save(tmp_path, series(axial, **shared))
    save(tmp_path, series(sagittal, orientation=(0, 1, 0, 0, 0, -1), step=(-2.5, 0, 0), **shared), "sagittal")
    with pytest.raises(ValueError, match="2 series"):
        read_dicom(tmp_path)
    np.testing.assert_array_equal(read_dicom(tmp_path, series=1).array[0], axial)
    np.testing.assert_array_equal(read_dicom(tmp_path, series=2).array[0], sagittal)


@pytest.mark.parametrize(
    "other", [{"spacing": (0.5, 0.5)}, {"image_type": ("ORIGINAL", "PRIMARY", "OTHER")}, {"EchoNumbers": 2}]
)
def test_spacing_image_type_and_echo_tell_series_apart(tmp_path, other):
    shared = {"series_uid": "1.2.3.4", "study_uid": "1.2.3"}
    save(tmp_path, series(hounsfield(), **shared))
    save(tmp_path, series(hounsfield(), **shared, **other), "other")
    assert len(find_series(tmp_path)) == 2


@pytest.mark.parametrize("key", ["EchoTime", "AcquisitionNumber", "TemporalPositionIdentifier", "DiffusionBValue"])
def test_volumes_at_the_same_places_are_told_apart_by_the_acquisition(tmp_path, key):
    volumes = [hounsfield(seed=n) for n in range(3)]
    for n, values in enumerate(volumes):
        save(tmp_path, series(values, series_uid="1.2.3.4", study_uid="1.2.3", **{key: 10 * (n + 1)}), f"time{n}")
    found = find_series(tmp_path)
    assert [s.size for s in found] == [(7, 5, 6)] * 3
    assert [s.part for s in found] == [f"{key} {n} of 3" for n in (1, 2, 3)]
    with pytest.raises(ValueError, match=rf"3 series: .*{key} 1 of 3; .*{key} 2 of 3"):
        read_dicom(tmp_path)
    for info, values in zip(found, volumes, strict=True):
        np.testing.assert_array_equal(read_dicom(tmp_path, series=info.number).array[0], values)


def test_acquisition_numbers_that_count_slices_do_not_split_a_series(tmp_path):
    slices = series(hounsfield())
    for k, data in enumerate(slices):
        data.AcquisitionNumber = k
    assert [s.size for s in find_series(save(tmp_path, slices))] == [(7, 5, 6)]


def test_series_without_uids_are_told_apart_by_number_and_folder(tmp_path):
    values = [hounsfield(seed=n) for n in range(3)]
    for n, (folder, number) in enumerate((("a", 1), ("a", 2), ("b", 1))):
        slices = series(values[n], series_uid="", study_uid="", SeriesNumber=number)
        save(tmp_path / folder, slices, f"series{n}")
    found = find_series(tmp_path)
    assert len(found) == 3
    for info, truth in zip(found, values, strict=True):
        np.testing.assert_array_equal(read_dicom(tmp_path, series=info.number).array[0], truth)


def test_a_zip_archive_is_read_in_place(tmp_path, monkeypatch):
    values = hounsfield()
    folder = save(tmp_path / "series", series(values))
    archive = tmp_path / "series.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for k, path in enumerate(sorted(folder.iterdir())):
            file.write(path, f"../../escaped/{k}.dcm")  # traversal: nothing is ever unpacked
        file.writestr("readme.txt", "text")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    volume = read_dicom(archive)
    np.testing.assert_array_equal(volume.array[0], values)
    assert sorted(tmp_path.rglob("*")) == before
    again = pickle.loads(pickle.dumps(find_series(archive)[0]))  # as worker processes get it
    np.testing.assert_array_equal(read_dicom(archive, series=again).array[0], values)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"cannot be read|damaged|no DICOM"):
        read_dicom(archive)


def test_a_folder_of_many_archives_keeps_few_of_them_open(tmp_path):
    open_files = Path("/proc/self/fd")
    if not open_files.is_dir():
        pytest.skip("open files are counted on Linux only")
    content = next(save(tmp_path / "series", series(hounsfield()[..., :1])).iterdir()).read_bytes()
    folder = tmp_path / "archives"
    folder.mkdir()
    for n in range(100):
        with zipfile.ZipFile(folder / f"{n}.zip", "w") as archive:
            archive.writestr("0.dcm", content)
    before = len(list(open_files.iterdir()))
    (found,) = find_series(folder)
    assert len(found.files) == 100
    assert len(list(open_files.iterdir())) - before <= 70


def test_a_forked_process_opens_an_archive_of_its_own(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("0.dcm", b"x" * 200)
    (item,) = list_items(tmp_path / "a.zip")
    own = item.archive.file.fp.fileno()
    assert item.archive.file.fp.fileno() == own
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_file_number, (item,)) != own


def _file_number(item):
    return item.archive.file.fp.fileno()


def test_files_that_should_be_dicom_and_cannot_be_read_are_named(tmp_path):
    save(tmp_path, series(hounsfield()))
    (tmp_path / "notes.txt").write_text("x" * 500)
    (tmp_path / ".DS_Store").write_bytes(b"\x08\x00" * 100)
    assert read_dicom(tmp_path).problems == ()
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "cut").write_bytes((tmp_path / "image000.dcm").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cut: .*; empty\.dcm: it is empty"):
        read_dicom(tmp_path)
    info = find_series(tmp_path)[-1]
    assert (info.kind, len(info.files)) == ("unreadable", 2)
    assert (info.size, info.spacing, info.readable) == ((0, 0, 0), None, False)
    with pytest.raises(ValueError, match="it is empty"):
        read_dicom(tmp_path, series=info)


def test_damaged_bytes_are_an_error_and_never_a_crash(tmp_path):
    rng = np.random.default_rng(0)
    save(tmp_path, series(hounsfield(4, 3, 3)))
    path = tmp_path / "image001.dcm"
    sound = path.read_bytes()
    refused = 0
    for _ in range(150):
        content = bytearray(sound)
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(132, len(content) - 20))
            content[at : at + int(rng.integers(0, 8))] = rng.bytes(int(rng.integers(0, 8)))
        path.write_bytes(content)
        for info in find_series(tmp_path):
            assert str(info)
            assert info.readable in (True, False)
        try:
            read_dicom(tmp_path)
        except (ValueError, ImportError):
            refused += 1
    assert refused > 50


def test_folders_without_dicom_say_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_dicom(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no DICOM images"):
        read_dicom(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match="it is not DICOM"):
        read_dicom(tmp_path / "picture.png")


def test_nothing_that_tells_of_a_patient_is_shown(tmp_path, caplog, recwarn):
    uid = "1.2.826.0.1.3680043.9999.77"
    slices = series(hounsfield(), patient="SECRET77", name="Doe^Jane", series_uid=uid, SeriesDescription="thorax Jane")
    (tmp_path / "x").mkdir()
    for k, data in enumerate(slices):
        data.AcquisitionTime = "notatime SECRET77"  # pydicom warns of it, quoting it
        data.save_as(tmp_path / "x" / f"{uid}.{k}")
    caplog.clear()
    recwarn.clear()
    info = find_series(tmp_path)[0]
    volume = read_dicom(tmp_path)
    shown = f"{info} {info!r} {info.problems} {info.frames[0]!r} {volume.problems} {volume.origin} {caplog.text} {[*recwarn]}"
    shown = shown.replace(str(tmp_path), "")
    for word in ("SECRET77", "Doe", "Jane", "19700101"):
        assert word not in shown
    assert uid not in f"{info} {info.problems} {volume.problems} {volume.origin} {caplog.text} {info.files[0].name}"
    assert info.description == ""


def test_frames_of_a_multi_frame_file_have_geometry_and_rescale_of_their_own(tmp_path):
    values = hounsfield()
    enhanced(values, order=(4, 0, 2, 5, 1, 3)).save_as(tmp_path / "multi.dcm", enforce_file_format=True)
    volume = read_dicom(tmp_path)
    np.testing.assert_array_equal(volume.array[0], np.where(values < -1024, -1024, values))
    np.testing.assert_array_equal(volume.affine, affine_of())
    assert (volume.unit, volume.array.dtype) == ("HU", np.int16)


def test_a_multi_frame_file_lacks_a_slice(tmp_path):
    enhanced(hounsfield(), order=(0, 1, 2, 4, 5)).save_as(tmp_path / "multi.dcm", enforce_file_format=True)
    with pytest.raises(ValueError, match="missing slices: 1 between frame 3 and frame 4"):
        read_dicom(tmp_path)


def test_frames_without_positions_are_no_volume(tmp_path):
    cine = series(hounsfield(4, 4, 1), modality="MR", ImagePositionPatient=None, ImageOrientationPatient=None)[0]
    cine.NumberOfFrames = 3
    cine.PixelData = cine.PixelData * 3
    cine.save_as(tmp_path / "cine.dcm", enforce_file_format=True)
    with pytest.raises(ValueError, match="no volume: MR holds frames without a place"):
        read_dicom(tmp_path, series=1)


def test_progress_counts_files(tmp_path):
    seen = []
    find_series(save(tmp_path, series(hounsfield())), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 6) for n in range(1, 7)]
