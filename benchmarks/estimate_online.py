"""The rest of running runs against what then happened: error and coverage at parts of the run.

``record`` trains short runs of different kinds, each in a process of its own, some beside a program that takes
processor time in bursts; ``score`` cuts each finished run off at 5, 10, 20 and 50 % of its steps, estimates the rest
from what is before the cut, and compares whole time and energy with what was measured. Beside it the line through the
first step, which tools commonly project, and the line through all steps so far.

    python -m benchmarks.estimate_online record FOLDER [--which NAME…]
    python -m benchmarks.estimate_online score RUN…
    python -m benchmarks.estimate_online --quick
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from perjoule.core.phases import ON_SCHEDULE
from perjoule.estimate.contract import Estimate
from perjoule.estimate.own.remaining import estimate_rest
from perjoule.measure.book import build_ledger
from perjoule.measure.ledger import outermost_accounts
from perjoule.outlook.series import first_line
from perjoule.runs.folder import STOPPED
from perjoule.runs.tables import Run, load_run

SHARES = (0.05, 0.1, 0.2, 0.5)
STUDY = Path(__file__).parents[1] / "recipes" / "study"
PLAIN = ("backend.compile=false",)
BURSTS = """
import random, sys, time
source, until = random.Random(int(sys.argv[1])), time.monotonic() + 600
while time.monotonic() < until:
    time.sleep(source.expovariate(1 / 4))
    busy_until = time.monotonic() + source.expovariate(1 / 3)
    while time.monotonic() < busy_until:
        pass
"""
"""Another program: three seconds of work, four of rest, on average."""
LATE = """
import time
time.sleep(10)
while True:
    pass
