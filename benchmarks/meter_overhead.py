"""What metering costs: one training loop of four phases, metered by nothing, perjoule, Zeus and CodeCarbon in turn.

``python -m benchmarks.meter_overhead``. One model, one optimizer and one stream of batches serve all arms of a process,
which take blocks of steps in random order; two of them meter nothing (A/A). perjoule's sampler is started before a
block and ended behind it, outside the time that counts. Processor time is that of a process and all that it started.
Whole processes are biased by a percent, whatever they do, so the interval is over processes.

========================== ==========================================================================================
``perjoule``               the trainer's recorder around step and phases, and a sampler process at the default rate
                           with all meters of a machine without GPU: CPU time, memory, RAM, RAPL, hwmon if there is any
``perjoule.measure``       the same meters by the context manager for any loop, which also writes a line for each step
``Zeus, windows``          a window for each phase, package and DRAM
``CodeCarbon, tasks``      a task for each phase, machine mode
========================== ==========================================================================================

RAPL is a tree of files as the kernel has it (:mod:`tests.fakes.powercap`), of which Zeus is told by its module's
constant; CodeCarbon finds none and takes its estimate. Peers that are not installed are left out by name.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.fakes.powercap import Powercap
from torch import nn

import perjoule
from benchmarks.ratios import paired_ratio, spread
from benchmarks.workload import CLIP_NORM, Workload, config, machine_line
from perjoule.core import phases
from perjoule.measure.config import EnergyConfig
from perjoule.measure.contract import Site, Unavailable
from perjoule.measure.machine import MachineProfile
from perjoule.measure.process_tree import cpu_time_ns, descendants
from perjoule.measure.recorder import FencePolicy, Recorder
from perjoule.measure.sampler import Sampler, SamplerState
from perjoule.measure.session import READY_WITHIN_S
from perjoule.runs.folder import sample_path
from perjoule.runs.journal import JournalWriter
from perjoule.train import backend as backends
from perjoule.train.distributed import Ranks

NOTHING, AGAIN, RECORDER, MEASURE = "nothing", "nothing, again", "perjoule", "perjoule.measure"
ZEUS, CODECARBON = "Zeus, windows", "CodeCarbon, tasks"
PEERS = {ZEUS: "zeus", CODECARBON: "codecarbon"}
"""Arm to the package that must be installed."""
PHASES = (phases.DATA, phases.FORWARD, phases.BACKWARD, phases.OPTIMIZER)
WARMUP_STEPS = 5
"""First steps of each block, which do not count: some arms have waited for a process before them, with cold caches."""

Contexts = tuple[Callable[[], AbstractContextManager[object]], Callable[[str], AbstractContextManager[object]]]
"""What makes the context of a step, and of a phase."""
Block = Callable[[], AbstractContextManager[Contexts]]
"""Makes what surrounds a block of steps of one arm."""


class Training:
    """The loop that all arms meter.

    Args:
        workload: what to train.
    """

    def __init__(self, workload: Workload) -> None:
        self._samples, self._rows = workload.samples, workload.rows
        self._module = workload.model()
        self._optimizer = workload.optimizer(self._module)
        self._position = 0

    def run(self, steps: int, step: Callable[[], Any], phase: Callable[[str], Any]) -> None:
        """Take some steps in the contexts that are given."""
        parameters = list(self._module.parameters())
        for _ in range(steps):
            with step():
                with phase(phases.DATA):
                    batch = self._samples.batch(self._position, self._rows)
                    self._position = (self._position + self._rows) % (self._samples.num_samples - self._rows)
                with phase(phases.FORWARD):
                    loss = self._module(batch.tensors).loss
                with phase(phases.BACKWARD):
                    loss.backward()
                with phase(phases.OPTIMIZER):
                    nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
                    self._optimizer.step()
                    self._optimizer.zero_grad(set_to_none=True)


@contextmanager
def nothing() -> Iterator[Contexts]:
    """Meter nothing."""
    empty = nullcontext()
    yield (lambda: empty), (lambda name: empty)


@dataclass
class Perjoule:
    """Makes the blocks of both of perjoule's arms.

    Args:
        folder: for run folders.
        energy: meters and rate.
        metered: what the last block was metered with.
    """

    folder: Path
    energy: EnergyConfig
    metered: list[SamplerState] = field(default_factory=list)

    @contextmanager
    def recorder(self) -> Iterator[Contexts]:
        """Record and meter as ``perjoule train`` does."""
        run = Path(tempfile.mkdtemp(dir=self.folder))
        recorder = Recorder(JournalWriter(run / "events.bin", (phases.STEP, *PHASES)), lambda: None, FencePolicy.NONE)
        node = platform.node()
        sampler = Sampler.start(sample_path(run, 0, node), self.energy, Site((os.getpid(),)), node)
        try:
            self._note(sampler.ready(READY_WITHIN_S))
            timed, step = {name: recorder.phase(name) for name in PHASES}, recorder.phase(phases.STEP)
            yield (lambda: step), timed.__getitem__
        finally:
            sampler.stop()
            recorder.close()

    @contextmanager
    def measure(self) -> Iterator[Contexts]:
        """Record and meter as ``perjoule.measure`` does for any loop."""
        run = Path(tempfile.mkdtemp(dir=self.folder)) / "run"
        with perjoule.measure(run, energy=self.energy, devices=()) as measurement:
            self._note(measurement.metered)
            yield measurement.step, measurement.phase

    def _note(self, state: SamplerState | Unavailable) -> None:
        if isinstance(state, Unavailable):
            raise RuntimeError(f"nothing is metered: {state.reason}")
        self.metered[:] = [state]


class Window:
    """A phase in a peer's window.

    Args:
        begin: opens it.
        end: closes it.
        name: of the phase.
    """

    __slots__ = ("_begin", "_end", "_name")

    def __init__(self, begin: Callable[[str], object], end: Callable[[str], object], name: str) -> None:
        self._begin, self._end, self._name = begin, end, name

    def __enter__(self) -> None:
        self._begin(self._name)

    def __exit__(self, *_: object) -> None:
        self._end(self._name)


def zeus(tree: Powercap) -> Block:
    """Return what makes the blocks of Zeus; its processes, which look for wraps once a second, stay."""
    from zeus.device.cpu import rapl  # type: ignore[import-not-found,unused-ignore]
    from zeus.monitor import ZeusMonitor  # type: ignore[import-not-found,unused-ignore]

    rapl.RAPL_DIR = str(tree.root / "intel-rapl")
    monitor = ZeusMonitor(gpu_indices=[], cpu_indices=[0])
    windows = {name: Window(monitor.begin_window, monitor.end_window, name) for name in PHASES}
    return _peer(windows.__getitem__)


def codecarbon() -> Block:
    """Return what makes the blocks of CodeCarbon."""
    from codecarbon import OfflineEmissionsTracker  # type: ignore[import-not-found,unused-ignore]

    tracker = OfflineEmissionsTracker(
        country_iso_code="FRA", save_to_file=False, allow_multiple_runs=True, log_level="error"
    )
    windows = {name: Window(tracker.start_task, lambda name: tracker.stop_task(), name) for name in PHASES}
    return _peer(windows.__getitem__)


def _peer(phase: Callable[[str], AbstractContextManager[object]]) -> Block:
    empty = nullcontext()

    @contextmanager
    def block() -> Iterator[Contexts]:
        yield (lambda: empty), phase

    return block


@dataclass(frozen=True)
class Blocks:
    """Seconds of each block of one arm, by the wall and by the processor time of all processes."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def take_turns(
    training: Training, arms: Mapping[str, Block], rounds: int, steps: int, chance: random.Random
) -> dict[str, Blocks]:
    """Let every arm take a block of steps in each round; the first round warms up and does not count."""
    order = list(arms)
    blocks = {name: Blocks() for name in arms}
    for number in range(rounds + 1):
        chance.shuffle(order)
        for name in order:
            with arms[name]() as (step, phase):
                training.run(WARMUP_STEPS, step, phase)
                cpu_s, begun = processor_s(), time.perf_counter()
                training.run(steps, step, phase)
                wall_s = time.perf_counter() - begun
                cpu_s = processor_s() - cpu_s
            if number:
                blocks[name].wall_s.append(wall_s)
                blocks[name].cpu_s.append(cpu_s)
    return blocks


