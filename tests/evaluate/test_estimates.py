"""Clustered errors against formulas written out by hand, and against what repeated sampling shows."""

import math

import numpy as np
import pytest

from perjoule.evaluate.estimates import Estimate, correlation, mean, ratio

NATS = np.array([1.0, 2.0, 4.0, 3.0])
BYTES = np.array([1, 3, 2, 2])
DOCUMENT = np.array([7, 7, 2, 5])


def test_ratio_and_its_clustered_error_are_those_computed_by_hand() -> None:
    # 10 nats in 8 bytes; documents are off their share by 3 - 4·1.25, 4 - 2·1.25 and 3 - 2·1.25.
    found = ratio(NATS, BYTES, DOCUMENT)
    assert found.value == 1.25
    assert found.stderr == pytest.approx(math.sqrt(3 / 2 * ((-2) ** 2 + 1.5**2 + 0.5**2)) / 8)


def test_partial_sums_of_a_cluster_may_come_in_any_order() -> None:
    order = [2, 0, 3, 1]
    assert ratio(NATS[order], BYTES[order], DOCUMENT[order]) == ratio(NATS, BYTES, DOCUMENT)


def test_error_of_a_mean_is_the_textbook_one_where_every_position_is_its_own_cluster() -> None:
    values = np.random.default_rng(0).normal(size=50)
    found = mean(values, np.arange(50))
    assert found.value == pytest.approx(values.mean())
    assert found.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(50))


def test_clusters_that_count_nothing_do_not_make_the_error_smaller() -> None:
    with_empty = ratio(np.append(NATS, 0.0), np.append(BYTES, 0), np.append(DOCUMENT, 99))
    assert with_empty == ratio(NATS, BYTES, DOCUMENT)


def test_one_cluster_has_a_value_and_no_error() -> None:
    assert mean(np.array([1.0, 3.0]), np.array([4, 4])) == Estimate(2.0, None)


@pytest.mark.parametrize("numerator", [[0.0, 0.0], [1.0, math.nan], [1.0, math.inf]])
def test_ratio_of_nothing_or_to_something_not_finite_has_no_value(numerator: list[float]) -> None:
    denominator = np.zeros(2) if numerator == [0.0, 0.0] else np.ones(2)
    assert ratio(np.array(numerator), denominator, np.arange(2)) == Estimate(None, None)


def test_correlation_is_that_of_numpy_and_its_error_that_of_repeated_samples() -> None:
    chance = np.random.default_rng(1)
    found, documents = [], np.repeat(np.arange(80), 5)
    for _ in range(300):
        shared = chance.normal(size=80)[documents]  # positions of a document resemble each other
        x = shared + chance.normal(size=400)
        y = shared + chance.normal(size=400)
        found.append(correlation(x, y, documents))
    assert found[-1].value == pytest.approx(np.corrcoef(x, y)[0, 1])
    spread = np.std([estimate.value for estimate in found if estimate.value is not None])
    typical = np.median([estimate.stderr for estimate in found if estimate.stderr is not None])
    assert typical == pytest.approx(spread, rel=0.15)
    independent = correlation(x, y, np.arange(400)).stderr
    assert independent is not None
    assert independent < 0.75 * typical


@pytest.mark.parametrize("x", [[2.0, 2.0, 2.0], [1.0, 2.0, math.nan]])
def test_a_constant_or_what_is_not_finite_correlates_with_nothing(x: list[float]) -> None:
    y, documents = np.array([1.0, 2.0, 3.0]), np.arange(3)
    assert correlation(np.array(x), y, documents) == Estimate(None, None)
    assert correlation(y, np.array(x), documents) == Estimate(None, None)
    assert correlation(y[:1], y[:1], documents[:1]) == Estimate(None, None)


def test_another_unit_scales_the_value_and_its_error() -> None:
    assert Estimate(2.0, 0.5).times(3) == Estimate(6.0, 1.5)
    assert Estimate(None, None).times(3) == Estimate(None, None)
