"""Volumes as data sets of patches: where patches lie, what their values become, what is refused, and the cache."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from omnivae.data import DataConfig, collate, load_data
from omnivae.data.volume_config import VolumeConfig
from omnivae.data.volumes import contract_pipeline, read_volume, write_dicom, write_plate, write_volume
from omnivae.data.volumes.dataset import VolumeDataset
from omnivae.data.volumes.dataset_cache import Store, block_shares, narrowed, otsu, prepare
from omnivae.data.volumes.dataset_loading import group_names
from omnivae.data.volumes.dataset_patches import cut, fixed_corners, grid_corners, random_corner
from omnivae.volume import Volume

pytest.importorskip("nibabel")
SIZES = ((20, 18, 16), (14, 22, 12), (16, 16, 16), (18, 17, 15), (12, 12, 12))


def scan(number: int, size: tuple[int, int, int], affine: np.ndarray | None = None) -> Volume:
    """A body of 40 HU in air, with noise, stored left to right."""
    random = np.random.default_rng(number)
    array = np.full(size, -1000.0) + random.normal(0, 5, size)
    i, j, k = (n // 3 for n in size)
    array[i:-i, j:-j, k:-k] = 40 + random.normal(0, 20, array[i:-i, j:-j, k:-k].shape)
    affine = np.diag([-1.5, -1.5, 3.0, 1.0]) if affine is None else affine
    return Volume(np.rint(array).astype(np.int16)[None], affine, unit="HU")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMNIVAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "volumes"


@pytest.fixture
def scans(tmp_path: Path, cache: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, size in enumerate(SIZES):
        write_volume(scan(number, size), folder / f"{number}.nii.gz")
    return folder


def config(path: Path | str, **volume: object) -> DataConfig:
    settings: dict[str, object] = {"unit": "HU", "patch_size": 8, "patches_per_volume": 4}
    return DataConfig(str(path), volume=settings | volume)  # type: ignore[arg-type]


# -- patches


def test_a_grid_covers_every_voxel_with_as_few_patches_as_possible() -> None:
    for size, patch in (((10, 7, 4), (4, 4, 4)), ((8, 8, 8), (8, 8, 8)), ((9, 16, 5), (8, 8, 8))):
        seen = np.zeros(size, dtype=int)
        corners = grid_corners(size, patch)
        for corner in corners:
            seen[tuple(slice(max(0, c), c + p) for c, p in zip(corner, patch, strict=True))] += 1
        assert seen.min() >= 1
        assert len(corners) == np.prod([-(-n // p) for n, p in zip(size, patch, strict=True)])


def test_random_patches_are_inside_and_reach_every_place() -> None:
    random = np.random.default_rng(0)
    blocks = np.full((2, 1, 1), 255, np.uint8)
    for foreground in (0.0, 1.0):
        corners = {
            random_corner((12, 8, 5), (8, 8, 8), blocks, foreground=foreground, random=random) for _ in range(400)
        }
        assert {c[0] for c in corners} == set(range(5))
        assert {c[1:] for c in corners} == {(0, -1)}  # as large as the volume, and centred over a smaller one


def test_foreground_share_is_kept() -> None:
    """One block of 64 holds all foreground: of the others' patches few reach it."""
    blocks = np.zeros((8, 8, 8), np.uint8)
    blocks[2, 3, 4] = 200
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        corner = random_corner((64, 64, 64), (8, 8, 8), blocks, foreground=0.7, random=random)
        centre = [c + 4 for c in corner]
        hits += all(lo <= c < lo + 8 for c, lo in zip(centre, (16, 24, 32), strict=True))
    assert abs(hits / 2000 - 0.7) < 0.04  # five standard deviations


def test_without_foreground_patches_lie_anywhere() -> None:
    corner = random_corner(
        (9, 9, 9), (8, 8, 8), np.zeros((2, 2, 2), np.uint8), foreground=1, random=np.random.default_rng(0)
    )
    assert all(c in (0, 1) for c in corner)


