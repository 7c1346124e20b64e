"""Training beside the peers: a hand-written loop, Lightning Fabric, HF Trainer and Lightning Trainer.

``python -m benchmarks.train_loop overhead``: the same settings for all, a tiny model, one thread; what each trainer
adds to a step of the hand-written loop. Arms take turns in blocks of steps within a process, the hand-written loop
twice (A/A). Where an arm's memory lies biases a whole process by some percent, so the interval is over processes.
perjoule records its journal and metrics lines; the peers record nothing (see :mod:`benchmarks.frameworks`).

``python -m benchmarks.train_loop throughput``: ``perjoule train`` with ``backend: auto`` beside the peers' defaults in
float32 and bf16 autocast, on the 5.26 M-parameter Transformer with all cores. Every arm is a process of its own,
because allocator and matrix path are set per process, and they run one after the other, round by round, each round
with its own seed. OpenMP's threads spin, so other programs on the cores can make a step ten times longer in one arm
and not in the next: an arm beside which others were busy is run again, whichever it is and whatever it gave.
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
from dataclasses import asdict, dataclass, replace
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
MOST_OTHERS = 0.1
"""Cores that other processes may use, on average, beside an undisturbed arm."""
TRIES = 3
BUDGET_S = 240.0
"""After this long no disturbed arm is run again."""


def overhead(processes: int, rounds: int, quick: bool) -> None:
    """Print what each trainer adds to a step of the hand-written loop, over several processes."""
    for name in LOOPS:
        if package := missing(name):
            print(f"{name}: left out, {package} is not installed (make peers)")
    found: list[dict[str, Lap]] = []
    for number in range(processes):
        command = [sys.executable, "-m", "benchmarks.train_loop", "laps", "--rounds", str(rounds)]
        printed = _call([*command, "--seed", str(number), *["--quick"] * quick])
        found.append({name: Lap(**lap) for name, lap in json.loads(printed.splitlines()[-1]).items()})
    hand = [laps[HAND].cpu_s for laps in found]
    print(f"{HAND}: a step takes {spread(hand).text(3, 1e3)} ms CPU; {processes} processes, {rounds} rounds each")
    for name in found[0]:
        if name != HAND:
            cpu, wall = ([getattr(laps[name], field) for laps in found] for field in ("cpu_s", "wall_s"))
            print(
                f"ratio {name} / {HAND}: {paired_ratio(cpu, hand).text()} CPU; overhead per step "
                f"{paired_difference(cpu, hand).text(3, 1e3)} ms CPU, "
                f"{paired_difference(wall, [laps[HAND].wall_s for laps in found]).text(3, 1e3)} ms wall"
            )


def measure_laps(workload: Workload, rounds: int, seed: int) -> dict[str, Lap]:
    """Return the median step of each arm in this process, blocks in turn.

    Args:
        workload: what to train.
        rounds: blocks of each arm.
        seed: of the order in which arms are set up and take turns.
    """
    loops: dict[str, Callable[[Samples], None]] = {PERJOULE: partial(_perjoule, workload)}
    for name in (HAND, AGAIN, *LOOPS):
        if missing(name) is None:
            loops[name] = partial(_framework, loop=LOOPS[HAND if name == AGAIN else name], workload=workload)
    order, chance = list(loops), random.Random(seed)
    chance.shuffle(order)
    arms: dict[str, Arm] = {}
    for name in order:
        arms[name] = Arm(loops[name], workload.samples, BLOCK_STEPS)
        arms[name].ready()
        arms[name].turn()
    laps: dict[str, list[Lap]] = {name: [] for name in loops}
    for _ in range(rounds):
        chance.shuffle(order)
        for name in order:
            laps[name].append(arms[name].turn())
    for arm in arms.values():
        arm.end()
    return {
        name: Lap(float(np.median([lap.wall_s for lap in own])), float(np.median([lap.cpu_s for lap in own])))
        for name, own in laps.items()
    }


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
    """What one process's training gave.

    Args:
        step_s: seconds of each step.
        losses: of each step, in nats per token.
        others: cores that other processes used meanwhile.
    """

    step_s: list[float]
    losses: list[float]
    others: float = 0.0

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


def train_auto(workload: Workload, steps: int, seed: int) -> Trained:
    """Train with the command line and ``backend: auto``, compiled as a long run would be, and read the run folder."""
    name = f"auto-{time.monotonic_ns()}"
    recipe = workload.config.model_copy(
        update={
            "name": name,
            "seed": seed,
            "stop": workload.config.stop.model_copy(update={"steps": steps}),
            "backend": BackendConfig(compile=True),
        }
    )
    path = recipe.runs.parent / f"{name}.yaml"
    path.write_text(yaml.dump(recipe.model_dump(mode="json")), encoding="utf-8")
    _call([sys.executable, "-m", "perjoule", "train", str(path)])
    run = load_run(recipe.runs / name)
    return Trained(run.steps.wall_s.tolist(), run.steps.loss.tolist())


def _call(command: list[str]) -> str:
    """Run a process with torch's own number of threads and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    return done.stdout


