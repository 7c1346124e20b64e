"""A training loop of known truth on the fake GPU, metered by one tool: ``python -m benchmarks.simulated TOOL``.

A step is data 1 ms at 120 W, forward 3 ms at 300 W, backward 5 ms at 400 W, optimizer 1 ms at 220 W; the device idles
at 60 W wherever the loop does something else, such as calling the tool. The process publishes every edge of the power
as it happens, so that what was true is known whatever the machine did meanwhile. The tools are as they were installed;
they find the fake library because it lies on ``LD_LIBRARY_PATH`` (see :mod:`tests.fakes.nvml`). The last line of what
is printed is JSON. :mod:`benchmarks.attribution` starts one such process after another.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from tests.fakes.nvml import Edges, Gpu

import perjoule
from perjoule.core.phases import STEP
from perjoule.measure.book import build_ledger
from perjoule.measure.bursts import Burst, phase_names, run_bursts
from perjoule.measure.config import EnergyConfig
from perjoule.measure.contract import Site
from perjoule.measure.ledger import Account
from perjoule.measure.recorder import FencePolicy, Recorder
from perjoule.measure.sampler import Sampler
from perjoule.measure.session import READY_WITHIN_S
from perjoule.runs.folder import FINISHED, RunFolder, sample_path
from perjoule.runs.journal import JournalWriter
from perjoule.runs.tables import load_run

IDLE_W = 60.0
SPIN_NS = 300_000
"""The clock is watched over the last 0.3 ms of a phase; before that the process sleeps, as one that waits for a GPU."""
REST_S = 1.0
"""Time without load before the first step and behind the last one."""
GPUS = {
    "a100": Gpu(),
    "v100": Gpu(refresh_ms=20, window_ms=10, counter_refresh_ms=20, architecture=5, name="Tesla V100-SXM2-16GB"),
}


@dataclass(frozen=True)
class Part:
    """One phase of a step."""

    name: str
    power_w: float
    length_s: float


DATA, FORWARD, BACKWARD, OPTIMIZER = PARTS = (
    Part("data", 120.0, 1e-3),
    Part("forward", 300.0, 3e-3),
    Part("backward", 400.0, 5e-3),
    Part("optimizer", 220.0, 1e-3),
)


@dataclass(frozen=True)
class Figure:
    """What a tool says of one phase.

    Args:
        energy_j: of all its occurrences.
        low_j: lower end of the 95 % interval; None if the tool gives none.
        high_j: upper end.
        tier: how it was found; "" if the tool does not say.
        why: in words.
    """

    energy_j: float
    low_j: float | None = None
    high_j: float | None = None
    tier: str = ""
    why: str = ""


@dataclass(frozen=True)
class Outcome:
    """One run of one tool.

    Args:
        num_steps: taken.
        true_j: phase to its true energy.
        whole_j: true energy from the begin of the first step to the end of the last, the time between phases included.
        found: phase to what the tool says.
        zero_share: share of the windows in which the tool saw no energy; None if it has no windows.
    """

    num_steps: int
    true_j: dict[str, float]
    whole_j: float
    found: dict[str, Figure]
    zero_share: float | None = None


class Load:
    """What the device does: it draws the power of a phase for as long as that lasts.

    Args:
        edges: the fake library's view of it.
    """

    def __init__(self, edges: Edges) -> None:
        self._edges = edges
        edges.set_power(IDLE_W, "idle")

    def work(self, part: Part, label: str = "") -> None:
        """Do one phase."""
        end_ns = self._edges.set_power(part.power_w, label or part.name) + round(part.length_s * 1e9)
        while (left_ns := end_ns - time.monotonic_ns()) > 0:
            if left_ns > SPIN_NS:
                time.sleep((left_ns - SPIN_NS) / 1e9)
        self._edges.set_power(IDLE_W, "idle")

    def train(
        self,
        seconds: float,
        phase: Callable[[str], AbstractContextManager[object]],
        step: Callable[[], AbstractContextManager[object]],
    ) -> Outcome:
        """Take steps for some seconds; return the truth, with nothing found yet.

        Args:
            seconds: how long.
            phase: returns the tool's context of a phase.
            step: returns its context of a step.
        """
        num_steps, begin_ns = 0, time.monotonic_ns()
        while time.monotonic_ns() < begin_ns + seconds * 1e9:
            with step():
                for part in PARTS:
                    with phase(part.name):
                        self.work(part)
            num_steps += 1
        end_ns = time.monotonic_ns()
        spent_uj = self._edges.energy_by_label_uj(begin_ns, end_ns)
        whole_j = self._edges.energy_uj(begin_ns, end_ns) / 1e6
        return Outcome(num_steps, {part.name: spent_uj[part.name] / 1e6 for part in PARTS}, whole_j, {})


class Windows:
    """Adds up what a tool says of each of its windows.

    Args:
        begin: opens the window of a phase.
        end: closes it and returns its joules.
    """

    def __init__(self, begin: Callable[[str], object], end: Callable[[str], float]) -> None:
        self._begin, self._end = begin, end
        self.energy_j = dict.fromkeys((part.name for part in PARTS), 0.0)
        self._num = self._num_zero = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Put a window around a phase."""
        self._begin(name)
        yield
        energy_j = self._end(name)
        self.energy_j[name] += energy_j
        self._num += 1
        self._num_zero += energy_j == 0

    def outcome(self, truth: Outcome) -> Outcome:
        """Return the truth with what was found."""
        found = {name: Figure(energy_j) for name, energy_j in self.energy_j.items()}
        return Outcome(truth.num_steps, truth.true_j, truth.whole_j, found, self._num_zero / self._num)


