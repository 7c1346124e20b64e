"""Simulated runs with a known truth: phases with given powers, seen through a sensor with given faults."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perjoule.core.phases import STEP, parent
from perjoule.measure.accounts import Course, build_account
from perjoule.measure.contract import Form, Sensor
from perjoule.measure.ledger import Account
from perjoule.measure.occupancy import Whereabouts
from perjoule.measure.readings import Series, join
from perjoule.runs.journal import BEGIN, END, RECORD_DTYPE, Journal

Floats = NDArray[np.float64]
PHASES = ("data", "forward", "backward", "optimizer")
POWER_W = {"data": 120.0, "forward": 300.0, "backward": 400.0, "optimizer": 220.0}
LENGTH_S = {"data": 1e-3, "forward": 3e-3, "backward": 5e-3, "optimizer": 1e-3}
"""The step that the issue's benchmark prescribes."""


@dataclass(frozen=True)
class Device:
    """How a sensor sees the power of a device; times in seconds, noise relative."""

    refresh_s: float = 0.1
    window_s: float = 0.025
    lag_s: float = 0.0
    tau_s: float = 0.0
    jitter: float = 0.0
    noise: float = 0.01
    gain: float = 1.0
    counter: bool = False
    poll_s: float = 0.05
    documented_window_s: float | None = None
    documented_refresh_s: float | None = None


