"""From the files of one segment and node to the accounts of its domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from perjoule.core.phases import OTHER
from perjoule.measure.attribution import Attribution, Estimate, Evidence, attribute
from perjoule.measure.calibration import Calibration, plateau, published, solve
from perjoule.measure.contract import Form, Sensor, Unavailable
from perjoule.measure.ledger import MONITOR, UNKNOWN, Account, Bucket, StepCurve, Tier, Timeline
from perjoule.measure.occupancy import OUTSIDE, Spent, Whereabouts, together
from perjoule.measure.publications import find_publications
from perjoule.measure.readings import Series, energy_at
from perjoule.measure.sensor_model import Observations
from perjoule.measure.sensors import observed_refresh

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
CALIBRATE = "calibrate"
LONGEST_WINDOW_S = 1.0
"""The longest window of a power sensor that is documented: the average power of NVIDIA's cards since Ampere."""
_NUM_BINS, _NUM_POINTS = 300, 1000
_LEAD_NS = 5_000_000_000
"""A regression begins this long before the first step: the rise of the power shows the sensor's lag."""
_PROCESSOR_SCOPES = ("process", "package", "psys", "dram", "module", "node")
"""Parts of a machine whose energy above idle follows the processor time of the phases."""


@dataclass(frozen=True)
class Course:
    """What a run did on one node in one segment.

    Args:
        segment: its number.
        node: name of the machine.
        ranks: where each of its processes was, the device timeline in place of the host's for an accelerator.
        window: first and last step of the measured window and how many steps it has, or None.
        killed: whether the trainer ended without saying so.
    """

    segment: int
    node: str
    ranks: tuple[Whereabouts, ...]
    window: tuple[int, int, int] | None
    killed: bool

    @cached_property
    def steps(self) -> tuple[Ints, Ints, Ints]:
        """Return number, begin and end of every step of the lowest rank."""
        return self.ranks[0].steps()

    @cached_property
    def end_ns(self) -> int:
        """Return the moment of the last record."""
        return max(rank.end_ns for rank in self.ranks)

    def spent(self, times_ns: Ints) -> Spent:
        """Return what every state had taken at given moments, in any order."""
        unique, places = np.unique(times_ns, return_inverse=True)
        found = together([rank.spent(unique) for rank in self.ranks])
        return Spent(found.states, found.wall_ns[:, places], found.cpu_ns[:, places])


def build_account(
    course: Course, total: Series, power: Series | None, monitor: Series | None, notes: Sequence[str] = ()
) -> Account:
    """Build the account of one domain.

    Args:
        course: what the run did.
        total: the meter whose energy is the domain's total.
        power: a meter of the same domain that shows power over a shorter window, for regressions.
        monitor: processor time of the sampler, ns.
        notes: what is known of the meters.
    """
    t_ns, sensor = total.t_ns, total.sensor
    refresh_s = observed_refresh_s(total)
    memory_s = _memory_s(total, refresh_s)
    edges_ns = np.linspace(t_ns[0], t_ns[-1], _NUM_BINS + 1).astype(np.int64)
    spent = course.spent(np.concatenate([t_ns, t_ns - int(memory_s * 1e9), edges_ns]))
    merged = _merge_calibration(spent)
    num = len(t_ns)
    here = Spent(merged.states, merged.wall_ns[:, :num], merged.cpu_ns[:, :num])
    told = total.known & ~((t_ns[1:] > course.end_ns) & course.killed)
    evidence = _evidence(sensor, total, here, merged.wall_ns[:, num : 2 * num], told, memory_s)
    increase_uj = np.diff(total.energy_uj)
    whole_uj = int(increase_uj.sum())
    unknown_uj = int(increase_uj[~told].sum())
    unknown_ns = int(np.diff(t_ns)[~told].sum())
    monitor_j = _monitor_j(evidence, monitor)
    if monitor_j is not None and evidence.energy_j.sum() > 0:
        keep = 1 - monitor_j / float(evidence.energy_j.sum())
        evidence = Evidence(**{**evidence.__dict__, "energy_j": evidence.energy_j * keep})
    result = attribute(
        evidence, _calibrated(course, total, memory_s, spent.states), _regression(course, total, power, merged)
    )
    buckets = _buckets(result, evidence, (monitor_j, unknown_uj, unknown_ns), whole_uj, sensor)
    low, high = sensor.accuracy
    # A sensor that looks at a part of the time only may misjudge a load in step with it; the calibration shows that.
    predicted_uj = sum(one.energy_uj for one in buckets if one.tier == Tier.BURST) * (1 / (result.scale or 1) - 1)
    first_ns, last_ns = min(rank.begin_ns for rank in course.ranks), course.end_ns
    unread_ns = max(int(t_ns[0]) - first_ns, 0) + max(last_ns - int(t_ns[-1]), 0) + int(np.diff(t_ns)[total.lost].sum())
    window_uj, window_steps = _window(course, total)
    unseen_uj = sensor.offset_w * float(t_ns[-1] - t_ns[0]) / 1e3
    return Account(
        segment=course.segment,
        node=course.node,
        sensor=sensor,
        total_uj=whole_uj,
        low_uj=int((whole_uj + min(predicted_uj, 0)) * low),
        high_uj=int(np.ceil(max((whole_uj + max(predicted_uj, 0)) * high, whole_uj + unseen_uj))),
        buckets=buckets,
        unread_s=unread_ns / 1e9,
        window_uj=window_uj,
        window_steps=window_steps,
        refresh_s=refresh_s,
        scale=result.scale,
        timeline=_timeline(total, edges_ns, merged.states, merged.wall_ns[:, 2 * num :]),
        by_step=_by_step(course, total),
        notes=(*notes, *result.notes),
    )


