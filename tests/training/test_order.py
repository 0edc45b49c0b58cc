"""The order of images: permutations, ranks, resume."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnivae.training.order import EpochView, StepOrder

sizes = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(n=sizes, batch=st.integers(1, 8), batches=st.integers(0, 30), seed=st.integers(0, 1000))
def test_no_image_twice_in_an_epoch_and_every_batch_full(n, batch, batches, seed):
    if batch > n:
        return
    order = list(StepOrder(n, batch, batches, seed=seed))
    assert len(order) == batches
    assert all(len(b) == batch for b in order)
    per_epoch = n // batch
    for number, b in enumerate(order):
        assert {epoch for epoch, _ in b} == {number // per_epoch}
    for first in range(0, batches, per_epoch):
        seen = [i for b in order[first : first + per_epoch] for _, i in b]
        assert len(seen) == len(set(seen))
        assert set(seen) <= set(range(n))


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 8), per_epoch=st.integers(1, 6), seed=st.integers(0, 1000))
def test_each_epoch_is_a_permutation_when_batches_divide_the_data(batch, per_epoch, seed):
    n = batch * per_epoch
    order = list(StepOrder(n, batch, 2 * per_epoch, seed=seed))
    for epoch in range(2):
        seen = [i for b in order[epoch * per_epoch : (epoch + 1) * per_epoch] for _, i in b]
        assert sorted(seen) == list(range(n))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(8, 40), batch=st.integers(1, 2), world=st.integers(1, 4), seed=st.integers(0, 99))
def test_ranks_share_one_joint_batch(n, batch, world, seed):
    joint = list(StepOrder(n, batch * world, 12, seed=seed))
    ranks = [list(StepOrder(n, batch, 12, seed=seed, rank=r, world_size=world)) for r in range(world)]
    for number, together in enumerate(joint):
        parts = [item for rank in ranks for item in rank[number]]
        assert parts == together
        assert len(set(parts)) == batch * world


@settings(max_examples=40, deadline=None)
@given(n=st.integers(5, 40), batch=st.integers(1, 5), start=st.integers(0, 25), seed=st.integers(0, 99))
def test_a_continued_order_is_the_rest_of_the_whole(n, batch, start, seed):
    whole = list(StepOrder(n, batch, 25, seed=seed))
    assert list(StepOrder(n, batch, 25, seed=seed, start=start)) == whole[start:]


def test_a_longer_run_begins_as_the_shorter_one():
    assert list(StepOrder(17, 4, 40, seed=3))[:10] == list(StepOrder(17, 4, 10, seed=3))


def test_epochs_and_seeds_differ():
    order = list(StepOrder(32, 32, 3, seed=0))
    orders = [[i for _, i in b] for b in order] + [[i for _, i in next(iter(StepOrder(32, 32, 1, seed=1)))]]
    assert len({tuple(o) for o in orders}) == 4
    assert all(o != sorted(o) for o in orders)


def test_iterating_twice_gives_the_same_order():
    order = StepOrder(10, 3, 7, seed=0)
    assert list(order) == list(order)


def test_a_batch_larger_than_the_data_names_the_largest():
    with pytest.raises(ValueError, match=r"batch of 9 is larger than the 8 .*training\.batch_size to 8"):
        StepOrder(8, 9, 1, seed=0)
    with pytest.raises(ValueError, match=r"batch of 12 is larger than the 8 .*training\.batch_size to 8"):
        StepOrder(8, 6, 1, seed=0, world_size=2)
    StepOrder(8, 8, 1, seed=0)


def test_the_data_set_hears_of_the_epoch():
    class Data:
        epoch = None

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return (self.epoch, index)

    view = EpochView(Data())
    assert view[4, 2] == (4, 2)
    assert view[5, 0] == (5, 0)
    assert len(view) == 3
    assert EpochView([10, 20])[7, 1] == 20


def test_an_order_given_by_the_storage_is_followed_and_none_means_any():
    given_order = {0: [4, 3, 2, 1, 0], 1: None}
    batches = list(StepOrder(5, 2, 4, seed=0, permutation=given_order.get))
    assert batches[:2] == [[(0, 4), (0, 3)], [(0, 2), (0, 1)]]
    assert batches[2:] == list(StepOrder(5, 2, 4, seed=0))[2:]


def test_every_resolution_comes_equally_often_and_one_a_batch():
    order = list(StepOrder(24, 4, 30, seed=3, resolutions=(16, 32, 48)))
    sides = [{side for *_, side in batch} for batch in order]
    assert all(len(side) == 1 for side in sides)
    flat = [side for (side,) in map(tuple, sides)]
    assert {side: flat.count(side) for side in (16, 32, 48)} == {16: 10, 32: 10, 48: 10}
    assert flat != sorted(flat)
    assert flat[:3] != flat[3:6] or flat[3:6] != flat[6:9]


def test_resolutions_do_not_change_which_images_come_and_continue_anywhere():
    plain = list(StepOrder(24, 4, 12, seed=3))
    several = list(StepOrder(24, 4, 12, seed=3, resolutions=(16, 32)))
    assert [[key[:2] for key in batch] for batch in several] == plain
    assert list(StepOrder(24, 4, 12, seed=3, resolutions=(16, 32), start=5)) == several[5:]


def test_all_processes_train_on_the_same_resolution_at_a_time():
    orders = [list(StepOrder(24, 2, 12, seed=3, resolutions=(16, 32), rank=r, world_size=2)) for r in (0, 1)]
    assert all(a[0][2] == b[0][2] for a, b in zip(*orders, strict=True))
