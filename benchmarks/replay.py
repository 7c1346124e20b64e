"""Recorded sensors of real cards, replayed through the code that reads runs.

``python -m benchmarks.attribution --replay FOLDER [--window SECONDS] [--refresh SECONDS]``. The folder holds, for each
card,

``<card>_sensor.csv``   ``time_s``, ``power_draw_w`` and perhaps ``power_instant_w``: what the card's own sensor showed
``<card>_phases.csv``   ``start_s``, ``end_s``, ``phase``: what the card did, on the same clock
``<card>_meter.csv``    ``time_s``, ``power_w``: an external meter, the truth; it may be missing

A phase that recurs is one phase. Without a window the sensor's is taken to be unknown.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perjoule.core.errors import DataError
from perjoule.core.phases import STEP
from perjoule.measure.accounts import Course, build_account
from perjoule.measure.contract import Form, Sensor
from perjoule.measure.ledger import Account, Bucket, Tier
from perjoule.measure.occupancy import Whereabouts
from perjoule.measure.readings import join
from perjoule.runs.journal import BEGIN, END, RECORD_DTYPE, Journal

ACCURACY = (0.90, 1.08)
"""As :mod:`perjoule.measure.meters.nvidia` has it."""
GOAL = 0.15
"""How far a phase's power may be off."""


@dataclass(frozen=True)
class Log:
    """What was recorded of one card.

    Args:
        card: its name.
        stretches: (phase, begin, end) in seconds.
        time_s: (num,) moments of the readings.
        power_w: quantity to its (num,) readings; NaN where the sensor gave none.
        truth_w: phase to its true power; empty if no external meter was there.
    """

    card: str
    stretches: tuple[tuple[str, float, float], ...]
    time_s: NDArray[np.float64]
    power_w: Mapping[str, NDArray[np.float64]]
    truth_w: Mapping[str, float]


def read_log(folder: Path, card: str) -> Log:
    """Read the files of one card.

    Raises:
        DataError: if nothing says what the card did.
    """
    phases = folder / f"{card}_phases.csv"
    if not phases.is_file():
        raise DataError(f"{phases} is missing: it says when the phases of {card} began and ended")
    with phases.open(encoding="utf-8") as file:
        rows = [(row["phase"], float(row["start_s"]), float(row["end_s"])) for row in csv.DictReader(file)]
    readings = np.genfromtxt(folder / f"{card}_sensor.csv", delimiter=",", names=True)
    columns = {name: readings[name] for name in readings.dtype.names or () if name != "time_s"}
    power_w = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    truth_w: dict[str, float] = {}
    if (meter := folder / f"{card}_meter.csv").is_file():
        truth = np.genfromtxt(meter, delimiter=",", names=True)
        truth_w = _mean_w(truth["time_s"], truth["power_w"], rows)
    return Log(card, tuple(rows), readings["time_s"], power_w, truth_w)


def _mean_w(
    time_s: NDArray[np.float64], power_w: NDArray[np.float64], stretches: list[tuple[str, float, float]]
) -> dict[str, float]:
    """Return the mean power of each phase by the external meter."""
    seen: dict[str, list[NDArray[np.float64]]] = {}
    for phase, start_s, end_s in stretches:
        seen.setdefault(phase, []).append(power_w[(time_s >= start_s) & (time_s < end_s)])
    return {phase: float(np.concatenate(parts).mean()) for phase, parts in seen.items()}


def replay(log: Log, quantity: str, window_s: float | None, refresh_s: float) -> Account:
    """Build the account of a card from what its sensor showed.

    Args:
        log: what was recorded.
        quantity: column of the sensor's file.
        window_s: time that the sensor averages over; None if it is not known.
        refresh_s: time between two of its values, as documented.
    """
    phases = [STEP, *dict.fromkeys(phase for phase, _, _ in log.stretches)]
    records = np.zeros(2 * len(log.stretches), RECORD_DTYPE)
    edges = [
        (phase, at_s, kind) for phase, *ends in log.stretches for at_s, kind in zip(ends, (BEGIN, END), strict=True)
    ]
    for record, (phase, at_s, kind) in zip(records, edges, strict=True):
        record["t_ns"], record["phase"], record["kind"] = round(at_s * 1e9), phases.index(phase), kind
    sensor = Sensor("gpu-0", Form.POWER, "gpu", quantity, "µW", refresh_s, window_s, accuracy=ACCURACY)
    read = np.isfinite(log.power_w[quantity])
    t_ns = np.rint(log.time_s[read] * 1e9).astype(np.int64)
    raw = np.rint(log.power_w[quantity][read] * 1e6).astype(np.int64)
    series = join(sensor, [(t_ns, t_ns, raw)], 1 / float(np.median(np.diff(log.time_s))))
    rank = Whereabouts(Journal({"phases": phases}, records))
    return build_account(Course(0, "recorded", (rank,), None, killed=False), series, None, None)


def verdict(bucket: Bucket, true_w: float | None) -> str:
    """Return what is to be said of a phase: within the goal, honest, or a confident wrong answer."""
    low_w, found_w, high_w = (
        energy / bucket.time_ns * 1e3 for energy in (bucket.low_uj, bucket.energy_uj, bucket.high_uj)
    )
    said = f"{found_w:.1f} W [{low_w:.1f}, {high_w:.1f}], {bucket.tier.value}"
    if true_w is None:
        return f"{said}; truth not metered"
    holds, error = low_w <= true_w <= high_w, found_w / true_w - 1
    if not holds:
        judged = "CONFIDENT AND WRONG"
    elif bucket.tier == Tier.SHARED:
        judged = "not separable, and says so"
    else:
        judged = "right" if abs(error) <= GOAL else f"off by more than {GOAL:.0%}, and its interval says so"
    return f"{said}; truth {true_w:.1f} W, error {error:+.1%}: {judged}"


def report(folder: Path, window_s: float | None, refresh_s: float) -> None:
    """Print what is said of every phase of every card in a folder.

    Args:
        folder: of the recordings.
        window_s: time that the sensors average over; None if it is not known.
        refresh_s: time between two of their values, as documented.

    Raises:
        DataError: if there are none, or one is not complete.
    """
    cards = sorted(path.name.removesuffix("_sensor.csv") for path in folder.glob("*_sensor.csv"))
    if not cards:
        raise DataError(f"{folder} holds no recordings: <card>_sensor.csv and <card>_phases.csv are needed")
    for card in cards:
        log = read_log(folder, card)
        for quantity in log.power_w:
            account = replay(log, quantity, window_s, refresh_s)
            known = "unknown" if window_s is None else f"{window_s * 1e3:g} ms"
            print(f"{card}, {quantity}, window {known}: {len(log.time_s)} readings, {account.total_uj / 1e6:.0f} J")
            for bucket in account.buckets:
                if bucket.name in {phase for phase, _, _ in log.stretches}:
                    print(f"  {bucket.name}: {verdict(bucket, log.truth_w.get(bucket.name))}")
                    print(f"    {bucket.why}")
