"""A signal asks a run to stop: it finishes its step, saves, says so, and can be continued."""

import signal
import time
from pathlib import Path

import pytest
from tests.system.forks import Forks, Process
from tests.system.tiny import Tiny, losses, resume

from perjoule.runs.folder import CHECKPOINTS, METRICS
from perjoule.runs.tables import load_run

ENDLESS = ("stop.steps=100000", "name=asked")


def started(tiny: Tiny, forks: Forks, folder: Path, *overrides: str) -> Process:
    """Return a run that has taken five steps."""
    process = forks.start(["train", *tiny.arguments(*ENDLESS, *overrides)], folder)
    metrics = tiny.runs / "asked" / METRICS
    process.wait_for(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 5)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_run_in_good_order(tiny: Tiny, forks: Forks, tmp_path: Path, number: signal.Signals) -> None:
    process = started(tiny, forks, tmp_path / "output")
    process.send(number)
    ended = process.end()
    run = tiny.runs / "asked"
    assert (ended.code, ended.err) == (128 + number, "")
    record = load_run(run)
    step = int(record.steps.step[-1])
    assert (record.status, record.reason) == ("stopped", f"stopped by {number.name}")
    assert (run / CHECKPOINTS / f"{step:08d}").is_dir()
    assert record.segments[0].phases is not None
    assert record.segments[0].phases.steps.tolist() == list(range(1, step + 1))
    assert f"stopped: stopped by {number.name}, at step {step}\n" in ended.out
    assert ended.out.endswith(f"to continue:  perjoule train --resume {run}\n")
    assert record.evaluations == (), "somebody waits: nothing is evaluated"
    resume(run, f"stop.steps={step + 3}")
    assert losses(run) == tiny.losses_of(f"stop.steps={step + 3}")


def test_a_second_interrupt_ends_at_once(tiny: Tiny, forks: Forks, tmp_path: Path) -> None:
    process = started(tiny, forks, tmp_path / "output", "batch={size: 1024, accumulation: 64}")
    process.send(signal.SIGINT)
    time.sleep(0.03)  # a step takes ten times as long
    process.send(signal.SIGINT)
    ended = process.end()
    assert ended.code == 130
    assert load_run(tiny.runs / "asked").status == "stopped"
    assert "Traceback" not in ended.err


def test_the_handlers_of_the_calling_program_are_put_back(tiny: Tiny) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    tiny.train("stop.steps=1")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