def test_fixed_patches_prefer_the_foreground() -> None:
    blocks = np.zeros((4, 4, 4), np.uint8)
    blocks[1, 2, 3] = 255
    assert fixed_corners((32, 32, 32), (8, 8, 8), blocks, 1).tolist() == [[8, 16, 24]]


def test_cutting_copies_and_fills() -> None:
    values = np.arange(27, dtype=np.int16).reshape(1, 3, 3, 3)
    patch = cut(values, (-1, 1, 2), (3, 2, 3), np.array([-7.0]))
    assert patch.dtype == np.int16
    assert (patch[0, 1:, :, 0] == values[0, :2, 1:3, 2]).all()
    assert (patch[0, 0] == -7).all()
    assert (patch[0, :, :, 1:] == -7).all()
    assert cut(values, (-1, 0, 0), (2, 1, 1), np.array([0.5])).dtype == np.float32
    inside = cut(values, (0, 0, 0), (2, 2, 2), np.array([0]))
    inside[...] = 99
    assert values.max() == 26


def test_blocks_count_foreground() -> None:
    random = np.random.default_rng(2)
    mask = random.random((17, 8, 20)) < 0.3
    shares = block_shares(mask)
    assert shares.shape == (3, 1, 3)
    for index in np.ndindex(shares.shape):
        part = mask[tuple(slice(8 * i, 8 * i + 8) for i in index)]
        assert shares[index] == np.ceil(255 * part.mean())


def test_otsu_separates_two_peaks_as_no_other_threshold_does() -> None:
    random = np.random.default_rng(3)
    values = np.concatenate([random.normal(0, 1, 3000), random.normal(9, 2, 1000)])

    def within(threshold: float) -> float:
        parts = values[values <= threshold], values[values > threshold]
        return sum(float(p.var()) * len(p) for p in parts)

    best = min(within(t) for t in np.linspace(values.min(), values.max(), 500)[1:-1])
    assert within(otsu(values)) < 1.001 * best


# -- values


@pytest.mark.parametrize("kind", ["window", "percentiles"])
def test_patches_have_the_values_of_the_intensity_contract(scans: Path, kind: str) -> None:
    """What a patch holds equals what the model's contract, applied by the transforms of volumes, makes of the file."""
    unit = "HU" if kind == "window" else "arbitrary"
    splits = load_data(config(scans, unit=unit, spacing=2.0), value_range=(0, 1))
    assert splits.intensity is not None
    assert splits.intensity["unit"] == unit
    assert kind in splits.intensity
    whole = splits.test.whole()  # type: ignore[attr-defined]
    item = whole[0]
    volume = read_volume(scans / item["key"], unit=unit)  # type: ignore[arg-type]
    expected = contract_pipeline(splits.intensity)(volume).volume
    np.testing.assert_allclose(item["x"].numpy(), expected.array, atol=2e-6)
    np.testing.assert_allclose(item["spacing_mm"].numpy(), expected.spacing, rtol=1e-6)
    patch = splits.test[0]
    corner = [int(c) for c in patch["key"].split("@")[1].split(",")]
    inner = expected.array[:, corner[0] : corner[0] + 8, corner[1] : corner[1] + 8, corner[2] : corner[2] + 8]
    np.testing.assert_allclose(patch["x"].numpy(), inner, atol=2e-6)