@dataclass
class World:
    """A course of events and the power that it drew.

    Args:
        idle_w: power outside of everything.
        seed: of everything random.
    """

    idle_w: float = 60.0
    seed: int = 0
    now_s: float = 0.0
    edges_s: list[float] = field(default_factory=list)
    levels_w: list[float] = field(default_factory=list)
    records: list[tuple[float, str, int, int]] = field(default_factory=list)
    spent_j: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def stretch(self, length_s: float, power_w: float, bucket: str) -> None:
        """Let time pass at a power."""
        self.edges_s.append(self.now_s)
        self.levels_w.append(power_w)
        self.spent_j[bucket] = self.spent_j.get(bucket, 0.0) + length_s * power_w
        self.now_s += length_s

    def mark(self, phase: str, kind: int, step: int) -> None:
        """Write one record."""
        self.records.append((self.now_s, phase, kind, step))

    def rest(self, length_s: float) -> None:
        """Do nothing."""
        self.stretch(length_s, self.idle_w, "outside")

    def train(
        self,
        seconds: float,
        lengths_s: Mapping[str, float] = LENGTH_S,
        powers_w: Mapping[str, float] = POWER_W,
        jitter: float = 0.02,
    ) -> None:
        """Take steps of phases for about ``seconds``; each phase's length scatters by ``jitter``."""
        step = max((record[3] for record in self.records), default=0)
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            step += 1
            self.mark(STEP, BEGIN, step)
            for phase, length_s in lengths_s.items():
                self.mark(phase, BEGIN, step)
                self.stretch(abs(length_s * (1 + jitter * self.random.standard_normal())), powers_w[phase], phase)
                self.mark(phase, END, step)
            self.mark(STEP, END, step)

    def calibrate(
        self,
        seconds: float,
        lengths_s: Mapping[str, float] = LENGTH_S,
        powers_w: Mapping[str, float] = POWER_W,
        bursts: Sequence[Sequence[str]] = (
            ("data",),
            ("forward",),
            ("forward", "backward"),
            ("optimizer",),
            ("data", "forward", "backward", "optimizer"),
        ),
    ) -> None:
        """Repeat phases as bursts, with a pause of half a second after each."""
        for parts in bursts:
            self.mark("calibrate", BEGIN, 0)
            end_s, pause_s = self.now_s + seconds, self.now_s + 0.2
            while self.now_s < end_s:
                for phase in parts:
                    self.mark(f"calibrate/{phase}", BEGIN, 0)
                    length_s = abs(lengths_s[phase] * (1 + 0.01 * self.random.standard_normal()))
                    self.stretch(length_s, powers_w[phase], "calibrate")
                    self.mark(f"calibrate/{phase}", END, 0)
                if self.now_s > pause_s:
                    self.stretch(self.random.uniform(0, 0.01), self.idle_w, "calibrate")
                    pause_s = self.now_s + 0.2
            self.mark("calibrate", END, 0)
            self.rest(0.5)

    def whereabouts(self) -> Whereabouts:
        """Return what the run recorded."""
        names = list(dict.fromkeys(phase for _, phase, _, _ in self.records))
        names = sorted(names, key=lambda name: (parent(name) != STEP, names.index(name)))
        rows = np.zeros(len(self.records), RECORD_DTYPE)
        for row, (t_s, phase, kind, step) in zip(rows, self.records, strict=True):
            row["t_ns"] = row["cpu_ns"] = round(t_s * 1e9)
            row["phase"], row["kind"], row["step"] = names.index(phase), kind, step
        return Whereabouts(Journal({"phases": names}, rows))

    def energy_j(self, at_s: Floats) -> Floats:
        """Return the true energy up to given moments; before and after everything the device idles."""
        edges = np.append(self.edges_s, self.now_s)
        total = np.concatenate([[0.0], np.cumsum(np.diff(edges) * self.levels_w)])
        found: Floats = np.interp(at_s, edges, total)
        return found + self.idle_w * (np.minimum(at_s, 0) + np.maximum(at_s - self.now_s, 0))

    def power_w(self, at_s: Floats) -> Floats:
        """Return the true power at given moments."""
        row = np.searchsorted(self.edges_s, at_s, side="right") - 1
        inside = (row >= 0) & (at_s < self.now_s)
        found: Floats = np.where(inside, np.asarray(self.levels_w)[row.clip(0)], self.idle_w)
        return found

    def read(self, device: Device) -> Series:
        """Return what a sampler reads from before the first moment to behind the last."""
        random = np.random.default_rng(zlib.crc32(repr((device, self.seed)).encode()))
        start_s, stop_s = -0.5, self.now_s + 0.5
        ticks = np.arange(start_s - 0.4 + random.uniform(0, device.refresh_s), stop_s, device.refresh_s)
        ticks = np.sort(ticks + device.jitter * device.refresh_s * random.standard_normal(len(ticks)))
        if device.counter:
            shown = np.rint((self.energy_j(ticks - device.lag_s) + 1000) * 1e6 * device.gain)
        else:
            shown = self._seen(ticks - device.lag_s, device)
            shown = np.rint(shown * device.gain * (1 + device.noise * random.standard_normal(len(ticks))) * 1e6)
        polls = np.arange(int((stop_s - start_s) / device.poll_s))
        t_s = np.sort(start_s + (polls + random.random(len(polls))) * device.poll_s)
        row = np.searchsorted(ticks, t_s, side="right") - 1
        before = np.rint(t_s * 1e9).astype(np.int64)
        sensor = Sensor(
            domain="gpu-0",
            form=Form.COUNTER if device.counter else Form.POWER,
            scope="gpu",
            method="simulated",
            unit="µJ" if device.counter else "µW",
            resolution_s=device.documented_refresh_s or device.refresh_s,
            window_s=device.documented_window_s,
            limit_w=500.0,
        )
        return join(sensor, [(before, before + 20_000, shown[row].astype(np.int64))], 1 / device.poll_s)

    def _seen(self, at_s: Floats, device: Device) -> Floats:
        """Return power averaged over the window before given moments, smoothed first."""
        if device.tau_s == 0:
            total_j = self.energy_j
            seen: Floats = (total_j(at_s) - total_j(at_s - device.window_s)) / device.window_s
            return seen
        # Smoothing and averaging commute: smooth the running mean on a fine grid.
        cell_s = device.tau_s / 40
        grid = np.arange(at_s[0] - 12 * device.tau_s - device.window_s, at_s[-1] + cell_s, cell_s)
        mean = (self.energy_j(grid) - self.energy_j(grid - device.window_s)) / device.window_s
        weights = np.exp(-np.arange(480) / 40)
        smooth = np.convolve(mean - mean[0], weights / weights.sum())[: len(mean)] + mean[0]
        found: Floats = np.interp(at_s, grid, smooth)
        return found

    def account(self, *devices: Device) -> Account:
        """Return the account of the device from its first series, the second one for regressions."""
        series = [self.read(device) for device in devices]
        rank = self.whereabouts()
        course = Course(0, "node", (rank,), None, killed=False)
        return build_account(course, series[0], series[1] if len(series) > 1 else None, None)


def errors(account: Account, world: World) -> dict[str, float]:
    """Return the relative error of every phase's energy."""
    return {
        bucket.name: bucket.energy_uj / 1e6 / world.spent_j[bucket.name] - 1
        for bucket in account.buckets
        if bucket.name in PHASES
    }


def covered(account: Account, world: World) -> dict[str, bool]:
    """Return whether every phase's interval holds the truth."""
    return {
        bucket.name: bucket.low_uj <= world.spent_j[bucket.name] * 1e6 <= bucket.high_uj
        for bucket in account.buckets
        if bucket.name in PHASES
    }
