"""Pairs of volumes: how they are listed, brought onto one grid, split, cut into patches, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from omnivae.data import DataConfig, collate, load_data
from omnivae.data.volumes import (
    PairDataset,
    Percentiles,
    align,
    list_volumes,
    load_pairs,
    read_pairs,
    read_volume,
    write_dicom,
    write_volume,
)
from omnivae.volume import Volume

pytest.importorskip("nibabel")


def turned(spacing: tuple[float, float, float], origin: tuple[float, float, float], degrees: float = 0.0) -> np.ndarray:
    """An affine turned about the third axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = origin
    return affine


def scan(seed: int, size: tuple[int, int, int], affine: np.ndarray) -> Volume:
    """A body in air."""
    random = np.random.default_rng(seed)
    array = np.full(size, -1000.0)
    i, j, k = (n // 4 for n in size)
    array[i:-i, j:-j, k:-k] = 40 + random.normal(0, 50, array[i:-i, j:-j, k:-k].shape)
    return Volume(np.rint(array).astype(np.int16)[None], affine, unit="HU")


def linear(volume: Volume) -> Volume:
    """The same grid with values that are a linear function of the place in the world."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.size), indexing="ij")).reshape(3, -1)
    world = volume.affine[:3, :3] @ index + volume.affine[:3, 3:]
    values = np.array([3.0, -2.0, 5.0]) @ world + 7
    return volume.with_array(values.reshape(1, *volume.size).astype(np.float64), unit="arbitrary")


@pytest.fixture
def listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pairs: grids of other sizes, directions and spacings."""
    monkeypatch.setenv("OMNIVAE_CACHE", str(tmp_path / "cache"))
    rows = ["baseline,followup"]
    for n in range(4):
        first = scan(n, (20, 18, 12), turned((2.0, 2.0, 4.0), (5.0, -9.0, 3.0)))
        second = scan(100 + n, (22, 17, 20), turned((-2.0, 2.5, 2.0), (44.0, -10.0 + n, 1.0), 3.0 * n))
        write_volume(first, tmp_path / f"p{n}" / "t0.nii.gz")
        write_volume(second, tmp_path / f"p{n}" / "t1.nii.gz")
        rows.append(f"p{n}/t0.nii.gz,p{n}/t1.nii.gz")
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "pairs.csv"


def config(path: Path, **settings: object) -> DataConfig:
    volume = {"unit": "HU", "patch_size": 8, "patches_per_volume": 4} | settings
    return DataConfig(str(path), volume=volume)  # type: ignore[arg-type]


# -- one grid


@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_a_followup_lies_where_it_lies_in_the_world(degrees: float) -> None:
    """A linear function of the place is interpolated without error, on whatever grids."""
    first = linear(Volume(np.zeros((1, 9, 8, 7)), turned((2.0, 1.5, 3.0), (1.0, 2.0, 3.0), 10)))
    second = linear(Volume(np.zeros((1, 10, 11, 9)), turned((-1.7, 1.2, 2.5), (16.0, 1.0, 2.0), degrees)))
    pair = align(first, second, antialias=False)
    inner = second.with_array(second.array[:, 1:-1, 1:-1, 1:-1], affine=second.affine @ turned((1, 1, 1), (1, 1, 1)))
    interior = align(first, inner, antialias=False).reached  # centres of the second all around
    assert 50 < interior.sum() < interior.size
    assert np.abs(pair.followup.array[0] - first.array[0])[interior].max() < 1e-9
    assert (pair.followup.array[0][~pair.reached] == second.array.min()).all()
    assert np.array_equal(pair.followup.affine, first.affine)


@pytest.mark.parametrize("slab", [1, 1 << 22])
def test_the_reach_is_that_of_every_voxel_asked_alone(slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnivae.data.volumes.pairs._SLAB", slab)
    first = Volume(np.zeros((1, 9, 8, 7)), turned((2.0, 1.5, 3.0), (1.0, 2.0, 3.0), 10))
    second = Volume(np.zeros((1, 6, 5, 4)), turned((-1.7, 1.2, 2.5), (12.0, 3.0, 5.0), 30))
    reached = align(first, second).reached
    for index in itertools.product(*map(range, first.size)):
        at = np.linalg.solve(second.affine, first.affine @ (*index, 1))[:3]
        assert reached[index] == all(-0.5 <= a <= n - 0.5 for a, n in zip(at, second.size, strict=True))
    assert 0 < reached.sum() < reached.size


def test_interpolation_equals_that_of_simpleitk() -> None:
    sitk = pytest.importorskip("SimpleITK")

    def image(volume: Volume) -> object:
        out = sitk.GetImageFromArray(volume.array[0].T)
        flip = np.diag([-1.0, -1.0, 1.0])
        out.SetSpacing(volume.spacing)
        out.SetDirection((flip @ volume.affine[:3, :3] / volume.spacing).ravel().tolist())
        out.SetOrigin((flip @ volume.affine[:3, 3]).tolist())
        return out

    random = np.random.default_rng(0)
    first = Volume(random.normal(size=(1, 12, 11, 10)), turned((2.0, 1.5, 3.0), (1.0, 2.0, 3.0), 10))
    second = Volume(random.normal(size=(1, 16, 15, 14)), turned((-1.7, 1.2, 2.5), (20.0, -1.0, 2.0), 30))
    pair = align(first, second, antialias=False)
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(image(second), image(first), sitk.Transform(), sitk.sitkLinear, np.nan)
    ).T
    assert np.array_equal(np.isfinite(theirs), pair.reached)
    assert 300 < pair.reached.sum() < pair.reached.size
    assert np.abs(pair.followup.array[0] - theirs)[pair.reached].max() < 1e-6


def test_thin_slices_are_averaged_onto_thick_ones() -> None:
    """Slices that alternate have no trace in slices five times as thick; a sampled one would."""
    thick = Volume(np.zeros((1, 4, 4, 8)), np.diag([1.0, 1.0, 5.0, 1.0]))
    values = np.broadcast_to(np.where(np.arange(40) % 2, 100.0, -100.0), (1, 4, 4, 40))
    thin = Volume(np.array(values), turned((1, 1, 1), (0, 0, -2)))
    assert np.abs(align(thick, thin).followup.array[..., 1:-1]).max() < 0.1
    assert np.abs(align(thick, thin, antialias=False).followup.array).min() == 100


def test_equal_grids_keep_every_bit() -> None:
    first, second = (scan(n, (8, 8, 8), turned((2, 2, 4), (0, 0, 0), 5)) for n in (0, 1))
    pair = align(first, second)
    assert np.array_equal(pair.followup.array, second.array)
    assert pair.followup.array.dtype == np.int16
    assert pair.overlap == 1


def test_what_is_no_pair_is_refused() -> None:
    first = scan(0, (8, 8, 8), np.eye(4))
    with pytest.raises(ValueError, match=r"share no place: the one covers 0\.\.7 x .*, the other 40\.\.47 x "):
        align(first, scan(1, (8, 8, 8), turned((1, 1, 1), (40, 0, 0))))
    with pytest.raises(ValueError, match="baseline has values in HU, the followup arbitrary"):
        align(first, first.with_array(first.array, unit="arbitrary"))
    with pytest.raises(ValueError, match="baseline is CT, the followup MR"):
        align(*(first.with_array(first.array, unit="arbitrary", origin={"modality": m}) for m in ("CT", "MR")))
    with pytest.raises(ValueError, match="world of a patient, the followup stage"):
        align(first, first.with_array(first.array, space="stage"))
    with pytest.raises(ValueError, match="has as many channels as 1, the followup 2"):
        align(first, first.with_array(np.concatenate([first.array] * 2)))
    far = align(first, scan(1, (8, 8, 8), turned((1, 1, 1), (6, 0, 0))))
    assert far.overlap == 0.25
    assert any("reaches 25 % of the baseline" in problem for problem in far.followup.problems)


# -- the listing


def test_a_listing_names_pairs_and_their_members(listing: Path) -> None:
    pairs = read_pairs(listing)
    assert [pair.name for pair in pairs] == [f"p{n}/t0 + p{n}/t1" for n in range(4)]
    assert [entry.name for entry in list_volumes(listing)] == [f"p{n}/t{t}.nii.gz" for n in range(4) for t in (0, 1)]
    assert len({pair.group for pair in pairs}) == 4
    for text in ("Baseline\tFollow-up\tName\n{0}\t{1}\tone\n", '"baseline";"follow up";"name"\n"{0}";"{1}";"one"\n'):
        other = listing.with_suffix(".tsv" if "\t" in text else ".csv")
        other.write_text(text.format("p0/t0.nii.gz", listing.parent / "p0" / "t1.nii.gz"), encoding="utf-8-sig")
        (pair,) = read_pairs(other)
        assert (pair.name, pair.followup.name) == ("one", "p0/t1.nii.gz")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("baseline,followup\n", "lists no pair"),
        ("baseline,followup\np0/t0.nii.gz,\n", "line 2 names no followup"),
        ("baseline,followup\np0/t0.nii.gz,p0/t9.nii.gz\n", r"line 2: no such followup: p0/t9\.nii\.gz"),
        ("baseline,followup\np0/t0.nii.gz,p1/../p0/t0.nii.gz\n", "line 2: baseline and followup are one volume"),
        (
            "baseline,followup\np0/t0.nii.gz,p0\n",
            r"the followup p0 holds 2 volumes \(t0\.nii\.gz; t1\.nii\.gz\): name one",
        ),
        (
            "baseline,followup,name\np0/t0.nii.gz,p0/t1.nii.gz,a\np1/t0.nii.gz,p1/t1.nii.gz,a\n",
            "lines 2 and 3 are called a: give each a name",
        ),
        (
            "baseline,followup,name\np0/t0.nii.gz,p0/t1.nii.gz,a\np0/t0.nii.gz,p0/t1.nii.gz,b\n",
            "lines 2 and 3 are the same pair",
        ),
        ("baseline,followup,split\np0/t0.nii.gz,p0/t1.nii.gz,trian\n", "got the split 'trian'; did you mean 'train'"),
        ("baseline,followup\np0/t0.nii.gz\n", "line 2 has 1 cells; expected 2"),
        ("baseline,baseline,followup\na,b,c\n", "two columns baseline"),
        (
            "baseline,followup,split\np0/t0.nii.gz,p0/t1.nii.gz,train\np0/t0.nii.gz,p1/t1.nii.gz,val\n",
            "share a patient, a folder or a file",
        ),
    ],
)
def test_mistakes_of_a_listing_are_named(listing: Path, rows: str, said: str) -> None:
    listing.write_text(rows)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        read_pairs(listing)


