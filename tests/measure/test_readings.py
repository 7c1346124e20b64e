import numpy as np
import pytest

from perjoule.measure.contract import Form, Sensor
from perjoule.measure.readings import Series, energy_at, join


def sensor(form: Form, wraps_at: int | None = None) -> Sensor:
    return Sensor("package-0", form, "package", "test", "µJ", 0.001, wraps_at=wraps_at, limit_w=200.0)


def series(form: Form, *pieces: tuple[list[float], list[int]], wraps_at: int | None = None) -> Series:
    """Return the series of samplers that read values at given seconds."""
    arrays = [
        ((np.array(t_s) * 1e9).astype(np.int64), (np.array(t_s) * 1e9).astype(np.int64), np.array(raw, np.int64))
        for t_s, raw in pieces
    ]
    return join(sensor(form, wraps_at), arrays, 10.0)


def test_energy_of_a_counter_is_the_difference_of_its_readings_with_wraps_undone() -> None:
    found = series(Form.COUNTER, ([0, 0.1, 0.2, 0.3], [99_900_000, 99_950_000, 10_000, 70_000]), wraps_at=100_000_000)
    assert found.energy_uj.tolist() == [0, 50_000, 110_000, 170_000]
    assert found.known.all()
    assert not found.lost.any()


def test_energy_of_a_power_sensor_is_the_trapezoid_under_all_readings_and_equal_ones_count() -> None:
    flat = series(Form.POWER, ([0, 0.1, 0.2, 0.3], [100_000_000] * 4))
    assert flat.energy_uj[-1] == 30_000_000
    rising = series(Form.POWER, ([0, 0.1, 0.2], [100_000_000, 300_000_000, 300_000_000]))
    assert rising.energy_uj.tolist() == [0, 20_000_000, 50_000_000]


def test_a_reset_loses_the_energy_of_its_span_and_nothing_else() -> None:
    found = series(Form.COUNTER, ([0, 0.1, 0.2, 0.3], [900, 1000, 5, 30]))
    assert found.energy_uj.tolist() == [0, 100, 100, 125]
    assert found.lost.tolist() == [False, True, False]
    assert found.known.tolist() == [True, False, True]


def test_a_gap_and_a_new_sampler_are_not_told_apart_by_phase_but_their_energy_counts() -> None:
    found = series(Form.COUNTER, ([0, 0.1, 3.0], [0, 10, 500]), ([3.2, 3.3], [520, 540]))
    assert found.energy_uj[-1] == 540
    assert found.known.tolist() == [True, False, False, True]
    assert not found.lost.any()


def test_readings_from_a_moment_on_begin_at_no_energy() -> None:
    found = series(Form.COUNTER, ([0, 0.1, 0.2, 0.3], [0, 10, 30, 60])).since(150_000_000)
    assert found.energy_uj.tolist() == [0, 30]
    assert len(found.known) == len(found.lost) == 1
    assert found.since(0) is found


def test_energy_between_readings_lies_on_a_straight_line() -> None:
    found = series(Form.COUNTER, ([0, 0.1, 0.2], [0, 10, 30]))
    assert energy_at(found, np.array([50_000_000, 150_000_000])).tolist() == pytest.approx([5, 20])