"""
"""One that begins in the middle of a run and goes on."""


def _of(kind: str, dim: int, layers: int, data: str, batch: int, *more: str) -> tuple[str, ...]:
    return (f"model={{kind: {kind}, dim: {dim}, num_layers: {layers}}}", f"data={data}", f"batch.size={batch}", *more)


RECALL = "{kind: recall, seq_len: 127, num_pairs: 8, num_keys: 256, num_values: 256}"
DYCK = "{kind: dyck, seq_len: 128}"
RESTLESS = ("optimizer.lr=1e-2", "evaluate={every_steps: 20, batches: 4}")
RUNS: dict[str, tuple[str, ...]] = {
    # First set.
    "default": ("stop.steps=110", "evaluate.every_steps=40"),
    "text-retnet": (str(STUDY / "text-retnet.yaml"), "stop.steps=150"),
    "dyck-longnet": (str(STUDY / "dyck-longnet.yaml"), "stop.steps=80", "evaluate.every_steps=20"),
    "dyck-ebt": (str(STUDY / "dyck-ebt.yaml"), "stop.steps=60", "model.dim=96"),
    "tiny-often": _of("transformer", 64, 2, RECALL, 8, "stop.steps=1500", "evaluate.every_steps=50"),
    "saves": _of("transformer", 192, 3, RECALL, 8, "stop.steps=300", "checkpoint.every_steps=10"),
    "late-evaluation": _of("retnet", 128, 2, RECALL, 8, "stop.steps=250", "evaluate={every_steps: 125, batches: 100}"),
    "budget": _of("transformer", 128, 4, DYCK, 16, "stop={energy: 150J, steps: 5000}", "schedule.kind=constant"),
    "patience": _of("transformer", 64, 2, DYCK, 32, "stop={steps: 2000, patience: 3}", *RESTLESS),
    "bursts-transformer": _of("transformer", 192, 4, DYCK, 16, "stop.steps=200", "evaluate.every_steps=50"),
    "bursts-ebt": _of("ebt", 64, 2, RECALL, 8, "stop.steps=150"),
    "late-neighbour": _of("longnet", 128, 2, RECALL, 8, "stop.steps=250", "evaluate.every_steps=100"),
    # Second set.
    "text-transformer": (str(STUDY / "text-transformer.yaml"), "stop.steps=140", "evaluate.every_steps=35"),
    "dyck-retnet": (str(STUDY / "dyck-retnet.yaml"), "stop.steps=200"),
    "text-longnet": (str(STUDY / "text-longnet.yaml"), "stop.steps=70", "evaluate.every_steps=10"),
    "text-ebt": (str(STUDY / "text-ebt.yaml"), "stop.steps=50", "model.dim=96", "evaluate.every_steps=25"),
    "wide": _of("transformer", 512, 2, RECALL, 4, "stop.steps=150", "checkpoint.every_steps=50"),
    "deep": _of("transformer", 64, 10, RECALL, 8, "stop.steps=400", "evaluate.every_steps=100"),
    "long": _of("retnet", 96, 2, "{kind: stdlib, seq_len: 1024}", 2, "stop.steps=200"),
    "seconds": _of("longnet", 96, 3, DYCK, 8, "stop.seconds=15", "schedule.kind=constant"),
    "patience-retnet": _of("retnet", 64, 2, DYCK, 32, "stop={steps: 1500, patience: 2}", *RESTLESS),
    "bursts-retnet": _of("retnet", 192, 2, DYCK, 16, "stop.steps=150", "evaluate.every_steps=25"),
    "bursts-small": _of("transformer", 96, 3, RECALL, 16, "stop.steps=600"),
    "late-neighbour-transformer": _of("transformer", 256, 3, RECALL, 8, "stop.steps=200"),
    # Third set: longer, and nothing beside.
    "third-default": ("stop.steps=250",),
    "third-text-transformer": (str(STUDY / "text-transformer.yaml"), "stop.steps=300"),
    "third-dyck-retnet": (str(STUDY / "dyck-retnet.yaml"), "stop.steps=500"),
    "third-dyck-longnet": (str(STUDY / "dyck-longnet.yaml"), "stop.steps=400"),
    "third-retnet": _of("retnet", 128, 3, RECALL, 8, "stop.steps=800", "evaluate.every_steps=200"),
    "third-transformer": _of("transformer", 160, 4, RECALL, 8, "stop.steps=900", "checkpoint.every_steps=100"),
    "third-evaluations": _of("transformer", 128, 3, DYCK, 16, "stop.steps=700", "evaluate.every_steps=70"),
    "third-ebt": _of("ebt", 64, 2, RECALL, 8, "stop.steps=300"),
    "third-energy": _of("transformer", 192, 2, RECALL, 8, "stop={energy: 300J, steps: 9000}", "schedule.kind=constant"),
    "third-longnet": _of("longnet", 96, 3, RECALL, 8, "stop.steps=600", "evaluate.every_steps=150"),
}
QUICK = {name: _of("transformer", 32, 1, RECALL, 4, f"stop.steps={num}") for name, num in (("one", 60), ("two", 90))}


class Figures(NamedTuple):
    """The whole of a run as it was estimated, and as it came."""

    mean: float
    low: float
    high: float
    true: float

    @classmethod
    def of(cls, seen: float, rest: Estimate, true: float) -> Figures:
        """Add what was seen to what was estimated of the rest."""
        return cls(seen + rest.mean, seen + rest.low, seen + rest.high, true)

    @property
    def error(self) -> float:
        """Return the absolute relative error."""
        return abs(self.mean / self.true - 1)

    @property
    def held(self) -> bool:
        """Return whether the interval holds the truth."""
        return self.low <= self.true <= self.high


@dataclass(frozen=True)
class Cut:
    """A run at one moment.

    Args:
        name: of the run.
        share: of its steps that were seen.
        seconds: whole time.
        joules: whole energy; None if nothing was metered.
        first_s: the line through the first step.
        line_s: the line through all steps so far.
    """

    name: str
    share: float
    seconds: Figures
    joules: Figures | None
    first_s: float
    line_s: float


@contextlib.contextmanager
def neighbour(name: str) -> Iterator[None]:
    """Let another program work meanwhile, for the runs that are named so."""
    if not name.startswith(("bursts", "late-neighbour")):
        yield
        return
    program = LATE if name.startswith("late") else BURSTS
    with subprocess.Popen([sys.executable, "-c", program, str(sum(map(ord, name)))]) as process:
        try:
            yield
        finally:
            process.kill()


def record(root: Path, which: dict[str, tuple[str, ...]]) -> list[Path]:
    """Train; return the run folders."""
    for name, arguments in which.items():
        command = [sys.executable, "-m", "perjoule", "train", *arguments, f"name={name}", f"runs={root}"]
        with neighbour(name):
            subprocess.run([*command, *PLAIN], check=True, stdout=subprocess.DEVNULL)
        print(f"recorded {name}", flush=True)
    return [root / name for name in which]


def cut_off(run: Run, num_steps: int) -> Run:
    """Return the run as it was after some steps."""
    steps = run.steps.where(run.steps.step <= num_steps)
    evaluations = tuple(one for one in run.evaluations if one.step <= num_steps)
    return replace(run, steps=steps, evaluations=evaluations, status=STOPPED)


def score_run(path: Path) -> list[Cut]:
    """Estimate the whole of a finished run from parts of it."""
    run = load_run(path)
    wall_s, (table,) = run.steps.wall_s, [one.phases for one in run.segments]
    assert table is not None
    after_s = sum(table.after_ns.get(phase, 0) for phase in ON_SCHEDULE) / 1e9
    curves = [one.by_step for one in outermost_accounts(build_ledger(run).merged())]
    planned = run.resolved.get("stop.steps", {}).get("value") or len(wall_s)
    found = []
    for share in SHARES:
        seen = max(1, round(share * len(wall_s)))
        rest = estimate_rest(cut_off(run, seen))
        seen_s, whole_s = float(wall_s[:seen].sum()), float(wall_s.sum()) + after_s
        joules = None
        if rest.joules is not None:
            at = [sum(np.interp(step, one.steps, one.energy_uj) / 1e6 for one in curves) for step in (1, seen, 10**9)]
            whole_j = (at[2] - at[0]) * whole_s / (whole_s - after_s)
            joules = Figures.of(at[1] - at[0], rest.joules, whole_j)
        seconds = Figures.of(seen_s, rest.seconds, whole_s)
        line_s = first_line([float(wall_s[:seen].mean())], planned)
        found.append(Cut(path.name, share, seconds, joules, first_line([float(wall_s[0])], planned), line_s))
    return found


def table(cuts: Sequence[Cut]) -> Iterator[str]:
    """Yield a line for each share, and one for each estimate that its interval did not hold."""
    yield f"{'seen':>5} {'error of time':>24} {'covered':>9} {'half width':>10} {'energy':>9} {'covered':>9}   lines"
    for share in SHARES:
        some = [one for one in cuts if one.share == share]
        seconds, joules = [one.seconds for one in some], [one.joules for one in some if one.joules is not None]
        errors, errors_j = [one.error for one in seconds], [one.error for one in joules] or [np.nan]
        width = np.median([(one.high - one.low) / 2 / one.true for one in seconds])
        first, line = (np.median([abs(getattr(one, key) / one.seconds.true - 1) for one in some]) for key in LINES)
        yield (
            f"{share:5.0%} median {np.median(errors):6.1%}, p90 {np.quantile(errors, 0.9):6.1%} {_held(seconds):>9} "
            f"{width:10.1%} {np.median(errors_j):9.1%} {_held(joules):>9}   "
            f"first step {first:.0%}, steps so far {line:.1%}"
        )
    for one in cuts:
        for what, of in (("time", one.seconds), ("energy", one.joules)):
            if of is not None and not of.held:
                mean, low, high = (value / of.true for value in of[:3])
                yield f"  not held: {one.name}, {what} at {one.share:.0%}: {mean:.3f} [{low:.3f}, {high:.3f}] of it"


LINES = ("first_s", "line_s")


def _held(figures: Sequence[Figures]) -> str:
    return f"{sum(one.held for one in figures)} of {len(figures)}"


def main(arguments: Sequence[str] | None = None) -> list[Cut]:
    parser = argparse.ArgumentParser(description="the rest of running runs against what then happened")
    parser.add_argument("what", nargs="?", choices=("record", "score"))
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--which", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="two tiny runs, recorded and scored")
    options = parser.parse_args(arguments)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            cuts = [cut for path in record(Path(folder), QUICK) for cut in score_run(path)]
    elif options.what == "record" and len(options.paths) == 1:
        record(options.paths[0], {name: RUNS[name] for name in options.which})
        return []
    elif options.what == "score" and options.paths:
        cuts = [cut for path in options.paths for cut in score_run(path)]
    else:
        parser.error("record FOLDER, score RUN…, or --quick")
    for line in table(cuts):
        print(line)
    return cuts


if __name__ == "__main__":
    main()
