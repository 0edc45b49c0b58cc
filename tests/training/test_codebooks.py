"""Codebooks in training: the same in every process and as in one, whatever is left out, accumulated or broken off."""

import math
import sys

import process_driver
import pytest
import torch
from test_distributed import in_two
from training_toys import Images, assert_equal_tensors, last_checkpoint, rows, run, tensors_of

from omnivae import fsq_vae, vq_vae
from omnivae.losses import NLL, Commitment
from omnivae.metrics.codes import TABLE, CodeCounts
from omnivae.posteriors.codebook import Codebook
from omnivae.training import world as place_of

WAYS = ("plain", "whole", "broken", "continued")


@pytest.fixture(autouse=True, scope="module")
def _environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in (*place_of.ENVIRONMENT, "LOCAL_WORLD_SIZE", "OMNIVAE_DEBUG"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    in_two(directory, "codes")
    return directory / "codes"


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    directory = tmp_path_factory.mktemp("one")
    process_driver.codes(directory)
    return directory


def books_of(state):
    return {name: tensor for name, tensor in state.items() if ".books." in name}


# -- several processes

needs_processes = pytest.mark.skipif(sys.platform == "win32", reason="processes end by signals here")


@needs_processes
@pytest.mark.parametrize("way", WAYS)
def test_codebooks_are_equal_in_all_processes_and_those_of_one_process_with_the_joint_batch(one, two, way):
    states = [torch.load(two / f"{way}-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_equal_tensors(*states)
    expected = torch.load(one / f"{way}-0.pt", weights_only=True)
    found = books_of(states[0])
    assert len(found) == 10
    for name, tensor in found.items():
        # Sums over two halves are not sums over the whole to the last digit.
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-9, msg=name)
    updates = [int(tensor) for name, tensor in found.items() if name.endswith("updates")]
    skipped = max(row.get("train/skipped_updates", 0) for row in rows(two / way))
    assert updates == [8 - skipped] * 2
    assert (skipped >= 1) == (way == "broken")


@needs_processes
@pytest.mark.parametrize("where", ["one", "two"])
def test_a_run_broken_off_continues_to_the_same_codebooks_bit_for_bit(one, two, where):
    directory = {"one": one, "two": two}[where]
    left, right = (last_checkpoint(directory / way) for way in ("continued", "whole"))
    assert left["global_step"] == 8
    assert_equal_tensors(tensors_of(left), tensors_of(right))
    tables = [
        [(row["step"], row.get("train/perplexity"), row.get("val/code_usage")) for row in rows(directory / way)]
        for way in ("continued", "whole")
    ]
    assert tables[0] == tables[1]


@needs_processes
def test_the_use_of_codes_is_counted_over_all_processes(one, two):
    for way in ("plain", "whole"):
        left, right = rows(two / way), rows(one / way)
        for a, b in zip(left, right, strict=True):
            for name in ("train/perplexity", "train/code_usage", "val/perplexity", "val/code_usage"):
                assert a.get(name) == pytest.approx(b.get(name)), (way, name)
    assert any("val/perplexity" in row for row in left)


# -- one process


def small(**arguments):
    torch.manual_seed(3)
    settings = {"in_channels": 1, "image_size": 8, "latent_dim": 2, "channels": (4, 4), "num_codes": 8, "decay": 0.9}
    return vq_vae(**settings | arguments)


def objective():
    return {"nll": NLL(), "commitment": Commitment(weight=0.25)}


def test_accumulated_batches_move_the_codes_as_one_batch_would():
    torch.manual_seed(0)
    x = torch.randn(12, 3, dtype=torch.float64)
    books = []
    for parts in (1, 3):
        torch.manual_seed(1)
        book = Codebook(4, 3, revive_below=0.0).double().train()
        book.start(x)
        book.deferred = True
        for part in x.chunk(parts):
            book(part)
        before = book.codes.clone()
        book.commit()
        assert not torch.equal(before, book.codes)
        books.append(book)
    torch.testing.assert_close(books[0].state_dict(), books[1].state_dict())


def test_a_step_that_is_left_out_leaves_no_trace():
    torch.manual_seed(0)
    book = Codebook(4, 3).train()
    book.start(torch.randn(20, 3))
    book.deferred = True
    before = {name: tensor.clone() for name, tensor in book.state_dict().items()}
    book(torch.randn(20, 3))
    book.discard()
    book.commit()
    assert_equal_tensors(before, dict(book.state_dict()))


def test_clusters_are_where_a_run_starts(tmp_path):
    model = small(num_codes=6)
    run(tmp_path, model, objective(), max_steps=1, learning_rate=1e-9)
    book = model.posterior.books[0]
    # Codes that are the centres of their vectors: one more update does not move them far.
    model.eval()
    with torch.no_grad():
        x = Images().x
        kept = []
        handle = model.posterior.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
        indices = model.encode(x).indices
        handle.remove()
        flat = model.posterior.projection(kept[0]).movedim(1, -1).flatten(0, -2)
    centres = torch.stack([flat[indices.flatten() == k].mean(0) for k in range(6)])
    assert indices.unique().tolist() == list(range(6))
    spread = flat.std()
    assert float((centres - book.codes).norm(dim=1).max()) < 0.3 * spread


def test_the_figures_of_an_epoch_are_those_of_all_its_batches(tmp_path):
    # 24 images in batches of 4: an epoch is 6 steps. The weights hardly move: a pass afterwards sees the same codes.
    model = small(num_codes=8, decay=0.999999, revive_below=0.0)
    run(tmp_path, model, objective(), val=Images(10, seed=1), max_steps=60, learning_rate=1e-12, ema=0.0)
    table = rows(tmp_path)
    logged = {row["step"]: row for row in table if "train/perplexity" in row}
    assert sorted(logged) == list(range(6, 61, 6))
    for images, row, split in (
        (Images().x, logged[60], "train"),
        (Images(10, seed=1).x, [r for r in table if "val/perplexity" in r][-1], "val"),
    ):
        indices = model.eval().encode(images).indices.flatten()
        share = torch.bincount(indices, minlength=8).double() / len(indices)
        assert row[f"{split}/perplexity"] == pytest.approx(math.exp(float(torch.special.entr(share).sum())), rel=1e-5)
        assert row[f"{split}/code_usage"] == pytest.approx(float((share > 0).double().mean()))


@pytest.mark.parametrize("num_codes", [7, TABLE + 1])
def test_counting_in_parts_equals_counting_at_once(num_codes):
    torch.manual_seed(0)
    indices = torch.randint(7, (5, 4, 4, 2))
    whole, parts, joint = (CodeCounts(num_codes, 2) for _ in range(3))
    whole.add(indices)
    for part in indices.split(2):
        parts.add(part)
    joint.merge(parts.counts())
    expected = [torch.unique(book, return_counts=True) for book in indices.reshape(-1, 2).unbind(1)]
    for counts in (whole, parts, joint):
        assert counts.counts() == [dict(zip(*(t.tolist() for t in pair), strict=True)) for pair in expected]
    entropies = [float(torch.special.entr(c.double() / c.sum()).sum()) for _, c in expected]
    assert joint.perplexity == pytest.approx(sum(map(math.exp, entropies)) / 2)
    assert joint.usage == pytest.approx(sum(len(c) for _, c in expected) / 2 / num_codes)


def test_a_codebook_larger_than_the_data_is_refused_with_numbers(tmp_path, caplog):
    with pytest.raises(
        ValueError,
        match=r"a codebook of 97 codes for 96 latent vectors \(24 training images of 4 positions\): set model.num_codes",
    ):
        run(tmp_path, small(num_codes=97), objective(), max_steps=1)
    with caplog.at_level("WARNING", "omnivae"):
        run(tmp_path / "fsq", fsq_vae(in_channels=1, image_size=8, channels=(4, 4)), {"nll": NLL()}, max_steps=1)
    assert "a codebook of 1,000 codes for 96 latent vectors" in caplog.text