def throughput(workload: Workload, folder: Path, rounds: int, steps: int, quick: bool, names: Sequence[str]) -> None:
    """Print the ratios of throughput and the losses of auto and the named frameworks."""
    arms: dict[str, Callable[[int], Trained]] = {"auto": partial(train_auto, workload, steps)}
    for name in names:
        if package := missing(name):
            print(f"{name}: left out, {package} is not installed (make peers)")
            continue
        for precision in ("float32", "bf16"):
            command = [sys.executable, "-m", "benchmarks.train_loop", "arm", "--name", name, "--precision", precision]
            command += ["--steps", str(steps), *["--quick"] * quick]
            arms[f"{name}, {precision}"] = partial(_train_peer, command)
    found: dict[str, list[Trained]] = {name: [] for name in arms}
    peak, until_s = 0.0, time.monotonic() + BUDGET_S
    for number in range(rounds):
        peak = max(peak, _bf16_peak(folder / f"peak-{number}"))
        for name, train in arms.items():
            found[name].append(trained := undisturbed(train, number, until_s))
            print(
                f"  round {number + 1}, {name}: {trained.median_s * 1e3:.1f} ms per step; others used "
                f"{trained.others:.2f} cores",
                flush=True,
            )
    _report_throughput(workload, found, peak)


def _train_peer(command: list[str], seed: int) -> Trained:
    """Train in a process of its own, which prints JSON on its last line."""
    return Trained(**json.loads(_call([*command, "--seed", str(seed)]).splitlines()[-1]))


def undisturbed(train: Callable[[int], Trained], seed: int, until_s: float) -> Trained:
    """Train until no other process was busy meanwhile; the least disturbed of a few tries counts.

    Args:
        train: with a seed.
        seed: of this round.
        until_s: time (``time.monotonic``) after which nothing is repeated.
    """
    tries: list[Trained] = []
    for _ in range(TRIES):
        busy, own, begun = _machine_busy_s(), _children_s(), time.monotonic()
        trained = train(seed)
        others = (_machine_busy_s() - busy - (_children_s() - own)) / (time.monotonic() - begun)
        tries.append(replace(trained, others=others))
        if others <= MOST_OTHERS or time.monotonic() > until_s:
            break
    return min(tries, key=lambda one: one.others)


def _machine_busy_s() -> float:
    """Return the CPU seconds of all processes since boot, stolen ones included."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _children_s() -> float:
    """Return the CPU seconds of this process and the children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


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
        loss = f"loss of the last {LAST_LOSSES} steps {spread([one.last_loss for one in runs]).text(4)}"
        if name == "auto":
            print(f"auto: {rate / 1e3:.1f} ktok/s, MFU {share}, {loss}")
        else:
            differences = paired_difference([one.last_loss for one in found["auto"]], [one.last_loss for one in runs])
            print(
                f"ratio auto / {name}: {paired_ratio(own, auto).text(2)}; {rate / 1e3:.1f} ktok/s, MFU {share}, "
                f"{loss}, auto's minus it {differences.text(4)}"
            )
        worst = max(one.others for one in runs)
        if worst > MOST_OTHERS:
            print(f"  void: other processes used {worst:.2f} cores beside {name}; run again on a quiet machine")
    backend = Backend(torch.device("cpu"), {"compile": "auto"})
    # An eager step takes longer than the compiled one, so what pays for this one pays for that one.
    pays = next(steps for steps in count(100, 100) if _would_compile(min(auto), steps))
    backend.compiled(nn.Identity(), lambda: min(auto), pays, lambda: None)
    print(f"auto was compiled because the recipe said so; by itself it compiles from {pays} steps on at the latest")
    print(backend.why[-1])


def _would_compile(step_s: float, steps: int) -> bool:
    """Return what ``backend.compile: auto`` decides for a run of this many steps."""
    backend = Backend(torch.device("cpu"), {"compile": "auto"})
    backend.compiled(nn.Identity(), lambda: step_s, steps, lambda: None)
    return bool(backend.settings["compile"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="training beside the peers")
    parser.add_argument(
        "part", choices=("overhead", "throughput", "laps", "arm"), help="laps and arm: one process, JSON"
    )
    parser.add_argument("--rounds", type=int, help="default 15 (overhead), 2 (throughput)")
    parser.add_argument("--processes", type=int, default=8, help="of overhead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hand-only", action="store_true", help="throughput without the peers that must be installed")
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
            print(machine_line(), versions(), sep="\n")
            processes, rounds = (2, 2) if options.quick else (options.processes, options.rounds or 15)
            overhead(processes, rounds, options.quick)
            print(machine_line())
            return
        if options.part == "laps":
            torch.set_num_threads(1)
            workload = Workload.prepare(config(tiny, 16, 2, folder, options.quick))
            laps = measure_laps(workload, options.rounds or 15, options.seed)
            print(json.dumps({name: asdict(lap) for name, lap in laps.items()}))
            return
        sizes = tiny if options.quick else FULL
        workload = Workload.prepare(config(sizes, 256, 8, folder, options.quick, options.seed))
        if options.part == "arm":
            print(json.dumps(asdict(train_framework(workload, options.name, options.precision, options.steps))))
            return
        print(machine_line(), versions(), sep="\n")
        names = [HAND] if options.hand_only else list(LOOPS)
        steps = 25 if options.quick else options.steps
        throughput(workload, folder, options.rounds or 2, steps, options.quick, names)
        print(machine_line())


if __name__ == "__main__":
    main()