def observed_refresh_s(series: Series) -> float | None:
    """Return how often a sensor's value changes, as far as the readings show it; None if it hardly ever did."""
    refresh = observed_refresh(series.t_ns, series.raw)
    if isinstance(refresh, Unavailable):
        return None
    if not refresh.only_bounded:
        return refresh.period_s
    begun_ns = series.t_ns[0]
    before_s, after_s = (series.before_ns - begun_ns) / 1e9, (series.after_ns - begun_ns) / 1e9
    found = find_publications(before_s, after_s, series.raw.astype(np.float64), series.sensor.resolution_s)
    return found.period_s or refresh.period_s


def _memory_s(series: Series, refresh_s: float | None) -> float:
    """Return how far back a reading looks: what it waited for, its refresh, its window, and one refresh of lag.

    A power sensor whose window nobody knows may average over as long as any does: taken for a shorter one, its plateaus
    would be confident and wrong.
    """
    sensor = series.sensor
    if sensor.modelled:
        return 0.0
    known_s = sensor.resolution_s if refresh_s is None else min(max(refresh_s, sensor.resolution_s), 10.0)
    known_s = sensor.resolution_s if sensor.resolution_s < 0.3 / series.rate_hz else known_s
    if sensor.form == Form.COUNTER:
        return 2 * known_s + (sensor.window_s or 0.0)
    return 2 * known_s + (max(known_s, LONGEST_WINDOW_S) if sensor.window_s is None else sensor.window_s or known_s)


def _merge_calibration(spent: Spent) -> Spent:
    """Return the states with all of the calibration as one."""
    rows = [row for row, state in enumerate(spent.states) if state.split("/")[0] == CALIBRATE]
    if len(rows) < 2:
        return spent
    kept = [row for row in range(len(spent.states)) if row not in rows[1:]]
    wall, cpu = spent.wall_ns.copy(), spent.cpu_ns.copy()
    wall[rows[0]], cpu[rows[0]] = wall[rows].sum(axis=0), cpu[rows].sum(axis=0)
    return Spent(tuple(spent.states[row] for row in kept), wall[kept], cpu[kept])


def _evidence(
    sensor: Sensor, total: Series, here: Spent, looked_back_ns: Ints, told: NDArray[np.bool_], memory_s: float
) -> Evidence:
    lasted_ns = np.diff(here.wall_ns, axis=1)[:, told]
    looked_ns = (here.wall_ns[:, 1:] - looked_back_ns[:, :-1])[:, told]
    energy_j = np.diff(total.energy_uj)[told] / 1e6
    by_processor = sensor.scope in _PROCESSOR_SCOPES
    cpu_s = np.diff(here.cpu_ns, axis=1)[:, told].sum(axis=1) / 1e9 if by_processor else None
    return Evidence(
        states=here.states,
        energy_j=energy_j,
        lasted_s=lasted_ns / 1e9,
        looked_s=looked_ns / 1e9,
        cpu_s=cpu_s,
        memory_s=memory_s,
        idle_w=sensor.idle_w,
        limit_w=sensor.limit_w,
        modelled=sensor.modelled,
        accuracy=sensor.accuracy,
        offset_w=sensor.offset_w,
    )


def _monitor_j(evidence: Evidence, monitor: Series | None) -> float | None:
    """Return the energy of the sampler's processor time, at the price of the run's; None where it uses none of it."""
    if evidence.cpu_s is None or monitor is None or evidence.modelled or not len(monitor):
        return None
    used_s = float(monitor.raw[-1] - monitor.raw[0]) / 1e9
    whole_j, time_s = float(evidence.energy_j.sum()), float(evidence.lasted_s.sum())
    above_j = max(whole_j - (evidence.idle_w or 0.0) * time_s, 0.0)
    all_s = used_s + float(evidence.cpu_s.sum())
    return above_j * used_s / all_s if all_s > 0 else 0.0


