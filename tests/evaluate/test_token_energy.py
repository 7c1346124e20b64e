"""A token's energy is what the meters saw of many, or a reason why they did not."""

import re
import time
from collections.abc import Callable

import pytest

from perjoule.evaluate.token_energy import TokenEnergy, Work, token_energies
from perjoule.measure.config import EnergyConfig
from perjoule.measure.contract import Unavailable
from perjoule.measure.meters.cpu_time import CpuTimeConfig


def meters(*kinds: object) -> EnergyConfig:
    return EnergyConfig.model_validate({"meters": list(kinds), "sampler": "thread"})


def burn(seconds: float, tokens: int, calls: list[str], name: str) -> Callable[[], Work]:
    """Return what prepares work that keeps a core busy."""

    def work() -> int:
        calls.append(name)
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return tokens

    def prepare() -> Work:
        calls.append(f"prepare {name}")
        return work

    return prepare


def test_work_is_repeated_for_long_enough_and_its_energy_divided_by_all_tokens() -> None:
    calls: list[str] = []
    works = {"one": burn(0.02, 5, calls, "one"), "two": burn(0.05, 1, calls, "two")}
    found = token_energies(works, meters({"kind": "cpu_time", "active_w_per_core": 10, "idle_w_per_core": 0}), 0.1)
    one, two = found["one"], found["two"]
    assert isinstance(one, TokenEnergy)
    assert isinstance(two, TokenEnergy)
    assert calls == ["prepare one", *["one"] * calls.count("one"), "prepare two", *["two"] * calls.count("two")]
    for name, energy, tokens, cpu_s in (("one", one, 5, 0.02), ("two", two, 1, 0.05)):
        assert energy.num_tokens == tokens * calls.count(name)
        assert energy.seconds >= 0.1
        # Ten watts a busy second; what the meter's thread used of the processor comes on top.
        assert 10 * cpu_s / tokens <= energy.energy_j * 1.05 <= 10 * cpu_s / tokens * 2
        (domain,) = energy.domains
        assert domain["energy_j"] == pytest.approx(energy.energy_j * energy.num_tokens)
        assert domain["sensor"].startswith("modelled from CPU time")


def test_method_and_interval_are_those_of_the_ledger() -> None:
    found = token_energies({"work": burn(0.02, 1, [], "work")}, meters("cpu_time"), 0.05)["work"]
    assert isinstance(found, TokenEnergy)
    assert found.method == found.domains[0]["method"] == "modelled"
    assert found.low_j == pytest.approx(found.energy_j / 2, rel=1e-3)
    assert found.high_j == pytest.approx(found.energy_j * 2, rel=1e-3)


def test_without_a_meter_there_is_a_reason_and_no_zero() -> None:
    found = token_energies({"work": burn(0.0, 1, [], "work")}, meters("nvidia"), 0.01)["work"]
    assert isinstance(found, Unavailable)
    assert "nvidia: " in found.reason


def test_energy_that_no_meter_saw_is_not_zero_but_unknown() -> None:
    watts = CpuTimeConfig(active_w_per_core=1e-9, idle_w_per_core=0)
    found = token_energies({"work": burn(0.0, 1, [], "work")}, meters(watts), 0.02)["work"]
    assert isinstance(found, Unavailable)
    assert found.reason.startswith("cpu on ")
    assert re.search(r" showed no energy in [\d.]+ s$", found.reason)
    assert found.remedy == "repeat for longer: latency.energy_s"