def processor_s() -> float:
    """Return the processor time of this process and of those that it started and that still run."""
    own = os.getpid()
    return sum(cpu_time_ns(pid) for pid in {own, *descendants((own,))}) / 1e9


def measure(rounds: int, steps: int, seed: int, quick: bool) -> dict[str, object]:
    """Return the blocks of every arm in this process, for each number of threads, and what perjoule metered.

    Args:
        rounds: blocks of each arm and number of threads.
        steps: of a block.
        seed: of the order in which the arms take turns.
        quick: one thread only.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perjoule-benchmark-")))
        tree = Powercap(folder / "powercap")
        stack.callback(tree.close)
        tree.add("dram", 3.0, parent=tree.add("package-0", 40.0))
        rapl = {"kind": "rapl", "root": folder / "powercap"}
        energy = EnergyConfig.model_validate({"meters": ["cpu_time", "memory", "ram", rapl, "hwmon"]})
        ours = Perjoule(folder, energy)
        arms: dict[str, Block] = {NOTHING: nothing, AGAIN: nothing, RECORDER: ours.recorder, MEASURE: ours.measure}
        peers: dict[str, Callable[[], Block]] = {ZEUS: lambda: zeus(tree), CODECARBON: codecarbon}
        arms |= {name: build() for name, build in peers.items() if find_spec(PEERS[name]) is not None}
        recipe = config({"dim": 64, "num_layers": 2, "num_heads": 2}, 64, 4, folder, quick)
        keep = recipe.backend.model_copy(update={"allocator": "keep"})  # page faults would be most of the noise
        backends.prepare(keep, Ranks(), MachineProfile(folder))
        training, chance, found = Training(Workload.prepare(recipe)), random.Random(seed), {}
        for threads in (1,) if quick else (1, 2):
            torch.set_num_threads(threads)
            blocks = take_turns(training, arms, rounds, steps, chance)
            found[threads] = {name: asdict(own) for name, own in blocks.items()}
        (state,) = ours.metered
        domains = [f"{one['domain']} ({one['kind']})" for one in state.channels]
        missing = [f"{kind}: {one.reason}" for kind, one in state.unavailable]
        return {"threads": found, "metered": domains, "unavailable": missing}


def in_a_process(rounds: int, steps: int, seed: int, quick: bool) -> dict[str, Any]:
    """Return what :func:`measure` finds in a process of its own.

    Raises:
        RuntimeError: if the process fails.
    """
    command = [sys.executable, "-m", "benchmarks.meter_overhead", "--seed", str(seed)]
    command += ["--rounds", str(rounds), "--steps", str(steps), *["--quick"] * quick]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(processes: Sequence[Mapping[str, Mapping[str, list[float]]]], steps: int, threads: str) -> None:
    """Print the ratios to the arm that meters nothing: in each process the median over its rounds.

    Args:
        processes: arm to its blocks, for each of them.
        steps: of a block.
        threads: number of them.
    """
    step_s = [float(np.median(arms[NOTHING]["wall_s"])) / steps for arms in processes]
    print(f"{threads} thread(s): a step takes {spread(step_s).text(2, 1e3)} ms")
    for name in processes[0]:
        for clock, title in (("wall_s", "wall"), ("cpu_s", "CPU time")) if name != NOTHING else ():
            ratios = [paired_ratio(arms[name][clock], arms[NOTHING][clock]).median for arms in processes]
            what = "A/A" if name == AGAIN else f"{name} / {NOTHING}"
            print(f"ratio {what}, {title}, {threads} thread(s): {spread(ratios).text(4)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="what metering costs")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6, help="blocks of each arm, process and number of threads")
    parser.add_argument("--steps", type=int, default=50, help="of a block")
    parser.add_argument("--seed", type=int, help="be one of the processes, and print JSON")
    parser.add_argument("--quick", action="store_true", help="a few seconds; the figures mean little")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        print(json.dumps(measure(options.rounds, options.steps, options.seed, options.quick)))
        return
    num, rounds, steps = (1, 2, 4) if options.quick else (options.processes, options.rounds, options.steps)
    print(machine_line())
    for title, package in PEERS.items():
        if find_spec(package) is None:
            print(f"{title}: left out, {package} is not installed (make peers)")
    found = [in_a_process(rounds, steps, seed, options.quick) for seed in range(num)]
    print(f"{num} process(es), {rounds} blocks of {steps} steps of each arm in each")
    for threads in found[0]["threads"]:
        report([one["threads"][threads] for one in found], steps, threads)
    print("perjoule metered", ", ".join(found[0]["metered"]))
    for line in found[0]["unavailable"]:
        print(f"perjoule did not meter {line}")
    print(machine_line())


if __name__ == "__main__":
    main()
