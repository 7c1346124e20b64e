"""Energy by phase against a known truth: perjoule beside Zeus and CodeCarbon, all on the same fake GPU.

``python -m benchmarks.attribution``: every tool meters the loop of :mod:`benchmarks.simulated` through a sensor like an
A100's (a new value every 100 ms, averaged over 25 ms; a counter that refreshes as often). Each run is a process of its
own, two at a time, one for each core. Tools that are not installed are left out by name; ``make peers`` installs them
into ``.peers``. ``--quick`` is perjoule alone, on a sensor like a V100's.

``--matrix`` and ``--replay FOLDER`` need no peers: see :mod:`benchmarks.sensor_matrix`, :mod:`benchmarks.replay`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tests.fakes import nvml

from benchmarks import replay, sensor_matrix
from benchmarks.ratios import spread
from benchmarks.simulated import PARTS, Figure, Outcome
from benchmarks.workload import machine_line
from perjoule.core.errors import DataError
from perjoule.measure.config import EnergyConfig

NAMES = tuple(part.name for part in PARTS)
AT_ONCE = 2


@dataclass(frozen=True)
class Tool:
    """One way to meter.

    Args:
        title: what it is called in the table.
        argument: of :mod:`benchmarks.simulated`.
        package: that must be installed.
    """

    title: str
    argument: str
    package: str


CALIBRATED, MEASURED = "perjoule, calibrated", "perjoule, not calibrated"
TOOLS = (
    Tool(CALIBRATED, "calibrated", "perjoule"),
    Tool(MEASURED, "measured", "perjoule"),
    Tool("Zeus, windows", "zeus", "zeus"),
    Tool("Zeus, approx_instant_energy", "zeus-approx", "zeus"),
    Tool("CodeCarbon, tasks", "codecarbon", "codecarbon"),
)


def run(tool: Tool, library: Path, folder: Path, options: Sequence[str], number: int) -> Outcome:
    """Let a tool meter one loop in a process of its own.

    Args:
        tool: which.
        library: the fake NVML.
        folder: for the file of edges.
        options: of :mod:`benchmarks.simulated`.
        number: of the repeat.

    Raises:
        RuntimeError: if the process fails.
    """
    edges = folder / f"{tool.argument}-{number}.edges"
    command = [sys.executable, "-m", "benchmarks.simulated", tool.argument, *options]
    environment = os.environ | nvml.environment(library, edges)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{tool.title} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    facts = json.loads(done.stdout.splitlines()[-1])
    return Outcome(**{**facts, "found": {name: Figure(**figure) for name, figure in facts["found"].items()}})


def measure(repeats: int, options: Sequence[str], tools: Sequence[Tool]) -> dict[str, list[Outcome]]:
    """Return every tool's runs; the tools take turns."""
    with tempfile.TemporaryDirectory(prefix="perjoule-benchmark-") as name, ThreadPoolExecutor(AT_ONCE) as pool:
        folder = Path(name)
        library = nvml.build(folder)
        one = partial(run, library=library, folder=folder, options=options)
        waiting = [(tool.title, pool.submit(one, tool, number=number)) for number in range(repeats) for tool in tools]
        found: dict[str, list[Outcome]] = {tool.title: [] for tool in tools}
        for title, future in waiting:
            found[title].append(future.result())
    return found


def error(outcome: Outcome, name: str) -> float:
    """Return the relative error of a phase's energy."""
    return outcome.found[name].energy_j / outcome.true_j[name] - 1


def rms(outcome: Outcome) -> float:
    """Return the root mean square of the phases' relative errors."""
    return float(np.sqrt(np.mean([error(outcome, name) ** 2 for name in NAMES])))


def sum_error(outcome: Outcome) -> float:
    """Return how far the sum of the phases is from the true energy of all phases, relative."""
    return sum(outcome.found[name].energy_j for name in NAMES) / sum(outcome.true_j[name] for name in NAMES) - 1


def covers(outcome: Outcome, name: str) -> bool:
    """Return whether a phase's interval holds the truth."""
    figure = outcome.found[name]
    if figure.low_j is None or figure.high_j is None:
        return False
    return figure.low_j <= outcome.true_j[name] <= figure.high_j


def percent(values: Sequence[float]) -> str:
    """Return a median in per cent, and what lies between its ends if there are several."""
    if len(values) == 1:
        return f"{values[0]:+.1%}"
    found = spread(values)
    return f"{found.median:+.1%} [{found.low:+.1%}, {found.high:+.1%}]"


