"""Training beside the peers: a hand-written loop, Lightning Fabric, HF Trainer and Lightning Trainer.

``python -m benchmarks.train_loop overhead``: the same settings for all, a tiny model, one thread; what each trainer
adds to a step of the hand-written loop. Blocks of steps in turn, in one process, the hand-written loop twice (A/A).
perjoule records its journal and metrics lines; the peers record nothing (see :mod:`benchmarks.frameworks`).

``python -m benchmarks.train_loop throughput``: ``perjoule train`` with ``backend: auto`` beside the peers' defaults in
float32 and bf16 autocast, on the 5.26 M-parameter Transformer with all cores. Every arm is a process of its own,
because allocator and matrix path are set per process, and the processes run one after the other, round by round.
Peers that are not installed are left out by name; `make peers` installs them into ``.peers``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.frameworks import LOOPS, FrameworkLoop, Losses, Precision, missing, quiet, versions
from benchmarks.ratios import paired_difference, paired_ratio, spread
from benchmarks.turns import Arm, Lap
from benchmarks.workload import FULL, OpenRun, Workload, config, machine_line
from perjoule.config import yaml
from perjoule.data.contract import Batch, Samples
from perjoule.measure.machine import MachineProfile
from perjoule.runs.tables import load_run
from perjoule.train import probe
from perjoule.train.backend import Backend
from perjoule.train.config import BackendConfig

HAND, AGAIN, PERJOULE = "hand-written", "hand-written, again", "perjoule"
BLOCK_STEPS = 20
ENDLESS = 10**9
FIRST_TIMED_STEP = 5
"""The first steps allocate, and loaders that read one batch ahead shift the first periods."""
LAST_LOSSES = 20
QUIET = 1.2
"""Rounds of one arm that differ by more than this factor were not measured on a quiet machine: spinning OpenMP threads
that lose a core have been seen to make a step 70 times longer, and no median over few rounds mends that."""


def overhead(workload: Workload, rounds: int) -> None:
    """Print what each trainer adds to a step of the hand-written loop."""
    loops: dict[str, Callable[[Samples], None]] = {PERJOULE: partial(_perjoule, workload)}
    for name in (HAND, AGAIN, *LOOPS):
        loop = LOOPS[HAND if name == AGAIN else name]
        if package := missing(name):
            print(f"{name}: left out, {package} is not installed (make peers)")
            continue
        loops[name] = partial(_framework, loop=loop, workload=workload)
    arms = {name: Arm(loop, workload.samples, BLOCK_STEPS) for name, loop in loops.items()}
    laps: dict[str, list[Lap]] = {name: [] for name in arms}
    for arm in arms.values():
        arm.ready()
        arm.turn()
    order, chance = list(arms), random.Random(0)
    for _ in range(rounds):
        chance.shuffle(order)
        for name in order:
            laps[name].append(arms[name].turn())
    for arm in arms.values():
        arm.end()
    cpu = {name: [lap.cpu_s for lap in own] for name, own in laps.items()}
    wall = {name: [lap.wall_s for lap in own] for name, own in laps.items()}
    print(f"{HAND}: a step takes {spread(cpu[HAND]).text(3, 1e3)} ms CPU, {rounds} rounds of {BLOCK_STEPS} steps")
    for name in laps:
        if name != HAND:
            print(
                f"ratio {name} / {HAND}: {paired_ratio(cpu[name], cpu[HAND]).text()} CPU; overhead per step "
                f"{paired_difference(cpu[name], cpu[HAND]).text(3, 1e3)} ms CPU, "
                f"{paired_difference(wall[name], wall[HAND]).text(3, 1e3)} ms wall"
            )


def _framework(samples: Samples, *, loop: FrameworkLoop, workload: Workload) -> None:
    """Run a framework's loop without an end, dropping the losses."""
    loop(workload, samples, ENDLESS, "float32", _Dropped())


class _Dropped(list[torch.Tensor | float]):
    """A list of losses that stays empty."""

    def append(self, value: torch.Tensor | float) -> None:
        """Forget the value."""


def _perjoule(workload: Workload, samples: Samples) -> None:
    """Run perjoule's loop without an end, recorded."""
    run = OpenRun(workload, samples, "perjoule", True, workload.goal(ENDLESS))
    try:
        run.loop.run()
    finally:
        run.close()


@dataclass(frozen=True)
class Trained:
    """What one process's training gave: seconds of each step, and each step's loss in nats per token."""

    step_s: list[float]
    losses: list[float]

    @property
    def median_s(self) -> float:
        """Return the median step behind the first ones."""
        return float(np.median(self.step_s[FIRST_TIMED_STEP:]))

    @property
    def last_loss(self) -> float:
        """Return the mean loss of the last steps."""
        return float(np.mean(self.losses[-LAST_LOSSES:]))


class Stamped:
    """Samples that note when each batch is asked for."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self.at_s: list[float] = []

    @property
    def num_samples(self) -> int:
        """Return the samples of one epoch."""
        return self._samples.num_samples

    def batch(self, start: int, rows: int) -> Batch:
        """Return the samples and note the time."""
        self.at_s.append(time.perf_counter())
        return self._samples.batch(start, rows)


def train_framework(workload: Workload, name: str, precision: Precision, steps: int) -> Trained:
    """Train with one framework in this process."""
    samples, losses = Stamped(workload.samples), Losses()
    LOOPS[name](workload, samples, steps, precision, losses)
    return Trained(np.diff([*samples.at_s, time.perf_counter()]).tolist(), [float(loss) for loss in losses])


def train_auto(workload: Workload, steps: int, number: int) -> Trained:
    """Train with the command line and ``backend: auto``, compiled as a long run would be, and read the run folder."""
    recipe = workload.config.model_copy(
        update={
            "name": f"auto-{number}",
            "stop": workload.config.stop.model_copy(update={"steps": steps}),
            "backend": BackendConfig(compile=True),
        }
    )
    path = recipe.runs.parent / f"auto-{number}.yaml"
    path.write_text(yaml.dump(recipe.model_dump(mode="json")), encoding="utf-8")
    _call([sys.executable, "-m", "perjoule", "train", str(path)])
    run = load_run(recipe.runs / f"auto-{number}")
    return Trained(run.steps.wall_s.tolist(), run.steps.loss.tolist())


def _call(command: list[str]) -> str:
    """Run a process with torch's own number of threads and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    return done.stdout


