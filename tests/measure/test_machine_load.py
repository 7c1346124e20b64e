"""How busy other programs kept the machine, and when that is said."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import perjoule
from perjoule.measure import machine_load
from perjoule.measure.machine_load import MachineLoad
from perjoule.report import build
from perjoule.runs.folder import RunFolder, read_manifest
from perjoule.runs.machine_load import KEY, busy_line, busy_lines
from perjoule.runs.tables import load_run

BUSY = [sys.executable, "-S", "-c", "print(flush=True)\nwhile True: pass"]


class Clocks:
    """Stands for our own processes."""

    def __init__(self, *_: object) -> None:
        self.own_s = 0.0

    def spent_ns(self) -> int:
        return int(self.own_s * 1e9)


def watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_s: float, later: str, lasted_s: float = 10.0
) -> dict[str, Any]:
    """Return what is found between two contents of ``/proc/stat``, 10 s apart on two cores."""
    (stat := tmp_path / "stat").write_text("cpu  1000 0 500 90000 100 0 0 0 0 0\ncpu0 1 2\n")
    monkeypatch.setattr(machine_load, "_STAT", stat)
    monkeypatch.setattr(machine_load, "CpuClocks", Clocks)
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    moments = iter([0.0, lasted_s])
    monkeypatch.setattr("time.monotonic", lambda: next(moments))
    load = MachineLoad()
    load._clocks.own_s = own_s  # type: ignore[attr-defined]
    stat.write_text(later)
    return load.facts()


@pytest.mark.parametrize(
    ("later", "own_s", "others", "steal"),
    [
        ("cpu  2000 0 500 91000 100 0 0 0 0 0\n", 10.0, 0.0, 0.0),  # one core is ours, the other idle
        ("cpu  2000 0 500 91000 100 0 0 0 0 0\n", 4.0, 0.3, 0.0),
        ("cpu  1400 200 700 90800 200 50 50 200 0 0\n", 1.0, 0.4, 0.1),  # nice, system and interrupts are work too
        ("cpu  1000 0 500 91500 600 0 0 0 0 0\n", 0.0, 0.0, 0.0),  # waiting for a disk is not
        ("cpu  1500 0 500 91500 100 0 0 0 500 0\n", 5.1, 0.0, 0.0),  # ours is known to nanoseconds, all to ticks
    ],
)
def test_others_have_what_the_cores_worked_less_our_own(
    later: str, own_s: float, others: float, steal: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = watched(tmp_path, monkeypatch, own_s, later)
    assert found == {"others": pytest.approx(others), "steal": pytest.approx(steal), "seconds": 10.0}


@pytest.mark.parametrize(
    ("later", "lasted_s", "why"),
    [
        ("", 10.0, "the system does not tell the load of its cores"),
        ("cpu  1 2 3\n", 10.0, "the system does not tell the load of its cores"),
        ("cpu  1000 0 500 90000 100 0 0 0 0 0\n", 10.0, "the kernel counted no time of any core"),
        ("cpu  1000 0 500 90000 100 0 0 0 0 0\n", 0.2, "shorter than 0.5 s"),
    ],
)
def test_what_is_not_told_is_not_a_quiet_machine(
    later: str, lasted_s: float, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = watched(tmp_path, monkeypatch, 0.0, later, lasted_s)
    assert found.keys() == {"unavailable"} and found["unavailable"].startswith(why)
    assert busy_line(found) is None


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"others": 0.1, "steal": 0.02}, None),
        ({"others": 0.37, "steal": 0.0}, "the machine was busy: other programs used 37 % of the cores"),
        ({"others": 0.0, "steal": 0.05}, "the machine was busy: the hypervisor withheld 5 % of them"),
        (None, None),
        ({"others": "much"}, None),
    ],
)
def test_a_line_is_worth_more_than_a_tenth_of_the_cores(facts: Any, line: str | None) -> None:
    assert busy_line(facts) == line


def test_a_neighbour_is_another_program_and_a_child_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(BUSY, stdout=subprocess.PIPE) as neighbour:
        assert neighbour.stdout is not None
        neighbour.stdout.readline()
        counted, ours = MachineLoad(without=(neighbour.pid,)), MachineLoad()
        time.sleep(1.5)
        seen, without = counted.facts(), ours.facts()
        neighbour.kill()
    assert seen["others"] > without["others"] + 0.1
    assert 0 <= without["others"] <= seen["others"] <= 1


def test_every_segment_of_a_measurement_says_how_busy_the_machine_was(tmp_path: Path) -> None:
    with perjoule.measure(tmp_path / "run", meters=[]):
        time.sleep(0.6)
    assert 0 <= read_manifest(tmp_path / "run")["segments"][0][KEY]["others"] <= 1


def test_a_busy_machine_stands_in_every_report_with_its_segment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder.create(tmp_path / "run", "", {}, {"recipe": "test"})
    for others in (0.02, 0.5):
        run.begin_segment({"world_size": 1})
        run.end("finished", "test", **{KEY: {"others": others, "steal": 0.0, "seconds": 60.0}})
    run.close()
    line = "segment 1: the machine was busy: other programs used 50 % of the cores"
    assert list(busy_lines(load_run(run.path))) == [line]
    html, text, *_ = build([run.path])
    assert line in text.read_text() and line in html.read_text()
    assert line in " ".join(capsys.readouterr().out.split())