def zeus(load: Load, seconds: float, approx: bool) -> Outcome:
    """Put a window of a ``ZeusMonitor`` around each phase; there is no CUDA to wait for."""
    from zeus.monitor import ZeusMonitor  # type: ignore[import-not-found,unused-ignore]

    warnings.simplefilter("ignore")  # one for each window without energy
    monitor = ZeusMonitor(gpu_indices=[0], cpu_indices=[], approx_instant_energy=approx)
    windows = Windows(
        partial(monitor.begin_window, sync_execution=False),
        lambda name: float(monitor.end_window(name, sync_execution=False).gpu_energy[0]),
    )
    return windows.outcome(load.train(seconds, windows.phase, nullcontext))


def codecarbon(load: Load, seconds: float) -> Outcome:
    """Make each phase a task of CodeCarbon's offline tracker."""
    from codecarbon import OfflineEmissionsTracker  # type: ignore[import-not-found,unused-ignore]

    tracker = OfflineEmissionsTracker(
        country_iso_code="FRA", save_to_file=False, allow_multiple_runs=True, log_level="error"
    )
    windows = Windows(tracker.start_task, lambda name: float(tracker.stop_task().gpu_energy) * 3.6e6)
    outcome = windows.outcome(load.train(seconds, windows.phase, nullcontext))
    tracker.stop()
    return outcome


def measured(load: Load, seconds: float, rate_hz: float) -> Outcome:
    """Meter the steps with ``perjoule.measure``, as any training loop can."""
    energy = EnergyConfig(meters=("nvidia",), rate_hz=rate_hz)
    with tempfile.TemporaryDirectory(prefix="perjoule-benchmark-") as name:
        with perjoule.measure(Path(name) / "run", energy=energy, devices=["0"]) as measurement:
            time.sleep(REST_S)
            truth = load.train(seconds, measurement.phase, measurement.step)
            time.sleep(REST_S)
        return read(Path(name) / "run", truth)


