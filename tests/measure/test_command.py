"""Any program can be measured: what it prints, is sent, uses and returns is its own, and a run folder is left."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from perjoule.core.errors import ConfigError, RunFolderError
from perjoule.measure import command
from perjoule.measure.blocked import blocked_signals
from perjoule.measure.book import build_ledger
from perjoule.measure.command import CommandError, Followed, MeasureConfig, NotExecutable, follow, measure_command
from perjoule.measure.ledger import Total
from perjoule.report import build
from perjoule.runs.tables import load_run

BURN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n"


def config(runs: Path, name: str = "run", **fields: Any) -> MeasureConfig:
    energy = {"meters": ["cpu_time"], "sampler": "thread"}
    return MeasureConfig.model_validate({"name": name, "runs": runs, "energy": energy, **fields})


def run(runs: Path, words: Sequence[str], append: bool = False, **fields: Any) -> Followed:
    with blocked_signals():
        return measure_command(words, config(runs, **fields), append)


def segment(followed: Followed, number: int = -1) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((followed.run / "manifest.json").read_text())["segments"][number]
    return facts


def test_a_command_leaves_a_run_with_its_cpu_time_energy_and_end(tmp_path: Path) -> None:
    words = [sys.executable, "-S", "-c", BURN.format(0.3)]
    found = run(tmp_path, words)
    assert (found.exit_code, found.run) == (0, tmp_path / "run")
    loaded = load_run(found.run)
    assert (loaded.status, loaded.reason, loaded.warnings) == ("finished", "the command ended: exit code 0", ())
    assert segment(found)["followed"]["command"] == words
    assert 0.3 <= segment(found)["cpu_s"] < 0.6
    ledger = build_ledger(loaded)
    buckets = {bucket.name: bucket for bucket in ledger.accounts[0].buckets}
    assert buckets["command"].energy_uj > 0.9 * ledger.accounts[0].total_uj > 1e6
    assert isinstance(ledger.total(), Total)
    written = build([found.run])
    assert {path.name for path in written} >= {"report.html", "report.md", "emissions.csv", "energy.csv"}
    (row,) = csv.DictReader((found.run / "emissions.csv").read_text().splitlines())
    assert float(row["energy_consumed"]) * 3.6e12 == pytest.approx(ledger.accounts[0].total_uj, rel=1e-6)


@pytest.mark.parametrize(
    ("script", "code", "status", "reason"),
    [
        ("exit 3", 3, "failed", "exit code 3"),
        ("kill -KILL $$", 137, "failed", "SIGKILL ended it"),
        ("true | false", 1, "failed", "exit code 1"),
    ],
)
def test_the_exit_code_is_passed_on(script: str, code: int, status: str, reason: str, tmp_path: Path) -> None:
    found = run(tmp_path, ["sh", "-c", script])
    loaded = load_run(found.run)
    assert (found.exit_code, segment(found)["exit_code"]) == (code, code)
    assert (loaded.status, loaded.reason) == (status, f"the command ended: {reason}")


def test_everything_that_a_command_starts_is_counted_whoever_waits_for_it(tmp_path: Path) -> None:
    program = (
        "import os, time\n"
        "done, told = os.pipe()\n"
        "def burn(seconds):\n"
        "    end = time.process_time() + seconds\n"
        "    while time.process_time() < end: pass\n"
        "    os.write(told, b'x'); os._exit(0)\n"
        "for _ in range(2):\n"
        "    os.fork() or burn(0.1)\n"
        "if not os.fork():\n"
        "    os.setsid()\n"
        "    os.fork() or burn(0.1)\n"
        "    os._exit(0)\n"
        "while [os.read(done, 1) for _ in range(3)] != [b'x'] * 3: pass\n"
        "time.sleep(0.1)\n"
    )
    found = run(tmp_path, [sys.executable, "-S", "-c", program])
    assert 0.3 <= segment(found)["cpu_s"] < 0.8
    piped = run(tmp_path, ["sh", "-c", " | ".join([f"{sys.executable} -S -c '{BURN.format(0.1)}'"] * 2)], name="pipe")
    assert 0.2 <= segment(piped)["cpu_s"] < 0.6


def test_what_a_command_leaves_running_is_said_and_not_waited_for(tmp_path: Path) -> None:
    begun_s = time.monotonic()
    found = run(tmp_path, ["sh", "-c", f"sleep 60 & echo $! > {tmp_path / 'pid'}"])
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert time.monotonic() - begun_s < 30
    assert [note.text for note in load_run(found.run).notes] == [
        "1 processes that the command started still run: what they use now is not metered"
    ]


def test_what_cannot_be_run_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot run no-such-program-here: no such program") as missing:
        run(tmp_path, ["no-such-program-here"])
    assert missing.value.exit_code == 127
    (script := tmp_path / "script").write_text("no program")
    with pytest.raises(NotExecutable, match="it is not an executable file") as refused:
        run(tmp_path, [str(script)])
    assert refused.value.exit_code == 126
    assert not (tmp_path / "run").exists()
    script.chmod(0o755)
    with pytest.raises(NotExecutable, match=r"cannot run .*: Exec format error"):
        run(tmp_path, [str(script)])
    assert load_run(tmp_path / "run").status == "failed"


def test_a_second_run_needs_another_name_or_becomes_a_segment(tmp_path: Path) -> None:
    run(tmp_path, ["true"])
    with pytest.raises(RunFolderError, match="exists already: add to it with --append, or choose another name"):
        run(tmp_path, ["true"])
    found = run(tmp_path, ["false"], append=True)
    loaded = load_run(found.run)
    assert [one.facts["exit_code"] for one in loaded.segments] == [0, 1] and loaded.status == "failed"
    ledger = build_ledger(loaded)
    total = ledger.total()
    assert isinstance(total, Total) and len(ledger.accounts) == 2
    assert total.energy_uj == sum(account.total_uj for account in ledger.accounts)


def test_processes_that_run_already_are_followed_to_their_end(tmp_path: Path) -> None:
    program = f"import sys; sys.stdin.read(1)\n{BURN.format(0.15)}"
    with subprocess.Popen([sys.executable, "-S", "-c", program], stdin=subprocess.PIPE) as other:
        assert other.stdin is not None
        other.stdin.write(b"xx")
        other.stdin.close()
        with blocked_signals():
            found = follow([other.pid], config(tmp_path))
    loaded = load_run(found.run)
    assert (found.exit_code, loaded.status, loaded.reason) == (0, "finished", "the processes ended")
    assert loaded.notes[0].text == "followed from outside: what the processes used before is not counted"
    assert segment(found)["followed"]["pids"] == [other.pid]


@pytest.mark.parametrize(
    ("pid", "why"), [(2**22 + 7, "no such process"), (os.getpid(), "that is this process")], ids=["none", "this"]
)
def test_only_other_processes_that_run_can_be_followed(pid: int, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--pid {pid}: {why}"):
        follow([pid], config(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_gpus_of_a_program_are_those_that_it_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert command._devices(None)[0] is None and "all GPUs of the machine" in command._devices(None)[1]
    for visible, devices in (("", ()), ("-1", ()), ("1, GPU-ab", ("1", "GPU-ab"))):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert command._devices(None) == (devices, "")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, env={"CUDA_VISIBLE_DEVICES": "3"}) as other:
        deadline_s = time.monotonic() + 10
        while command._devices(other.pid)[0] != ("3",) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert command._devices(other.pid) == (("3",), "")


def verb(*words: str, cwd: Path) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "perjoule", "measure", "name=run", "energy.meters=[cpu_time]", *words]
    return subprocess.Popen(line, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_signals_that_are_sent_reach_the_program_and_its_streams_are_its_own(tmp_path: Path) -> None:
    script = "trap 'echo asked; exit 9' TERM; trap 'echo user' USR1; echo ready; cat; while :; do sleep 0.05; done"
    with verb("--", "sh", "-c", script, cwd=tmp_path) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"through\n")
        process.stdin.close()
        assert process.stdout.readline() == b"through\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == b"user\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"asked\n"
        said = process.stderr.read().decode()
        assert process.wait(60) == 9
    assert said.startswith("perjoule: the command ended: after SIGTERM: exit code 9; ")
    assert "what it cost: perjoule report runs/run" in said and said.count("\n") == 1
    loaded = load_run(tmp_path / "runs" / "run")
    assert loaded.status == "stopped" and (loaded.path / "emissions.csv").is_file()


def test_an_interrupt_ends_following_and_leaves_the_process_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other, verb("--pid", str(other.pid), cwd=tmp_path) as one:
        manifest = tmp_path / "runs" / "run" / "metrics.jsonl"
        deadline_s = time.monotonic() + 60
        while (not manifest.is_file() or not manifest.read_text()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        one.send_signal(signal.SIGINT)
        assert one.wait(60) == 130
        assert other.poll() is None
        assert load_run(tmp_path / "runs" / "run").status == "stopped"
