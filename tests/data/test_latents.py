"""Posterior stores as data: random access from any process, samples that belong to their image, exact statistics."""

import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from omnivae import LatentDataset, PosteriorStore
from omnivae.data import latents
from omnivae.data.moments import ChannelMoments
from omnivae.jobs.store import Entry, StoreWriter, write_info

INFO = {
    "kind": latents.KIND,
    "format": latents.FORMAT,
    "model": {"sha256": "0" * 64, "name": "VAE in m", "latent_dim": 3, "value_range": [0, 1]},
    "transform": {"resize": False},
    "dtype": "float32",
    "precision": "32",
    "classes": None,
    "recipe": {"data": "pictures"},
}


def write_store(path, posteriors, *, info=INFO, per_shard=4, generation=1):
    write_info(path, info)
    writer = StoreWriter(path, info, generation=generation)
    for i, (key, (mean, logvar)) in enumerate(posteriors.items()):
        writer.add(Entry(key, f"{i:064x}", i % 2, (4 * mean.shape[-1], 7)), mean, logvar)
        if i % per_shard == per_shard - 1:
            writer.flush()
    writer.flush()
    return PosteriorStore(path)


def random_posteriors(count, *shapes):
    return {
        f"{(7 * i) % count:03d}": (torch.randn(shapes[i % len(shapes)]) * 3 + 5, torch.randn(shapes[i % len(shapes)]))
        for i in range(count)
    }


@pytest.fixture
def posteriors():
    return random_posteriors(11, (3, 4, 2), (3, 2, 5))


@pytest.fixture
def store(posteriors, tmp_path):
    return write_store(tmp_path / "store", posteriors)


# -- reading


def test_entries_come_back_by_number_and_by_key(store, posteriors):
    assert store.keys == sorted(posteriors)
    assert len(store) == len(posteriors)
    for i, key in enumerate(store.keys):
        for item in (store[i], store[key], store[i - len(store)]):
            assert item["key"] == key
            assert torch.equal(item["mean"], posteriors[key][0])
            assert torch.equal(item["logvar"], posteriors[key][1])
            assert item["input_size"] == (4 * item["mean"].shape[-1], 7)
    assert [item["key"] for item in store] == store.keys
    assert "003" in store
    assert "elsewhere" not in store


def test_what_is_not_there_is_refused(store, tmp_path):
    with pytest.raises(KeyError, match="elsewhere"):
        store["elsewhere"]
    with pytest.raises(IndexError, match="11 of 11"):
        store[11]
    with pytest.raises(FileNotFoundError, match="omnivae encode"):
        PosteriorStore(tmp_path / "nowhere")


