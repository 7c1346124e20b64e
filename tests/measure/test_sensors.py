"""What readings tell about the sensor behind them, with a sensor whose truth is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from perjoule.measure.contract import Unavailable
from perjoule.measure.sensors import (
    Agreement,
    ReadCost,
    Refresh,
    agrees,
    counter_against_power,
    observed_refresh,
    read_cost,
)

Ints = NDArray[np.int64]


def moments_ns(poll_s: float, seconds: float, seed: int = 0) -> Ints:
    """Return readings that are a fifth of the period early or late."""
    num = int(seconds / poll_s)
    early = np.random.default_rng(seed).uniform(-0.2, 0.2, num)
    return np.rint((np.arange(num) + 1 + early) * poll_s * 1e9).astype(np.int64)


def refreshed(t_ns: Ints, refresh_s: float, jitter: float = 0.0, repeats: float = 0.0, seed: int = 1) -> Ints:
    """Return what a sensor shows that takes a new value every ``refresh_s``, or the old one again by chance."""
    random = np.random.default_rng(seed)
    num = int(t_ns[-1] / 1e9 / refresh_s) + 3
    ticks = np.sort(np.arange(num) * refresh_s + jitter * refresh_s * random.standard_normal(num))
    values = np.cumsum(random.random(num) >= repeats).astype(np.int64)
    shown: Ints = values[np.searchsorted(ticks, t_ns / 1e9)]
    return shown


@pytest.mark.parametrize("poll_s", [0.01, 0.03, 0.039])
@pytest.mark.parametrize("repeats", [0.0, 0.3])
@pytest.mark.parametrize("jitter", [0.0, 0.05])
def test_refresh_lies_in_its_interval(poll_s: float, repeats: float, jitter: float) -> None:
    widths = []
    for seed in range(20):
        t_ns = moments_ns(poll_s, 60, seed)
        found = observed_refresh(t_ns, refreshed(t_ns, 0.1, jitter, repeats, seed))
        assert isinstance(found, Refresh)
        assert not found.only_bounded
        assert found.low_s <= 0.1 <= found.high_s, (seed, found)
        widths.append(found.high_s - found.low_s)
    assert max(widths) < 0.02


@pytest.mark.parametrize("refresh_s", [0.001, 0.04, 0.1, 0.105, 0.13, 0.2])
def test_readings_slower_than_the_refresh_only_bound_it_from_above(refresh_s: float) -> None:
    t_ns = moments_ns(0.1, 60)
    found = observed_refresh(t_ns, refreshed(t_ns, refresh_s))
    assert isinstance(found, Refresh)
    assert found.only_bounded
    assert found.low_s == 0
    assert max(refresh_s, 0.1) <= found.high_s < max(0.16, 1.1 * refresh_s)
    assert found.num_changes > 290


def test_a_value_that_does_not_change_tells_no_refresh() -> None:
    t_ns = moments_ns(0.1, 3)
    still = observed_refresh(t_ns, np.full(len(t_ns), 7))
    assert still == Unavailable("its value changed 0 times in 2.9 s; 5 are needed")
    none = np.empty(0, np.int64)
    assert observed_refresh(none, none) == Unavailable("its value changed 0 times in 0 s; 5 are needed")


def test_read_cost_is_in_seconds() -> None:
    before = np.arange(0, 100_000, 1000)
    after = before + np.arange(1, 101)
    found = read_cost(before, after)
    assert isinstance(found, ReadCost)
    assert (found.median_s, found.high_s, found.worst_s) == pytest.approx((50.5e-9, 95.05e-9, 1e-7))
    assert read_cost(before[:0], after[:0]) == Unavailable("it was never read")


def compared(
    gain: float = 1.0, wraps_at: int | None = None, seconds: float = 5.0, still_from: float = 1e9
) -> Agreement:
    """Compare a counter with a refresh of 100 ms and a gain with the power of a load that changes each second."""
    t_ns = moments_ns(0.05, seconds)
    grid_s = np.arange(0, seconds + 1, 0.001)
    power_w = np.where(grid_s % 2 < 1, 300.0, 100.0)
    energy_j = np.cumsum(power_w) * 0.001
    at_s = np.minimum(np.floor(t_ns / 1e8) / 10, still_from)
    raw = np.rint(np.interp(at_s, grid_s, energy_j) * 1e6 * gain).astype(np.int64) + 10**6
    if wraps_at is not None:
        raw %= wraps_at
    power_uw = np.rint(np.interp(np.floor(t_ns / 1e8) / 10, grid_s, power_w) * 1e6).astype(np.int64)
    found = counter_against_power((t_ns, raw), (t_ns + 1_000_000, power_uw), wraps_at)
    assert isinstance(found, Agreement)
    return found


@pytest.mark.parametrize("wraps_at", [None, 400_000_000])
def test_a_sound_counter_agrees_with_the_power(wraps_at: int | None) -> None:
    found = compared(wraps_at=wraps_at)
    assert found.low <= 1 <= found.high
    assert found.ratio == pytest.approx(1, abs=0.1)
    assert found.span_s == pytest.approx(4.9, abs=0.1)
    assert found.believable and not found.frozen


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_a_counter_of_another_scope_does_not_agree(gain: float) -> None:
    found = compared(gain)
    assert found.low <= gain <= found.high
    assert not found.low <= 1 <= found.high
    assert not found.believable


def test_a_counter_that_stands_still_is_found_out() -> None:
    dead = compared(gain=0.0)
    assert (dead.ratio, dead.frozen, dead.believable) == (0.0, True, False)
    stopped = compared(seconds=40, still_from=37)
    assert stopped.ratio == pytest.approx(0.92, abs=0.03)
    assert stopped.frozen and not stopped.believable


def test_too_little_to_compare_is_no_agreement() -> None:
    t_ns = moments_ns(0.1, 1)
    rising, constant = np.arange(len(t_ns)), np.full(len(t_ns), 10**6)
    assert counter_against_power((t_ns[:1], rising[:1]), (t_ns, constant)) == Unavailable(
        "there are no readings of both the counter and the power"
    )
    short = counter_against_power((t_ns, rising), (t_ns, constant))
    assert isinstance(short, Unavailable) and short.reason.endswith("2 s are needed")
    apart = counter_against_power((t_ns, rising), (t_ns + 10**10, constant))
    assert apart == Unavailable("counter and power were both read for 0 s; 2 s are needed")
    long = moments_ns(0.1, 4)
    num = np.arange(len(long))
    assert counter_against_power((long, num), (long, 0 * num)) == Unavailable("the power sensor showed no power")
    assert counter_against_power((long, num % 20), (long, num)) == Unavailable(
        "the counter was reset while it was compared"
    )


def test_agreement_is_within_a_quarter() -> None:
    assert [agrees(counted, 100) for counted in (0, 79, 80, 100, 125, 126)] == [False, False, True, True, True, False]
    assert agrees(5, 0)
