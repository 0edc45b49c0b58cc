"""What ``omnivae inspect`` says of volumes: facts, problems by name, nothing that tells of a person."""

from __future__ import annotations

import json
import shutil
import zipfile

import numpy as np
import pytest

from omnivae.cli.main import main
from omnivae.data import DataConfig, load_data
from omnivae.data.volumes import write_volume
from omnivae.data.volumes.dicom_write import write_dicom
from omnivae.jobs.volumes_inspect import inspect_volumes
from omnivae.volume import Volume

nib = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")


def ct(seed: int = 0, *, spacing: float = 3.0, unit: str = "HU") -> Volume:
    rng = np.random.default_rng(seed)
    array = rng.integers(-1000, 400, (1, 10, 12, 8)).astype(np.int16)
    array[:, :3] = -1000
    return Volume(array, np.diag([-1.0, -1.0, spacing, 1.0]), unit=unit)  # type: ignore[arg-type]


def problems_of(found, name):
    return {p.name: p for v in found.volumes if v.name == name for p in v.problems}


def test_files_and_series_side_by_side(tmp_path, capsys):
    write_dicom(ct(0), tmp_path / "a" / "scan")
    write_dicom(ct(1), tmp_path / "b")
    write_volume(ct(2), tmp_path / "c.nii.gz")
    assert (
        main(["inspect", str(tmp_path), "--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html")])
        == 0
    )
    said = capsys.readouterr().out
    assert "look like HU" in said
    facts = {v["name"]: v for v in json.loads((tmp_path / "out.json").read_text())["volumes"]}
    assert set(facts) == {"a/scan/series-1", "b/series-2", "c.nii.gz"}
    dicom = facts["a/scan/series-1"]
    assert (dicom["shape"], dicom["spacing"], dicom["orientation"]) == ([1, 10, 12, 8], [1, 1, 3], "LPS")
    assert (dicom["unit"], dicom["modality"], dicom["low"], dicom["files"]) == ("HU", "CT", -1000.0, 8)
    assert dicom["high"] == float(ct(0).array.max())
    file = facts["c.nii.gz"]
    assert (file["unit"], file["looks_like"], file["dtype"]) == ("arbitrary", "HU", "int16")
    page = (tmp_path / "out.html").read_text()
    assert page.count("data:image/png;base64") == 3
    assert "<script" not in page


def test_a_missing_slice_has_a_name_and_stops(tmp_path, capsys):
    files = write_dicom(ct(), tmp_path / "scan")
    files[3].unlink()
    assert main(["inspect", str(tmp_path / "scan")]) == 1
    assert "stops the run" in capsys.readouterr().out
    found = inspect_volumes(tmp_path / "scan")
    (facts,) = found.volumes
    assert {p.name for p in facts.problems if p.stops} == {"missing slices"}
    assert facts.low is None
    resampled = inspect_volumes(tmp_path / "scan", on_gaps="resample")
    assert resampled.problems == []
    assert resampled.volumes[0].low == -1000


def test_doubled_uneven_tilted_and_unreadable(tmp_path):
    doubled = write_dicom(ct(), tmp_path / "doubled")
    again = pydicom.dcmread(doubled[2])
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    again.save_as(tmp_path / "doubled" / "again.dcm")
    uneven = write_dicom(ct(), tmp_path / "uneven")
    moved = pydicom.dcmread(uneven[4])
    moved.ImagePositionPatient[2] += 1
    moved.save_as(uneven[4])
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    affine[1, 2] = 0.5
    tilted = ct(spacing=2.0)
    write_dicom(tilted.with_array(tilted.array, affine=affine), tmp_path / "tilted")
    broken = write_dicom(ct(), tmp_path / "broken")
    broken[1].write_bytes(broken[1].read_bytes()[:-100])
    found = {path: inspect_volumes(tmp_path / path) for path in ("doubled", "uneven", "tilted", "broken")}
    names = {path: {p.name: p.stops for v in f.volumes for p in v.problems} for path, f in found.items()}
    assert names["doubled"] == {"doubled slices": False}
    assert any(stops for stops in names["uneven"].values())
    assert names["tilted"] == {"gantry tilt": False}
    assert any("unreadable" in name and stops for name, stops in names["broken"].items())


def test_two_patients_and_a_series_alone(tmp_path):
    for number, name in enumerate(("first", "second")):
        for file in write_dicom(ct(number), tmp_path / name):
            dataset = pydicom.dcmread(file)
            dataset.PatientID, dataset.PatientName = f"secret-{number}", f"Doe^{name}"
            dataset.save_as(file)
    found = inspect_volumes(tmp_path)
    assert found.patients == 2
    assert any("2 patients" in text for text in found.remarks)
    alone = inspect_volumes(tmp_path, series="2")
    assert [v.number for v in alone.volumes] == [2]
    with pytest.raises(ValueError, match="there is no series 7"):
        inspect_volumes(tmp_path, series="7")