def test_a_later_run_replaces_entries_of_an_earlier_one(store, posteriors, tmp_path):
    new = (torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    newer = write_store(tmp_path / "store", {"003": new}, generation=2)
    assert newer.keys == store.keys
    assert newer.num_superseded == 1
    assert torch.equal(newer["003"]["mean"], new[0])
    assert torch.equal(newer["004"]["mean"], posteriors["004"][0])
    # Statistics are of what counts, not of what is on the disk.
    expected = ChannelMoments(3)
    for i in range(len(newer)):
        expected.update(*(t[None] for t in newer.posterior(i)))
    np.testing.assert_allclose(newer.moments().mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(newer.moments().std, expected.std, rtol=1e-12)


def test_a_store_of_a_newer_format_is_refused(posteriors, tmp_path):
    with pytest.raises(ValueError, match="newer omnivae"):
        write_store(tmp_path / "newer", posteriors, info=INFO | {"format": latents.FORMAT + 1})


def test_shards_of_another_model_in_a_store_are_refused(store, posteriors, tmp_path):
    other = INFO | {"model": INFO["model"] | {"sha256": "1" * 64}}
    StoreWriter(tmp_path / "store", other)
    write_store(tmp_path / "other", posteriors, info=other)
    shard = next((tmp_path / "other" / "shards").iterdir())
    shard.rename(tmp_path / "store" / "shards" / "shard-00077.safetensors")
    with pytest.raises(ValueError, match=r"shard-00077.* another model"):
        PosteriorStore(tmp_path / "store")


def test_a_bounded_number_of_files_is_open(tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "MAX_OPEN", 3)
    store = write_store(tmp_path / "many", random_posteriors(40, (3, 2)), per_shard=2)
    for i in np.random.default_rng(0).integers(len(store), size=100):
        store[int(i)]
        assert len(store._handles) <= 3
    assert len(list((tmp_path / "many" / "shards").iterdir())) == 20


def test_a_store_that_was_rewritten_meanwhile_says_so(store, tmp_path):
    for shard in (tmp_path / "store" / "shards").iterdir():
        shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"open .* again"):
        store[0]


def test_a_pickled_store_reads_the_same(store):
    store[0]
    again = pickle.loads(pickle.dumps(store))
    assert torch.equal(again[3]["mean"], store[3]["mean"])


# -- samples


@pytest.fixture
def same_shape(tmp_path):
    return write_store(tmp_path / "same", random_posteriors(12, (3, 2, 2)))


def epochs(dataset, method, workers):
    context = multiprocessing.get_context(method) if workers else None
    loader = DataLoader(
        dataset, batch_size=5, num_workers=workers, multiprocessing_context=context, persistent_workers=workers > 0
    )
    result = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        batches = list(loader)
        assert [key for batch in batches for key in batch["key"]] == dataset.store.keys
        result.append(torch.cat([batch["z"] for batch in batches]))
    return result


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_samples_do_not_depend_on_who_draws_them(same_shape, method, workers):
    here = epochs(LatentDataset(same_shape, seed=1), None, 0)
    # Processes that live through both epochs draw the second epoch's samples in the second epoch.
    there = epochs(LatentDataset(same_shape, seed=1), method, workers)
    assert torch.equal(here[0], there[0])
    assert torch.equal(here[1], there[1])
    assert not torch.equal(here[0], here[1])


def test_a_sample_is_a_function_of_seed_epoch_and_key(same_shape):
    def draw(seed, epoch, i):
        dataset = LatentDataset(same_shape, seed=seed)
        dataset.set_epoch(epoch)
        return dataset[i]["z"]

    torch.manual_seed(1)
    first = draw(0, 0, 4)
    torch.manual_seed(2)
    assert torch.equal(draw(0, 0, 4), first)
    mean, std = same_shape[4]["mean"], torch.exp(0.5 * same_shape[4]["logvar"])
    noise = [(draw(*which) - same_shape[which[2]]["mean"]) / torch.exp(0.5 * same_shape[which[2]]["logvar"])
             for which in ((0, 0, 4), (1, 0, 4), (0, 1, 4), (0, 0, 5))]  # fmt: skip
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(noise[i], noise[j], atol=0.1)
    torch.testing.assert_close(mean + std * noise[0], first)


def test_drawing_leaves_the_global_random_state_alone(same_shape):
    before = torch.get_rng_state()
    LatentDataset(same_shape)[0]
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_over_epochs_have_the_posteriors_mean_and_variance(same_shape):
    dataset, n = LatentDataset(same_shape), 3000
    item, draws = same_shape[2], []
    for epoch in range(n):
        dataset.set_epoch(epoch)
        draws.append(dataset[2]["z"])
    z = torch.stack(draws)
    std = torch.exp(0.5 * item["logvar"])
    # Five standard errors, of a mean and of a variance of n normal numbers.
    assert ((z.mean(0) - item["mean"]).abs() < 5 * std / n**0.5).all()
    assert ((z.var(0) / std**2 - 1).abs() < 5 * (2 / n) ** 0.5).all()


def test_the_mode_is_the_mean_in_every_epoch(same_shape):
    dataset = LatentDataset(same_shape, mode=True)
    dataset.set_epoch(3)
    assert torch.equal(dataset[1]["z"], same_shape[1]["mean"])
    assert dataset[1]["label"] == same_shape[1]["label"]


def test_whitened_samples_have_mean_zero_and_deviation_one(tmp_path):
    store = write_store(tmp_path / "s", random_posteriors(400, (3, 3, 3)), per_shard=100)
    channel = torch.stack([LatentDataset(store, whiten=True)[i]["z"] for i in range(400)])
    assert channel.mean((0, 2, 3)).abs().max() < 0.08  # 3,600 values a channel: five standard errors
    assert (channel.std((0, 2, 3)) - 1).abs().max() < 0.08
    scale = torch.stack([LatentDataset(store, whiten="scale")[i]["z"] for i in range(400)])
    assert scale.std() == pytest.approx(1, abs=0.05)
    assert scale.mean() > 0.5  # one factor, no shift


def test_statistics_to_whiten_with_can_be_given(same_shape):
    given = {"mean": [1.0, 2.0, 3.0], "std": [2.0, 2.0, 2.0], "scale_factor": 0.5}
    z = LatentDataset(same_shape, whiten=True, statistics=given, mode=True)[0]["z"]
    expected = (same_shape[0]["mean"] - torch.tensor([1.0, 2.0, 3.0])[:, None, None]) / 2
    torch.testing.assert_close(z, expected)
    with pytest.raises(ValueError, match="whiten='all'"):
        LatentDataset(same_shape, whiten="all")


# -- statistics


def test_streaming_statistics_equal_numpy_on_everything_at_once(store):
    means = np.concatenate([store[i]["mean"].double().numpy().reshape(3, -1) for i in range(len(store))], axis=1)
    variances = np.exp(
        np.concatenate([store[i]["logvar"].double().numpy().reshape(3, -1) for i in range(len(store))], axis=1)
    )
    statistics = store.statistics()
    std = np.sqrt(means.var(axis=1) + variances.mean(axis=1))
    np.testing.assert_allclose(statistics["mean"], means.mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(statistics["std_of_means"], means.std(axis=1), rtol=1e-9)
    np.testing.assert_allclose(statistics["std"], std, rtol=1e-9)
    assert statistics["scale_factor"] == pytest.approx((means.var() + variances.mean()) ** -0.5, rel=1e-9)
    assert statistics["num_images"] == 11
    assert statistics["num_values"] == means.shape[1]


def test_statistics_do_not_cancel_far_from_zero():
    moments, values = ChannelMoments(1), torch.tensor([1e8, 1e8 + 1, 1e8 + 2], dtype=torch.float64)
    for value in values:
        moments.update(value.view(1, 1), torch.full((1, 1), -30.0, dtype=torch.float64))
    assert moments.std_of_means[0] ** 2 == pytest.approx(2 / 3, rel=1e-6)


def test_moments_survive_json_exactly_and_merge_in_any_order():
    parts = []
    for _ in range(3):
        parts.append(ChannelMoments(2))
        parts[-1].update(torch.randn(4, 2, 3), torch.randn(4, 2, 3))
    assert ChannelMoments.from_dict(parts[0].to_dict()).to_dict() == parts[0].to_dict()
    one, other = ChannelMoments(2), ChannelMoments(2)
    for i in (0, 1, 2):
        one.merge(parts[i])
    for i in (2, 0, 1):
        other.merge(parts[i])
    np.testing.assert_allclose(one.std, other.std, rtol=1e-12)


def test_no_latents_have_no_statistics():
    with pytest.raises(ValueError, match="at least one image"):
        ChannelMoments(2).summary()
    with pytest.raises(ValueError, match="expected"):
        ChannelMoments(2).update(torch.zeros(1, 3), torch.zeros(1, 3))
