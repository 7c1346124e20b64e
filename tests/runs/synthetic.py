"""A run folder written by the real writers with a clock that the test turns, so that every figure is known by hand.

A step takes 100 ms: data 10, transfer 2, forward 30 (12 of them in forward/think), backward 50, optimizer 5, other 3.
Two threads are busy, so CPU time is twice the wall time. An evaluation adds 200 ms and a checkpoint 40 ms.
"""

import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

from perjoule.core.phases import CHECKPOINT, EVALUATE, RECORDED, STEP
from perjoule.runs.folder import FINISHED, RunFolder
from perjoule.runs.journal import BEGIN, END, JournalWriter

THINK = "forward/think"
PHASES = (*RECORDED, THINK)
STEP_MS = {"data": 10, "transfer": 2, "forward": 18, THINK: 12, "backward": 50, "optimizer": 5}
OTHER_MS, EVALUATE_MS, CHECKPOINT_MS = 3, 200, 40
MODEL = {
    "kind": "transformer",
    "parameters": 5_264_640,
    "parameters_non_embedding": 4_000_000,
    "flops_per_token": 30_000_000,
    "flops_per_token_causal": 27_000_000,
}
DATA = {"kind": "text", "vocab_size": 4096, "seq_len": 256, "facts": {"documents": 1200}}
PEAK = {"flops": 2.7e12, "precision": "bf16", "how": "measured by perjoule doctor"}


