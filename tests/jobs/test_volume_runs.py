"""Training and evaluation on volumes with the commands' own functions: continued bit for bit, whole volumes, tiles, HU."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omnivae import Tiled
from omnivae.data import DataConfig, load_data
from omnivae.data.volume_config import VolumeConfig
from omnivae.data.volumes import read_volume, write_volume
from omnivae.jobs import volume_data
from omnivae.jobs.config import RunConfig, differences
from omnivae.jobs.evaluate import evaluate_model, images_for
from omnivae.jobs.train import train
from omnivae.jobs.volumes_codec import VolumeCodec
from omnivae.jobs.volumes_reconstruct import reconstruct_volumes
from omnivae.models import VAE
from omnivae.training import TrainingConfig
from omnivae.volume import Volume

pytest.importorskip("nibabel")
MODEL = {
    "recipe": "maisi_vae",
    "latent_dim": 2,
    "num_channels": [4, 8],
    "num_res_blocks": [1, 1],
    "norm_num_groups": 2,
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for number, size in enumerate(((20, 18, 10), (14, 22, 12), (16, 16, 16), (9, 17, 15))):
        random = np.random.default_rng(number)
        array = np.full(size, -1000.0)
        i, j, k = (n // 4 for n in size)
        array[i:-i, j:-j, k:-k] = 40 + random.normal(0, 100, array[i:-i, j:-j, k:-k].shape)
        volume = Volume(np.rint(array).astype(np.int16)[None], np.diag([-2.0, -2.0, 3.0, 1.0]), unit="HU")
        write_volume(volume, folder / f"{number}.nii.gz")
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIVAE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def run_of(path: Path, **training: object) -> RunConfig:
    settings: dict[str, object] = {
        "batch_size": 2,
        "max_steps": 6,
        "checkpoint_every": 2,
        "validate_every": 2,
        "draw_every": 1,
    }
    return RunConfig(
        model=dict(MODEL),
        data=DataConfig(
            str(path),
            volume=VolumeConfig(unit="HU", patch_size=8, patches_per_volume=3, flip_axes=(0,), foreground=0.7),
        ),
        losses={"l1": {"per_element": True}, "kl": {"weight": 1e-7}},
        training=TrainingConfig(**settings | {"ema": 0.9, "learning_rate": 1e-3} | training),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def run(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    os.environ["OMNIVAE_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    train(run_of(scans), directory, progress=False)
    return directory


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model" / "model.safetensors")


def test_an_interrupted_run_continues_bit_for_bit(scans: Path, run: Path, tmp_path: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        jobs = importlib.import_module("omnivae.jobs.train")
        patch.setattr(jobs, "draw", lambda model, splits, path: interrupt() if "03" in path.name else None)
        stopped = train(run_of(scans), tmp_path / "parts", progress=False, report=False)
    assert 3 <= stopped.step < 6  # the step that was under way is finished
    assert not stopped.complete
    train(run_of(scans), tmp_path / "parts", progress=False, report=False)
    ours, theirs = weights(tmp_path / "parts"), weights(run)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_loading_processes_change_nothing(scans: Path, run: Path, tmp_path: Path) -> None:
    asked = run_of(scans)
    train(replace(asked, data=replace(asked.data, num_workers=1)), tmp_path / "workers", progress=False, report=False)
    ours, theirs = weights(tmp_path / "workers"), weights(run)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("setting", [{"precision": "bf16"}, {"gradient_checkpointing": True}])
def test_low_precision_and_checkpointing_train(
    scans: Path, run: Path, tmp_path: Path, setting: dict[str, object]
) -> None:
    result = train(run_of(scans, **setting), tmp_path / "run", progress=False, report=False)
    assert result.complete
    ours, theirs = weights(tmp_path / "run"), weights(run)
    if "gradient_checkpointing" in setting:
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in ours.values())


def test_the_model_keeps_its_intensity_contract(run: Path, scans: Path) -> None:
    statistics = json.loads((run / "model" / "statistics.json").read_text())
    assert statistics["intensity"] == {
        "unit": "HU",
        "window": [-1000.0, 1000.0],
        "range": [0.0, 1.0],
        "clip": True,
        "orientation": "RAS",
    }
    # A model directory on its own prepares volumes as in its training.
    loaded, dataset, _ = images_for(run / "model", str(scans), "all", None, "32")
    own = load_data(run_of(scans).data, value_range=loaded.value_range)
    expected = {item["key"]: item["x"] for part in (own.train, own.val, own.test) for item in part.whole()}  # type: ignore[attr-defined]
    assert len(dataset) == len(expected) == 4
    assert all(torch.equal(item["x"], expected[item["key"]]) for item in dataset)


def test_whole_volumes_are_measured_in_hu(run: Path, scans: Path) -> None:
    found = evaluate_model(run, path=str(scans), split="all", progress=False)
    assert found.images == 4
    loaded = VAE.from_pretrained(run).eval()
    with torch.no_grad():
        for item in images_for(run, str(scans), "all", None, "32")[1]:
            x = item["x"][None]
            error = (loaded.decode(loaded.encode(x)).clamp(0, 1) - x).double()
            assert math.isclose(
                found.per_image["psnr"][item["key"]], -10 * math.log10(float(error.square().mean())), rel_tol=1e-5
            )
            assert math.isclose(found.per_image["mae_hu"][item["key"]], 2000 * float(error.abs().mean()), rel_tol=1e-4)
    assert {"psnr_lung", "psnr_soft_tissue", "psnr_bone"} <= set(found.metrics)


def test_large_volumes_are_measured_in_tiles(run: Path, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate_model(run, path=str(scans), split="all", metrics=["psnr", "mae_hu"], progress=False)
    monkeypatch.setattr(volume_data, "MOST_VOXELS", 1000)
    monkeypatch.setattr(volume_data, "free_memory", lambda: 4 * 3_000_000)
    used: list[object] = []
    monkeypatch.setattr(volume_data, "Tiled", lambda *a, **k: used.append(1) or Tiled(*a, **k))
    tiled = evaluate_model(run, path=str(scans), split="all", metrics=["psnr", "mae_hu"], progress=False)
    assert used
    for name in ("psnr", "mae_hu"):
        assert tiled.per_image[name] == pytest.approx(whole.per_image[name], rel=1e-4)
    with pytest.raises(ValueError, match=r"got the metric elbo and volumes of up to .* leave it out"):
        evaluate_model(run, path=str(scans), split="all", metrics=["elbo"], progress=False)


def test_the_report_is_about_a_few_patches(run: Path) -> None:
    card = json.loads((run / "evaluation.json").read_text())
    assert card["images"] <= 8
    assert "psnr_soft_tissue" in card["metrics"]
    assert (run / "report.html").stat().st_size > 10_000


def test_the_list_of_a_run_notices_a_changed_volume(scans: Path, run: Path, tmp_path: Path) -> None:
    from omnivae.jobs.manifest import data_changes

    config = run_of(scans).data
    assert data_changes(run, load_data(config, value_range=(0, 1))) == []
    copy = tmp_path / "scans"
    copy.mkdir()
    for path in scans.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    write_volume(
        Volume(np.full((1, 12, 12, 12), 5, np.int16) - 1000 * np.eye(12, dtype=np.int16), np.eye(4)), copy / "2.nii.gz"
    )
    changes = data_changes(run, load_data(replace(config, path=str(copy)), value_range=(0, 1)))
    assert any("changed" in change and "2.nii.gz" in change for change in changes)


def test_recipes_of_images_refuse_volumes(scans: Path, tmp_path: Path) -> None:
    asked = replace(run_of(scans), model={"recipe": "transvae"})
    with pytest.raises(ValueError, match=r"is for images and .* has volumes of 8 x 8 x 8"):
        train(asked, tmp_path / "run", progress=False)


def test_runs_from_before_there_were_volumes_continue() -> None:
    asked = RunConfig(model={"recipe": "conv_vae"}, data=DataConfig("digits"), losses={"kl": {}})
    before = asked.to_dict()
    del before["data"]["volume"]
    assert differences(before, asked.to_dict()) == []
    before["data"]["volume"] = {"patch_size": 8}
    assert differences(before, asked.to_dict()) == ["data.volume.patch_size: 8 there, None asked"]


def test_configurations_of_volumes_come_back(scans: Path) -> None:
    asked = run_of(scans)
    assert RunConfig.from_dict(json.loads(json.dumps(asked.to_dict()))).data == asked.data


@pytest.mark.parametrize(
    "settings",
    [
        {"unit": "arbitrary", "intensity": "zscore"},
        {"unit": "arbitrary", "intensity": "zscore", "deviations": 1.0, "clip": False},
        {"unit": "HU", "intensity": "zscore", "deviations": 3.0, "spacing": 2.5},
        {"unit": "arbitrary", "intensity": "percentiles", "percentiles": (1.0, 99.0), "orientation": "stored"},
    ],
)
def test_reconstruct_knows_every_contract_that_training_writes(
    scans: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    """What the codec shows the model is what training showed it, and a model that keeps it gives the file back."""
    asked = run_of(scans, max_steps=1, checkpoint_every=1, validate_every=1)
    model = dict(MODEL) | ({} if settings.get("clip", True) else {"value_range": [-1.0, 1.0]})
    prepared = VolumeConfig(patch_size=8, patches_per_volume=1, **settings)  # type: ignore[arg-type]
    asked = replace(asked, model=model, data=replace(asked.data, volume=prepared))
    train(asked, tmp_path / "run", progress=False, report=False)
    loaded, dataset, _ = images_for(tmp_path / "run", None, "all", None, "32")
    seen: list[torch.Tensor] = []

    class Keeping(VolumeCodec):
        def _run(self, array: np.ndarray, progress: object) -> np.ndarray:
            seen.append(torch.from_numpy(array.copy()))
            return array.copy()

    codec = Keeping(loaded)
    item = dataset[0]
    before = read_volume(scans / item["key"], unit=codec.unit)
    rebuilt = codec(before)
    torch.testing.assert_close(seen[0], item["x"], atol=2e-5, rtol=0)
    low, high = rebuilt.window
    assert rebuilt.below == (before.array < low).sum()
    assert rebuilt.above == (before.array > high).sum()
    if "spacing" not in settings:
        expected = before.array.astype(float).clip(low, high)
        np.testing.assert_allclose(rebuilt.reconstruction.array, expected, atol=0.51)  # rounded to the file's integers
    (result,) = reconstruct_volumes(tmp_path / "run", [scans / item["key"]], tmp_path / "out", progress=False)
    after = read_volume(tmp_path / "out" / result.output, unit=codec.unit)
    assert after.size == before.size
    assert np.array_equal(after.affine, before.affine)
    assert result.metrics