def test_zscores_and_channels_of_a_plate(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("zarr")
    random = np.random.default_rng(4)
    fields = {
        f"{well}/{field}": Volume(
            random.gamma(2, 300, (2, 6, 24, 20)).astype(np.uint16),
            np.diag([2.0, 0.5, 0.5, 1.0]),
            space="stage",
            channels=("Phase3D", "GFP"),
        )
        for well in ("A/1", "A/2", "B/1", "B/2")
        for field in range(2)
    }
    write_plate(fields, tmp_path / "plate.zarr")
    settings = {"intensity": "zscore", "deviations": 1.0, "clip": False, "channel_names": ["GFP"]}
    splits = load_data(config(tmp_path / "plate.zarr", unit="auto", patch_size=[4, 16, 16], **settings))
    train: VolumeDataset = splits.train  # type: ignore[assignment]
    assert splits.channels == 1
    assert splits.image_size == (4, 16, 16)
    item = train.whole()[0]
    stored = fields["/".join(item["key"].split("/")[-3:])].array[1].astype(np.float64)
    np.testing.assert_allclose(item["x"][0].numpy(), (stored - stored.mean()) / stored.std(), atol=1e-4)
    wells = [{key.rsplit("/", 1)[0] for key in part.whole().keys} for part in (splits.train, splits.val, splits.test)]  # type: ignore[attr-defined]
    assert not (wells[0] & wells[1])
    assert not (wells[0] & wells[2])
    assert not (wells[1] & wells[2])
    with pytest.raises(ValueError, match=r"no channel 'GPF'; did you mean 'GFP'"):
        load_data(config(tmp_path / "plate.zarr", unit="auto", channel_names=["GPF"]))


def test_values_below_air_are_taken_for_air_and_told(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume = scan(0, (12, 12, 12))
    array = volume.array.copy()
    array[0, :2] = -3024
    write_volume(volume.with_array(array), tmp_path / "padded.nii.gz")
    splits = load_data(config(tmp_path / "padded.nii.gz"), value_range=(0, 1))
    assert "288 voxels, the lowest -3024" in caplog.text
    x = splits.test.whole()[0]["x"]  # type: ignore[attr-defined]
    assert float(x.min()) == 0


def test_narrow_types_lose_nothing() -> None:
    for array in (
        np.array([-1024, 3071], np.int32),
        np.array([0.0, 255.0]),
        np.array([0, 60000], np.int64),
        np.array([0.5, 1]),
    ):
        assert (narrowed(array) == array).all()
    assert narrowed(np.array([-1024.0, 3071.0])).dtype == np.int16
    with pytest.raises(ValueError, match="1 of 2 voxels are NaN"):
        narrowed(np.array([0.0, np.nan]))


# -- randomness


def test_items_are_functions_of_seed_epoch_and_index(scans: Path) -> None:
    first, second = (load_data(config(scans, flip_axes=[0, 2]), seed=3).train for _ in range(2))
    other = load_data(config(scans, flip_axes=[0, 2]), seed=4).train
    backwards = [second[i]["x"] for i in reversed(range(len(second)))][::-1]
    assert all(torch.equal(first[i]["x"], backwards[i]) for i in range(len(first)))
    assert any(not torch.equal(first[i]["x"], other[i]["x"]) for i in range(len(first)))
    before = [first[i]["x"] for i in range(len(first))]
    first.set_epoch(1)
    assert any(not torch.equal(first[i]["x"], x) for i, x in enumerate(before))
    first.set_epoch(0)
    assert all(torch.equal(first[i]["x"], x) for i, x in enumerate(before))


def test_validation_does_not_change_with_epoch_or_seed(scans: Path) -> None:
    first, second = (load_data(config(scans), seed=seed).val for seed in (0, 1))
    second.set_epoch(7)
    assert first.keys == second.keys
    assert all(torch.equal(first[i]["x"], second[i]["x"]) for i in range(len(first)))


def test_patches_form_batches_with_their_spacing(scans: Path) -> None:
    splits = load_data(config(scans, patches_per_volume=2))
    batch = collate([splits.train[i] for i in range(3)])
    assert batch["x"].shape == (3, 1, 8, 8, 8)
    assert batch["spacing_mm"].tolist() == [[1.5, 1.5, 3.0]] * 3
    assert len(set(splits.train.keys)) == len(splits.train) == 2 * 3


def test_datasets_travel_to_other_processes(scans: Path) -> None:
    dataset = load_data(config(scans)).train
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[5]["x"], dataset[5]["x"])


# -- the cache


def test_volumes_are_decoded_once(scans: Path, cache: Path) -> None:
    first = load_data(config(scans))
    assert len(list(cache.glob("*[0-9a-f].npy"))) == len(SIZES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omnivae.data.volumes.dataset_source.loaded", lambda *_: pytest.fail("decoded again"))
        again = load_data(config(scans, window=[-160, 240]))
        assert torch.equal(load_data(config(scans)).train[0]["x"], first.train[0]["x"])
    # The window is applied to patches: the same file serves another.
    assert again.intensity is not None
    assert again.intensity["window"] == [-160.0, 240.0]


def test_without_a_cache_the_same_patches_come(scans: Path, cache: Path) -> None:
    cached = load_data(config(scans)).train
    plain = load_data(
        DataConfig(str(scans), cache=False, volume=VolumeConfig(unit="HU", patch_size=8, patches_per_volume=4))
    ).train
    none = load_data(config(scans, cache_gb=0)).train
    for i in (0, 7, 3, 11):
        assert torch.equal(cached[i]["x"], plain[i]["x"])
        assert torch.equal(cached[i]["x"], none[i]["x"])


def test_a_changed_file_is_prepared_anew(scans: Path) -> None:
    before = load_data(config(scans)).train.source.facts(0)  # type: ignore[attr-defined]
    write_volume(scan(99, (11, 12, 13)), scans / "0.nii.gz")
    after = load_data(config(scans)).train.source.facts(0)  # type: ignore[attr-defined]
    assert before.size == (20, 18, 16)
    assert after.size == (11, 12, 13)


def test_the_cache_is_bounded_and_the_oldest_go_first(tmp_path: Path) -> None:
    one = scan(0, (16, 16, 16))
    nbytes = one.array.nbytes
    for number, age in ((0, 300), (1, 200), (2, 100)):
        store = Store(tmp_path, limit=10 * nbytes)
        file = prepare(f"p{number}", lambda: one, VolumeConfig(unit="HU"), store).file
        assert file is not None
        os.utime(file, (file.stat().st_atime - age, file.stat().st_mtime - age))
    names = sorted(tmp_path.glob("*.npy"), key=lambda p: p.stat().st_mtime)
    names = [p for p in names if "blocks" not in p.name]
    store = Store(tmp_path, limit=int(3.5 * nbytes))
    assert prepare("p3", lambda: one, VolumeConfig(unit="HU"), store).file is not None
    left = [p for p in tmp_path.glob("*.npy") if "blocks" not in p.name]
    assert names[0] not in left
    assert names[1] in left
    assert names[2] in left
    # What this run uses is never removed for more of its own.
    full = Store(tmp_path, limit=int(1.5 * nbytes))
    kept = prepare("p3", lambda: one, VolumeConfig(unit="HU"), full)
    late = prepare("p4", lambda: one, VolumeConfig(unit="HU"), full)
    assert kept.file is not None
    assert kept.file.is_file()
    assert late.file is None
    assert (late.values() == one.array).all()


def test_a_damaged_cache_is_made_again(scans: Path, cache: Path) -> None:
    before = load_data(config(scans)).train[0]["x"]
    for path in cache.glob("*"):
        path.write_bytes(path.read_bytes()[:50])
    assert torch.equal(load_data(config(scans)).train[0]["x"], before)


def test_the_cache_tells_of_no_file(scans: Path, cache: Path) -> None:
    os.rename(scans / "1.nii.gz", scans / "Doe^Jane.nii.gz")
    load_data(config(scans))
    for path in cache.iterdir():
        assert b"Doe" not in path.read_bytes()
        assert "Doe" not in path.name


# -- splits and mistakes


def test_folders_of_a_patient_stay_together(tmp_path: Path, cache: Path) -> None:
    for patient in range(5):
        for visit in range(2):
            (tmp_path / "d" / f"p{patient}").mkdir(parents=True, exist_ok=True)
            write_volume(scan(10 * patient + visit, (9, 9, 9)), tmp_path / "d" / f"p{patient}" / f"{visit}.nii.gz")
    splits = load_data(config(tmp_path / "d", patches_per_volume=1))
    parts = [{key.split("/")[0] for key in part.keys} for part in (splits.train, splits.val, splits.test)]
    assert [len(p) for p in parts] == [3, 1, 1]
    assert len(set.union(*parts)) == 5
    assert splits.native.counts == {"train": 6, "val": 2, "test": 2}


def test_split_folders_are_used(tmp_path: Path, cache: Path) -> None:
    for number, split in enumerate(("train", "train", "val", "test")):
        (tmp_path / split).mkdir(exist_ok=True)
        write_volume(scan(number, (9, 9, 9)), tmp_path / split / f"{number}.nii.gz")
    splits = load_data(config(tmp_path, patches_per_volume=1))
    assert splits.official_test
    assert splits.native.counts == {"train": 2, "val": 1, "test": 1}
    assert splits.test.keys[0].startswith("test/3.nii.gz@")


def test_group_names_see_through_split_folders() -> None:
    assert group_names(["train/p1/a", "train/p2/a", "test/p3/a"]) == ["p1", "p2", "p3"]


def test_masks_beside_their_volumes_are_no_volumes(scans: Path) -> None:
    write_volume(Volume(np.ones((1, *SIZES[0]), np.uint8), np.eye(4)), scans / "0_seg.nii.gz")
    assert len(load_data(config(scans)).train.source) == len(SIZES)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.arange(512).reshape(8, 8, 8) % 256, "8-bit picture"),
        (np.linspace(0, 1, 512).reshape(8, 8, 8), "scaled to"),
        (np.arange(512).reshape(8, 8, 8) * 4, "nothing is below 0"),
        (np.full((8, 8, 8), -1000), "same value"),
    ],
)
def test_what_is_no_ct_is_refused(tmp_path: Path, cache: Path, array: np.ndarray, said: str) -> None:
    array = array.astype(np.float32 if array.dtype.kind == "f" else np.int16)
    write_volume(Volume(array[None], np.eye(4)), tmp_path / "x.nii.gz")
    with pytest.raises(ValueError, match=said):
        load_data(config(tmp_path / "x.nii.gz"))


