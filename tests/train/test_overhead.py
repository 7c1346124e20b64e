"""The overhead experiment trains for real, in turn, under every way of recording, and is quoted where it matters."""

import re
from pathlib import Path

import pytest
import torch
from tests.system.tiny import Tiny, run_of, segments

from perjoule.measure.config import EnergyConfig
from perjoule.measure.machine import MachineProfile
from perjoule.measure.overhead import NOT_MEASURED, Overhead, Ratio, store, stored
from perjoule.train import overhead
from perjoule.train.doctor import overhead_lines
from perjoule.train.metering import Metering


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MachineProfile:
    monkeypatch.setenv("PERJOULE_CACHE", str(tmp_path / "cache"))
    return MachineProfile()


def test_every_way_of_recording_is_measured_against_none(
    profile: MachineProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    metered: list[bool] = []
    stop = Metering.stop

    def noted(metering: Metering) -> None:
        metered.append(metering.sampler is not None)
        stop(metering)

    monkeypatch.setattr(Metering, "stop", noted)
    monkeypatch.setattr(overhead, "EnergyConfig", lambda **given: EnergyConfig(**{"sampler": "thread"} | given))
    found = overhead.measure(profile, torch.device("cpu"), quick=True)
    assert list(found.ratios) == ["no-op again", "time", "energy", "synchronised energy"]
    assert (found.num_rounds, found.num_steps) == (3, 4)
    assert all(0.2 < ratio.low <= ratio.median <= ratio.high < 5 for ratio in found.ratios.values())
    assert sum(metered) == 4, "two arms are metered, in four rounds, the first of which warms up"
    assert stored(MachineProfile(), "cpu") == found
    lines = list(overhead_lines(found, "cpu"))
    assert re.fullmatch(
        r"overhead   cpu: step time relative to the bare step of [\d.]+ ms "
        r"\(3 blocks of 4 steps in turn, 95 % intervals\):",
        lines[0],
    )
    assert re.fullmatch(r"overhead   no-op again +\d\.\d{3} \[.*\]  the band: nothing within it can .*", lines[1])
    assert [line.split()[1] for line in lines[2:]] == ["time", "energy", "synchronised", "synchronising"]
    assert list(overhead_lines(None, "cpu")) == [f"overhead   {NOT_MEASURED}"]


@pytest.mark.parametrize("known", [False, True])
def test_a_run_that_waits_says_what_that_costs(
    known: bool, tiny: Tiny, profile: MachineProfile, capsys: pytest.CaptureFixture[str]
) -> None:
    cost = "not measured: perjoule doctor --overhead"
    if known:
        one = Ratio(1.1, 1.0, 1.2)
        store(Overhead(0.01, 3, 4, {"time": one}, one), profile, "cpu")
        cost = "a step takes 1.100 [1.000, 1.200] times as long with fence=edge (perjoule doctor --overhead)"
    run = run_of(tiny.train("record.fence=edge", "stop.steps=1"))
    assert segments(run)[0]["fence_overhead"] == cost
    assert f"record.fence=edge: what waiting costs: {cost}\n" in capsys.readouterr().out
    free = run_of(tiny.train("stop.steps=1"))
    assert "fence_overhead" not in segments(free)[0]
    assert "waiting" not in capsys.readouterr().out