def calibrated(load: Load, seconds: float, rate_hz: float, burst_s: float) -> Outcome:
    """Meter bursts of the phases first, then the steps; the bursts are those of ``perjoule train``."""
    energy = EnergyConfig(meters=("nvidia",), rate_hz=rate_hz)
    node, names = platform.node(), tuple(part.name for part in PARTS)
    with tempfile.TemporaryDirectory(prefix="perjoule-benchmark-") as name:
        run = RunFolder.create(Path(name) / "run", "", {}, {})
        segment = run.begin_segment({})
        header = {"rank": 0, "segment": segment, "node": node}
        journal = JournalWriter(run.event_path(0), (STEP, *names, *phase_names(names)), header)
        recorder = Recorder(journal, lambda: None, FencePolicy.NONE)
        sampler = Sampler.start(sample_path(run.path, segment, node), energy, Site((os.getpid(),), ("0",)), node)
        try:
            sampler.ready(READY_WITHIN_S)
            run_bursts(bursts(load), recorder, burst_s)
            time.sleep(REST_S)
            phases, step = {each: recorder.phase(each) for each in names}, recorder.phase(STEP)

            @contextmanager
            def numbered() -> Iterator[None]:
                recorder.step += 1
                with step:
                    yield

            truth = load.train(seconds, phases.__getitem__, numbered)
            time.sleep(REST_S)
        finally:
            sampler.stop()
            recorder.close()
        run.end(FINISHED, "the last step was taken")
        run.close()
        return read(run.path, truth)


def bursts(load: Load) -> tuple[Burst, ...]:
    """Return what is repeated: a backward pass never comes alone."""
    named = {part: (part.name, partial(load.work, part, "calibrate")) for part in PARTS}
    sets = ((DATA,), (FORWARD,), (FORWARD, BACKWARD), (OPTIMIZER,), PARTS)
    return tuple(Burst(tuple(named[part] for part in parts)) for parts in sets)


def read(run: Path, truth: Outcome) -> Outcome:
    """Return the truth with what the ledger of a run folder says of the GPU."""
    ledger = build_ledger(load_run(run))
    if not ledger.accounts:
        raise RuntimeError(f"nothing was metered: {ledger.total()}")
    (account,) = ledger.accounts
    return Outcome(truth.num_steps, truth.true_j, truth.whole_j, figures(account))


def figures(account: Account) -> dict[str, Figure]:
    """Return what an account says of the phases of a step."""
    return {
        one.name: Figure(one.energy_uj / 1e6, one.low_uj / 1e6, one.high_uj / 1e6, one.tier.value, one.why)
        for one in account.buckets
        if one.name in {part.name for part in PARTS}
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one tool and print its outcome."""
    parser = argparse.ArgumentParser(description="a training loop of known truth, metered by one tool")
    parser.add_argument("tool", choices=("zeus", "zeus-approx", "codecarbon", "measured", "calibrated"))
    parser.add_argument("--gpu", choices=tuple(GPUS), default="a100")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--burst", type=float, default=EnergyConfig().burst_s, help="seconds of each burst")
    parser.add_argument("--rate", type=float, default=EnergyConfig().rate_hz, help="perjoule's readings per second")
    options = parser.parse_args(arguments)
    gpu = replace(GPUS[options.gpu], uuid=f"GPU-{os.getpid():08x}-0000-4000-8000-000000000000")  # a device of its own
    with Edges.create(Path(os.environ["FAKE_NVML_EDGES"]), [gpu], IDLE_W) as edges:
        load, seconds = Load(edges), options.seconds
        tools: dict[str, Callable[[], Outcome]] = {
            "zeus": lambda: zeus(load, seconds, approx=False),
            "zeus-approx": lambda: zeus(load, seconds, approx=True),
            "codecarbon": lambda: codecarbon(load, seconds),
            "measured": lambda: measured(load, seconds, options.rate),
            "calibrated": lambda: calibrated(load, seconds, options.rate, options.burst),
        }
        print(json.dumps(asdict(tools[options.tool]())))


if __name__ == "__main__":
    main()