def _calibrated(
    course: Course, total: Series, memory_s: float, states: tuple[str, ...]
) -> tuple[tuple[str, ...], Calibration] | str:
    """Return the calibrated phases and their powers, or why there are none."""
    bursts = course.ranks[0].occurrences(CALIBRATE)
    if not len(bursts):
        return "not calibrated (energy.calibrate=true)"
    shown = published(total)
    flat = [plateau(total.sensor.form, shown, int(begin), int(end), memory_s) for begin, end in bursts]
    found = [one for one in flat if one is not None]
    spent = course.spent(np.array([(one.begin_ns, one.end_ns) for one in found], np.int64).ravel())
    lasted = np.diff(spent.wall_ns.reshape(len(states), len(found), 2), axis=2)[:, :, 0].astype(np.float64)
    rows = [row for row, state in enumerate(states) if state.startswith(f"{CALIBRATE}/")]
    used = lasted[rows].sum(axis=1) > 1e-4 * lasted[rows].sum()
    rows = [row for row, keep in zip(rows, used, strict=True) if keep]
    if not found or not rows:
        return "the calibration was too short for this sensor (energy.burst_s)"
    shares = lasted / lasted.sum(axis=0)
    pauses = 1 - shares[rows].sum(axis=0)
    calibration = solve(shares[rows].T, found, pauses, _pause_w(total, bursts))
    if calibration is None:
        return "the bursts do not tell the phases apart (energy.burst_s)"
    return tuple(states[row].removeprefix(f"{CALIBRATE}/") for row in rows), calibration


def _pause_w(total: Series, bursts: Ints) -> float:
    """Return the power of the pauses of a calibration: that of its quietest readings, which lie between two bursts."""
    during = np.flatnonzero((total.t_ns >= bursts[0, 0]) & (total.t_ns <= bursts[-1, 1]))
    lasted_ns, energy_uj = np.diff(total.t_ns[during]), np.diff(total.energy_uj[during])
    return float(np.quantile(energy_uj / lasted_ns * 1e3, 0.03)) if len(during) > 1 else 0.0


def _regression(
    course: Course, total: Series, power: Series | None, merged: Spent
) -> tuple[Observations, _Occupancy, Mapping[str, float]] | str:
    """Return what a regression needs, or why there can be none."""
    if len(course.ranks) > 1:
        return "several ranks share the device: no regression"
    series = power or total
    if series.sensor.modelled:
        return "modelled"
    steps, begins, _ = course.steps
    first_ns = int(begins[0]) if len(steps) else min(rank.begin_ns for rank in course.ranks)
    series = series.since(first_ns - _LEAD_NS)
    if len(series) < 2:
        return "no readings while the phases ran"
    origin_ns = int(series.t_ns[0])
    before_s, after_s = (series.before_ns - origin_ns) / 1e9, (series.after_ns - origin_ns) / 1e9
    sensor = series.sensor
    counter = sensor.form == Form.COUNTER
    shown = series.energy_uj / 1e6 if counter else series.raw / 1e6
    found = find_publications(before_s, after_s, shown, sensor.resolution_s)
    refresh_s = found.period_s or sensor.resolution_s
    if counter:
        span_s = np.diff(found.t_s)
        good = span_s > 0
        value_w = np.diff(found.values)[good] / span_s[good]
        seen = Observations(found.t_s[1:][good], value_w, span_s[good], found.width_s, refresh_s, None)
    else:
        seen = Observations(found.t_s, found.values, None, found.width_s, refresh_s, sensor.window_s)
    counts = course.ranks[0].count()
    time_s = dict(zip(merged.states, (merged.wall_ns.max(axis=1) - merged.wall_ns.min(axis=1)) / 1e9, strict=True))
    lengths_s = {
        state: spent_s / max(counts[state], 1) for state, spent_s in time_s.items() if counts.get(state) and spent_s > 0
    }
    return seen, _Occupancy(course, origin_ns), lengths_s


@dataclass(frozen=True)
class _Occupancy:
    """Seconds of every state up to moments that are given in seconds since ``origin_ns``."""

    course: Course
    origin_ns: int

    def __call__(self, at_s: Floats) -> Floats:
        times_ns = self.origin_ns + (at_s * 1e9).astype(np.int64)
        spent: Floats = _merge_calibration(self.course.spent(times_ns)).wall_ns / 1e9
        return spent


