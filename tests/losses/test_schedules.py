"""Schedules against the guide's formulas, value by value, and their properties."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnivae.losses import ConstantSchedule, CosineSchedule, CyclicalSchedule, LinearSchedule, value_at

quick = settings(max_examples=60, derandomize=True, database=None, deadline=None)
ends = st.floats(-100, 100)
lengths = st.floats(0.5, 1e4)
times = st.floats(0, 1e5)


def test_linear_annealing_of_the_guide():
    schedule = LinearSchedule(length=40, unit="epoch")
    for epoch in range(101):
        assert schedule(epoch) == min(1.0, epoch / 40)


def test_cyclical_annealing_of_the_guide():
    schedule = CyclicalSchedule(cycle_length=10, unit="epoch")
    for epoch in range(101):
        cycle_length = 10
        t = epoch % cycle_length
        beta = t / (0.5 * cycle_length) if t <= 0.5 * cycle_length else 1.0
        assert schedule(epoch) == beta


def test_the_defaults_are_the_guides():
    assert [LinearSchedule()(t) for t in (0, 10, 40, 41)] == [0.0, 0.25, 1.0, 1.0]
    assert [CyclicalSchedule()(t) for t in (0, 1, 5, 6, 9, 10, 11)] == [0.0, 0.2, 1.0, 1.0, 1.0, 0.0, 0.2]


def test_cosine_endpoints_midpoint_and_quarter():
    schedule = CosineSchedule(start=2.0, end=10.0, length=100)
    assert schedule(0) == pytest.approx(2.0)
    assert schedule(50) == pytest.approx(6.0)
    assert schedule(100) == pytest.approx(10.0)
    assert schedule(1e6) == pytest.approx(10.0)
    assert schedule(25) == pytest.approx(2 + 8 * (1 - math.sqrt(0.5)) / 2)


def test_start_and_end_scale_linear_and_cyclical():
    assert LinearSchedule(start=4.0, end=2.0, length=10)(5) == 3.0
    schedule = CyclicalSchedule(start=1.0, end=3.0, cycle_length=8, ramp=0.25)
    assert [schedule(t) for t in (0, 1, 2, 3, 7, 8, 9)] == [1.0, 2.0, 3.0, 3.0, 3.0, 1.0, 2.0]


def test_a_ramp_of_one_is_a_saw():
    schedule = CyclicalSchedule(cycle_length=4, ramp=1.0)
    assert [schedule(t) for t in (0, 1, 2, 3, 4)] == [0.0, 0.25, 0.5, 0.75, 0.0]


def test_constant():
    assert {ConstantSchedule(0.3)(t) for t in (0, 1, 1e9)} == {0.3}


@pytest.mark.parametrize("cls", [LinearSchedule, CosineSchedule, CyclicalSchedule])
def test_units_choose_the_clock(cls):
    length = {"cycle_length": 10.0} if cls is CyclicalSchedule else {"length": 10.0}
    by_step, by_epoch = cls(unit="step", **length), cls(unit="epoch", **length)
    assert value_at(by_step, step=4, epoch=0) == by_step(4) != by_step(0)
    assert value_at(by_epoch, step=4, epoch=0) == by_epoch(0)
    assert value_at(by_epoch, step=0, epoch=2.5) == by_epoch(2.5)


def test_a_plain_number_is_its_own_schedule():
    assert value_at(3, step=10, epoch=2.0) == 3.0
    assert isinstance(value_at(3, step=10, epoch=2.0), float)


@quick
@given(start=ends, end=ends, length=lengths, a=times, b=times)
def test_linear_and_cosine_are_bounded_and_monotone(start, end, length, a, b):
    a, b = min(a, b), max(a, b)
    slack = 1e-9 * (1 + abs(start) + abs(end))
    for cls in (LinearSchedule, CosineSchedule):
        schedule = cls(start=start, end=end, length=length)
        for t in (a, b):
            assert min(start, end) - slack <= schedule(t) <= max(start, end) + slack
        assert (schedule(b) - schedule(a)) * (end - start) >= -slack * (1 + abs(end - start))
        assert schedule(0) == pytest.approx(start, abs=slack)
        assert schedule(length) == pytest.approx(end, abs=slack)


@quick
@given(start=ends, end=ends, cycle=st.integers(2, 1000), ramp=st.floats(0.01, 1.0), t=st.integers(0, 10**6))
def test_cyclical_is_bounded_periodic_and_monotone_within_a_cycle(start, end, cycle, ramp, t):
    schedule = CyclicalSchedule(start=start, end=end, cycle_length=cycle, ramp=ramp)
    slack = 1e-9 * (1 + abs(start) + abs(end))
    assert min(start, end) - slack <= schedule(t) <= max(start, end) + slack
    assert schedule(t + cycle) == schedule(t)
    assert schedule(cycle * (t // cycle)) == pytest.approx(start, abs=slack)
    if (t + 1) % cycle:
        assert (schedule(t + 1) - schedule(t)) * (end - start) >= -slack * (1 + abs(end - start))


@pytest.mark.parametrize("length", [0, -1, math.nan, math.inf])
def test_lengths_that_are_not_positive_are_refused(length):
    for make in (
        lambda: LinearSchedule(length=length),
        lambda: CosineSchedule(length=length),
        lambda: CyclicalSchedule(cycle_length=length),
    ):
        with pytest.raises(ValueError, match=f"length={length}; expected a positive number"):
            make()


@pytest.mark.parametrize("ramp", [0.0, -0.1, 1.1, math.nan])
def test_ramps_outside_their_range_are_refused(ramp):
    with pytest.raises(ValueError, match=f"ramp={ramp}"):
        CyclicalSchedule(ramp=ramp)


@pytest.mark.parametrize("cls", [LinearSchedule, CosineSchedule, CyclicalSchedule])
def test_unknown_units_are_refused(cls):
    with pytest.raises(ValueError, match="'minutes'; expected 'step' or 'epoch'"):
        cls(unit="minutes")
