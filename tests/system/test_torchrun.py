"""Two ranks under torchrun compute what one process does, record each for itself, and stop together."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.system.tiny import Tiny, losses, metrics, resume, segments

from perjoule.runs.folder import CHECKPOINTS, EVENTS, METRICS
from perjoule.runs.tables import load_run

PADDED = ("data.batching=padded", "data.seq_len=100")
BASE = ("batch={size: 8, accumulation: 2}", "stop.steps=6", "checkpoint.every_steps=3")


def start(arguments: Sequence[str]) -> "subprocess.Popen[str]":
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "perjoule",
    ]
    return subprocess.Popen(
        [*launcher, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(tiny: Tiny, name: str, *overrides: str) -> Path:
    process = start(["train", *tiny.arguments(*overrides, f"name={name}")])
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    return tiny.runs / name


def test_two_ranks_with_packed_rows_give_the_losses_of_one_process(tiny: Tiny) -> None:
    run = train(tiny, "two", *BASE)
    one = tiny.train(*BASE)
    assert one.run is not None
    assert losses(run) == pytest.approx(losses(one.run), abs=1e-5)
    assert metrics(run, "evaluate")[0]["loss"] == pytest.approx(one.held_out_loss, abs=1e-5)
    assert sorted(path.name for path in (run / EVENTS).iterdir()) == ["0000-rank0.bin", "0000-rank1.bin"]
    record = load_run(run)
    assert record.warnings == ()
    assert {rank: table.steps.tolist() for rank, table in record.segments[0].ranks.items()} == {
        rank: [1, 2, 3, 4, 5, 6] for rank in (0, 1)
    }
    assert record.segments[0].facts["world_size"] == 2
    assert record.steps.samples.tolist() == [8] * 6
    # One rank goes on with what two have begun.
    resume(run, "stop.steps=9")
    assert losses(run) == pytest.approx(tiny.losses_of(*BASE, "stop.steps=9"), abs=1e-5)


def test_two_ranks_with_uneven_useful_labels_give_the_losses_of_one_process(tiny: Tiny) -> None:
    run = train(tiny, "uneven", *BASE, *PADDED)
    one = tiny.train(*BASE, *PADDED)
    assert one.run is not None
    assert losses(run) == pytest.approx(losses(one.run), abs=1e-5)
    assert metrics(run, "evaluate")[0]["loss"] == pytest.approx(one.held_out_loss, abs=1e-5)
    assert [line["useful"] for line in metrics(run, "step")] == [line["useful"] for line in metrics(one.run, "step")]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_both_in_good_order(tiny: Tiny, rank: int) -> None:
    run = tiny.runs / "asked"
    process = start(["train", *tiny.arguments("batch.size=8", "stop.steps=100000", "name=asked")])
    limit = time.monotonic() + 60
    while not (run / METRICS).exists() or (run / METRICS).read_bytes().count(b"\n") < 5:
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.02)
    os.kill(journal_pid(run, rank), signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0, "the exit code tells torchrun that the run was not finished"
    assert re.findall(r"perjoule: .*", errors) == []
    record = load_run(run)
    step = int(record.steps.step[-1])
    assert (record.status, record.reason, record.warnings) == ("stopped", "stopped by SIGUSR1", ())
    assert (run / CHECKPOINTS / f"{step:08d}").is_dir()
    assert [table.steps.tolist()[-1] for table in record.segments[0].ranks.values()] == [step, step]
    assert segments(run)[0]["last_step"] == step


def journal_pid(run: Path, rank: int) -> int:
    from perjoule.runs.folder import event_path
    from perjoule.runs.journal import read_journal

    return int(read_journal(event_path(run, 0, rank)).header["pid"])


def test_a_batch_that_the_ranks_cannot_share_is_refused(tiny: Tiny) -> None:
    process = start(["train", *tiny.arguments("batch={size: 6, accumulation: 2}", "name=odd")])
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    line = "perjoule: batch.size 6 must be a multiple of batch.accumulation 2 times the number of ranks 2\n"
    assert line in errors
    assert not (tiny.runs / "odd").exists()


def test_a_fault_of_one_rank_is_one_line_of_each(tiny: Tiny) -> None:
    (tiny.runs / "taken").mkdir(parents=True)
    process = start(["train", *tiny.arguments("name=taken")])
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    lines = [line for line in errors.splitlines() if "perjoule: " in line]
    assert 1 <= len(lines) <= 2, "torchrun may end the second rank before it speaks"
    assert all(line.startswith(f"perjoule: the run folder {tiny.runs / 'taken'} exists already: ") for line in lines)
    assert "rank1]: Traceback" not in errors
