import numpy as np
import pytest
from numpy.typing import NDArray

from perjoule.measure.publications import find_publications

Floats = NDArray[np.float64]


def readings(
    refresh_s: float, poll_s: float, seconds: float = 60, jitter_s: float = 0.0, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Return moments of publication, moments of readings and the values that they show."""
    random = np.random.default_rng(seed)
    published = np.arange(random.uniform(0, refresh_s), seconds, refresh_s)
    published = np.sort(published + jitter_s * random.standard_normal(len(published)))
    read = np.sort((np.arange(int(seconds / poll_s)) + random.random(int(seconds / poll_s))) * poll_s)
    read = read[read > published[0]]
    return published, read, np.searchsorted(published, read, side="right").astype(np.float64)


@pytest.mark.parametrize("poll_s", [0.015, 0.05, 0.1])
@pytest.mark.parametrize("refresh_s", [0.1, 0.10123, 0.0981])
def test_moments_of_a_periodic_refresh_are_found_to_a_few_milliseconds(poll_s: float, refresh_s: float) -> None:
    published, read, shown = readings(refresh_s, poll_s)
    found = find_publications(read, read + 2e-5, shown, 0.1)
    assert found.period_s == pytest.approx(refresh_s, rel=1e-4)
    assert found.width_s < 0.005
    truth = published[found.values.astype(int) - 1]
    assert np.mean(np.abs(found.t_s - truth) < 0.005) > 0.995, (
        "of all but the rare reading at the very moment of a change"
    )


def test_every_value_is_given_once_and_in_order() -> None:
    _, read, shown = readings(0.1, 0.05)
    found = find_publications(read, read + 2e-5, shown, 0.1)
    assert (np.diff(found.values) > 0).all()
    assert len(found.values) > 0.9 * shown.max()


def test_an_irregular_refresh_keeps_the_brackets_of_its_changes() -> None:
    published, read, shown = readings(0.1, 0.04, jitter_s=0.03)
    found = find_publications(read, read + 2e-5, shown, 0.1)
    assert found.period_s is None
    truth = published[found.values.astype(int) - 1]
    assert np.median(np.abs(found.t_s - truth)) < found.width_s / 2 < 0.05


def test_a_refresh_faster_than_the_readings_is_somewhere_within_one_refresh_before_each() -> None:
    _, read, shown = readings(0.001, 0.05)
    found = find_publications(read, read + 2e-5, shown, 0.001)
    assert found.period_s is None
    assert found.width_s == pytest.approx(0.001 + 2e-5)
    assert found.t_s == pytest.approx(read + 1e-5 - 0.0005)


def test_a_sensor_that_never_changes_has_no_period() -> None:
    read: Floats = np.arange(100, dtype=np.float64) * 0.05
    for resolution_s in (0.01, 0.1, 1.0):
        found = find_publications(read, read, np.full(100, 3.0), resolution_s)
        assert found.period_s is None
        assert len(found.values) == 100
