"""The referee, with a CodeCarbon of the same shape that meters nothing and answers at once."""

import importlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.report import ledgers

from perjoule.core.errors import MissingExtra
from perjoule.measure.bridges.codecarbon import Referee, explain, tracker_arguments
from perjoule.measure.ledger import Ledger
from perjoule.runs.cross_check import CROSS_CHECK, CrossCheck, add_cross_check, read_cross_checks

TRACKER = """
import json, os, sys

class Row:
    def __init__(self, arguments):
        self.values = {"energy_consumed": 1e-4, "duration": 2.5, "longitude": float("nan"), "gpu_model": None}
        self.values["arguments"] = json.dumps(arguments)

class Part:
    def description(self):
        return "CPU(Cpu Load)"

class OfflineEmissionsTracker:
    def __init__(self, **arguments):
        print("noise on standard output")
        self.final_emissions_data, self._hardware = Row(arguments), [Part()]
    def start(self):
        if os.environ.get("FAKE") == "fails":
            raise RuntimeError("no hardware")
    def stop(self):
        if os.environ.get("FAKE") == "hangs":
            import time; time.sleep(60)
"""
J_PER_KWH = 3.6e6


@pytest.fixture(autouse=True)
def _codecarbon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "codecarbon"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(TRACKER, encoding="utf-8")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "codecarbon", raising=False)
    importlib.invalidate_caches()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), *filter(None, sys.path)]))


def _gone(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_the_row_of_the_whole_run_is_kept_in_the_run_folder(tmp_path: Path) -> None:
    referee = Referee.start("CAN-nova-scotia")
    check = referee.stop(tmp_path, 0, "here")
    assert check.unavailable == "" and check.hardware == ("CPU(Cpu Load)",)
    assert (check.row["energy_consumed"], check.row["duration"], check.row["longitude"]) == (1e-4, 2.5, None)
    assert '"region": "nova scotia"' in check.row["arguments"]
    assert read_cross_checks(tmp_path) == (check,)
    assert _gone(referee.pid)


def test_segments_follow_one_another_in_the_file(tmp_path: Path) -> None:
    first, second = CrossCheck(0, "a", {"duration": 1.0}), CrossCheck(1, "a", {}, (), "CodeCarbon gave no row")
    add_cross_check(tmp_path, first)
    add_cross_check(tmp_path, second)
    assert read_cross_checks(tmp_path) == (first, second)
    assert read_cross_checks(tmp_path / "nothing") == ()


def test_codecarbon_runs_in_its_own_process_and_over_the_machine() -> None:
    assert tracker_arguments("Germany", 5.0)["country_iso_code"] == "DEU"
    arguments = tracker_arguments("US-new-york", 5.0)
    assert (arguments["country_iso_code"], arguments["region"]) == ("USA", "new york")
    assert arguments["tracking_mode"] == "machine" and arguments["allow_multiple_runs"] is True
    assert arguments["save_to_file"] is False and arguments["save_to_api"] is False


@pytest.mark.parametrize("location", [None, "US-CAL-CISO", "XYZ", "ABC-d"])
def test_without_a_country_no_mean_of_the_world_is_taken(location: str | None) -> None:
    arguments = tracker_arguments(location, 5.0)
    assert arguments["force_carbon_intensity_g_co2e_kwh"] == 0.0 and "country_iso_code" not in arguments


def test_a_tracker_that_fails_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE", "fails")
    referee = Referee.start(None)
    assert referee._process is not None
    referee._process.wait(20)
    check = referee.stop(tmp_path, 0, "here")
    assert check.row == {} and check.unavailable == "CodeCarbon's process had ended before the run"


def test_a_tracker_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE", "hangs")
    referee = Referee.start(None)
    check = referee.stop(tmp_path, 0, "here", timeout_s=2)
    assert check.unavailable == "CodeCarbon did not end within 2 s" and _gone(referee.pid)


def test_a_process_that_was_killed_is_a_reason(tmp_path: Path) -> None:
    referee = Referee.start(None)
    assert referee.pid is not None
    os.kill(referee.pid, signal.SIGKILL)
    check = referee.stop(tmp_path, 0, "here")
    assert check.unavailable in {"CodeCarbon's process had ended before the run", "CodeCarbon gave no row"}


def test_the_process_ends_when_the_trainer_does() -> None:
    referee = Referee.start(None)
    assert referee._process is not None and referee._process.stdin is not None
    referee._process.stdin.close()  # what the kernel does when the trainer is killed
    assert referee._process.wait(20) == 0


def test_a_process_that_cannot_be_started_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    check = Referee.start(None).stop(tmp_path, 0, "here")
    assert check.unavailable == "CodeCarbon's process could not be started: No such file or directory"


def test_a_damaged_line_is_skipped(tmp_path: Path) -> None:
    (tmp_path / CROSS_CHECK).write_text('{"segment": 0, "row', encoding="utf-8")
    add_cross_check(tmp_path, CrossCheck(1, "here", {"duration": 1.0}))
    assert [check.segment for check in read_cross_checks(tmp_path)] == [1]


def test_a_folder_that_is_gone_is_a_reason(tmp_path: Path) -> None:
    check = Referee.start(None).stop(tmp_path / "gone", 0, "here")
    assert check.unavailable.startswith("cannot write") and check.row == {}


def test_without_codecarbon_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perjoule.measure.bridges.codecarbon.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"pip install 'perjoule\[codecarbon\]'"):
        Referee.start(None)


