"""What is recorded of a run: phases that partition each step, fences, start-up, and nothing if nothing is wanted."""

import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.system.tiny import Tiny, losses, metrics, run_of, segments

from perjoule.core.phases import CHECKPOINT, EVALUATE, STEP, TRAINING
from perjoule.runs.folder import EVENTS, METRICS, device_event_path, event_path
from perjoule.runs.journal import read_journal
from perjoule.runs.tables import load_run
from perjoule.train.backend import Backend


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    tiny = Tiny(corpus, tmp_path_factory.mktemp("recorded"))
    often = ("evaluate.every_steps=4", "checkpoint.every_steps=5", "batch.accumulation=2")
    return run_of(tiny.train("stop.steps=8", *often))


def test_the_phases_and_other_partition_every_step_exactly(recorded: Path) -> None:
    run = load_run(recorded)
    table = run.segments[0].phases
    assert table is not None
    assert table.steps.tolist() == list(range(1, 9))
    assert set(table.phases) == {*TRAINING, EVALUATE, CHECKPOINT}
    within = sum(table.wall_ns[phase] for phase in table.phases)
    other_ns = np.rint(table.exclusive_s(STEP) * 1e9).astype(np.int64)
    assert (other_ns >= 0).all()
    assert (within + other_ns == table.wall_ns[STEP]).all()
    # On a crowded machine the wall clock also runs while others compute; the CPU's does not.
    other_cpu_s, step_cpu_s = table.exclusive_cpu_s(STEP), table.cpu_ns[STEP] / 1e9
    assert np.median(other_cpu_s / step_cpu_s) < 0.2, "most of a step lies within its phases"
    assert all((table.wall_ns[phase] > 0).all() for phase in TRAINING)
    assert (table.wall_ns[EVALUATE] > 0).tolist() == [False, False, False, True] * 2
    assert (table.wall_ns[CHECKPOINT] > 0).tolist() == [False, False, False, True, True, False, False, True]


def test_every_micro_batch_has_its_own_phases(recorded: Path) -> None:
    journal = read_journal(event_path(recorded, 0, 0))
    names = [journal.phases[record["phase"]] for record in journal.records[journal.records["step"] == 1]]
    one = ["transfer"] * 2 + ["forward"] * 2 + ["backward"] * 2
    assert names == ["step", "data", "data", *one, *one, "optimizer", "optimizer", "step"]


def test_no_warning_and_no_open_phase_is_left(recorded: Path) -> None:
    run = load_run(recorded)
    assert run.warnings == ()
    assert run.segments[0].ranks[0].num_unclosed == 0


def test_start_up_is_timed_by_part_and_lies_outside_the_steps(recorded: Path) -> None:
    startup_s = segments(recorded)[0]["startup_s"]
    assert set(startup_s) == {"import", "data", "backend", "model", "other"}
    assert all(seconds >= 0 for seconds in startup_s.values())
    assert all(value >= 0 for value in startup_s.values())


@pytest.mark.parametrize(("fence", "per_step"), [("none", 0), ("step", 2), ("edge", 12)])
def test_the_fence_policy_is_kept_and_recorded(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, fence: str, per_step: int
) -> None:
    calls: list[str] = []
    monkeypatch.setattr("perjoule.train.backend.Backend.fence", lambda backend: calls.append("fence"))
    without_evaluation = "data.fractions={train: 1, validation: 0, test: 0}"
    run = run_of(tiny.train(f"record.fence={fence}", "stop.steps=2", without_evaluation))
    assert segments(run)[0]["fence"] == fence
    at_the_end = 2 if fence == "edge" else 0  # the last checkpoint
    assert len(calls) == 2 * per_step + at_the_end


class HostEvent:
    """An event of a device that has done everything at once."""

    def record(self) -> None:
        self.t_ns = time.monotonic_ns()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "HostEvent") -> float:
        return (end.t_ns - self.t_ns) / 1e6


def test_an_accelerator_has_a_journal_of_its_own(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "timing_event", HostEvent)
    run = run_of(tiny.train("batch.accumulation=2"))
    assert sorted(path.name for path in (run / EVENTS).iterdir()) == ["0000-rank0-device.bin", "0000-rank0.bin"]
    host, device = read_journal(event_path(run, 0, 0)), read_journal(device_event_path(run, 0, 0))
    assert {**device.header, "clock": None} == {**host.header, "clock": None}
    for field in ("step", "phase", "kind"):
        assert device.records[field].tolist() == host.records[field].tolist()
    apart_ns = device.records["t_ns"] - host.records["t_ns"]
    assert np.median(np.abs(apart_ns)) < 1e6
    assert load_run(run).warnings == ()


def test_a_cpu_has_none(recorded: Path) -> None:
    assert [path.name for path in (recorded / EVENTS).iterdir()] == ["0000-rank0.bin"]


def test_a_cuda_device_is_timed_by_its_events() -> None:
    on_cpu, on_cuda = Backend(torch.device("cpu"), {}), Backend(torch.device("cuda", 0), {})
    assert on_cpu.timing_event is None
    assert isinstance(on_cuda.timing_event, partial)
    assert (on_cuda.timing_event.func, on_cuda.timing_event.keywords) == (torch.cuda.Event, {"enable_timing": True})


def test_recording_can_be_turned_off_and_changes_no_loss(tiny: Tiny) -> None:
    silent = tiny.train("record.enabled=false")
    run = run_of(silent)
    assert list((run / EVENTS).iterdir()) == []
    assert metrics(run, "step") == []
    assert [line["step"] for line in metrics(run, "evaluate")] == [5]
    assert silent.held_out_loss == tiny.train().held_out_loss


def test_a_run_names_what_it_was(recorded: Path) -> None:
    run = load_run(recorded)
    assert run.fact("model", "kind") == "transformer"
    assert run.fact("model", "parameters") == 320 * 32 * 2 + 2 * (4 * 32 * 32 + 3 * 32 * 96 + 2 * 32) + 32
    assert run.fact("data", "seq_len") == 16
    assert run.fact("model", "flops_per_token") > run.fact("model", "flops_per_token_causal") > 0
    reason = "no peak was measured on this machine; run `perjoule doctor` once"
    assert segments(recorded)[0]["peak"] == {"unavailable": reason}
    assert len(losses(recorded)) == len((recorded / METRICS).read_text().splitlines()) - 2 - 3
