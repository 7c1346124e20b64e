import numpy as np
import pytest
from tests.measure.worlds import Device, World

from perjoule.measure.calibration import Plateau, plateau, published, solve


def plateaus(powers_w: list[float], error_w: float = 0.1) -> list[Plateau]:
    return [Plateau(0, 1, power_w, error_w, 30) for power_w in powers_w]


def steady(world: World, device: Device, until_s: float) -> Plateau | None:
    """Return the plateau of a burst from the first second on."""
    series = world.read(device)
    return plateau(series.sensor.form, published(series), 1_000_000_000, round(until_s * 1e9), 0.225)


NO_PAUSES = np.zeros(3)


def test_powers_of_phases_follow_from_the_mean_powers_of_bursts() -> None:
    shares = np.array([[1.0, 0.0], [0.375, 0.625], [0.5, 0.5]])
    found = solve(shares, plateaus([300, 0.375 * 300 + 0.625 * 400, 350]), NO_PAUSES, 0.0)
    assert found is not None
    assert found.power_w == pytest.approx([300, 400], rel=1e-6)
    assert found.misfit < 1e-6


def test_pauses_within_a_burst_are_taken_out_at_the_power_between_bursts() -> None:
    shares = np.array([[0.9, 0.0], [0.0, 0.9], [0.45, 0.45]])
    mixed = shares @ np.array([300.0, 400.0]) + 0.1 * 60
    found = solve(shares, plateaus(list(mixed)), np.full(3, 0.1), 60.0)
    assert found is not None
    assert found.power_w == pytest.approx([300, 400], rel=1e-6)
    assert (found.error_w > 5).all(), "what a sensor sees of pauses is not known well"


def test_bursts_that_all_hold_the_same_mix_tell_nothing() -> None:
    assert solve(np.full((3, 2), 0.5), plateaus([350, 350, 350]), NO_PAUSES, 0.0) is None
    assert solve(np.eye(2)[:1], plateaus([300]), np.zeros(1), 0.0) is None


def test_bursts_that_contradict_one_another_widen_the_errors() -> None:
    shares = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    agree = solve(shares, plateaus([300, 400, 350]), NO_PAUSES, 0.0)
    contradict = solve(shares, plateaus([300, 400, 380]), NO_PAUSES, 0.0)
    assert agree is not None
    assert contradict is not None
    assert (contradict.error_w > 20 * agree.error_w).all()
    assert contradict.misfit > 0.01


@pytest.mark.parametrize("counter", [True, False])
def test_the_steady_part_of_a_burst_has_its_power_and_an_error_that_holds_the_truth(counter: bool) -> None:
    world = World()
    world.rest(1)
    world.stretch(4, 300, "calibrate")
    world.rest(1)
    found = steady(world, Device(counter=counter), 5.0)
    assert found is not None
    assert abs(found.power_w - 300) < 3 * found.error_w
    assert found.error_w < 1
    assert found.begin_ns >= 1_000_000_000


def test_a_power_that_drifts_during_its_burst_has_a_larger_error() -> None:
    errors = []
    for second_w in (300.0, 340.0):
        world = World()
        world.rest(1)
        world.stretch(2, 300, "calibrate")
        world.stretch(2, second_w, "calibrate")
        world.rest(1)
        found = steady(world, Device(), 5.0)
        assert found is not None
        errors.append(found.error_w)
    assert errors[1] > 5 * errors[0]


def test_a_burst_shorter_than_the_sensor_can_follow_has_no_plateau() -> None:
    world = World()
    world.rest(1)
    world.stretch(0.5, 300, "calibrate")
    world.rest(1)
    assert steady(world, Device(), 1.5) is None
