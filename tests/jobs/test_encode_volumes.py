"""Volumes in a posterior store: encoded as reconstruct sees them, decoded to what reconstruct writes."""

from __future__ import annotations

import gzip
import json
import shutil

import numpy as np
import pytest
import torch
from test_reconstruct_volumes import HU, affine_of, identity, scan
from torch.utils.data import DataLoader
from volume_stores import decode, encode, save_toy

from omnivae import VAE, LatentDataset, PosteriorStore
from omnivae.data.volumes import ct_phantom, read_volume, write_volume
from omnivae.data.volumes.dicom_write import write_dicom
from omnivae.jobs.calibrate import calibrate_model
from omnivae.jobs.decode import decode_latents
from omnivae.jobs.volumes_decode import decode_volumes
from omnivae.jobs.volumes_reconstruct import reconstruct_volumes
from omnivae.volume import Volume

nib = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")


# -- what reconstruct writes


def test_decoding_gives_what_reconstruct_writes_bit_for_bit(toy, scans, tmp_path):
    result = encode(toy, scans, tmp_path / "store")
    assert (result.encoded, result.kept, result.what) == (6, 0, "volumes")
    written = decode(tmp_path / "store", toy, tmp_path / "decoded")
    expected = reconstruct_volumes(toy, [scans], tmp_path / "expected", measure=False, progress=False)
    names = sorted(r.output for r in expected)
    assert sorted(path.relative_to(tmp_path / "decoded").as_posix() for path in written) == names
    assert len(names) == 6
    for name in names:
        # Equal volumes are equal files: header, affine, type and every voxel.
        assert (tmp_path / "decoded" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes(), name
    dtypes = {nib.load(path).get_data_dtype().name for path in written}
    assert dtypes == {"int16", "int32", "float32"}


def test_a_latent_is_what_the_model_says_of_the_oriented_windowed_scan(toy, scans, tmp_path):
    """Against nibabel's canonical orientation and a window by hand, without the library's transforms."""
    encode(toy, scans, tmp_path / "store")
    store, model = PosteriorStore(tmp_path / "store"), VAE.from_pretrained(toy)
    assert store.kind == "volumes"
    assert store.keys == ["deep/float", "itk", "oblique", "phantom", "series/series-1", "tilted"]
    for key, file in (("oblique", "oblique.nii.gz"), ("deep/float", "deep/float.nii"), ("tilted", "tilted.nii.gz")):
        image = nib.as_closest_canonical(nib.load(scans / file))
        x = (np.asarray(image.dataobj, dtype=np.float64).clip(-1000, 1000) + 1000) / 2000
        with torch.no_grad():
            posterior = model.encode(torch.from_numpy(x)[None, None].float())
        item = store[key]
        torch.testing.assert_close(item["mean"], posterior.mean[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(item["logvar"], posterior.logvar[0], atol=1e-5, rtol=1e-4)
        assert item["input_size"] == image.shape
        assert item["mean"].shape == (4, *(-(-n // 4) for n in image.shape))
        np.testing.assert_allclose(item["affine"].numpy(), image.affine, atol=1e-5)
        np.testing.assert_allclose(item["spacing"].numpy(), image.header.get_zooms(), atol=1e-5)


def test_scans_come_back_exactly_from_a_model_that_changes_nothing(toy, tmp_path):
    """Identity of codecs: every geometry and type, and a voxel size of the model's own."""
    for kind in ("RAS", "LPS", "PIR", "anisotropic", "oblique", "tilted"):
        for dtype in ("int16", "float32"):
            write_volume(scan(affine_of(kind), dtype), tmp_path / "in" / f"{kind}-{dtype}.nii.gz")
    model = identity()
    encode(toy, tmp_path / "in", tmp_path / "store", loaded=model)
    store = PosteriorStore(tmp_path / "store")
    written = decode_volumes([(store, i) for i in range(len(store))], model, tmp_path / "out", progress=False)
    assert len(written) == 12
    for path in written:
        before, after = nib.load(tmp_path / "in" / path.name), nib.load(path)
        np.testing.assert_array_equal(before.affine, after.affine)
        assert before.header.get_zooms() == after.header.get_zooms()
        assert before.get_data_dtype() == after.get_data_dtype()
        a, b = (np.asanyarray(image.dataobj) for image in (before, after))
        np.testing.assert_allclose(b, a, atol=2e-4 if a.dtype == np.float32 else 0)


@pytest.mark.parametrize(
    "contract",
    [
        HU | {"spacing": [1.5, 1.5, 2.0]},
        {"unit": "arbitrary", "percentiles": [1, 99], "range": [0, 1], "orientation": "LAS", "clip": True},
        {"unit": "arbitrary", "percentiles": [0, 99.5], "range": [0, 1], "clip": False},
        {"unit": "arbitrary", "zscore": 4.0, "range": [0, 1], "orientation": "RAS"},
    ],
    ids=["spacing", "percentiles", "unclipped", "zscore"],
)
def test_every_contract_comes_back_as_reconstruct_gives_it(toy, tmp_path, contract):
    write_volume(scan(affine_of("oblique")), tmp_path / "in" / "a.nii.gz")
    write_volume(scan(affine_of("PIR"), "float32", seed=1), tmp_path / "in" / "b.nii")
    model = identity(contract)
    encode(toy, tmp_path / "in", tmp_path / "store", loaded=model)
    store = PosteriorStore(tmp_path / "store")
    written = decode_volumes([(store, 0), (store, 1)], model, tmp_path / "out", progress=False)
    reconstruct_volumes(model, [tmp_path / "in"], tmp_path / "expected", measure=False, progress=False)
    for path in written:
        assert path.read_bytes() == (tmp_path / "expected" / path.name).read_bytes()
        if "spacing" not in contract and contract.get("percentiles") != [1, 99]:
            source = read_volume(tmp_path / "in" / path.name.replace("b.nii.gz", "b.nii")).array
            np.testing.assert_allclose(read_volume(path).array, source, atol=2e-3)


def test_channels_of_a_stage_come_back_as_ome_zarr(toy, tmp_path):
    pytest.importorskip("zarr")
    array = np.random.default_rng(0).integers(0, 4000, (2, 5, 8, 11)).astype(np.uint16)
    volume = Volume(array, np.diag([2.0, 0.25, 0.25, 1.0]), space="stage", channels=("Phase", "DAPI"))
    write_volume(volume, tmp_path / "in" / "cells.ome.zarr")
    model = identity({"unit": "arbitrary", "percentiles": [0, 100], "range": [0, 1], "clip": True}, 2)
    encode(toy, tmp_path / "in", tmp_path / "store", loaded=model)
    store = PosteriorStore(tmp_path / "store")
    (path,) = decode_volumes([(store, 0)], model, tmp_path / "out", progress=False)
    after = read_volume(path)
    assert path.name == "cells.ome.zarr"
    np.testing.assert_array_equal(after.array, array)
    np.testing.assert_array_equal(after.affine, volume.affine)
    assert after.channels == ("Phase", "DAPI")
    (path,) = decode_volumes([(store, 0)], model, tmp_path / "nifti", format="nifti", progress=False)
    np.testing.assert_array_equal(read_volume(path).array, array)
    # A latent made anew takes the place of the store of pixels that was decoded before.
    write_volume(volume.with_array(array[:, ::-1]), tmp_path / "in" / "cells.ome.zarr")
    encode(toy, tmp_path / "in", tmp_path / "store", loaded=model)
    (path,) = decode_volumes([(PosteriorStore(tmp_path / "store"), 0)], model, tmp_path / "out", progress=False)
    np.testing.assert_array_equal(read_volume(path).array, array[:, ::-1])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_a_smaller_dtype_rounds_the_latents(toy, scans, tmp_path, dtype, tolerance):
    encode(toy, scans, tmp_path / "full")
    encode(toy, scans, tmp_path / "small", dtype=dtype)
    full, small = PosteriorStore(tmp_path / "full"), PosteriorStore(tmp_path / "small")
    for i in range(len(full)):
        torch.testing.assert_close(small[i]["mean"], full[i]["mean"], rtol=tolerance, atol=tolerance)
    decode(tmp_path / "small", toy, tmp_path / "out", keys=["oblique"])
    decode(tmp_path / "full", toy, tmp_path / "expected", keys=["oblique"])
    a, b = (nib.load(tmp_path / p / "oblique.nii.gz").get_fdata() for p in ("out", "expected"))
    assert 0 < np.abs(a - b).max() < 100


# -- memory


def test_tiles_give_what_the_whole_gives(toy, tmp_path):
    write_volume(ct_phantom(0, size=(24, 20, 13), spacing=(15.0, 15.0, 20.0)).volume, tmp_path / "ct.nii.gz")
    encode(toy, tmp_path / "ct.nii.gz", tmp_path / "whole")
    encode(toy, tmp_path / "ct.nii.gz", tmp_path / "tiles", memory="2MB")
    whole, tiles = (PosteriorStore(tmp_path / p)[0] for p in ("whole", "tiles"))
    assert tiles["mean"].abs().max() > 0.1
    for name in ("mean", "logvar"):
        torch.testing.assert_close(tiles[name], whole[name], atol=1e-4, rtol=1e-4)
    # Exact tiles are the whole, up to rounding: the store may be continued with either.
    again = encode(toy, tmp_path / "ct.nii.gz", tmp_path / "whole", memory="2MB")
    assert (again.encoded, again.kept) == (0, 1)
    decode(tmp_path / "whole", toy, tmp_path / "a")
    decode(tmp_path / "whole", toy, tmp_path / "b", memory="2MB")
    a, b = (nib.load(tmp_path / p / "ct.nii.gz").get_fdata() for p in "ab")
    assert np.abs(a - b).max() <= 1  # HU, rounded
    # Blended tiles are another latent.
    with pytest.raises(ValueError, match=r"tiles=blended in 2000000 bytes.*another --output"):
        encode(toy, tmp_path / "ct.nii.gz", tmp_path / "whole", memory="2MB", mode="blended")


def test_a_budget_that_is_too_small_is_refused_with_one_that_fits(toy, tmp_path):
    write_volume(scan(affine_of("LPS")), tmp_path / "ct.nii.gz")
    with pytest.raises(ValueError, match=r"ct: got --memory 1kB.*give --memory \d+") as error:
        encode(toy, tmp_path / "ct.nii.gz", tmp_path / "store", memory="1kB")
    budget = str(error.value).split("give --memory ")[1].split()[0]
    assert encode(toy, tmp_path / "ct.nii.gz", tmp_path / "store", memory=budget).encoded == 1
    with pytest.raises(ValueError, match=r"got --memory 1kB.*give --memory \d+"):
        decode(tmp_path / "store", toy, tmp_path / "out", memory="1kB")
    assert not list((tmp_path / "out").rglob("*.nii.gz"))
    assert len(decode(tmp_path / "store", toy, tmp_path / "out", memory=budget)) == 1
    with pytest.raises(ValueError, match="--memory and --precision bf16"):
        encode(toy, tmp_path / "ct.nii.gz", tmp_path / "other", memory=budget, precision="bf16")


def test_a_volume_that_fits_nowhere_names_a_budget(toy, tmp_path, monkeypatch):
    write_volume(scan(affine_of("LPS")), tmp_path / "ct.nii.gz")
    encode(toy, tmp_path / "ct.nii.gz", tmp_path / "store")

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(VAE, "encode", full)
    monkeypatch.setattr(VAE, "decode", full)
    with pytest.raises(MemoryError, match=r"7 x 9 x 6 does not fit into memory whole: give --memory [\d.]+[GM]B"):
        encode(toy, tmp_path / "ct.nii.gz", tmp_path / "other")
    with pytest.raises(MemoryError, match=r"7 x 9 x 6 does not fit into memory whole: give --memory [\d.]+[GM]B"):
        decode(tmp_path / "store", toy, tmp_path / "out")


# -- for models of latents


def test_calibration_and_whitened_parts_of_volumes(toy, scans, tmp_path):
    own = shutil.copytree(toy, tmp_path / "own")
    encode(own, scans, tmp_path / "store")
    store = PosteriorStore(tmp_path / "store")
    latent = calibrate_model(own, store=tmp_path / "store", progress=False)
    assert latent["num_images"] == 6
    means = np.concatenate([store[i]["mean"].double().numpy().reshape(4, -1) for i in range(6)], 1)
    variances = np.concatenate([store[i]["logvar"].double().exp().numpy().reshape(4, -1) for i in range(6)], 1)
    np.testing.assert_allclose(latent["mean"], means.mean(1), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(latent["std"], np.sqrt(means.var(1) + variances.mean(1)), rtol=1e-5)
    with pytest.raises(ValueError, match=r"4 sizes.*crop=\(2, 2, 2\)"):
        LatentDataset(store)
    dataset = LatentDataset(store, crop=(2, 2, 2), whiten=True)
    batch = next(iter(DataLoader(dataset, batch_size=6)))
    assert batch["z"].shape == (6, 4, 2, 2, 2)
    assert batch["spacing"].shape == (6, 3)
    model = VAE.from_pretrained(own)
    z = store["oblique"]["mean"]
    whitened = LatentDataset(store, mixed=True, mode=True, whiten=True)["oblique"]["z"]
    torch.testing.assert_close(model.whiten(z), whitened)
    # The statistics are no part of the model's identity: the store is still its own.
    assert encode(own, scans, tmp_path / "store").kept == 6


# -- privacy


def test_a_store_holds_nothing_that_tells_of_a_patient(toy, tmp_path):
    secrets = [b"ID-4711", b"Muster", b"private word", b"19620304", b"Erika-scans"]
    folder = tmp_path / "Erika-scans"
    for file in write_dicom(scan(affine_of("LPS")), folder / "1.2.840.113619.2.55.3.604688119"):
        dataset = pydicom.dcmread(file)
        dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate = "ID-4711", "Muster^Erika", "19620304"
        dataset.SeriesDescription = "Muster Thorax"
        dataset.add_new(0x00091001, "LO", "private word")
        dataset.save_as(file)
        secrets += [str(dataset[name].value).encode() for name in ("SeriesInstanceUID", "StudyInstanceUID")]
    encode(toy, folder, tmp_path / "store")
    decode(tmp_path / "store", toy, tmp_path / "out")
    files = [f for part in ("store", "out") for f in (tmp_path / part).rglob("*") if f.is_file()]
    assert len(files) >= 4
    for file in files:
        for secret in [*secrets, b"1.2.840.113619"]:
            content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            assert secret not in content, (file, secret)
            assert secret not in str(file.relative_to(tmp_path)).encode()


# -- refused


def test_what_a_store_cannot_take_is_said(toy, scans, tmp_path):
    encode(toy, scans, tmp_path / "store")
    with pytest.raises(ValueError, match=r"time=1.*another --output"):
        encode(toy, scans, tmp_path / "store", time=1)
    with pytest.raises(ValueError, match=r"of MaisiVAE in maisi .* not of MaisiVAE in other"):
        encode(save_toy(tmp_path / "other", seed=1), scans, tmp_path / "store")
    with pytest.raises(ValueError, match="none of the 6 volumes"):
        encode(toy, scans / "series", tmp_path / "store")
    with pytest.raises(ValueError, match=r"--series 1 would drop"):
        encode(toy, scans, tmp_path / "store", series="1")
    with pytest.raises(ValueError, match=r"--data\.limit 2 would drop"):
        encode(toy, scans, tmp_path / "store", limit=2)
    with pytest.raises(ValueError, match="of its own"):
        encode(toy, scans, tmp_path / "store", intensity={"unit": "HU", "window": [-500, 500]})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        encode(toy, tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(ValueError, match="not part of a run"):
        encode(toy, [], tmp_path / "new")
    assert len(PosteriorStore(tmp_path / "store")) == 6
    assert len(encode(toy, scans, tmp_path / "few", limit=2).removed) == 0
    assert len(PosteriorStore(tmp_path / "few")) == 2


def test_volumes_that_cannot_be_used_stop_the_run_by_name_or_are_left_out(toy, scans, tmp_path, caplog):
    shot = np.random.default_rng(0).integers(0, 255, (8, 8, 8)).astype(np.uint8)
    nib.save(nib.Nifti1Image(shot, np.eye(4)), scans / "shot.nii")
    write_volume(Volume(np.stack([shot, shot]).astype(np.int16) * 9 - 1000, np.eye(4)), scans / "two.nii.gz")
    with pytest.raises(ValueError, match=r"shot.*8-bit picture"):
        encode(toy, scans, tmp_path / "store")
    assert len(PosteriorStore(tmp_path / "store")) == 5  # those before it in the alphabet
    result = encode(toy, scans, tmp_path / "store", on_error="skip")
    assert (result.encoded, result.kept, result.skipped) == (1, 5, ("shot", "two"))
    assert "2 left out" in str(result)
    assert "two.nii.gz has 2 channels (without names) and the model takes 1: give volumes of 1 channel" in caplog.text
    assert "shot" not in PosteriorStore(tmp_path / "store")
    # A scan that was fine and is not any more does not stay under its name.
    write_volume(Volume(shot[None], np.eye(4)), scans / "oblique.nii.gz")
    assert encode(toy, scans, tmp_path / "store", on_error="skip").skipped == ("oblique", "shot", "two")
    assert "oblique" not in PosteriorStore(tmp_path / "store")


def test_decoding_refuses_what_it_cannot_do(toy, scans, tmp_path):
    encode(toy, scans, tmp_path / "store")
    with pytest.raises(ValueError, match=r"no headers of DICOM.*--format nifti"):
        decode(tmp_path / "store", toy, tmp_path / "out", format="dicom")
    with pytest.raises(ValueError, match="no latent of 'elsewhere'"):
        decode(tmp_path / "store", toy, tmp_path / "out", keys=["elsewhere"])
    with pytest.raises(ValueError, match="would both be written"):
        decode_latents([tmp_path / "store"] * 2, toy, tmp_path / "out", progress=False)
    other = save_toy(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="decode them with the model that encoded them"):
        decode(tmp_path / "store", other, tmp_path / "out")
    # The scans themselves are no results of this command.
    with pytest.raises(FileExistsError, match=r"oblique\.nii\.gz is there already"):
        decode(tmp_path / "store", toy, scans, keys=["oblique"])
    moved = json.loads((tmp_path / "store" / "store.json").read_text())
    moved["recipe"]["model"] = str(tmp_path / "gone")
    (tmp_path / "store" / "store.json").write_text(json.dumps(moved))
    with pytest.raises(ValueError, match=r"was encoded with .*gone, which is not there: say --model"):
        decode(tmp_path / "store", None, tmp_path / "out")


def test_the_stores_contract_counts_whatever_the_model_says_now(toy, tmp_path):
    own = shutil.copytree(toy, tmp_path / "own")
    write_volume(scan(affine_of("LPS")), tmp_path / "in" / "ct.nii.gz")
    encode(own, tmp_path / "in", tmp_path / "store")
    reconstruct_volumes(own, [tmp_path / "in"], tmp_path / "expected", measure=False, progress=False)
    statistics = json.loads((own / "statistics.json").read_text())
    statistics["intensity"]["window"] = [-500, 500]
    (own / "statistics.json").write_text(json.dumps(statistics))
    decode(tmp_path / "store", own, tmp_path / "out")
    assert (tmp_path / "out" / "ct.nii.gz").read_bytes() == (tmp_path / "expected" / "ct.nii.gz").read_bytes()
    with pytest.raises(ValueError, match=r"intensity=.*-500.*another --output"):
        encode(own, tmp_path / "in", tmp_path / "store")
    # A model that says nothing is told, and decoding needs not be told again.
    del statistics["intensity"]
    (own / "statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(ValueError, match="does not say which values it takes"):
        encode(own, tmp_path / "in", tmp_path / "told")
    window = {"unit": "HU", "window": [-800, 800], "orientation": "RAS"}
    encode(own, tmp_path / "in", tmp_path / "told", intensity=window)
    decode(tmp_path / "told", own, tmp_path / "out2")
    reconstruct_volumes(own, [tmp_path / "in"], tmp_path / "e2", intensity=window, measure=False, progress=False)
    assert (tmp_path / "out2" / "ct.nii.gz").read_bytes() == (tmp_path / "e2" / "ct.nii.gz").read_bytes()