class Clock:
    """Stands in for the ``time`` module of the journal."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000
        self.cpu_ns = 5_000_000

    def monotonic_ns(self) -> int:
        return self.now_ns

    def time_ns(self) -> int:
        return self.now_ns

    def process_time_ns(self) -> int:
        return self.cpu_ns

    def spend_ms(self, milliseconds: float) -> None:
        self.now_ns += round(milliseconds * 1e6)
        self.cpu_ns += round(milliseconds * 2e6)


def loss_at(step: int) -> float:
    return 2 + 6 / math.sqrt(step)


class SyntheticRun:
    """Write a run step by step. ``ends`` leaves it as a finished run; without it, it looks killed."""

    def __init__(self, path: Path, resolved: dict[str, Any] | None = None, **facts: Any) -> None:
        values = {"steps": {"value": 20, "source": "default"}} if resolved is None else resolved
        self.folder = RunFolder.create(
            path, "steps: 20\n", values, {"model": MODEL, "data": DATA, "recipe": "default"} | facts
        )
        self.path = path
        self.clock = Clock()

    def segment(self, first_step: int = 1, warmup_steps: int = 0, **facts: Any) -> None:
        entry = {
            "host": {
                "name": "here",
                "cpu": "Test CPU",
                "cores": 2,
                "python": "3.11",
                "torch": "2.13",
                "perjoule": "0.1",
            },
            "device": "cpu",
            "world_size": 1,
            "first_step": first_step,
            "warmup_steps": warmup_steps,
            "startup_s": {"import": 1.25, "data": 0.5, "model": 0.25},
            "backend": {"chosen": {"precision": "bf16"}, "why": ["the CPU has AMX"]},
            "peak": PEAK,
            "fence": "none",
        }
        self.folder.begin_segment(entry | facts)
        with mock.patch("perjoule.runs.journal.time", self.clock):
            self.journal = JournalWriter(self.folder.event_path(0), PHASES)

    def mark(self, step: int, phase: str, kind: int) -> None:
        self.journal.mark(step, self.journal.code(phase, kind))

    def phase(self, step: int, phase: str, milliseconds: float) -> None:
        self.mark(step, phase, BEGIN)
        self.clock.spend_ms(milliseconds)
        self.mark(step, phase, END)

    def train(self, first: int, last: int, slow: dict[int, float] | None = None, **columns: Any) -> None:
        """Take the steps from ``first`` to ``last``; ``slow`` multiplies the time of some."""
        lines = []
        for step in range(first, last + 1):
            self.mark(step, STEP, BEGIN)
            self._inside(step, (slow or {}).get(step, 1.0))
            self.mark(step, STEP, END)
            lines.append(self.step_line(step, **columns))
        if lines:
            self.folder.append("\n".join(lines))

    def _inside(self, step: int, factor: float) -> None:
        for phase in ("data", "transfer"):
            self.phase(step, phase, STEP_MS[phase] * factor)
        self.mark(step, "forward", BEGIN)
        self.clock.spend_ms(STEP_MS["forward"] * factor)
        self.phase(step, THINK, STEP_MS[THINK] * factor)
        self.mark(step, "forward", END)
        for phase in ("backward", "optimizer"):
            self.phase(step, phase, STEP_MS[phase] * factor)
        self.clock.spend_ms(OTHER_MS * factor)

    def step_line(self, step: int, **columns: Any) -> str:
        line = {"kind": "step", "segment": self.folder.segment, "step": step, "loss": loss_at(step), "grad_norm": 0.8}
        line |= {"lr": 1e-3, "samples": 8, "tokens": 2048, "useful": 1536, "memory_bytes": 400_000_000 + step}
        return json.dumps(line | columns)

    def train_with_evaluation(self, step: int, loss: float | None, best: bool = True) -> None:
        """Take one step with an evaluation and a checkpoint inside it."""
        self.mark(step, STEP, BEGIN)
        self._inside(step, 1.0)
        self.phase(step, EVALUATE, EVALUATE_MS)
        self.folder.append(self.step_line(step))
        self.folder.append_event(
            "evaluate", step=step, split="validation", loss=loss, tokens=4096, seconds=EVALUATE_MS / 1e3
        )
        self.phase(step, CHECKPOINT, CHECKPOINT_MS)
        path = f"checkpoints/{step:08d}"
        (self.path / path).mkdir(parents=True, exist_ok=True)
        self.folder.append_event(
            "checkpoint", step=step, path=path, bytes=1000, blocked_s=CHECKPOINT_MS / 1e3, best=best
        )
        self.mark(step, STEP, END)

    def close_with_evaluation(self, step: int, loss: float) -> None:
        """Evaluate and save behind the end of the last step, as a run does that ended off its schedule."""
        self.phase(step, EVALUATE, EVALUATE_MS)
        self.folder.append_event(
            "evaluate", step=step, split="validation", loss=loss, tokens=4096, seconds=EVALUATE_MS / 1e3
        )
        self.phase(step, CHECKPOINT, CHECKPOINT_MS)

    def kill(self) -> Path:
        """Leave the run as a killed process does: no end in the manifest, the last block not cut, no lock."""
        self.folder.close()
        return self.path

    def end(self, status: str = FINISHED, reason: str = "reached steps=20", **facts: Any) -> Path:
        self.journal.close()
        self.folder.end(status, reason, **facts)
        self.folder.close()
        return self.path


def finished_run(path: Path, steps: int = 20, warmup_steps: int = 5, **facts: Any) -> Path:
    """Write a finished run whose evaluations at half time and at the end give 4.5 and 4.0."""
    run = SyntheticRun(path, **facts)
    run.segment(warmup_steps=warmup_steps)
    run.train(1, steps // 2 - 1)
    run.train_with_evaluation(steps // 2, 4.5)
    run.train(steps // 2 + 1, steps - 1)
    run.train_with_evaluation(steps, 4.0)
    return run.end(last_step=steps)


def interrupted_and_resumed_run(path: Path) -> Path:
    """Write a run that is killed in step 14 and continues from the checkpoint of step 10 to step 20."""
    run = SyntheticRun(path)
    run.segment(warmup_steps=2)
    run.train(1, 9)
    run.train_with_evaluation(10, 4.5)
    run.train(11, 13)
    run.mark(14, STEP, BEGIN)
    run.phase(14, "data", 10)
    run.mark(14, "forward", BEGIN)
    run.kill()
    run.folder = RunFolder.reopen(path)
    run.segment(first_step=11, warmup_steps=2)
    run.train(11, 19, loss=3.0)
    run.train_with_evaluation(20, 2.5)
    return run.end(last_step=20)


def two_rank_run(path: Path) -> Path:
    """Write a run of two ranks and 10 steps, 2 of warm-up; in the 8 others rank 1 is half as fast."""
    run, other = SyntheticRun(path), SyntheticRun(path.with_name(f"{path.name}-rank1"))
    for one, slow in ((run, {}), (other, dict.fromkeys(range(3, 11), 2.0))):
        one.segment(world_size=2, warmup_steps=2)
        one.train(1, 10, slow=slow)
    other.end()
    run.folder.event_path(1).write_bytes(other.folder.event_path(0).read_bytes())
    return run.end(last_step=10)