def test_nothing_tells_of_a_person(tmp_path, capsys):
    files = write_dicom(ct(), tmp_path / "scan")
    uids = set()
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate = "ID-4711", "Muster^Erika", "19600229"
        uids |= {str(dataset.SOPInstanceUID), str(dataset.SeriesInstanceUID), str(dataset.StudyInstanceUID)}
        dataset.save_as(file)
        shutil.move(file, file.with_name(f"{dataset.SOPInstanceUID}.dcm"))
    (tmp_path / "scan" / "1.2.840.99999.1.2.3.4.dcm").write_bytes(b"\0" * 128 + b"DICM")
    out, html = tmp_path / "o.json", tmp_path / "o.html"
    main(["inspect", str(tmp_path / "scan"), "--json", str(out), "--html", str(html)])
    written = capsys.readouterr().out + out.read_text() + html.read_text()
    for secret in {"ID-4711", "Muster", "Erika", "19600229", "1.2.840.99999.1.2.3.4", *uids}:
        assert secret not in written


def test_files_that_are_no_volume(tmp_path, capsys):
    four = nib.Nifti1Image(np.zeros((4, 5, 6, 3), np.int16), np.diag([1, 1, 2, 1.0]))
    nib.save(four, tmp_path / "four.nii")
    array = np.zeros((4, 5, 6), np.float32)
    array[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "hole.nii")
    zero = nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4))
    zero.header["sform_code"], zero.header["qform_code"] = 1, 0
    zero.header["srow_x"] = zero.header["srow_y"] = zero.header["srow_z"] = 0
    zero.header["pixdim"][1:4] = 0
    (tmp_path / "zero.nii").write_bytes(b"".join(to_bytes(zero)))
    (tmp_path / "cut.nii").write_bytes((tmp_path / "four.nii").read_bytes()[:300])
    assert main(["inspect", str(tmp_path)]) == 1
    found = inspect_volumes(tmp_path)
    stops = {v.name: [p.text for p in v.problems if p.stops] for v in found.volumes}
    assert any("3" in text and "time" in text for text in stops["four.nii"])
    assert any("NaN" in text or "not finite" in text for text in stops["hole.nii"])
    assert stops["zero.nii"]
    assert stops["cut.nii"]
    assert not any(v.usable for v in found.volumes)
    assert len(found.problems) == 5
    assert str(tmp_path) not in " ".join(text for texts in stops.values() for text in texts)


def to_bytes(image):
    """A NIfTI with this very header; nibabel's own writer would mend its affine."""
    yield image.header.binaryblock
    yield b"\0" * 4
    yield np.asarray(image.dataobj).tobytes(order="F")