def report(found: Mapping[str, Sequence[Outcome]]) -> None:
    """Print millijoules per step, errors, and the intervals of those that have some."""
    for title, outcomes in found.items():
        steps = [one.num_steps for one in outcomes]
        outside = [1 - sum(one.true_j.values()) / one.whole_j for one in outcomes]
        print(f"\n{title}: {len(outcomes)} run(s) of {min(steps)} to {max(steps)} steps, {max(outside):.1%} outside")
        for name in NAMES:
            true_mj, found_mj = (
                np.median([1e3 * joules / one.num_steps for joules, one in zip(each, outcomes, strict=True)])
                for each in (
                    [one.true_j[name] for one in outcomes],
                    [one.found[name].energy_j for one in outcomes],
                )
            )
            line = f"  {name:10s} true {true_mj:6.0f} mJ a step, found {found_mj:6.0f} mJ, error "
            print(line + percent([error(one, name) for one in outcomes]) + _interval(outcomes, name))
        zeros = [f"{one.zero_share:.0%}" for one in outcomes if one.zero_share is not None]
        print(
            f"  rms error {percent([rms(one) for one in outcomes])}; sum of the phases "
            f"{percent([sum_error(one) for one in outcomes])}; windows of 0 J: {', '.join(zeros) or 'there are none'}"
        )
        for why in dict.fromkeys(figure.why for one in outcomes[:1] for figure in one.found.values() if figure.why):
            print(f"  {why}")


def _interval(outcomes: Sequence[Outcome], name: str) -> str:
    """Return the tier of a phase and its interval relative to the truth, the widest ends over the runs."""
    figures = [one.found[name] for one in outcomes]
    if not figures[0].tier:
        return ""
    low, high = (
        pick(getattr(figure, end) / one.true_j[name] - 1 for figure, one in zip(figures, outcomes, strict=True))
        for pick, end in ((min, "low_j"), (max, "high_j"))
    )
    covered = sum(covers(one, name) for one in outcomes)
    tiers = "/".join(dict.fromkeys(figure.tier for figure in figures))
    return f"; {tiers}, interval {low:+.1%} to {high:+.1%}, covers the truth in {covered} of {len(outcomes)}"


def verdicts(found: Mapping[str, Sequence[Outcome]]) -> None:
    """Print whether perjoule meets its goals."""
    print()
    for outcome in found[CALIBRATED]:
        worst = max(abs(error(outcome, name)) for name in NAMES if name != "optimizer")
        optimizer = abs(error(outcome, "optimizer"))
        met = worst <= 0.02 and optimizer <= 0.10
        print(
            f"goal, bursts within 2 %, optimizer 10 %: {'met' if met else 'missed'} ({worst:.1%}, {optimizer:.1%}), "
            f"intervals hold the truth: {all(covers(outcome, name) for name in NAMES)}"
        )
    for outcome in found[MEASURED]:
        regressed = any(figure.tier == "regression" for figure in outcome.found.values())
        what = f"rms {rms(outcome):.1%}" if regressed else "not separable"
        met = not regressed or rms(outcome) <= 0.08
        print(
            f"goal, regression within 8 % rms or not separable: {'met' if met else 'missed'} ({what}), "
            f"intervals hold the truth: {all(covers(outcome, name) for name in NAMES)}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="energy by phase against a known truth")
    parser.add_argument("--seconds", type=float, default=30.0, help="of steps in each run")
    parser.add_argument(
        "--burst", type=float, default=EnergyConfig().burst_s, help="seconds of each of perjoule's bursts"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each tool")
    parser.add_argument("--quick", action="store_true", help="perjoule alone, a quick sensor, a few seconds")
    parser.add_argument("--matrix", action="store_true", help="simulated sensors of all kinds in place of the tools")
    parser.add_argument("--cells", type=int, default=200, help="of the matrix")
    parser.add_argument("--seed", type=int, default=0, help="of the matrix")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="recorded sensors in place of the tools")
    parser.add_argument("--window", type=float, help="of the recorded sensors, in seconds, if it is documented")
    parser.add_argument("--refresh", type=float, default=0.1, help="of the recorded sensors, in seconds")
    options = parser.parse_args(arguments)
    print(machine_line())
    if options.replay is not None:
        try:
            replay.report(options.replay, options.window, options.refresh)
        except DataError as error:
            parser.error(str(error))
    elif options.matrix:
        sensor_matrix.report(12 if options.quick else options.cells, options.seed, options.quick)
    else:
        tools = [tool for tool in TOOLS if not options.quick or tool.package == "perjoule"]
        for tool in tools:
            if importlib.util.find_spec(tool.package) is None:
                print(f"{tool.title}: left out, {tool.package} is not installed (make peers)")
        there = [tool for tool in tools if importlib.util.find_spec(tool.package) is not None]
        quick = ["--gpu", "v100", "--seconds", "3", "--burst", "0.7", "--rate", "20"]
        found = measure(
            1 if options.quick else options.repeats,
            quick if options.quick else ["--seconds", str(options.seconds), "--burst", str(options.burst)],
            there,
        )
        report(found)
        verdicts(found)
        print(machine_line())


if __name__ == "__main__":
    main()
