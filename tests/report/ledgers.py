"""Ledgers with figures that are known by hand, for the runs of ``tests.runs.synthetic``."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from perjoule.measure.contract import Form, Sensor, Unavailable
from perjoule.measure.ledger import Account, Bucket, Ledger, StepCurve, Tier, Timeline

NO_ENERGY = Ledger(())
GERMANY = {"g_per_kwh": 360.0, "low": 340.0, "high": 400.0, "location": "DEU", "year": 2023, "source": "Ember"}
SHARES = {"data": 0.1, "forward": 0.2, "forward/think": 0.1, "backward": 0.5, "outside": 0.1}
GPU = Sensor("gpu-0", Form.COUNTER, "gpu", "energy counter", "µJ", 0.1, accuracy=(0.95, 1.05), idle_w=40.0)
CPU = Sensor("cpu", Form.COUNTER, "process", "CPU time × watts", "µJ", 0.01, modelled=True)
MIG = Sensor("mig-0", Form.COUNTER, "mig", "share of the GPU", "µJ", 0.1)
SEPARABLE = "nothing to say"
SHORT = "the phase is shorter than five refreshes, and the regression's condition number is 812"


def bucket(name: str, energy_j: float, tier: Tier = Tier.DIRECT, time_s: float = 1.0, **changes: Any) -> Bucket:
    """Return a bucket whose interval is a tenth to both sides."""
    energy_uj = round(energy_j * 1e6)
    low_uj, high_uj = round(energy_j * 0.9e6), round(energy_j * 1.1e6)
    whole = Bucket(name, round(time_s * 1e9), energy_uj, low_uj, high_uj, None, tier, SEPARABLE)
    return replace(whole, **changes)


def timeline(num_bins: int = 200, end_s: float = 20.0, watts: float = 250.0) -> Timeline:
    """Return a wave about ``watts`` with a gap, in steps whose phases take turns."""
    edges_s = np.linspace(0, end_s, num_bins + 1)
    power_w = watts * (1 + 0.3 * np.sin(edges_s[:-1] * 2))
    power_w[num_bins // 2 : num_bins // 2 + num_bins // 20] = np.nan
    busy = np.where(np.arange(num_bins) < num_bins // 10, 0.0, 1.0)
    shares = {name: share * busy for name, share in SHARES.items()}
    shares["outside"] = 1 - busy + SHARES["outside"] * busy
    return Timeline(edges_s, power_w, shares)


def account(sensor: Sensor, buckets: Sequence[Bucket], steps: tuple[int, int] = (1, 20), **changes: Any) -> Account:
    """Return an account whose total is the sum of its buckets, 5 % to both sides; a tenth of it lies before step 1."""
    total_uj = sum(one.energy_uj for one in buckets)
    numbers = np.arange(steps[0], steps[1] + 1)
    spent_uj = np.linspace(0.1 * total_uj, total_uj, len(numbers) + 1)[1:].astype(np.int64)
    whole = Account(
        segment=0,
        node="here",
        sensor=sensor,
        total_uj=total_uj,
        low_uj=round(total_uj * 0.95),
        high_uj=round(total_uj * 1.05),
        buckets=tuple(buckets),
        unread_s=0.0,
        window_uj=total_uj // 2,
        window_steps=15,
        refresh_s=0.1,
        scale=None,
        timeline=timeline(),
        by_step=StepCurve(numbers, spent_uj),
    )
    return replace(whole, **changes)


def gpu(factor: float = 1.0, **changes: Any) -> Account:
    """Return an account of 1000 J times ``factor`` with a bucket of every tier."""
    buckets = (
        bucket("data", 40 * factor, Tier.SHARED, low_uj=0, high_uj=round(90e6 * factor), why=SHORT),
        bucket("forward", 250 * factor, Tier.BURST, idle_uj=round(60e6 * factor), why="bursts of 3 s"),
        bucket("forward/think", 130 * factor, Tier.REGRESSION, idle_uj=round(30e6 * factor), why="R² 0.99"),
        bucket("backward", 450 * factor, Tier.BURST, idle_uj=round(90e6 * factor), why="bursts of 3 s"),
        bucket("optimizer", 60 * factor, Tier.SHARED, low_uj=round(20e6 * factor), why=SHORT),
        bucket("outside", 50 * factor, Tier.DIRECT, time_s=8.0),
        bucket("unknown", 20 * factor, Tier.DIRECT, time_s=0.5),
    )
    return account(GPU, buckets, **({"scale": 1.03, "unread_s": 0.2} | changes))


def cpu(factor: float = 1.0, **changes: Any) -> Account:
    """Return a modelled account of 100 J times ``factor``, between half and twice that."""
    names = (("data", 30), ("forward", 20), ("backward", 30), ("outside", 18), ("monitor", 2))
    buckets = [
        bucket(
            name,
            joules * factor,
            Tier.MODELLED,
            low_uj=round(joules * factor * 0.5e6),
            high_uj=round(joules * factor * 2e6),
            why="no sensor",
        )
        for name, joules in names
    ]
    ends = {"low_uj": round(50e6 * factor), "high_uj": round(200e6 * factor), "refresh_s": None}
    return account(CPU, buckets, **(ends | changes))


def mig(**changes: Any) -> Account:
    """Return an account of 10 J that lies inside another."""
    return account(MIG, (bucket("backward", 8.0), bucket("outside", 2.0)), **changes)


def ledger(*accounts: Account, unavailable: Mapping[str, Unavailable] | None = None) -> Ledger:
    """Return a ledger of these accounts; of a GPU, the CPU and a part of the first if none is given."""
    return Ledger(accounts or (gpu(), cpu(), mig()), tuple((unavailable or {}).items()))
