"""What recording costs: the same training steps with ``record.enabled`` on and off, in turn, step by step.

Run with ``python -m benchmarks.recorder_overhead``. The loops are perjoule's own, in one process. Two arms record
nothing (their ratio is the A/A band), the third writes the journal and the metrics lines. All train the same model with
the same optimizer: with a model for each arm, where its memory happens to lie makes more difference than recording, and
A/A is not 1.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.ratios import Spread, paired_ratio, spread
from benchmarks.workload import OpenRun, Workload, config, machine_line
from perjoule.core import phases
from perjoule.train.job import StepRecord
from perjoule.train.stopping import Goal, Progress

OFF, AGAIN, ON = "not recorded", "not recorded, again", "recorded"
WARMUP_STEPS = 10


@dataclass(frozen=True)
class OneStep(Goal):
    """Hands control back after every step, so that arms can take turns."""

    answers: Iterator[str | None] = field(default_factory=lambda: itertools.cycle((None, "one step")))

    def reached(self, progress: Progress) -> str | None:
        """Return None before a step, and a reason after it."""
        return next(self.answers)


@dataclass(frozen=True)
class Steps:
    """Seconds of each step of one arm, by the wall and by the CPU time of the process."""

    wall_s: list[float]
    cpu_s: list[float]


def measure(arms: dict[str, OpenRun], rounds: int) -> dict[str, Steps]:
    """Let each arm take one step per round, in random order."""
    order, chance = list(arms), random.Random(0)
    for run in arms.values():
        for _ in range(WARMUP_STEPS):
            run.loop.run()
    steps = {name: Steps([], []) for name in arms}
    for _ in range(rounds):
        chance.shuffle(order)
        for name in order:
            loop = arms[name].loop
            wall, cpu = time.perf_counter(), time.process_time()
            loop.run()
            steps[name].cpu_s.append(time.process_time() - cpu)
            steps[name].wall_s.append(time.perf_counter() - wall)
    return steps


def report(title: str, recorded: Sequence[float], off: Sequence[float], again: Sequence[float]) -> None:
    """Print the ratio and the A/A band."""
    print(f"ratio {ON} / {OFF}, {title}: {paired_ratio(recorded, off).text(4)}")
    print(f"ratio A/A, {title}: {paired_ratio(again, off).text(4)}  (a step takes {spread(off).text(2, 1e3)} ms)")


def microseconds_per_phase(run: OpenRun, repeats: int) -> Spread:
    """Return what entering and leaving one recorded phase takes, in microseconds."""
    phase, laps = run.recorder.phase(phases.FORWARD), []
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(repeats):
            with phase:
                pass
        laps.append((time.perf_counter() - begun) / repeats * 1e6)
    return spread(laps)


def microseconds_per_line(run: OpenRun, repeats: int) -> Spread:
    """Return what the end of a step takes, metrics line and progress display, in microseconds."""
    record, laps = StepRecord(1, 5.123456789, 0.987654321, 1e-3, 8, 2048, 2047), []
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(repeats):
            run.on_step(record)
        laps.append((time.perf_counter() - begun) / repeats * 1e6)
    return spread(laps)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="what recording costs")
    parser.add_argument("--rounds", type=int, default=600, help="steps per arm and number of threads")
    parser.add_argument("--quick", action="store_true", help="a few seconds; the figures mean little")
    options = parser.parse_args(arguments)
    rounds = 20 if options.quick else options.rounds
    print(machine_line())
    with tempfile.TemporaryDirectory(prefix="perjoule-benchmark-") as name:
        folder = Path(name)
        sizes = {"dim": 64, "num_layers": 2, "num_heads": 2}
        recipe = config(sizes, 64, 4, folder, options.quick)
        backend = recipe.backend.model_copy(update={"allocator": "keep"})  # as auto; page faults are most of the noise
        workload = Workload.prepare(recipe.model_copy(update={"backend": backend}))
        for threads in (1, 2):
            torch.set_num_threads(threads)
            module = workload.model()
            optimizer = workload.optimizer(module)
            arms = {
                arm: OpenRun(
                    workload,
                    None,
                    f"{arm}-{threads}",
                    arm == ON,
                    OneStep(**vars(workload.goal(1))),
                    module,
                    optimizer,
                )
                for arm in (OFF, AGAIN, ON)
            }
            steps = measure(arms, rounds)
            report(f"CPU time, {threads} thread(s)", steps[ON].cpu_s, steps[OFF].cpu_s, steps[AGAIN].cpu_s)
            report(f"wall, {threads} thread(s)", steps[ON].wall_s, steps[OFF].wall_s, steps[AGAIN].wall_s)
            if threads == 1:
                repeats = 100 if options.quick else 2000
                print(f"one recorded phase: {microseconds_per_phase(arms[ON], repeats).text(2)} µs")
                print(f"end of a recorded step: {microseconds_per_line(arms[ON], repeats).text(2)} µs")
                print(f"end of an unrecorded step: {microseconds_per_line(arms[OFF], repeats).text(2)} µs")
            for run in arms.values():
                run.close()
    print(machine_line())


if __name__ == "__main__":
    main()