def test_another_table_is_no_listing(listing: Path) -> None:
    listing.write_text("path,label\na.png,1\n")
    with pytest.raises(ValueError, match="expected CSV or TSV with the columns baseline and followup"):
        load_pairs(config(listing))


def test_patients_are_told_by_column_file_and_folder(listing: Path) -> None:
    def groups(text: str) -> list[int]:
        listing.write_text(text)
        found = [pair.group for pair in read_pairs(listing)]
        return [found.index(group) for group in found]

    p = [f"p{n}/t{t}.nii.gz" for n in range(4) for t in (0, 1)]
    assert groups(f"baseline,followup,patient\n{p[0]},{p[1]},x\n{p[2]},{p[3]},y\n{p[4]},{p[5]},x\n") == [0, 1, 0]
    # Two are joined only by a third.
    assert groups(f"baseline,followup\n{p[0]},{p[2]}\n{p[4]},{p[6]}\n{p[6]},{p[0]}\n") == [0, 0, 0]
    # Both members of every pair lie in a folder of their own: three folders or more are patients.
    both = f"{p[0]},{p[1]}\n{p[1]},{p[0]}\n"
    assert groups(f"baseline,followup\n{both}{p[2]},{p[3]}\n{p[4]},{p[5]}\n") == [0, 0, 2, 3]