def test_doubled_slices_are_told_once(tmp_path, capsys):
    files = write_dicom(ct(), tmp_path / "scan")
    for number in (2, 5):
        again = pydicom.dcmread(files[number])
        again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        again.save_as(tmp_path / "scan" / f"again{number}.dcm")
    assert main(["inspect", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.count("doubled slices") == 1
    assert "slice 3, slice 6 were there 2 times, bit for bit; one was kept" in said


def test_series_that_are_set_aside_keep_their_folder_and_stop_nothing(tmp_path, capsys):
    write_dicom(ct(0), tmp_path / "a")
    for file in write_dicom(ct(1), tmp_path / "b" / "scout"):
        dataset = pydicom.dcmread(file)
        dataset.SeriesDescription = "Scout"
        dataset.save_as(file)
    write_dicom(ct(2), tmp_path / "mpr")[3].unlink()
    original(tmp_path / "a")
    assert main(["inspect", str(tmp_path), "--json", str(tmp_path / "o.json")]) == 0
    said = capsys.readouterr().out
    volumes = json.loads((tmp_path / "o.json").read_text())["volumes"]
    assert [(v["name"], v["kind"]) for v in volumes] == [
        ("a/series-1", "image"),
        ("mpr/series-2", "derived"),
        ("b/scout/series-3", "localizer"),
    ]
    assert "STOPS" not in said
    assert said.count("set aside") == 2
    assert "1 series computed from other images are left out of a run (mpr/series-2)" in said


def test_page_and_text_count_alike(tmp_path, capsys):
    write_dicom(ct(0), tmp_path / "scans" / "a")
    original(tmp_path / "scans" / "a")
    write_dicom(ct(1), tmp_path / "scans" / "mpr")
    write_dicom(ct(2), tmp_path / "scans" / "cut")[3].unlink()
    assert main(["inspect", str(tmp_path / "scans"), "--html", str(tmp_path / "o.html")]) == 0
    assert "3 volumes and series, 1 usable" in capsys.readouterr().out
    page = (tmp_path / "o.html").read_text()
    assert "1 of 3 usable, 2 set aside" in page
    assert page.count(", set aside</td>") == 2
    # What is set aside stops nothing, here as there.
    assert "missing slices" in page
    assert "MISSING SLICES" not in page
    assert "(stops)" not in page


def test_a_listing_with_other_column_names_is_told_the_right_ones(tmp_path, capsys):
    for header, hint in (
        ("base,follow", "called baseline and followup: rename base and follow"),
        ("prior,current", "called baseline and followup: rename prior and current"),
    ):
        (tmp_path / "pairs.csv").write_text(f"{header}\na.nii.gz,b.nii.gz\n")
        assert main(["inspect", str(tmp_path / "pairs.csv")]) == 1
        assert hint in capsys.readouterr().out
    (tmp_path / "people.csv").write_text("title,year\nsomething,1999\n")
    assert main(["inspect", str(tmp_path / "people.csv")]) == 1
    assert "baseline" not in capsys.readouterr().out


def original(folder):
    """Say that a folder's images come from a scanner, not from this library."""
    for file in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(file)
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.save_as(file)


def test_archives_in_a_folder_are_looked_into_or_named(tmp_path, capsys):
    write_dicom(ct(0), tmp_path / "one" / "series")
    write_dicom(ct(1), tmp_path / "two")
    write_volume(ct(2), tmp_path / "three" / "c.nii.gz")
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("one", "two", "three"):
        shutil.make_archive(str(folder / name), "zip", tmp_path / name)
    (folder / "broken.zip").write_bytes((folder / "one.zip").read_bytes()[:2000])
    with zipfile.ZipFile(folder / "notes.zip", "w") as other:
        other.writestr("readme.txt", "no volume")
    assert main(["inspect", str(folder), "--json", str(tmp_path / "o.json")]) == 1
    said = capsys.readouterr().out
    volumes = {v["name"]: v for v in json.loads((tmp_path / "o.json").read_text())["volumes"]}
    assert set(volumes) == {"one.zip/series/series-1", "two.zip/series-2", "series-3"}
    assert volumes["two.zip/series-2"]["high"] == float(ct(1).array.max())
    assert (
        "three.zip: 1 volumes lie in a zip archive (the first is c.nii.gz), where only DICOM is read: unpack it" in said
    )
    assert "broken.zip: it is a damaged zip archive" in said
    assert "notes.zip" not in said
    assert [v.number for v in inspect_volumes(folder, series="2").volumes] == [2]
    with pytest.raises(ValueError, match=r"three\.zip: 1 volumes lie in a zip archive"):
        load_data(DataConfig(str(folder), volume={"patch_size": 8}))
    kept = load_data(DataConfig(str(folder), on_error="skip", cache=False, volume={"patch_size": 8}))
    assert len(kept.train.source) == 2


def test_a_single_slice_is_refused_with_what_can_be_done(tmp_path, capsys):
    for file in write_dicom(ct(), tmp_path)[1:]:
        file.unlink()
    only = next(tmp_path.iterdir())
    dataset = pydicom.dcmread(only)
    dataset.pop("SpacingBetweenSlices", None)
    dataset.save_as(only)
    assert main(["inspect", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "get the others, or leave it out (data.on_error skip in training)" in said
    assert "read_dicom(path, slice_spacing=3.0) in Python" in said


def test_pairs_are_listed_with_their_overlap(tmp_path, capsys):
    first = ct(0)
    moved = np.diag([-1.0, -1.0, 3.0, 1.0])
    moved[0, 3] = -5
    write_volume(first, tmp_path / "a0.nii.gz")
    write_volume(ct(1).with_array(ct(1).array, affine=moved), tmp_path / "a1.nii.gz")
    moved[0, 3] = -50
    write_volume(ct(2).with_array(ct(2).array, affine=moved), tmp_path / "far.nii.gz")
    listing = tmp_path / "pairs.csv"
    listing.write_text("baseline,followup,name\na0.nii.gz,a1.nii.gz,near\na0.nii.gz,far.nii.gz,far\n")
    out, html = tmp_path / "o.json", tmp_path / "o.html"
    assert main(["inspect", str(listing), "--json", str(out), "--html", str(html)]) == 1
    said = capsys.readouterr().out
    assert "2 pairs of 3 volumes, 3 usable" in said
    assert "a0.nii.gz and a1.nii.gz: the followup reaches 50 % of the baseline" in said
    assert "STOPS baseline and followup share no place" in said
    assert "stops the run: far: see STOPS above" in said
    near, far = json.loads(out.read_text())["pairs"]
    assert (near["overlap"], near["patient"], far["overlap"], far["patient"]) == (0.5, 1, None, 1)
    assert "a0.nii.gz and a1.nii.gz: the followup reaches 50 % of the baseline, patient 1" in html.read_text()
    assert "far.nii.gz, patient 1; baseline and followup share no place" in html.read_text()
    (tmp_path / "far.nii.gz").write_bytes(b"no volume")
    assert inspect_volumes(listing).pairs[1].problem == "its followup cannot be used"


def test_headers_alone(tmp_path):
    write_volume(ct(), tmp_path / "c.nii.gz")
    found = inspect_volumes(tmp_path, verify="headers")
    assert found.volumes[0].low is None
    assert found.volumes[0].shape == (1, 10, 12, 8)
    assert any("only headers" in text for text in found.remarks)


def test_options_of_volumes_are_refused_for_images(tmp_path, capsys):
    from PIL import Image

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    assert main(["inspect", str(tmp_path), "--html", "x.html"]) == 2
    assert "which is for volumes" in capsys.readouterr().err
