"""The ledger: every microjoule of a domain in exactly one bucket, with the method that put it there and an interval.

::

    account (one domain, node, segment)   total = counter difference, or integral of the power readings
      forward, backward, …                what each phase of the run used, without nested ones
      outside                             between and around the phases: start-up, compilation, the loop itself
      monitor                             the sampler's own processor time
      unknown                             spans without readings, or after the last record of a killed trainer

The buckets of an account are whole microjoules and add up to its total, always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from perjoule.core.phases import OTHER
from perjoule.measure.contract import Sensor, Unavailable
from perjoule.measure.occupancy import OUTSIDE
from perjoule.measure.scopes import outermost

MONITOR, UNKNOWN = "monitor", "unknown"
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Tier(StrEnum):
    """How the energy of a bucket was found, best first."""

    DIRECT = "direct"
    BURST = "burst"
    REGRESSION = "regression"
    SHARED = "shared"
    MODELLED = "modelled"


PROVENANCE: Mapping[Tier, str] = {
    Tier.DIRECT: "measured",
    Tier.BURST: "calibrated",
    Tier.REGRESSION: "regressed",
    Tier.SHARED: "shared",
    Tier.MODELLED: "modelled",
}
"""The word that stands beside a figure of each tier."""


@dataclass(frozen=True)
class Bucket:
    """What one bucket of an account holds.

    Args:
        name: a phase, ``outside``, ``monitor`` or ``unknown``.
        time_ns: time spent in it.
        energy_uj: its energy.
        low_uj: lower end of the 95 % interval; for the tier ``shared`` a hard bound.
        high_uj: upper end.
        idle_uj: what an idle device would have used in that time; it is part of ``energy_uj``. None if the idle power
            is not known.
        tier: how ``energy_uj`` was found.
        why: in words: the method's figures, or why no better tier was possible.
    """

    name: str
    time_ns: int
    energy_uj: int
    low_uj: int
    high_uj: int
    idle_uj: int | None
    tier: Tier
    why: str


@dataclass(frozen=True)
class Timeline:
    """Power against time, in bins.

    Args:
        edges_s: (num_bins + 1,) seconds since the segment's first reading.
        power_w: (num_bins,) mean power; NaN where there is no reading.
        shares: phase (and ``outside``) to the (num_bins,) share of each bin's time; they add up to 1.
    """

    edges_s: Floats
    power_w: Floats
    shares: Mapping[str, Floats]


@dataclass(frozen=True)
class StepCurve:
    """Energy against steps.

    Args:
        steps: (num_points,) step numbers, ascending, the first and the last among them.
        energy_uj: (num_points,) energy from the segment's first reading to the end of that step.
    """

    steps: Ints
    energy_uj: Ints


@dataclass(frozen=True)
class Account:
    """The energy of one domain of one node in one segment.

    Args:
        segment: its number.
        node: name of the machine.
        sensor: the meter that gave the total.
        total_uj: everything that was measured; the sum of ``buckets``.
        low_uj: lower end of the total's 95 % interval, from the sensor's accuracy and what lies at the edges.
        high_uj: upper end.
        buckets: in the order of the phases, then outside, monitor, unknown; those without time and energy left out.
        unread_s: seconds at the ends of the segment from which there is no reading; their energy is not in the total.
        window_uj: energy from the beginning of the first to the end of the last step of the measured window; None
            if there is no such step.
        window_steps: number of these steps.
        refresh_s: how often the sensor's value changes, as seen in the samples; None if it never did.
        scale: measured energy of the phases over what the calibration predicts; None without one.
        timeline: power against time.
        by_step: energy against steps.
        notes: what a reader must know, one line each.
    """

    segment: int
    node: str
    sensor: Sensor
    total_uj: int
    low_uj: int
    high_uj: int
    buckets: tuple[Bucket, ...]
    unread_s: float
    window_uj: int | None
    window_steps: int
    refresh_s: float | None
    scale: float | None
    timeline: Timeline
    by_step: StepCurve
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Return the domain and its node."""
        return f"{self.sensor.domain} on {self.node}"


@dataclass(frozen=True)
class Total:
    """The energy of a run over all domains that are not part of another one.

    Args:
        energy_uj: sum over ``domains``.
        low_uj: lower end of the 95 % interval; the errors of domains are taken to be in the same direction.
        high_uj: upper end.
        domains: what was added, each with its node.
        inside: domains that were metered but are part of one of these.
        modelled: whether a part of it is modelled.
    """

    energy_uj: int
    low_uj: int
    high_uj: int
    domains: tuple[str, ...]
    inside: tuple[str, ...]
    modelled: bool


