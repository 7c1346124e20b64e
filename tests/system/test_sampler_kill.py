"""Trainer, sampler or both are killed at any instant: records stay whole, nobody is left over, nothing is locked."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.measure import third_party

from perjoule.measure.book import build_ledger
from perjoule.measure.ledger import UNKNOWN, Account
from perjoule.runs.journal import read_journal
from perjoule.runs.sample_writer import MAGIC
from perjoule.runs.samples import read_samples, sample_files
from perjoule.runs.tables import load_run

ROUNDS = 7
"""Of each kill: of the trainer, of the sampler, of both."""
TRAINER = """
import sys, time
from pathlib import Path
import perjoule
from perjoule.measure import session
session.WATCH_EVERY_S = 0.02
run = sys.argv[1]
meters = ["cpu_time", {"kind": "wild", "habit": "100 W", "device": "the-only-one"}]
end_s = time.monotonic() + 30
with perjoule.measure(run, meters=meters) as measured:
    locked = [missing.reason for kind, missing in measured.metered.unavailable if "metered by" in missing.reason]
    assert not locked, locked
    while time.monotonic() < end_s and not Path(run, "stop").exists():
        with measured.step(), measured.phase("forward"):
            time.sleep(0.001)
"""


@dataclass(frozen=True)
class Training:
    """A process that trains, and its run."""

    process: subprocess.Popen[bytes]
    run: Path

    def samplers(self) -> list[int]:
        """Return the processes that have begun to write samples."""
        return [read_samples(path).header["pid"] for path in self._begun()]

    def num_readings(self, attempt: int) -> int:
        paths = self._begun()
        return len(read_samples(paths[attempt]).of(1)[0]) if len(paths) > attempt else 0

    def _begun(self) -> list[Path]:
        """Return the sample files whose header is whole: a file is there a moment before what it says."""

        def whole(path: Path) -> bool:
            with path.open("rb") as file:
                return file.read(len(MAGIC)) == MAGIC and path.stat().st_size > 4096

        return [path for path in sample_files(self.run, 0) if whole(path)]

    def num_steps(self) -> int:
        path = self.run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Training]]:
    """Start trainings whose steps take a millisecond, one after another; all use the same device."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    third_party.install(tmp_path / "packages", monkeypatch)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    started: list[Training] = []

    def train(name: str) -> Training:
        run = tmp_path / name
        process = subprocess.Popen([sys.executable, "-c", TRAINER, str(run)], stderr=subprocess.PIPE)
        started.append(Training(process, run))
        wait_for(lambda: started[-1].num_readings(0) >= 2 and started[-1].num_steps() >= 5)
        return started[-1]

    yield train
    for one in started:
        one.process.kill()
        one.process.communicate()


def wait_for(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.003)


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, be it that nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def check_records(training: Training) -> list[Account]:
    """Check that everything that was written is whole and adds up; return the accounts."""
    journal = read_journal(training.run / "events" / "0000-rank0.bin")
    assert journal.num_lost == 0
    for path in sample_files(training.run, 0):
        assert read_samples(path).num_lost == 0
    run = load_run(training.run)
    assert all("ends within a step" in warning for warning in run.warnings)
    accounts = list(build_ledger(run).accounts)
    assert {account.sensor.domain for account in accounts} == {"cpu", "wild"}
    for account in accounts:
        assert sum(bucket.energy_uj for bucket in account.buckets) == account.total_uj
    return accounts


def unknown_j(accounts: list[Account]) -> float:
    """Return the energy of the meter that shows 100 W of which no phase is known."""
    (account,) = (one for one in accounts if one.sensor.domain == "wild")
    return sum(bucket.energy_uj for bucket in account.buckets if bucket.name == UNKNOWN) / 1e6


@pytest.fixture(params=range(ROUNDS))
def moment(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.param)


def test_a_killed_trainer_leaves_whole_records_and_no_sampler(
    train: Callable[[str], Training], moment: random.Random
) -> None:
    killed = train("killed")
    (sampler,) = killed.samplers()
    time.sleep(moment.uniform(0, 0.05))
    killed.process.kill()
    assert killed.process.wait() == -signal.SIGKILL
    wait_for(lambda: is_gone(sampler))
    assert load_run(killed.run).status == "interrupted"
    check_records(killed)
    train("next")  # on the same device


def test_a_killed_sampler_is_replaced_and_its_gap_is_unknown_energy(
    train: Callable[[str], Training], moment: random.Random
) -> None:
    goes_on = train("goes-on")
    (sampler,) = goes_on.samplers()
    time.sleep(moment.uniform(0, 0.05))
    os.kill(sampler, signal.SIGKILL)
    wait_for(lambda: goes_on.num_readings(1) >= 2)
    (goes_on.run / "stop").touch()
    assert goes_on.process.wait(10) == 0, goes_on.process.communicate()[1]
    assert all(map(is_gone, goes_on.samplers()))
    before, after = (read_samples(path).of(1)[0] for path in sample_files(goes_on.run, 0))
    assert unknown_j(check_records(goes_on)) == pytest.approx(100 * 1e-9 * (after[0] - before[-1]), rel=0.01)
    run = load_run(goes_on.run)
    assert (run.status, len(run.notes)) == ("finished", 1)
    assert run.notes[0].text.startswith("energy: the sampler ended (signal 9) and was started again")


def test_killing_both_leaves_whole_records_and_nobody(train: Callable[[str], Training], moment: random.Random) -> None:
    killed = train("killed")
    (sampler,) = killed.samplers()
    time.sleep(moment.uniform(0, 0.05))
    for pid in moment.sample([sampler, killed.process.pid], 2):
        os.kill(pid, signal.SIGKILL)
    assert killed.process.wait() == -signal.SIGKILL
    wait_for(lambda: all(map(is_gone, killed.samplers())))
    check_records(killed)
    train("next")