def _buckets(
    result: Attribution,
    evidence: Evidence,
    rest: tuple[float | None, int, int],
    whole_uj: int,
    sensor: Sensor,
) -> tuple[Bucket, ...]:
    """Round the estimates to whole microjoules that add up to the total, and put them in order."""
    monitor_j, unknown_uj, unknown_ns = rest
    estimates = dict(result.estimates)
    time_ns = {
        state: round(spent * 1e9) for state, spent in zip(evidence.states, evidence.lasted_s.sum(axis=1), strict=True)
    }
    tier = Tier.MODELLED if sensor.modelled else Tier.SHARED
    if monitor_j is not None:
        why = "the sampler's processor time, at the run's energy above idle per second of processor time"
        estimates[MONITOR] = Estimate(monitor_j, 0.0, 2 * monitor_j * sensor.accuracy[1], tier, why)
    order = [state for state in evidence.states if state in estimates and state not in (OUTSIDE, OTHER)]
    order += [state for state in (OTHER, OUTSIDE, MONITOR) if state in estimates]
    energy_uj = allocate(whole_uj - unknown_uj, [estimates[state].energy_j for state in order])
    if not order:
        unknown_uj = whole_uj
    idle_w = sensor.idle_w
    buckets = [
        Bucket(
            name=state,
            time_ns=time_ns.get(state, 0),
            energy_uj=energy,
            low_uj=min(int(estimates[state].low_j * 1e6), energy),
            high_uj=max(int(np.ceil(estimates[state].high_j * 1e6)), energy),
            idle_uj=None if idle_w is None else min(round(idle_w * time_ns.get(state, 0) / 1e3), energy),
            tier=estimates[state].tier,
            why=estimates[state].why,
        )
        for state, energy in zip(order, energy_uj, strict=True)
    ]
    if unknown_ns or unknown_uj:
        low, high = sensor.accuracy
        buckets.append(
            Bucket(
                name=UNKNOWN,
                time_ns=unknown_ns,
                energy_uj=unknown_uj,
                low_uj=int(unknown_uj * low),
                high_uj=int(np.ceil(max(unknown_uj * high, unknown_uj + sensor.offset_w * unknown_ns / 1e3))),
                idle_uj=None,
                tier=Tier.MODELLED if sensor.modelled else Tier.DIRECT,
                why="spans without readings, or after the last record of a killed trainer",
            )
        )
    return tuple(buckets)


def allocate(total: int, weights: Sequence[float]) -> list[int]:
    """Return whole numbers in proportion to the weights that add up to the total (largest remainder)."""
    if not weights:
        return []
    whole = sum(weights)
    exact = [total * weight / whole if whole > 0 else total / len(weights) for weight in weights]
    floors = [int(np.floor(value)) for value in exact]
    order = sorted(range(len(weights)), key=lambda row: floors[row] - exact[row])
    missing = total - sum(floors)
    # Floating point may be off by more than one per weight when the total is beyond 2^53.
    for place in range(abs(missing)) if abs(missing) <= len(weights) else ():
        floors[order[place % len(order)]] += 1 if missing > 0 else -1
    floors[order[0]] += total - sum(floors)
    return floors


def _timeline(total: Series, edges_ns: Ints, states: tuple[str, ...], wall_ns: Ints) -> Timeline:
    lasted_ns = np.diff(edges_ns)
    if not lasted_ns.all():
        return Timeline(np.zeros(1), np.empty(0), {})
    power_w = np.diff(energy_at(total, edges_ns)) / lasted_ns * 1e3
    reading = np.clip(np.searchsorted(total.t_ns, (edges_ns[1:] + edges_ns[:-1]) // 2) - 1, 0, len(total.known) - 1)
    power_w[~total.known[reading]] = np.nan
    shares = np.diff(wall_ns, axis=1) / lasted_ns
    used = {state: shares[row] for row, state in enumerate(states) if shares[row].any()}
    return Timeline((edges_ns - edges_ns[0]) / 1e9, power_w, used)


def _by_step(course: Course, total: Series) -> StepCurve:
    steps, _, ends = course.steps
    read = (ends >= total.t_ns[0]) & (ends <= total.t_ns[-1])
    steps, ends = steps[read], ends[read]
    rows = np.unique(np.linspace(0, max(len(steps) - 1, 0), min(len(steps), _NUM_POINTS)).astype(np.int64))
    return StepCurve(steps[rows], np.rint(energy_at(total, ends[rows])).astype(np.int64))


def _window(course: Course, total: Series) -> tuple[int | None, int]:
    """Return the energy of the measured window and its number of steps, if readings cover it."""
    if course.window is None:
        return None, 0
    first, last, num = course.window
    steps, begins, ends = course.steps
    rows = np.searchsorted(steps, (first, last))
    if len(steps) <= rows[1] or steps[rows[0]] != first or steps[rows[1]] != last:
        return None, 0
    begin_ns, end_ns = begins[rows[0]], ends[rows[1]]
    if begin_ns < total.t_ns[0] or end_ns > total.t_ns[-1]:
        return None, 0
    begin_uj, end_uj = energy_at(total, np.array([begin_ns, end_ns]))
    return round(float(end_uj - begin_uj)), num
