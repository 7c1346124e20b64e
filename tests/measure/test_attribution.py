"""Attribution against a known truth: what is offered must be right within its interval, whatever the sensor."""

from collections import Counter

import pytest
from tests.measure.worlds import LENGTH_S, PHASES, POWER_W, Device, World, covered, errors

from perjoule.measure.ledger import Account, Tier

A100 = Device(documented_window_s=0.025)
A100_COUNTER = Device(counter=True)


def trained(seconds: float, scale: float = 1.0, calibrate_s: float = 0.0, seed: int = 0, jitter: float = 0.02) -> World:
    """Return a run with steps ``scale`` times as long as the standard one."""
    world = World(seed=seed)
    lengths_s = {phase: scale * length_s for phase, length_s in LENGTH_S.items()}
    world.rest(2)
    if calibrate_s:
        world.calibrate(calibrate_s, lengths_s)
        world.rest(1)
    world.train(seconds, lengths_s, jitter=jitter)
    world.rest(1)
    return world


def tiers(account: Account) -> dict[str, Tier]:
    return {bucket.name: bucket.tier for bucket in account.buckets}


def closes(account: Account) -> bool:
    return sum(bucket.energy_uj for bucket in account.buckets) == account.total_uj


def test_bursts_give_every_phase_of_a_ten_millisecond_step_within_two_percent() -> None:
    world = trained(40, calibrate_s=4)
    account = world.account(A100_COUNTER, A100)
    wrong = errors(account, world)
    assert {tier for name, tier in tiers(account).items() if name in PHASES} == {Tier.BURST}
    assert max(abs(wrong[phase]) for phase in ("data", "forward", "backward")) < 0.02
    assert abs(wrong["optimizer"]) < 0.1
    assert all(covered(account, world).values())
    assert account.scale == pytest.approx(1, abs=0.03)
    assert closes(account)


def test_phases_that_a_sensor_cannot_tell_apart_are_shared_within_hard_bounds_and_say_why() -> None:
    world = trained(20)
    account = world.account(A100_COUNTER, A100)
    for bucket in account.buckets:
        if bucket.name in PHASES:
            assert bucket.tier == Tier.SHARED
            assert bucket.why.startswith("not separable: not calibrated")
    assert all(covered(account, world).values())
    assert errors(account, world)["data"] > 1, "time share gives the hungry phase's energy to the others"
    assert closes(account)


def test_regression_tells_phases_apart_that_are_shorter_than_the_refresh_but_not_than_the_window() -> None:
    world = trained(30, scale=20)
    account = world.account(A100_COUNTER, A100)
    assert {tier for name, tier in tiers(account).items() if name in PHASES} == {Tier.REGRESSION}
    assert max(map(abs, errors(account, world).values())) < 0.05
    assert all(covered(account, world).values())


@pytest.mark.parametrize("calibrate_s", [0.0, 3.0], ids=["regression", "bursts"])
def test_a_phase_too_short_to_be_told_gets_what_the_others_leave_with_bounds_that_hold_the_truth(
    calibrate_s: float,
) -> None:
    lengths_s = {phase: 20 * length_s for phase, length_s in LENGTH_S.items()} | {"transfer": 1e-3}
    powers_w = POWER_W | {"transfer": 90.0}
    world = World()
    world.rest(2)
    if calibrate_s:
        world.calibrate(calibrate_s, lengths_s, powers_w)
        world.rest(1)
    world.train(30, lengths_s, powers_w)
    world.rest(1)
    account = world.account(A100_COUNTER, A100)
    transfer = next(bucket for bucket in account.buckets if bucket.name == "transfer")
    assert transfer.tier == Tier.SHARED
    assert "leave" in transfer.why
    assert transfer.low_uj <= world.spent_j["transfer"] * 1e6 <= transfer.high_uj
    assert transfer.energy_uj > 0
    assert all(covered(account, world).values())
    assert closes(account)


def test_long_phases_are_measured_directly() -> None:
    world = trained(60, scale=1500)
    account = world.account(A100_COUNTER, A100)
    assert tiers(account)["backward"] == Tier.DIRECT
    assert abs(errors(account, world)["backward"]) < 0.02
    assert all(covered(account, world).values())


def test_lag_that_nobody_told_never_gives_a_confident_wrong_answer() -> None:
    held: Counter[bool] = Counter()
    for lag_s in (0.005, 0.015, 0.05):
        for scale in (5.0, 20.0):
            world = trained(20, scale, seed=int(1e4 * lag_s))
            account = world.account(Device(lag_s=lag_s, documented_window_s=0.025))
            held.update(covered(account, world).values())
            for bucket in account.buckets:
                if bucket.name in PHASES:
                    half_uj, truth_uj = (bucket.high_uj - bucket.low_uj) / 2, world.spent_j[bucket.name] * 1e6
                    assert abs(bucket.energy_uj - truth_uj) < 2 * half_uj, (lag_s, scale, bucket)
    assert held[True] / held.total() >= 0.9


def test_window_that_is_documented_wrongly_never_gives_a_confident_wrong_answer() -> None:
    for window_s in (0.1, 1.0):
        world = World(seed=int(window_s * 10))
        world.rest(1.5)
        world.train(8, {"forward": 0.0522, "backward": 0.0521}, {"forward": 434.0, "backward": 164.0}, 0.0005)
        world.rest(1)
        account = world.account(Device(window_s=window_s, documented_window_s=0.025, poll_s=0.015, noise=0.003))
        assert all(covered(account, world).values()), window_s


def test_load_in_step_with_a_sensor_that_looks_a_quarter_of_the_time_is_noticed_by_the_calibration() -> None:
    world = trained(30, scale=10, calibrate_s=4, jitter=0.0)
    account = world.account(A100)
    truth_uj = sum(world.spent_j.values()) * 1e6
    assert account.scale is not None
    assert all(covered(account, world).values())
    assert account.low_uj <= truth_uj * 1.02
    assert account.high_uj >= truth_uj * 0.98


SENSORS = {
    "A100": Device(documented_window_s=0.025),
    "counter of 100 ms": Device(counter=True),
    "V100": Device(refresh_s=0.02, window_s=0.01, documented_window_s=0.01),
    "window as long as the refresh": Device(window_s=0.1),
    "window of a second": Device(window_s=1.0, documented_window_s=1.0),
    "RAPL": Device(refresh_s=0.001, counter=True, lag_s=0.0003),
    "smoothed": Device(tau_s=0.01, lag_s=0.005),
    "irregular": Device(jitter=0.01, poll_s=0.1),
}


@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("calibrate_s", [0.0, 3.0], ids=["as it is", "calibrated"])
def test_intervals_hold_the_truth_over_all_sensors(scale: float, calibrate_s: float) -> None:
    seen: Counter[bool] = Counter()
    for number, device in enumerate(SENSORS.values()):
        world = trained(20, scale, calibrate_s, seed=number)
        account = world.account(device)
        assert closes(account)
        seen.update(covered(account, world).values())
    assert seen[True] / seen.total() >= 0.9