def row(**changes: Any) -> dict[str, Any]:
    """Return what CodeCarbon says of 13.5 s with 8 W of CPU and 20 W of RAM in Quebec."""
    cpu_kwh, ram_kwh = 8 * 13.5 / J_PER_KWH, 20 * 13.5 / J_PER_KWH
    energies = {"cpu_energy": cpu_kwh, "ram_energy": ram_kwh, "gpu_energy": 0.0, "energy_consumed": cpu_kwh + ram_kwh}
    powers = {"cpu_power": 8.0, "ram_power": 20.0, "gpu_power": 0.0}
    place = {"country_iso_code": "CAN", "region": "quebec", "emissions": (cpu_kwh + ram_kwh) * 3.937 / 1e3}
    return {"duration": 13.5, "pue": 1.0, **energies, **powers, **place, **changes}


def explained(ledger: Ledger, carbon: Mapping[str, Any] | None = None, **changes: Any) -> str:
    check = CrossCheck(0, "here", row(**changes), ("CPU(Cpu Load)", "RAM"))
    return "\n".join(explain(ledger, check, carbon))


def test_the_totals_stand_side_by_side_with_their_ratio_and_the_interval() -> None:
    text = explained(Ledger((ledgers.cpu(),)))
    assert "CodeCarbon: 378 J (CPU(Cpu Load); RAM); perjoule: 100 J modelled, 50 J to 200 J, 3.78 times" in text
    assert "CodeCarbon's figure lies outside the interval" in text
    inside = explained(Ledger((ledgers.cpu(),)), energy_consumed=100 / J_PER_KWH)
    assert "CodeCarbon's figure lies inside the interval" in inside


def test_every_part_says_how_each_came_by_it() -> None:
    text = explained(Ledger((ledgers.cpu(),)))
    assert "cpu: CodeCarbon 108 J (8 W); perjoule 100 J, 1.08 times (cpu, modelled: CPU time × watts)" in text
    assert "4 W per thread" in text
    assert "ram: CodeCarbon 270 J (20 W); perjoule did not meter it, so the totals differ by all of it" in text
    assert "gpu:" not in text, "nobody has a figure"


def test_a_gpu_that_codecarbon_reads_as_0_is_shown() -> None:
    text = explained(Ledger((ledgers.gpu(),)))
    assert "gpu: CodeCarbon 0 J (0 W); perjoule 1 kJ, 0 times (gpu-0, measured: energy counter)" in text


def test_different_lengths_are_said_and_equal_ones_are_not() -> None:
    ledger = Ledger((ledgers.gpu(),))
    assert "duration:" not in explained(ledger)
    assert "duration: CodeCarbon 10 s, perjoule 13.5 s: CodeCarbon begins when" in explained(ledger, duration=10.0)


def test_quebecs_fossil_shares_and_the_pue_are_explained() -> None:
    facts = {"g_per_kwh": 28.0, "source": "CER", "pue": 1.2}
    text = explained(Ledger((ledgers.cpu(),)), facts)
    assert "PUE: CodeCarbon was run with 1; perjoule's carbon is 1.2 times the intensity" in text
    assert "intensity: CodeCarbon 3.937 g/kWh, perjoule 28 g/kWh (CER): for a Canadian province" in text
    assert "coal, oil and gas only, everything else as 0" in text


def test_another_source_is_said_and_the_same_figure_is_not() -> None:
    ledger = Ledger((ledgers.cpu(),))
    text = explained(ledger, {"g_per_kwh": 28.0, "source": "x"}, country_iso_code="DEU", region=None)
    assert "(x): other source or year" in text
    assert "intensity" not in explained(ledger, {"g_per_kwh": 3.937})
    assert "intensity: not compared" in explained(ledger)


def test_what_codecarbon_cannot_see_is_always_said() -> None:
    assert explained(Ledger(())).splitlines()[-1].startswith("CodeCarbon cannot see: phases")
    assert "perjoule metered nothing" in explained(Ledger(()))


def test_a_missing_row_says_why() -> None:
    lines = explain(Ledger(()), CrossCheck(0, "here", {}, (), "CodeCarbon gave no row"))
    assert lines == ["CodeCarbon: no cross-check: CodeCarbon gave no row"]


def test_other_segments_are_not_compared() -> None:
    ledger = Ledger((ledgers.cpu(), ledgers.cpu(5.0, segment=1)))
    assert "perjoule: 100 J modelled" in explained(ledger)
