"""Latents of different sizes in batches: parts of one size, latents of one shape, or a sentence that says which."""

import numpy as np
import pytest
import torch
from test_latents import INFO
from torch.utils.data import DataLoader

from omnivae import LatentDataset, PosteriorStore
from omnivae.jobs.store import Entry, StoreWriter, write_info

SIZES = [(5, 6, 4), (8, 6, 7), (5, 6, 4), (5, 9, 4), (8, 6, 7), (5, 6, 4)]


def coordinates(size):
    """A latent whose first three channels say where each position is."""
    return torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij"))


def written(path, posteriors, input_sizes):
    write_info(path, INFO)
    writer = StoreWriter(path, INFO)
    for i, (key, pair) in enumerate(posteriors.items()):
        writer.add(Entry(key, f"{i:064x}", None, input_sizes[i]), *pair)
        if i == 3:
            writer.flush()
    writer.flush()
    return PosteriorStore(path)


@pytest.fixture
def store(tmp_path):
    posteriors = {f"{i}": (coordinates(size) + 10 * i, torch.full((3, *size), -60.0)) for i, size in enumerate(SIZES)}
    return written(tmp_path / "store", posteriors, [tuple(4 * n - i % 2 for n in size) for i, size in enumerate(SIZES)])


def test_sizes_are_those_of_the_latents(store):
    found = store.sizes()
    assert {size: numbers.tolist() for size, numbers in found.items()} == {
        (5, 6, 4): [0, 2, 5], (5, 9, 4): [3], (8, 6, 7): [1, 4],
    }  # fmt: skip


def test_mixed_sizes_are_refused_with_the_options_that_work(store):
    with pytest.raises(ValueError, match=r"3 sizes, such as 5 x 6 x 4 and 8 x 6 x 7") as error:
        LatentDataset(store)
    said = str(error.value)
    assert "crop=(5, 6, 4)" in said
    assert "shape=(5, 6, 4) for the 3 latents" in said
    assert "mixed=True" in said
    # Each of the three does what it says.
    assert next(iter(DataLoader(LatentDataset(store, crop=(5, 6, 4)), batch_size=6)))["z"].shape == (6, 3, 5, 6, 4)
    one = LatentDataset(store, shape=(5, 6, 4))
    assert len(one) == 3
    assert [item["key"] for item in one] == ["0", "2", "5"]
    assert next(iter(DataLoader(one, batch_size=3)))["z"].shape == (3, 3, 5, 6, 4)
    mixed = [batch["z"].shape[2:] for batch in DataLoader(LatentDataset(store, mixed=True), batch_size=1)]
    assert mixed == SIZES


def test_a_part_is_that_part_of_the_latent(store):
    dataset = LatentDataset(store, crop=(3, 2, 4), mode=False)
    starts = []
    for epoch in range(120):
        dataset.set_epoch(epoch)
        for i, size in enumerate(SIZES):
            item = dataset[i]
            start = item["start"].tolist()
            a, b, c = start
            whole = store[i]["mean"]
            expected = whole[:, a : a + 3, b : b + 2, c : c + 4]
            torch.testing.assert_close(item["z"], expected, atol=1e-5, rtol=0)  # log-variance -60: no noise to speak of
            assert all(0 <= s <= n - m for s, n, m in zip(start, size, (3, 2, 4), strict=True))
            starts.append((i, *start))
    # Every place is drawn, up to both ends: 3 x 5 x 1 of the first latent.
    assert len({start for start in starts if start[0] == 0}) == 15
    assert {start[3] for start in starts if start[0] == 1} == {0, 1, 2, 3}


def test_a_part_is_a_function_of_seed_epoch_and_key(store):
    def part(seed, epoch, key):
        dataset = LatentDataset(store, crop=(2, 2, 2), seed=seed)
        dataset.set_epoch(epoch)
        return dataset[key]

    first = part(0, 3, "1")
    torch.manual_seed(5)
    assert torch.equal(part(0, 3, "1")["z"], first["z"])
    places = {tuple(part(seed, epoch, "1")["start"].tolist()) for seed in range(3) for epoch in range(3)}
    assert len(places) > 3


def test_the_mode_of_a_part_is_the_middle_in_every_epoch(store):
    dataset = LatentDataset(store, crop=(4, 4, 4), mode=True)
    dataset.set_epoch(7)
    assert dataset[1]["start"].tolist() == [2, 1, 1]
    assert torch.equal(dataset[1]["z"], store[1]["mean"][:, 2:6, 1:5, 1:5])


def test_whitening_a_part_is_a_part_of_the_whitened(store):
    whole = LatentDataset(store, mode=True, whiten=True, mixed=True)[4]["z"]
    part = LatentDataset(store, mode=True, whiten=True, crop=(5, 2, 4))[4]
    a, b, c = part["start"].tolist()
    torch.testing.assert_close(part["z"], whole[:, a : a + 5, b : b + 2, c : c + 4])


def test_what_cannot_be_is_said(store):
    with pytest.raises(
        ValueError, match=r"4 of 6 latents are smaller, e\.g\. 0 of 5 x 6 x 4: give at most crop=\(5, 6, 4\)"
    ):
        LatentDataset(store, crop=(8, 6, 4))
    with pytest.raises(ValueError, match=r"3 spatial axes"):
        LatentDataset(store, crop=(8, 6))
    with pytest.raises(ValueError, match=r"at least 1"):
        LatentDataset(store, crop=(8, 6, 0))
    with pytest.raises(ValueError, match=r"no latent of .* there are \(5, 6, 4\) \(3\), \(5, 9, 4\) \(1\)"):
        LatentDataset(store, shape=(1, 2, 3))
    with pytest.raises(ValueError, match="one of them"):
        LatentDataset(store, shape=(5, 6, 4), mixed=True)


def test_vectors_have_one_size_whatever_their_images(tmp_path):
    rng = np.random.default_rng(0)
    vectors = {f"{i}": (torch.from_numpy(rng.normal(size=3)).float(), torch.zeros(3)) for i in range(4)}
    store = written(tmp_path / "v", vectors, [(4 + i, 4) for i in range(4)])
    assert list(store.sizes()) == [()]
    assert len(LatentDataset(store)) == 4
    assert len(LatentDataset(written(tmp_path / "empty", {}, []))) == 0
