import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from perjoule.measure.counter import frozen, unwrap

Ints = NDArray[np.int64]
RANGE_UJ = 262_143_328_850
increments = st.lists(st.integers(0, RANGE_UJ // 2 - 1), min_size=1, max_size=50)


def counter(increments_uj: list[int], start_uj: int, wraps_at: int | None) -> Ints:
    raw = start_uj + np.concatenate([[0], np.cumsum(np.array(increments_uj, np.int64))])
    shown: Ints = raw if wraps_at is None else raw % wraps_at
    return shown


@given(increments, st.integers(0, 10**12))
def test_counter_without_wrap_gives_its_differences(increments_uj: list[int], start_uj: int) -> None:
    increase, unknown = unwrap(counter(increments_uj, start_uj, None), None)
    assert increase.tolist() == increments_uj
    assert not unknown.any()


@given(increments, st.integers(0, RANGE_UJ - 1))
def test_wraps_are_undone_whatever_the_start_and_the_steps(increments_uj: list[int], start_uj: int) -> None:
    increase, unknown = unwrap(counter(increments_uj, start_uj, RANGE_UJ), RANGE_UJ)
    assert increase.tolist() == increments_uj
    assert not unknown.any()


@given(st.lists(st.integers(0, 40_000_000), min_size=2, max_size=50), st.integers(0, RANGE_UJ - 1), st.data())
def test_reset_is_marked_and_is_neither_negative_nor_a_wrap(
    increments_uj: list[int], start_uj: int, data: st.DataObject
) -> None:
    """At 0.1 s and 250 W a step is below 50 J; a counter that falls by less than it was full is no wrap."""
    raw = counter(increments_uj, start_uj, RANGE_UJ)
    at = data.draw(st.integers(1, len(raw) - 1))
    raw[at:] -= raw[at]
    lasted_s = np.full(len(raw) - 1, 0.1)
    increase, unknown = unwrap(raw, RANGE_UJ, lasted_s, 250.0)
    assert (increase >= 0).all()
    before = raw[at - 1]
    if 0 < before < RANGE_UJ - 100_000_000:
        assert unknown.tolist() == [row == at - 1 for row in range(len(increase))]
    assert np.delete(increase, at - 1).tolist() == np.delete(increments_uj, at - 1).tolist()


@given(st.lists(st.integers(-(10**15), 10**15), min_size=0, max_size=30), st.none() | st.integers(1, 10**12))
def test_anything_at_all_gives_no_negative_energy(raw: list[int], wraps_at: int | None) -> None:
    increase, unknown = unwrap(np.array(raw, np.int64), wraps_at)
    assert len(increase) == len(unknown) == max(len(raw) - 1, 0)
    assert (increase >= 0).all()
    assert (increase[unknown] == 0).all()


def test_falling_counter_without_a_range_is_a_reset() -> None:
    increase, unknown = unwrap(np.array([10, 15, 3, 9]), None)
    assert increase.tolist() == [5, 0, 6]
    assert unknown.tolist() == [False, True, False]


def test_without_a_limit_a_wrap_is_at_most_half_the_range() -> None:
    increase, unknown = unwrap(np.array([90, 30, 80, 40]), 100)
    assert increase.tolist() == [40, 50, 0]
    assert unknown.tolist() == [False, False, True]


def test_with_a_limit_a_wrap_is_at_most_what_can_be_used() -> None:
    raw = np.array([99_000_000, 1_000_000, 99_000_000, 20_000_000])
    increase, unknown = unwrap(raw, 100_000_000, np.array([0.1, 9.4, 0.1]), 10.5)
    assert increase.tolist() == [2_000_000, 98_000_000, 0]
    assert unknown.tolist() == [False, False, True]


def test_a_span_in_which_the_counter_may_go_round_is_unknown_even_if_it_rises() -> None:
    increase, unknown = unwrap(np.array([10_000_000, 30_000_000, 31_000_000]), 100_000_000, np.array([20.0, 0.1]), 10.0)
    assert increase.tolist() == [0, 1_000_000]
    assert unknown.tolist() == [True, False]


@pytest.mark.parametrize(
    ("raw", "power_w", "stands_still"),
    [
        ([0, 1, 2, 3, 4, 5], 100.0, [False] * 5),
        ([7] * 6, 100.0, [True] * 5),
        ([7] * 6, 0.0, [False] * 5),
        ([7, 8, 8, 8, 8, 9], 100.0, [False, True, True, True, False]),
        ([7, 8, 8, 8, 9, 9], 100.0, [False] * 5),
    ],
)
def test_counter_that_stands_still_for_long_under_power_is_frozen(
    raw: list[int], power_w: float, stands_still: list[bool]
) -> None:
    t_s = np.linspace(0, 2.5, 6)
    assert frozen(t_s, np.array(raw), np.full(6, power_w)).tolist() == stands_still


def test_patience_decides_how_long_a_counter_may_stand() -> None:
    t_s, raw, power_w = np.linspace(0, 0.3, 4), np.array([5, 5, 5, 6]), np.ones(4)
    assert frozen(t_s, raw, power_w, patience_s=0.15).tolist() == [True, True, False]
    assert not frozen(t_s, raw, power_w).any()
    assert frozen(np.zeros(0), np.zeros(0, np.int64), np.zeros(0)).tolist() == []