# -- the data set


def test_items_hold_the_same_place_of_both_in_their_contracts(listing: Path) -> None:
    splits = load_pairs(config(listing))
    assert (len(splits.train.volumes), len(splits.val.volumes), len(splits.test.volumes)) == (2, 1, 1)
    assert (splits.channels, splits.image_size) == (1, (8, 8, 8))
    assert splits.intensity["window"] == [-1000.0, 1000.0]
    pairs = {pair.name: pair for pair in read_pairs(listing)}
    seen = 0
    for dataset in (splits.test.whole(), splits.val):
        assert isinstance(dataset, PairDataset)
        for item in dataset:
            name, _, corner = item["key"].partition("@")
            pair = align(*(m.read(unit="HU") for m in (pairs[name].baseline, pairs[name].followup)))
            used = [np.flatnonzero(pair.reached.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
            start = [int(at[0]) for at in used]
            size = item["x"].shape[1:]
            if not corner:
                assert size == tuple(int(at[-1]) + 1 - s for at, s in zip(used, start, strict=True))
            at = [s + int(c) for s, c in zip(start, corner.split(",") if corner else (0, 0, 0), strict=True)]
            box = tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))
            for key, volume in (("x", pair.baseline), ("followup", pair.followup)):
                expected = np.clip((volume.array[0][box] + 1000) / 2000, 0, 1)
                assert np.abs(item[key][0].numpy() - expected).max() < 1e-6
            assert np.array_equal(item["mask"][0].numpy() == 1, pair.reached[box])
            seen += 1
    assert seen == 5
    batch = collate([splits.train[0], splits.train[1]])
    assert batch["followup"].shape == batch["x"].shape == (2, 1, 8, 8, 8)
    assert batch["mask"].shape == (2, 1, 8, 8, 8)


