"""Reconstruction of volumes: a model that changes nothing gives back the same file; what it cannot give back is counted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from omnivae.cli.main import main
from omnivae.data.volumes import read_volume, write_volume
from omnivae.data.volumes.dicom import read_dicom
from omnivae.data.volumes.dicom_write import write_dicom
from omnivae.jobs.volumes_codec import VolumeCodec
from omnivae.jobs.volumes_reconstruct import RECORD, reconstruct_volumes
from omnivae.likelihoods import GaussianLikelihood
from omnivae.models import VAE
from omnivae.posteriors import GaussianPosterior
from omnivae.priors import StandardNormal
from omnivae.recipes.convolutional import kl_autoencoder
from omnivae.recipes.volumes import MaisiVAE
from omnivae.volume import Stored, Volume

nib = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")

HU = {"unit": "HU", "window": [-1000, 1000], "range": [0, 1], "orientation": "RAS", "clip": True}


class Fold(nn.Module):
    """Cubes of voxels become channels, or channels cubes; nothing is computed."""

    dim = 3

    def __init__(self, channels: int, edge: int, *, back: bool) -> None:
        super().__init__()
        self.edge, self.back = edge, back
        folded = channels * edge**3
        self.in_channels, self.out_channels = (folded, channels) if back else (channels, folded)
        self.stride = edge

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        n, e = x.shape[1], self.edge
        if self.back:
            x = x.unflatten(1, (n // e**3, e, e, e)).permute(0, 1, 5, 2, 6, 3, 7, 4)
            return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        for axis in (2, 4, 6):
            x = x.unflatten(axis, (-1, e))
        return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def identity(intensity: dict | None = HU, channels: int = 1, edge: int = 4) -> VAE:
    """A VAE whose decoding of its encoding is its input, with a stride that forces padding."""
    latent = channels * edge**3
    posterior = GaussianPosterior(latent, latent, dim=3)
    with torch.no_grad():
        posterior.projection.weight.zero_()
        posterior.projection.bias.zero_()
        posterior.projection.weight[:latent] = torch.eye(latent)[..., None, None, None]
    model = VAE(
        Fold(channels, edge, back=False),
        posterior,
        Fold(channels, edge, back=True),
        GaussianLikelihood(),
        StandardNormal(),
        value_range=(0.0, 1.0),
    )
    if intensity is not None:
        model.statistics["intensity"] = intensity
    return model.eval()


def turned(degrees: float) -> np.ndarray:
    a, b = np.deg2rad([degrees, degrees / 2])
    first = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    second = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return first @ second


def affine_of(kind: str) -> np.ndarray:
    affine = np.eye(4)
    matrix = {
        "RAS": np.diag([2.0, 2.0, 2.0]),
        "LPS": np.diag([-0.7, -0.7, 0.7]),
        "PIR": np.array([[0, 0, 3.3], [-0.9, 0, 0], [0, -0.9, 0]]),
        "anisotropic": np.diag([-0.4882812, -0.4882812, 5.0]),
        "oblique": turned(17.0) @ np.diag([0.9, 0.9, 2.5]),
        "tilted": np.array([[-0.5, 0, 0], [0, -0.5, 0.793], [0, 0, 2.37]]),
    }[kind]
    affine[:3, :3], affine[:3, 3] = matrix, [-91.37, 12.8125, -403.501]
    return affine


def scan(affine: np.ndarray, dtype: str = "int16", seed: int = 0) -> Volume:
    rng = np.random.default_rng(seed)
    array = rng.integers(-1000, 1001, (1, 7, 9, 6))
    array[:, 0] = -1000
    return Volume(array.astype(dtype), affine, unit="HU", stored=Stored(dtype))


@pytest.mark.parametrize("kind", ["RAS", "LPS", "PIR", "anisotropic", "oblique", "tilted"])
@pytest.mark.parametrize("dtype", ["int16", "int32", "float32"])
def test_a_model_that_changes_nothing_gives_the_same_nifti(tmp_path, kind, dtype):
    source = tmp_path / "in" / "ct.nii.gz"
    write_volume(scan(affine_of(kind), dtype), source)
    (result,) = reconstruct_volumes(identity(), [source], tmp_path / "out")
    before, after = nib.load(source), nib.load(tmp_path / "out" / "ct.nii.gz")
    np.testing.assert_array_equal(before.affine, after.affine)
    assert before.header.get_zooms() == after.header.get_zooms()
    assert nib.aff2axcodes(before.affine) == nib.aff2axcodes(after.affine)
    assert before.shape == after.shape
    assert before.get_data_dtype() == after.get_data_dtype() == np.dtype(dtype)
    a, b = (np.asanyarray(image.dataobj) for image in (before, after))
    if dtype == "float32":
        # There and back through [0, 1] in float32.
        np.testing.assert_allclose(b, a, atol=2e-4)
    else:
        np.testing.assert_array_equal(b, a)
        assert result.metrics["mae_hu"] == 0
        assert result.metrics["psnr_lung"] is None
    assert result.below == result.above == 0


@pytest.mark.parametrize("kind", ["LPS", "anisotropic", "oblique", "tilted"])
def test_a_model_that_changes_nothing_gives_the_same_dicom(tmp_path, kind):
    original = scan(affine_of(kind))
    write_dicom(original, tmp_path / "in")
    before = read_dicom(tmp_path / "in")
    reconstruct_volumes(identity(), [tmp_path / "in"], tmp_path / "out", format="dicom")
    after = read_dicom(tmp_path / "out" / "series-1")
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_array_equal(after.array, before.array)
    assert (after.array.dtype, after.unit, after.stored) == (before.array.dtype, before.unit, before.stored)
    old, new = (pydicom.dcmread(next(iter(sorted((tmp_path / p).rglob("*.dcm"))))) for p in ("in", "out"))
    assert old.SeriesInstanceUID != new.SeriesInstanceUID
    assert new.ImageType[0] == "DERIVED"


def test_identifiers_are_removed_unless_asked_for(tmp_path):
    for file in write_dicom(scan(affine_of("LPS")), tmp_path / "in"):
        dataset = pydicom.dcmread(file)
        dataset.PatientID, dataset.PatientName = "ID-4711", "Muster^Erika"
        dataset.add_new(0x00091001, "LO", "private word")
        dataset.save_as(file)
    reconstruct_volumes(identity(), [tmp_path / "in"], tmp_path / "out", format="dicom", report=tmp_path / "out.html")
    uid = str(pydicom.dcmread(next((tmp_path / "in").iterdir())).SeriesInstanceUID)
    for file in [*(tmp_path / "out").rglob("*"), tmp_path / "out.html"]:
        if file.is_file():
            content = file.read_bytes()
            for secret in (b"ID-4711", b"Muster", b"private word", uid.encode()):
                assert secret not in content
    reconstruct_volumes(identity(), [tmp_path / "in"], tmp_path / "kept", format="dicom", keep_identifiers=True)
    kept = pydicom.dcmread(next((tmp_path / "kept").rglob("*.dcm")))
    assert (kept.PatientID, str(kept.PatientName)) == ("ID-4711", "Muster^Erika")
    assert (0x0009, 0x1001) not in kept


def test_dicom_becomes_nifti_at_the_same_place(tmp_path):
    write_dicom(scan(affine_of("oblique")), tmp_path / "in")
    reconstruct_volumes(identity(), [tmp_path / "in"], tmp_path / "out")
    before, after = read_dicom(tmp_path / "in"), read_volume(tmp_path / "out" / "series-1.nii.gz", unit="HU")
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
    np.testing.assert_array_equal(after.array, before.array)


def test_channels_of_a_stage_come_back_as_ome_zarr(tmp_path):
    pytest.importorskip("zarr")
    rng = np.random.default_rng(0)
    array = rng.integers(0, 4000, (2, 5, 8, 11)).astype(np.uint16)
    volume = Volume(array, np.diag([2.0, 0.25, 0.25, 1.0]), space="stage", channels=("Phase", "DAPI"))
    write_volume(volume, tmp_path / "in" / "cells.ome.zarr")
    contract = {"unit": "arbitrary", "percentiles": [0, 100], "range": [0, 1], "clip": True}
    (result,) = reconstruct_volumes(identity(contract, 2), [tmp_path / "in"], tmp_path / "out")
    after = read_volume(tmp_path / "out" / "cells.ome.zarr")
    np.testing.assert_array_equal(after.array, array)
    np.testing.assert_array_equal(after.affine, volume.affine)
    assert after.channels == ("Phase", "DAPI")
    assert result.metrics["mae"] == 0


def test_values_outside_the_window_are_counted(tmp_path):
    volume = scan(affine_of("LPS"))
    array = volume.array.copy()
    array[0, 1, :4, 0], array[0, 2, :3, 1] = -1500, 2500
    write_volume(volume.with_array(array), tmp_path / "ct.nii.gz")
    (result,) = reconstruct_volumes(identity(), [tmp_path / "ct.nii.gz"], tmp_path / "out", report=tmp_path / "r.html")
    assert (result.below, result.above) == (4, 3)
    assert "7 of 378 voxels (1.85%)" in result.clipped
    after = read_volume(tmp_path / "out" / "ct.nii.gz")
    np.testing.assert_array_equal(after.array, array.clip(-1000, 1000))
    assert result.metrics["mae_hu"] == pytest.approx((4 * 500 + 3 * 1500) / array.size)
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/png;base64") == 4
    assert "7 of 378 voxels" in page


def test_tiles_give_what_the_whole_gives():
    torch.manual_seed(0)
    model = kl_autoencoder(in_channels=1, channels=(8, 8), num_res_blocks=1, num_groups=4, dim=3).eval()
    model.statistics["intensity"] = HU | {"range": list(model.value_range)}
    volume = Volume(
        np.random.default_rng(0).integers(-1000, 1000, (1, 12, 16, 13)).astype(np.float32), affine_of("LPS"), unit="HU"
    )
    whole = VolumeCodec(model)(volume).reconstruction.array
    shares: list[float] = []
    tiled = VolumeCodec(model, memory="20 MB")(volume, progress=shares.append).reconstruction.array
    assert np.abs(whole).max() > 100
    np.testing.assert_allclose(tiled, whole, atol=0.05)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(2)


def test_the_same_command_goes_on(tmp_path, monkeypatch):
    for number in range(3):
        write_volume(scan(affine_of("LPS"), seed=number), tmp_path / "in" / f"ct{number}.nii.gz")
    calls: list[int] = []
    real = VolumeCodec.__call__

    def stopping(self, volume, *, progress=None):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, volume, progress=progress)

    monkeypatch.setattr(VolumeCodec, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        reconstruct_volumes(identity(), [tmp_path / "in"], tmp_path / "out")
    first = (tmp_path / "out" / "ct0.nii.gz").stat().st_mtime_ns
    results = reconstruct_volumes(identity(), [tmp_path / "in"], tmp_path / "out")
    assert len(calls) == 4
    assert [r.name for r in results] == ["ct0", "ct1", "ct2"]
    assert (tmp_path / "out" / "ct0.nii.gz").stat().st_mtime_ns == first
    with pytest.raises(ValueError, match="another intensity: give another --output"):
        reconstruct_volumes(identity(HU | {"window": [-900, 900]}), [tmp_path / "in"], tmp_path / "out")
    write_volume(scan(affine_of("LPS"), seed=9), tmp_path / "in" / "ct1.nii.gz")
    with pytest.raises(ValueError, match="ct1 has changed"):
        reconstruct_volumes(identity(), [tmp_path / "in"], tmp_path / "out")


def test_a_series_half_written_is_written_again_and_a_strangers_is_not_touched(tmp_path):
    write_dicom(scan(affine_of("LPS")), tmp_path / "in")
    reconstruct_volumes(identity(), [tmp_path / "in"], tmp_path / "out", format="dicom")
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    record["volumes"]["series-1"]["state"] = "writing"
    (tmp_path / "out" / RECORD).write_text(json.dumps(record))
    reconstruct_volumes(identity(), [tmp_path / "in"], tmp_path / "out", format="dicom")
    assert len(list((tmp_path / "out" / "series-1").iterdir())) == 6
    other = tmp_path / "other" / "series-1"
    other.mkdir(parents=True)
    (other / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not of this command"):
        reconstruct_volumes(identity(), [tmp_path / "in"], tmp_path / "other", format="dicom")
    assert (other / "mine.txt").read_text() == "keep"


def test_errors_in_each_structure(tmp_path):
    volume = scan(affine_of("LPS"))
    array = volume.array.copy()
    array[0, 3] = 1200
    write_volume(volume.with_array(array), tmp_path / "ct.nii.gz")
    marks = np.zeros(array.shape, np.uint8)
    marks[0, 3], marks[0, 4] = 1, 2
    write_volume(Volume(marks, volume.affine), tmp_path / "ct_seg.nii.gz")
    (result,) = reconstruct_volumes(
        identity(), [tmp_path / "ct.nii.gz"], tmp_path / "out", labels=tmp_path / "ct_seg.nii.gz"
    )
    assert result.structures["label 1"] == {"voxels": 54, "mae": 200, "bias": -200, "rmse": 200}
    assert result.structures["label 2"]["mae"] == 0
    # In a folder the label map is no image.
    (tmp_path / "in").mkdir()
    for name in ("ct.nii.gz", "ct_seg.nii.gz"):
        (tmp_path / name).rename(tmp_path / "in" / name)
    assert [r.name for r in reconstruct_volumes(identity(), [tmp_path / "in"], tmp_path / "o2")] == ["ct"]
    write_volume(Volume(marks, affine_of("RAS")), tmp_path / "elsewhere.nii.gz")
    with pytest.raises(ValueError, match="another grid"):
        reconstruct_volumes(
            identity(), [tmp_path / "in" / "ct.nii.gz"], tmp_path / "o3", labels=tmp_path / "elsewhere.nii.gz"
        )


def test_models_without_a_contract_are_told_one(tmp_path):
    write_volume(scan(affine_of("LPS")), tmp_path / "ct.nii.gz")
    with pytest.raises(ValueError, match="does not say which values it takes"):
        reconstruct_volumes(identity(None), [tmp_path / "ct.nii.gz"], tmp_path / "out")
    stated = {"unit": "HU", "window": [-1000, 1000]}
    (result,) = reconstruct_volumes(identity(None), [tmp_path / "ct.nii.gz"], tmp_path / "out", intensity=stated)
    assert result.metrics["mae_hu"] == 0
    with pytest.raises(ValueError, match="of its own"):
        reconstruct_volumes(identity(), [tmp_path / "ct.nii.gz"], tmp_path / "out", intensity=stated)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A small model of HU volumes in a directory, for the command."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("toy")
    MaisiVAE(num_channels=(8, 8, 8), num_res_blocks=(1, 1, 1), norm_num_groups=4).save_pretrained(directory)
    return str(directory)


def test_the_command(tmp_path, toy, capsys):
    write_dicom(scan(affine_of("LPS")), tmp_path / "in" / "a")
    write_dicom(scan(affine_of("tilted"), seed=1), tmp_path / "in" / "b")
    page = tmp_path / "page.html"
    assert main(["reconstruct", toy, str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--report", str(page)]) == 0
    said = capsys.readouterr().out
    assert "psnr_lung" in said
    assert "all 378 voxels lie in the model's window" in said
    assert {p.name for p in (tmp_path / "out").rglob("*.nii.gz")} == {"series-1.nii.gz", "series-2.nii.gz"}
    assert page.read_text().count("data:image/png;base64") == 8


def refuse(argv: list[str], capsys) -> str:
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "unexpected" not in said
    return said


def test_one_slice_and_two_are_padded(tmp_path, toy, capsys):
    for depth in (1, 2):
        volume = scan(affine_of("LPS"))
        write_volume(volume.with_array(volume.array[..., :depth]), tmp_path / f"{depth}.nii.gz")
    assert (
        main(["reconstruct", toy, str(tmp_path / "1.nii.gz"), str(tmp_path / "2.nii.gz"), "-o", str(tmp_path / "o")])
        == 0
    )
    assert nib.load(tmp_path / "o" / "1.nii.gz").shape[:2] == (7, 9)
    assert nib.load(tmp_path / "o" / "2.nii.gz").shape == (7, 9, 2)


def test_bad_input(tmp_path, toy, capsys):
    out = ["-o", str(tmp_path / "out")]

    def said(path, *more):
        return refuse(["reconstruct", toy, str(path), *out, *more], capsys)

    # four axes where three are asked for
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 3), np.int16), np.eye(4)), tmp_path / "four.nii")
    assert "time" in said(tmp_path / "four.nii")
    # an 8-bit screenshot, as a file of a volume, as a picture
    shot = np.random.default_rng(0).integers(0, 255, (8, 8, 8)).astype(np.uint8)
    nib.save(nib.Nifti1Image(shot, np.eye(4)), tmp_path / "shot.nii")
    assert "8-bit picture" in said(tmp_path / "shot.nii")
    from PIL import Image

    Image.fromarray(shot[0]).save(tmp_path / "shot.png")
    assert "holds no volume" in said(tmp_path / "shot.png")
    # spacing 0 and a NaN in the affine
    header = nib.Nifti1Header()
    header.set_data_shape((4, 5, 6))
    header.set_data_dtype(np.int16)
    header["sform_code"], header["vox_offset"] = 1, 352
    for name, value in (("zero", 0.0), ("nan", np.nan)):
        header["srow_x"], header["srow_y"], header["srow_z"] = [value, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]
        header["pixdim"][1:4] = 0
        (tmp_path / f"{name}.nii").write_bytes(header.binaryblock + b"\0" * 4 + b"\0" * 240)
        assert "affine" in said(tmp_path / f"{name}.nii") or "spacing" in said(tmp_path / f"{name}.nii")
    # a missing slice
    write_dicom(scan(affine_of("LPS")), tmp_path / "gap")[2].unlink()
    assert "--on_gaps resample" in said(tmp_path / "gap")
    assert (
        main(["reconstruct", toy, str(tmp_path / "gap"), "-o", str(tmp_path / "filled"), "--on_gaps", "resample"]) == 0
    )
    capsys.readouterr()
    # a number of a series that is not there, options that do not fit
    assert "there is no series 5" in said(tmp_path / "gap", "--series", "5")
    assert "--keep_identifiers" in said(tmp_path / "gap", "--keep_identifiers")
    assert "of its own" in said(tmp_path / "gap", "--window", "-500", "500")
    # a store without multiscales, and a folder with nothing
    zarr = pytest.importorskip("zarr")
    zarr.open_group(tmp_path / "bare.zarr", mode="w").create_array("0", shape=(2, 2, 2), dtype="u1")
    assert "multiscales" in said(tmp_path / "bare.zarr")
    (tmp_path / "empty").mkdir()
    assert "no volume" in said(tmp_path / "empty")
    assert "no such file" in said(tmp_path / "nowhere.nii")


def test_two_patients_are_two_results(tmp_path, toy, capsys):
    for number in range(2):
        for file in write_dicom(scan(affine_of("LPS"), seed=number), tmp_path / "in" / f"write{number}"):
            dataset = pydicom.dcmread(file)
            dataset.PatientID = f"patient-{number}"
            dataset.save_as(tmp_path / "in" / f"{number}-{file.name}")
            file.unlink()
    assert main(["reconstruct", toy, str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 0
    assert {p.name for p in (tmp_path / "out").rglob("*.nii.gz")} == {"series-1.nii.gz", "series-2.nii.gz"}


def test_a_volume_beyond_the_budget_prints_the_plan_that_fits(tmp_path, toy, capsys):
    """The budget that is named suffices, and gives what the whole gives."""
    write_volume(scan(affine_of("LPS")), tmp_path / "ct.nii.gz")
    given = ["reconstruct", toy, str(tmp_path / "ct.nii.gz"), "-o"]
    said = refuse([*given, str(tmp_path / "a"), "--memory", "1kB"], capsys)
    assert "got --memory 1kB" in said
    assert "encode, tiled" in said
    assert "decode, tiled" in said
    assert not (tmp_path / "a" / "ct.nii.gz").exists()
    budget = said.split("give --memory ")[1].split()[0]
    assert main([*given, str(tmp_path / "b"), "--memory", budget]) == 0
    assert main([*given, str(tmp_path / "c")]) == 0
    tiled, whole = (read_volume(tmp_path / part / "ct.nii.gz").array for part in "bc")
    assert np.abs(tiled - whole).max() <= 1  # HU, rounded


def test_a_volume_that_fits_nowhere_names_a_budget(tmp_path, toy, monkeypatch):
    model = VAE.from_pretrained(toy).eval()

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(model, "encode", full)
    with pytest.raises(MemoryError, match=r"7 x 9 x 6 does not fit into memory whole: give --memory [\d.]+GB"):
        VolumeCodec(model, memory=None)(scan(affine_of("RAS")))


def test_results_among_the_volumes_are_none_of_them(tmp_path):
    write_volume(scan(affine_of("LPS")), tmp_path / "ct.nii.gz")
    for _ in range(2):
        results = reconstruct_volumes(identity(), [tmp_path], tmp_path / "out")
        assert [result.name for result in results] == ["ct"]


def test_files_that_are_no_dicom_are_named_and_no_number_is_advised(toy, tmp_path, capsys):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.dcm").write_text("this is no DICOM")
    assert main(["reconstruct", str(toy), str(tmp_path / "scans"), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "a.dcm: it is not DICOM" in said
    assert "--series" not in said
