"""Do 95 % intervals hold the truth 95 % of the time? Simulated sensors of all kinds, drawn at random.

``python -m benchmarks.attribution --matrix``. A cell is one combination of a sensor (refresh, window, counter or
power), its lag, smoothing and jitter, how often it is polled, whether its window is documented, the length of a step
and how much that scatters (0 keeps step with the refresh), and whether the phases were calibrated. Each cell is a
simulated run of :mod:`tests.measure.worlds`, read by the code that reads real ones. Counted are its four phases.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tests.measure.worlds import LENGTH_S, PHASES, Device, World, covered, errors

from perjoule.measure.ledger import Tier

SENSORS = {
    "A100": Device(),
    "V100": Device(refresh_s=0.02, window_s=0.01),
    "window 100 ms": Device(window_s=0.1),
    "window 1 s": Device(window_s=1.0),
    "counter 1 ms": Device(refresh_s=0.001, counter=True),
    "counter 100 ms": Device(counter=True),
}
STEP_MS = (10, 50, 200, 2000)
BURST_S = 3.0
GOAL = 0.90
"""Share of the intervals that must hold the truth."""


@dataclass(frozen=True)
class Cell:
    """One combination.

    Args:
        sensor: a key of ``SENSORS``.
        device: the sensor with its faults.
        step_ms: length of a step.
        jitter: how much the length of a phase scatters, relative.
        calibrated: whether bursts came first.
        number: of the cell; a combination may be drawn twice.
    """

    sensor: str
    device: Device
    step_ms: int
    jitter: float
    calibrated: bool
    number: int

    def __str__(self) -> str:
        device, documented = self.device, "unknown" if self.device.documented_window_s is None else "documented"
        return (
            f"{self.sensor}, lag {device.lag_s * 1e3:g} ms, smoothing {device.tau_s * 1e3:g} ms, jitter "
            f"{device.jitter:g}, polled every {device.poll_s * 1e3:g} ms, window {documented}; step {self.step_ms} ms "
            f"± {self.jitter:.1%}{', calibrated' * self.calibrated}"
        )


@dataclass(frozen=True)
class Verdict:
    """What was said of one phase in one cell."""

    cell: Cell
    phase: str
    tier: Tier
    error: float
    covered: bool


def draw(number: int, seed: int) -> Cell:
    """Return a combination at random.

    Args:
        number: of the cell.
        seed: of all cells.
    """
    chance = random.Random(f"{seed} {number}")
    sensor = chance.choice(tuple(SENSORS))
    plain = SENSORS[sensor]
    fast = plain.refresh_s < 0.01
    device = Device(
        refresh_s=plain.refresh_s,
        window_s=plain.window_s,
        counter=plain.counter,
        lag_s=chance.choice((0.0, 0.0003, 0.0015) if fast else (0.0, 0.005, 0.015)),
        tau_s=0.0 if plain.counter else chance.choice((0.0, 0.01)),
        jitter=chance.choice((0.0, 0.01)),
        poll_s=chance.choice((0.05, 0.1)),
        documented_window_s=None if plain.counter or chance.random() < 0.5 else plain.window_s,
    )
    return Cell(
        sensor, device, chance.choice(STEP_MS), chance.choice((0.0, 0.005, 0.02)), chance.random() < 0.5, number
    )


def examine(cell: Cell, seed: int, seconds: float) -> Iterator[Verdict]:
    """Simulate a cell and yield what is said of each phase.

    Args:
        cell: which.
        seed: of everything random in it.
        seconds: of steps; half as long again if they are slow.
    """
    world = World(seed=seed)
    lengths_s = {phase: length_s * cell.step_ms / 10 for phase, length_s in LENGTH_S.items()}
    world.rest(2)
    if cell.calibrated:
        world.calibrate(BURST_S, lengths_s)
        world.rest(1)
    world.train(seconds * (1.5 if cell.step_ms > 200 else 1.0), lengths_s, jitter=cell.jitter)
    world.rest(1)
    account = world.account(cell.device)
    error, holds = errors(account, world), covered(account, world)
    for bucket in account.buckets:
        if bucket.name in PHASES:
            yield Verdict(cell, bucket.name, bucket.tier, error[bucket.name], holds[bucket.name])


def report(num_cells: int, seed: int, quick: bool) -> None:
    """Print, per tier and per sensor, how many phases it was offered for, coverage and error.

    Args:
        num_cells: how many are drawn.
        seed: of all of them.
        quick: simulate short runs.
    """
    begun = time.monotonic()
    verdicts = [
        verdict
        for number in range(num_cells)
        for verdict in examine(draw(number, seed), seed * 100_003 + number, 10.0 if quick else 40.0)
    ]
    print(f"{num_cells} cells, {len(verdicts)} phases, seed {seed}, {time.monotonic() - begun:.0f} s")
    for calibrated in (True, False):
        chosen = [one for one in verdicts if one.cell.calibrated == calibrated]
        print(f"\n{'calibrated' if calibrated else 'not calibrated'}: {len({one.cell for one in chosen})} cells")
        for tier in Tier:
            summarise(tier.value, [one for one in chosen if one.tier == tier])
        print("of these, told apart (not shared), by sensor:")
        for sensor in SENSORS:
            summarise(sensor, [one for one in chosen if one.cell.sensor == sensor and one.tier != Tier.SHARED])
    for one in verdicts:
        if not one.covered:
            print(f"not covered: {one.cell}: {one.phase}, {one.tier.value}, error {one.error:+.1%}")


def summarise(title: str, verdicts: Sequence[Verdict]) -> None:
    """Print one line."""
    if not verdicts:
        print(f"  {title}: none")
        return
    cells = len({one.cell for one in verdicts})
    coverage = float(np.mean([one.covered for one in verdicts]))
    median, worst = np.quantile([abs(one.error) for one in verdicts], [0.5, 1.0])
    goal = "" if coverage >= GOAL else f" (goal {GOAL:.0%} missed)"
    print(
        f"  {title}: {len(verdicts)} phases in {cells} cells; intervals hold the truth in {coverage:.1%}{goal}, "
        f"median |error| {median:.1%}, worst {worst:.1%}"
    )
