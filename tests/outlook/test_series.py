from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from perjoule.core.errors import DataError
from perjoule.outlook.series import count_startup, find_level, first_line, forecast, last_cut

Floats = NDArray[np.float64]
NUM = 200


def plain(random: np.random.Generator) -> Floats:
    values: Floats = random.uniform(0.1, 10) * np.exp(random.normal(0, random.uniform(0.005, 0.05), NUM))
    return values


def with_startup(random: np.random.Generator) -> Floats:
    values = plain(random)
    values[:2] *= (random.uniform(2, 60), 1.5)
    return values


def with_drift(random: np.random.Generator) -> Floats:
    values: Floats = plain(random) * np.linspace(1, 1.06, NUM)
    return values


def with_phases(random: np.random.Generator) -> Floats:
    """A head is trained for a few epochs, then everything: the switch that the published windows stand before."""
    values = with_startup(random)
    values[int(random.integers(3, 6)) :] *= random.uniform(1.3, 4)
    return values


def with_evaluations(random: np.random.Generator) -> Floats:
    values = plain(random)
    values[4::5] *= 2.5
    return values


def with_an_outlier(random: np.random.Generator) -> Floats:
    values = plain(random)
    values[6] *= 5
    return values


EVERY_KIND = (plain, with_startup, with_drift, with_phases, with_evaluations, with_an_outlier)


def errors(kind: Callable[[np.random.Generator], Floats], share: float) -> tuple[Floats, float, Floats]:
    """Return the absolute relative errors, the coverage, and the errors of the line through the first value."""
    random, found, covered, lines = np.random.default_rng(1), [], [], []
    for _ in range(100):
        values = kind(random)
        true = float(values.sum())
        seen = values[: int(NUM * share)]
        total = forecast(seen, NUM)
        found.append(abs(total.mean / true - 1))
        covered.append(total.low <= true <= total.high)
        lines.append(abs(first_line(list(seen), NUM) / true - 1))
    return np.array(found), float(np.mean(covered)), np.array(lines)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_median_error_is_below_5_percent_from_a_twentieth_of_the_run(
    kind: Callable[[np.random.Generator], Floats],
) -> None:
    found, covered, _ = errors(kind, 0.05)
    assert np.median(found) < 0.05
    assert covered >= 0.85


@pytest.mark.parametrize("kind", [kind for kind in EVERY_KIND if kind is not with_drift])
def test_median_error_is_below_2_percent_from_a_fifth_of_the_run(
    kind: Callable[[np.random.Generator], Floats],
) -> None:
    found, covered, _ = errors(kind, 0.2)
    assert np.median(found) < 0.02
    assert covered >= 0.85


def test_a_drift_is_within_the_interval_after_a_fifth_of_the_run() -> None:
    found, covered, _ = errors(with_drift, 0.2)
    assert np.median(found) < 0.03
    assert covered >= 0.85


def test_the_line_through_the_first_epoch_misses_what_the_forecast_does_not() -> None:
    found, _, lines = errors(with_startup, 0.05)
    assert np.median(lines) > 1
    assert np.median(found) < 0.01


def test_the_interval_shrinks_as_more_of_the_run_is_seen() -> None:
    values = plain(np.random.default_rng(2))
    widths = []
    for num in (1, 5, 20, 100, 190):
        total = forecast(values[:num], NUM)
        widths.append(total.high - total.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0] / 50


def test_a_finished_run_has_no_interval() -> None:
    assert forecast([1.0, 2.0, 3.0], 3) == (6.0, 6.0, 6.0)


def test_startup_is_paid_once() -> None:
    values = np.array([60.0, 3.0, 1.0, 1.01, 0.99, 1.0, 1.0])
    assert count_startup(values) == 2
    assert forecast(values, 100).mean == pytest.approx(63 + 98, rel=0.01)


def test_noise_is_no_startup() -> None:
    assert count_startup(np.array([1.02, 1.0, 1.01, 0.99])) == 0


def test_a_change_of_the_level_is_cut_where_it_happens() -> None:
    logs = np.log(np.where(np.arange(60) < 37, 1.0, 1.5)) + np.random.default_rng(3).normal(0, 0.02, 60)
    assert abs(last_cut(logs) - 37) <= 1


def test_the_last_of_several_phases_counts() -> None:
    values = np.repeat([1.0, 3.0, 2.0], 20)
    level = find_level(values)
    assert level.start == 40
    assert level.mean == pytest.approx(2.0)


def test_a_spike_is_no_phase() -> None:
    values = np.ones(50)
    values[30] = 40
    assert find_level(values).start == 0


def test_few_values_have_one_phase() -> None:
    assert last_cut(np.log([1.0, 2.0, 3.0])) == 0


@pytest.mark.parametrize(
    ("values", "num_total", "message"),
    [
        ([], 5, r"a series must be a list of at least one number, not of shape \(0,\)"),
        ([1.0, -2.0], 5, "the values of a series must be above 0: number 2 is -2"),
        ([1.0, float("nan")], 5, "the values of a series must be above 0: number 2 is nan"),
        ([1.0, 1.0], 1, "a run of 1 cannot have 2 values"),
    ],
)
def test_a_series_that_cannot_be_one_is_refused(values: list[float], num_total: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        forecast(values, num_total)