def test_random_patches_of_both_are_mirrored_and_moved_alike(listing: Path) -> None:
    """With the follow-up a function of the baseline's voxels, every patch shows it."""
    for pair in read_pairs(listing):
        first = read_volume(pair.baseline.path, unit="HU")
        write_volume(
            first.with_array(np.where(first.array > -500, 500 - first.array, -1000).astype(np.int16)),
            pair.followup.path,
        )
    splits = load_pairs(config(listing, flip_axes=[0, 1, 2]))
    items = [splits.train[n] for n in range(len(splits.train))]
    assert len({item["x"].numpy().tobytes() for item in items}) == len(items)
    for item in items:
        first, second = (item[key] * 2000 - 1000 for key in ("x", "followup"))
        body = (first > -500) & (first < 1000) & (second < 1000)
        assert (second - (500 - first))[body].abs().max() < 1e-3
        assert item["mask"].all()
    again = load_pairs(config(listing, flip_axes=[0, 1, 2]))
    assert torch.equal(again.train[3]["followup"], items[3]["followup"])


def test_patches_beyond_the_pair_are_masked(listing: Path) -> None:
    dataset = load_pairs(config(listing, patch_size=(32, 8, 8), flip_axes=[0])).train
    for item in (dataset[n] for n in range(len(dataset))):
        assert (item["x"][0][item["mask"][0] == 0] == 0).sum() >= 12 * 64
        assert 0 < item["mask"].mean() < 0.7


