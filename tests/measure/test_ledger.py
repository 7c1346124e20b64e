from dataclasses import replace

import numpy as np
import pytest

from perjoule.measure.contract import Form, Sensor, Unavailable
from perjoule.measure.ledger import Account, Bucket, Ledger, StepCurve, Tier, Timeline, merge

EMPTY = Timeline(np.zeros(1), np.empty(0), {})


def sensor(domain: str, scope: str, modelled: bool = False) -> Sensor:
    return Sensor(domain, Form.COUNTER, scope, "test", "µJ", 0.001, modelled=modelled)


def account(
    segment: int, energies_uj: dict[str, int], steps: range = range(0), tier: Tier = Tier.DIRECT, node: str = "a"
) -> Account:
    """Return an account of a processor package."""
    buckets = tuple(
        Bucket(name, 1000, energy, energy - 1, energy + 1, energy // 2, tier, "")
        for name, energy in energies_uj.items()
    )
    total_uj = sum(energies_uj.values())
    curve = StepCurve(np.array(steps, np.int64), np.linspace(1, total_uj, len(steps)).astype(np.int64))
    package = sensor("package-0", "package")
    return Account(
        segment,
        node,
        package,
        total_uj,
        total_uj - 5,
        total_uj + 5,
        buckets,
        0.5,
        total_uj,
        10,
        0.1,
        None,
        EMPTY,
        curve,
    )


def test_segments_of_a_resumed_run_add_up() -> None:
    first = account(0, {"forward": 100, "outside": 20}, range(1, 11))
    second = account(1, {"data": 5, "forward": 50, "outside": 30, "unknown": 7}, range(6, 21), Tier.SHARED)
    merged = merge([first, second])
    assert merged.total_uj == first.total_uj + second.total_uj == sum(bucket.energy_uj for bucket in merged.buckets)
    assert [bucket.name for bucket in merged.buckets] == ["forward", "data", "outside", "unknown"]
    assert merged.buckets[0].tier == Tier.SHARED, "no better than the weakest part"
    assert (merged.buckets[0].energy_uj, merged.buckets[0].low_uj, merged.buckets[0].high_uj) == (150, 148, 152)
    assert merged.buckets[0].idle_uj == 75
    assert merged.unread_s == 1.0
    assert (merged.window_uj, merged.window_steps) == (212, 20)
    assert merge([first]) is first


def test_energy_against_steps_goes_on_where_the_segment_before_ended_without_the_steps_done_again() -> None:
    merged = merge([account(0, {"forward": 100}, range(1, 11)), account(1, {"forward": 50}, range(6, 21))])
    assert merged.by_step.steps.tolist() == [1, 2, 3, 4, 5, *range(6, 21)]
    assert (np.diff(merged.by_step.energy_uj) >= 0).all()
    assert merged.by_step.energy_uj[5] == 101, "the energy of the lost steps stays"
    assert merged.by_step.energy_uj[-1] == 150


def test_an_unknown_idle_power_in_one_segment_is_unknown_in_the_sum() -> None:
    first, second = account(0, {"forward": 100}), account(1, {"forward": 50})
    second = replace(second, buckets=(replace(second.buckets[0], idle_uj=None),))
    assert merge([first, second]).buckets[0].idle_uj is None


def test_total_adds_nodes_and_domains_that_are_not_part_of_one_another() -> None:
    package = account(0, {"forward": 100})
    process = replace(package, sensor=sensor("cpu", "process", modelled=True), total_uj=40, low_uj=20, high_uj=80)
    gpu = replace(package, sensor=sensor("gpu-x", "gpu"), total_uj=900)
    elsewhere = replace(package, node="b", total_uj=7)
    total = Ledger((package, process, gpu, elsewhere)).total()
    assert not isinstance(total, Unavailable)
    assert total.energy_uj == 100 + 900 + 7
    assert total.domains == ("package-0 on a", "gpu-x on a", "package-0 on b")
    assert total.inside == ("cpu on a",)
    assert not total.modelled


def test_total_that_is_modelled_says_so() -> None:
    only = replace(account(0, {"forward": 40}), sensor=sensor("cpu", "process", modelled=True))
    total = Ledger((only,)).total()
    assert not isinstance(total, Unavailable)
    assert total.modelled


@pytest.mark.parametrize(
    ("missing", "reason"),
    [((), "no meter in this run"), ((("rapl", Unavailable("no powercap")),), "rapl: no powercap")],
)
def test_without_an_account_the_reason_is_the_meters(missing: tuple[tuple[str, Unavailable], ...], reason: str) -> None:
    assert Ledger((), missing).total() == Unavailable(reason)