def test_what_looks_like_hu_must_be_said_to_be(scans: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.volume\.unit to HU"):
        load_data(config(scans, unit="auto"))


def test_on_error_skip_leaves_out_and_lists(scans: Path) -> None:
    (scans / "2.nii.gz").write_bytes(b"not a volume")
    with pytest.raises(ValueError, match=r"2\.nii\.gz"):
        load_data(config(scans))
    skipping = DataConfig(str(scans), on_error="skip", volume={"unit": "HU", "patch_size": 8})  # type: ignore[arg-type]
    splits = load_data(skipping)
    assert [name for name, _ in splits.skipped] == ["2.nii.gz"]
    assert sum(splits.native.counts.values()) == len(SIZES) - 1


def test_sizes_that_differ_need_a_patch_size(scans: Path) -> None:
    with pytest.raises(ValueError, match=r"12 x 12 x 12 to 20 x 22 x 16 voxels: set data\.volume\.patch_size"):
        load_data(DataConfig(str(scans), volume={"unit": "HU"}))  # type: ignore[arg-type]


def test_settings_of_the_other_kind_are_refused(scans: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.image_size=64, a setting of images.*data\.volume\.patch_size"):
        load_data(DataConfig(str(scans), image_size=64, volume={"unit": "HU", "patch_size": 8}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="holds no volumes"):
        load_data(DataConfig("digits", volume={"patch_size": 8}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"patch_size": 0}, "patch_size=0"),
        ({"patch_size": (8, 8)}, "patch_size"),
        ({"patches_per_volume": 0}, "1 or more"),
        ({"foreground": 1.5}, "between 0 and 1"),
        ({"flip_axes": (3,)}, "flip_axes"),
        ({"orientation": "RAX"}, "RAS or LPS"),
        ({"spacing": 0}, "above 0"),
        ({"window": (100, -100)}, "the lower first"),
        ({"percentiles": (0, 101)}, "the lower first"),
        ({"unit": "hu"}, "expected one of auto, HU, arbitrary"),
        ({"unit": "arbitrary", "intensity": "window"}, "percentiles or zscore"),
        ({"deviations": 0}, "above 0"),
        ({"cache_gb": -1}, "0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        VolumeConfig(**settings)  # type: ignore[arg-type]


def test_centres_of_volumes_that_are_too_large(scans: Path) -> None:
    whole = load_data(config(scans)).train.whole(most_voxels=1000)  # type: ignore[attr-defined]
    full = load_data(config(scans)).train.whole()  # type: ignore[attr-defined]
    for i in range(len(whole)):
        part, x = whole[i]["x"], full[i]["x"]
        assert part[0].numel() <= 1000
        start = [(n - p) // 2 for n, p in zip(x.shape[1:], part.shape[1:], strict=True)]
        slices = tuple(slice(s, s + p) for s, p in zip(start, part.shape[1:], strict=True))
        assert torch.equal(part[0], x[0][slices])


# -- DICOM


def test_derived_series_are_taken_where_there_are_no_others(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What this library writes says that it is derived, and is a CT all the same."""
    pydicom = pytest.importorskip("pydicom")
    for number in range(3):
        write_dicom(scan(number, (12, 12, 12)), tmp_path / "derived" / str(number))
    for file in sorted((tmp_path / "derived" / "2").iterdir()):
        dataset = pydicom.dcmread(file)
        dataset.RescaleType = "US"
        dataset.save_as(file)
    source = load_data(config(tmp_path / "derived", unit="auto")).train.source
    assert [source.facts(n).unit for n in range(len(source))] == ["HU"] * 2
    assert (
        caplog.text.count("no original images are there: 2 series of derived ones taken: 1: derived CT 12x12x12") == 1
    )
    assert caplog.text.count("1 series of derived images form no volume in known units and are left out: 3:") == 1

    caplog.clear()
    for file in write_dicom(scan(5, (12, 12, 12)), tmp_path / "derived" / "original"):
        dataset = pydicom.dcmread(file)
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.save_as(file)
    source = load_data(config(tmp_path / "derived", unit="auto")).train.source
    assert len(source) == 1
    assert np.array_equal(np.sort(source.values(0).ravel()), np.sort(scan(5, (12, 12, 12)).array.ravel()))
    assert "3 series computed from other images left out, the original ones taken: 2: derived CT" in caplog.text


def test_a_derived_series_with_a_hole_is_no_volume(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("pydicom")
    write_dicom(scan(0, (12, 12, 12)), tmp_path / "derived")[4].unlink()
    with pytest.raises(ValueError, match="missing slices"):
        load_data(config(tmp_path / "derived"))


def test_volumes_may_have_the_range_of_z_scores(tmp_path):
    """Ten deviations onto (-10, 10) is the z-score itself; images keep their two ranges."""
    from omnivae.data.volumes import plate_phantom

    path = plate_phantom(tmp_path / "p.zarr", wells=("A/1", "A/2", "B/1"), fields=1, size=(3, 32, 32), cells=2)
    volume = VolumeConfig(patch_size=(3, 32, 32), unit="arbitrary", intensity="zscore", deviations=10.0)
    splits = load_data(DataConfig(str(path), volume=volume), value_range=(-10, 10))
    x = splits.test.whole()[0]["x"].double()
    assert x.mean((1, 2, 3)).abs().max() < 1e-4
    assert (x.std((1, 2, 3), correction=0) - 1).abs().max() < 1e-4
    assert splits.intensity["range"] == [-10, 10]
    with pytest.raises(ValueError, match="expected two numbers, the lower first"):
        load_data(DataConfig(str(path), volume=volume), value_range=(1, 1))
    with pytest.raises(ValueError, match=r"expected \(0, 1\) or \(-1, 1\)"):
        load_data(DataConfig("digits"), value_range=(-10, 10))