def test_percentiles_are_those_of_each_whole_volume(listing: Path) -> None:
    splits = load_pairs(config(listing, unit="arbitrary", percentiles=(5, 95)))
    dataset = splits.train.whole()
    pairs = {pair.name: pair for pair in read_pairs(listing)}
    for item in dataset:
        members = [m.read() for m in (pairs[item["key"]].baseline, pairs[item["key"]].followup)]
        pair = align(*members)
        used = [np.flatnonzero(pair.reached.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        box = tuple(slice(int(at[0]), int(at[-1]) + 1) for at in used)
        for key, own, moved in zip(("x", "followup"), members, (pair.baseline, pair.followup), strict=True):
            expected = Percentiles(5, 95).plan(own).forward(moved, "linear").array[0][box]
            assert np.abs(item[key][0].numpy() - np.clip(expected, 0, 1)).max() < 1e-5


def test_pairs_are_prepared_once_and_without_a_cache_alike(listing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_pairs(config(listing)).train[2]
    without = load_pairs(DataConfig(str(listing), cache=False, volume=config(listing).volume)).train[2]
    monkeypatch.setattr("omnivae.data.volumes.dataset_pairs.align", None)  # not called again
    again = load_pairs(config(listing)).train[2]
    for key in ("x", "followup", "mask"):
        assert torch.equal(first[key], again[key])
        assert torch.equal(first[key], without[key])
    write_volume(scan(7, (20, 18, 12), turned((2.0, 2.0, 4.0), (5.0, -9.0, 3.0))), listing.parent / "p0" / "t1.nii.gz")
    with pytest.raises(TypeError):  # a changed follow-up is prepared anew
        load_pairs(config(listing))


def test_bad_pairs_stop_or_are_left_out_by_name(listing: Path) -> None:
    first = read_volume(listing.parent / "p1" / "t0.nii.gz", unit="HU")
    write_volume(first, listing.parent / "p1" / "t1.nii.gz")
    with pytest.raises(ValueError, match=r"p1/t0 \+ p1/t1: baseline and followup hold the same voxels"):
        load_pairs(config(listing))
    splits = load_pairs(DataConfig(str(listing), on_error="skip", volume=config(listing).volume))
    assert [name for name, _ in splits.skipped] == ["p1/t0 + p1/t1"]
    with pytest.raises(ValueError, match="its baseline: its values look like Hounsfield units"):
        load_pairs(config(listing, unit="auto"))


def test_the_column_split_is_used(listing: Path) -> None:
    words = ("train", "validation", "train", "test")
    rows = [f"p{n}/t0.nii.gz,p{n}/t1.nii.gz,{word}" for n, word in enumerate(words)]
    listing.write_text("\n".join(["baseline,followup,split", *rows]) + "\n")
    for splits in (load_pairs(config(listing)), load_data(config(listing))):
        patients = {s: {k[:2] for k in getattr(splits, s).keys} for s in ("train", "val", "test")}
        assert patients == {"train": {"p0", "p2"}, "val": {"p1"}, "test": {"p3"}}
        assert splits.official_test


# -- members alone


def test_ordinary_training_sees_each_member_once_and_no_pair_in_two_splits(listing: Path) -> None:
    listing.write_text(listing.read_text() + "p0/t1.nii.gz,p0/t0.nii.gz\n")  # seen both ways
    splits = load_data(config(listing))
    names = {
        s: {key.partition("#")[0].partition("@")[0] for key in getattr(splits, s).keys}
        for s in ("train", "val", "test")
    }
    assert sorted(itertools.chain(*names.values())) == sorted(f"p{n}/t{t}.nii.gz" for n in range(4) for t in (0, 1))
    patients = {split: {name.partition("/")[0] for name in found} for split, found in names.items()}
    assert sum(map(len, patients.values())) == 4
    assert set(splits.train[0]) == {"x", "key", "spacing_mm"}


def test_series_of_a_folder_are_chosen_by_number_and_named_by_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pydicom")
    monkeypatch.setenv("OMNIVAE_CACHE", str(tmp_path / "cache"))
    for n in range(2):
        write_dicom(scan(n, (16, 16, 12), turned((2, 2, 2), (0, 0, n))), tmp_path / "DOE_JOHN" / str(n))
    (tmp_path / "pairs.csv").write_text("baseline,followup\nDOE_JOHN,DOE_JOHN/1\n")
    with pytest.raises(ValueError, match=r"holds 2 volumes .*choose one by its number in a column 'baseline_series'"):
        read_pairs(tmp_path / "pairs.csv")
    (tmp_path / "pairs.csv").write_text("baseline,followup,baseline_series,followup_series\nDOE_JOHN,DOE_JOHN,1,2\n")
    (pair,) = read_pairs(tmp_path / "pairs.csv")
    assert "DOE" not in pair.name
    splits = load_pairs(config(tmp_path / "pairs.csv", unit="auto"))
    assert splits.train[0]["x"].shape == (1, 8, 8, 8)
    assert not any("DOE" in key for key in load_data(config(tmp_path / "pairs.csv")).train.keys)