def throughput(workload: Workload, folder: Path, rounds: int, steps: int, quick: bool) -> None:
    """Print the ratios of throughput and the losses, arm by arm."""
    arms: dict[str, Callable[[int], Trained]] = {"auto": partial(train_auto, workload, steps)}
    for name in LOOPS:
        if package := missing(name):
            print(f"{name}: left out, {package} is not installed (make peers)")
            continue
        for precision in ("float32", "bf16"):
            command = [sys.executable, "-m", "benchmarks.train_loop", "arm", "--name", name, "--precision", precision]
            command += ["--steps", str(steps), *["--quick"] * quick]
            arms[f"{name}, {precision}"] = partial(_train_peer, command)
    found: dict[str, list[Trained]] = {name: [] for name in arms}
    peak = 0.0
    for number in range(rounds):
        peak = max(peak, _bf16_peak(folder / f"peak-{number}"))
        for name, train in arms.items():
            found[name].append(train(number))
    _report_throughput(workload, found, peak)


def _train_peer(command: list[str], _: int) -> Trained:
    """Train in a process of its own, which prints JSON on its last line."""
    return Trained(**json.loads(_call(command).splitlines()[-1]))


def _bf16_peak(folder: Path) -> float:
    """Return the FLOP/s of the best bf16 product, measured now; float32 where the CPU has no bf16."""
    rates = probe.matmul_rates(MachineProfile(folder))
    return rates.get("bf16", rates["float32-highest"]).flops


def _report_throughput(workload: Workload, found: dict[str, list[Trained]], peak: float) -> None:
    """Print one line for each arm, and whether a long run would compile by itself."""
    flops = workload.model().flops_per_token(workload.shape["seq_len"])  # type: ignore[operator]
    tokens = workload.rows * workload.shape["seq_len"]
    auto = [one.median_s for one in found["auto"]]
    print(f"bf16 peak, best product measured between the arms: {peak / 1e9:.0f} GFLOP/s")
    for name, runs in found.items():
        own = [one.median_s for one in runs]
        rate = tokens / float(np.median(own))
        share = ", ".join(
            f"{getattr(flops, convention) * rate / peak:.1%} ({convention})" for convention in ("causal", "full")
        )
        loss, difference = runs[-1].last_loss, runs[-1].last_loss - found["auto"][-1].last_loss
        print(
            f"ratio auto / {name}: {paired_ratio(own, auto).text(2)}; {rate / 1e3:.1f} ktok/s, MFU {share}, "
            f"loss of the last {LAST_LOSSES} steps {loss:.6f} ({difference:+.6f} to auto)"
        )
        if max(own) > QUIET * min(own):
            print(f"  not quiet: the rounds of {name} differ by a factor of {max(own) / min(own):.2f}; run again")
    backend = Backend(torch.device("cpu"), {"compile": "auto"})
    # An eager step takes longer than the compiled one, so what pays for this one pays for that one.
    pays = next(steps for steps in count(100, 100) if _would_compile(min(auto), steps))
    backend.compiled(nn.Identity(), lambda: min(auto), pays, None)
    print(f"auto was compiled because the recipe said so; by itself it compiles from {pays} steps on at the latest")
    print(backend.why[-1])


def _would_compile(step_s: float, steps: int) -> bool:
    """Return what ``backend.compile: auto`` decides for a run of this many steps."""
    backend = Backend(torch.device("cpu"), {"compile": "auto"})
    backend.compiled(nn.Identity(), lambda: step_s, steps, None)
    return bool(backend.settings["compile"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="training beside the peers")
    parser.add_argument("part", choices=("overhead", "throughput", "arm"), help="arm: one peer, as JSON")
    parser.add_argument("--rounds", type=int, help="default 100 (overhead), 2 (throughput)")
    parser.add_argument("--steps", type=int, default=40, help="of each process (throughput)")
    parser.add_argument("--name", choices=tuple(LOOPS), default=HAND)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--quick", action="store_true", help="a few seconds; the figures mean little")
    options = parser.parse_args(arguments)
    quiet()
    with tempfile.TemporaryDirectory(prefix="perjoule-benchmark-") as name:
        folder = Path(name)
        tiny = {"dim": 32, "num_layers": 2, "num_heads": 2}
        if options.part == "overhead":
            torch.set_num_threads(1)
            print(machine_line(), versions(), sep="\n")
            workload = Workload.prepare(config(tiny, 16, 2, folder, options.quick))
            overhead(workload, 3 if options.quick else options.rounds or 100)
            print(machine_line())
            return
        sizes = tiny if options.quick else FULL
        workload = Workload.prepare(config(sizes, 256, 8, folder, options.quick))
        if options.part == "arm":
            print(json.dumps(asdict(train_framework(workload, options.name, options.precision, options.steps))))
            return
        print(machine_line(), versions(), sep="\n")
        throughput(workload, folder, options.rounds or 2, 25 if options.quick else options.steps, options.quick)
        print(machine_line())


if __name__ == "__main__":
    main()