@dataclass(frozen=True)
class Ledger:
    """All accounts of a run.

    Args:
        accounts: by segment, then node, then domain.
        unavailable: (kind of meter, what is missing), each once.
    """

    accounts: tuple[Account, ...]
    unavailable: tuple[tuple[str, Unavailable], ...] = ()

    def merged(self) -> tuple[Account, ...]:
        """Return one account per node and domain, the segments of a resumed run added up."""
        groups: dict[tuple[str, str], list[Account]] = {}
        for account in self.accounts:
            groups.setdefault((account.node, account.sensor.domain), []).append(account)
        return tuple(map(merge, groups.values()))

    def total(self) -> Total | Unavailable:
        """Return the energy over all domains that are not part of another one, or why there is none."""
        merged = self.merged()
        if not merged:
            reasons = "; ".join(f"{kind}: {missing.reason}" for kind, missing in self.unavailable)
            return Unavailable(reasons or "no meter in this run")
        counted = outermost_accounts(merged)
        return Total(
            energy_uj=sum(one.total_uj for one in counted),
            low_uj=sum(one.low_uj for one in counted),
            high_uj=sum(one.high_uj for one in counted),
            domains=tuple(one.label for one in counted),
            inside=tuple(one.label for one in merged if one not in counted),
            modelled=any(one.sensor.modelled for one in counted),
        )


def outermost_accounts(accounts: Sequence[Account]) -> tuple[Account, ...]:
    """Return the accounts whose domains are not part of another one's on the same node."""
    counted: list[Account] = []
    for node in dict.fromkeys(one.node for one in accounts):
        mine = [one for one in accounts if one.node == node]
        kept = outermost([one.sensor for one in mine])
        counted += [one for one in mine if one.sensor in kept]
    return tuple(counted)


def merge(accounts: Sequence[Account]) -> Account:
    """Add up accounts of the same node and domain, oldest first.

    Ends of intervals are added, which takes all errors to be in the same direction. A bucket has the weakest tier of
    its parts. Timeline, refresh and scale are those of the last one; the curve goes on where the one before ended.
    """
    if len(accounts) == 1:
        return accounts[0]
    last = accounts[-1]
    parts: dict[str, list[Bucket]] = {}
    for account in accounts:
        for bucket in account.buckets:
            parts.setdefault(bucket.name, []).append(bucket)
    behind = [name for name in (OTHER, OUTSIDE, MONITOR, UNKNOWN) if name in parts]
    order = [name for name in parts if name not in behind] + behind
    windows = [one.window_uj for one in accounts if one.window_uj is not None]
    return replace(
        last,
        total_uj=sum(one.total_uj for one in accounts),
        low_uj=sum(one.low_uj for one in accounts),
        high_uj=sum(one.high_uj for one in accounts),
        buckets=tuple(_merge_buckets(parts[name]) for name in order),
        unread_s=sum(one.unread_s for one in accounts),
        window_uj=sum(windows) if windows else None,
        window_steps=sum(one.window_steps for one in accounts if one.window_uj is not None),
        by_step=_merge_curves(accounts),
        notes=tuple(dict.fromkeys(note for one in accounts for note in one.notes)),
    )


def _merge_buckets(buckets: Sequence[Bucket]) -> Bucket:
    idle = [bucket.idle_uj for bucket in buckets]
    weakest = max(buckets, key=lambda bucket: list(Tier).index(bucket.tier))
    return replace(
        weakest,
        time_ns=sum(bucket.time_ns for bucket in buckets),
        energy_uj=sum(bucket.energy_uj for bucket in buckets),
        low_uj=sum(bucket.low_uj for bucket in buckets),
        high_uj=sum(bucket.high_uj for bucket in buckets),
        idle_uj=None if None in idle else sum(one for one in idle if one is not None),
    )


def _merge_curves(accounts: Sequence[Account]) -> StepCurve:
    """Return energy against steps over all segments; steps that a resume threw away stay in the energy only."""
    steps, energy, before = [], [], 0
    for number, account in enumerate(accounts):
        later = [one.by_step.steps[0] for one in accounts[number + 1 :] if len(one.by_step.steps)]
        kept = account.by_step.steps < min(later, default=np.iinfo(np.int64).max)
        steps.append(account.by_step.steps[kept])
        energy.append(account.by_step.energy_uj[kept] + before)
        before += account.total_uj
    return StepCurve(np.concatenate(steps), np.concatenate(energy))
