"""Who used the energy of a domain: every state's share, by the best tier that its readings allow.

States are ``outside``, ``other`` (a step without its phases) and the phases. In this order:

D  a state that mostly fills whole readings, lag and window allowed for: its part of each reading's energy
B  phases that were calibrated in bursts: calibrated power × time, scaled to what is left of the energy
R  a regression of readings on occupancy, where its gates pass (:mod:`perjoule.measure.regression`)
S  what is left, by time (by processor time above the idle power, for processors), with hard bounds
M  a modelled domain: by its own model

A state that did not last gets nothing. All of it is in floating point; the ledger rounds so that nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perjoule.measure.calibration import Calibration
from perjoule.measure.ledger import Tier
from perjoule.measure.occupancy import OUTSIDE
from perjoule.measure.regression import NotSeparable, Regression, regress
from perjoule.measure.sensor_model import Observations

Floats = NDArray[np.float64]
_PURE = 0.98
"""A reading counts to one state if that held this share of the time which the reading covers."""
_MOSTLY = 0.7
_RUN_LENGTH = 5.0
"""A state is measured directly if this share of its time and this many memories of the sensor are in such readings."""
_SMALL = 0.02
"""States with less of the time than this are no part of a regression."""


@dataclass(frozen=True)
class Estimate:
    """The energy of one state in one domain, joules, before rounding.

    Args:
        energy_j: the estimate.
        low_j: lower end of the 95 % interval, or hard bound.
        high_j: upper end.
        tier: how it was found.
        why: the method's figures, or why no better tier was possible.
    """

    energy_j: float
    low_j: float
    high_j: float
    tier: Tier
    why: str


@dataclass(frozen=True)
class Evidence:
    """What is known of a domain in one segment. Arrays are over the spans between readings that are not in a gap.

    Args:
        states: names of the states.
        energy_j: (num_spans,) energy of each span.
        lasted_s: (num_states, num_spans) time of each state in each span.
        looked_s: (num_states, num_spans) the same over everything that the span's readings can have seen: from the
            sensor's memory before it to its end.
        cpu_s: (num_states,) processor time of each state, all ranks; None where processor time says nothing.
        memory_s: how far back a reading looks: lag, refresh and window.
        idle_w: power below which the domain does not fall; None if it is not known.
        limit_w: power that it cannot exceed; None if it is not known.
        modelled: whether the figure comes from a model.
        accuracy: factors from a reading to the ends of its 95 % interval.
        offset_w: what the true power may exceed a reading by, where that is more.
    """

    states: tuple[str, ...]
    energy_j: Floats
    lasted_s: Floats
    looked_s: Floats
    cpu_s: Floats | None
    memory_s: float
    idle_w: float | None
    limit_w: float | None
    modelled: bool
    accuracy: tuple[float, float]
    offset_w: float = 0.0


@dataclass(frozen=True)
class Attribution:
    """The estimates of all states that lasted, which add up to the evidence's energy, and what calibration predicted.

    Args:
        estimates: state to its energy.
        scale: measured energy of the calibrated phases over the calibrated one; None without a calibration.
        notes: what a reader must know.
    """

    estimates: Mapping[str, Estimate]
    scale: float | None
    notes: tuple[str, ...]


def attribute(
    evidence: Evidence,
    calibrated: tuple[tuple[str, ...], Calibration] | str,
    regression: tuple[Observations, Callable[[Floats], Floats], Mapping[str, float]] | str,
) -> Attribution:
    """Attribute the energy of a domain.

    Args:
        evidence: what is known of it.
        calibrated: phases and their powers in bursts, or why there are none.
        regression: readings, occupancy of all states up to given moments, and the mean length of each state's
            occurrences; or why there can be none.
    """
    time_s = evidence.lasted_s.sum(axis=1)
    open_ = {state for state, spent in zip(evidence.states, time_s, strict=True) if spent > 0}
    if evidence.modelled:
        return Attribution(_scaled(_by_processor(evidence, open_, Tier.MODELLED, ""), evidence), None, ())
    found: dict[str, Estimate] = {}
    found |= _direct(evidence, open_)
    left = open_ - found.keys()
    rest_j = max(float(evidence.energy_j.sum()) - sum(one.energy_j for one in found.values()), 0.0)
    # What the direct ones may be off by, the others are off by the other way round.
    loose_j = float(np.sqrt(sum(((one.high_j - one.low_j) / 2) ** 2 for one in found.values())))
    direct = set(found)
    scale, notes, reasons = None, [], []
    by_difference = ""
    if isinstance(calibrated, str):
        reasons.append(calibrated)
    elif left and (burst := _burst(evidence, left, rest_j, *calibrated)) is not None:
        estimates, scale = burst
        found |= estimates
        by_difference = "what the calibrated phases leave"
        if not 0.9 <= scale <= 1.1:
            notes.append(f"measured / calibrated = {scale:.2f}; interval widened accordingly")
    if len(left) > 1 and scale is None:
        result = _regress(evidence, left, regression)
        if isinstance(result, str):
            reasons.append(result)
        else:
            told_j = sum(one.energy_j for one in result.values())
            found |= _proportional(result, rest_j - _leftover_j(evidence, rest_j, told_j, left, left - result.keys()))
            by_difference = "what the phases of the regression leave"
    others = left - found.keys()
    if others:
        others_j = max(rest_j - sum(found[state].energy_j for state in left - others), 0.0)
        why = by_difference or (f"not separable: {'; '.join(reasons)}" if len(others) > 1 else "what is left")
        found |= _shared(evidence, others, others_j, why, total_is_known=not by_difference)
    found |= _loosened({state: found[state] for state in open_ - direct}, loose_j)
    return Attribution(_scaled(found, evidence), scale, tuple(notes))


def _leftover_j(evidence: Evidence, rest_j: float, told_j: float, left: set[str], others: set[str]) -> float:
    """Return what states without a method of their own get: what the told ones leave, as far as they can have used it.

    Args:
        evidence: what is known of the domain.
        rest_j: energy of all that is left.
        told_j: what the told ones would use by their powers.
        left: all states that are left.
        others: those of them that nothing is told of.
    """
    time_s = dict(zip(evidence.states, evidence.lasted_s.sum(axis=1), strict=True))
    others_s, total_s = sum(time_s[state] for state in others), sum(time_s[state] for state in left)
    most_j = 1.5 * rest_j * others_s / max(total_s, 1e-12)
    return float(min(max(rest_j - told_j, (evidence.idle_w or 0.0) * others_s, 0.2 * most_j), most_j))


def _loosened(estimates: Mapping[str, Estimate], by_j: float) -> dict[str, Estimate]:
    """Widen intervals by what their common total may be off, each by its part of it."""
    whole_j = max(sum(one.energy_j for one in estimates.values()), 1e-300)
    wider = {}
    for state, one in estimates.items():
        mine_j = by_j * one.energy_j / whole_j
        low_j = one.energy_j - float(np.hypot(one.energy_j - one.low_j, mine_j))
        high_j = one.energy_j + float(np.hypot(one.high_j - one.energy_j, mine_j))
        wider[state] = replace(one, low_j=max(low_j, 0.0), high_j=high_j)
    return wider


def _direct(evidence: Evidence, states: set[str]) -> dict[str, Estimate]:
    """Return the states that mostly fill whole readings."""
    found = {}
    span_s = evidence.lasted_s.sum(axis=0)
    looked_s = np.maximum(evidence.looked_s.sum(axis=0), 1e-12)
    mean_w = float(evidence.energy_j.sum() / max(span_s.sum(), 1e-12))
    for row, state in enumerate(evidence.states):
        time_s = float(evidence.lasted_s[row].sum())
        pure = evidence.looked_s[row] / looked_s >= _PURE
        pure_s = float(span_s[pure].sum())
        # What lies outside is made of few long stretches and of moments between steps, which are like them.
        mostly = _MOSTLY / 2 if state == OUTSIDE else _MOSTLY
        if state not in states or pure_s < max(mostly * time_s, _RUN_LENGTH * evidence.memory_s):
            continue
        power_w = evidence.energy_j[pure] / np.maximum(span_s[pure], 1e-12)
        plateau_w = float(evidence.energy_j[pure].sum() / pure_s)
        mixed_s = max(time_s - pure_s, 0.0)
        energy_j = plateau_w * (pure_s + mixed_s)
        # What straddles an edge may belong to either side of it, wherever the sensor saw it.
        edge_j = mixed_s * abs(plateau_w - mean_w) + evidence.memory_s * float(np.abs(power_w - plateau_w).mean())
        why = f"{pure_s / time_s:.0%} of its time fills whole readings"
        found[state] = Estimate(energy_j, max(energy_j - edge_j, 0.0), energy_j + edge_j, Tier.DIRECT, why)
    return found


def _burst(
    evidence: Evidence, left: set[str], rest_j: float, phases: tuple[str, ...], calibration: Calibration
) -> tuple[dict[str, Estimate], float] | None:
    """Return power × time of the calibrated phases, scaled together to what the others leave; None if there is none."""
    time_s = dict(zip(evidence.states, evidence.lasted_s.sum(axis=1), strict=True))
    mine = [state for state in phases if state in left]
    powers = {state: calibration.power_w[phases.index(state)] for state in mine}
    errors = {state: calibration.error_w[phases.index(state)] for state in mine}
    predicted_j = sum(powers[state] * time_s[state] for state in mine)
    if predicted_j <= 0:
        return None
    scale = (rest_j - _leftover_j(evidence, rest_j, predicted_j, left, left - set(mine))) / predicted_j
    drift = max(abs(1 - scale), abs(1 / max(scale, 1e-9) - 1))
    result = {}
    for state in mine:
        energy_j = scale * powers[state] * time_s[state]
        error_j = 1.96 * scale * errors[state] * time_s[state]
        half_j = float(error_j + drift * energy_j)
        why = (
            f"{powers[state]:.4g} ± {1.96 * errors[state]:.2g} W in {calibration.num_bursts} bursts "
            f"(they fit to {calibration.misfit:.1%}), scaled by {scale:.3f} to the measured total"
        )
        result[state] = Estimate(energy_j, max(energy_j - half_j, 0.0), energy_j + half_j, Tier.BURST, why)
    return result, scale


def _regress(
    evidence: Evidence,
    left: set[str],
    regression: tuple[Observations, Callable[[Floats], Floats], Mapping[str, float]] | str,
) -> dict[str, Estimate] | str:
    """Return estimates from a regression, or why there are none."""
    if isinstance(regression, str):
        return regression
    seen, spent_s, lengths_s = regression
    time_s = evidence.lasted_s.sum(axis=1)
    inside = np.array([state in left for state in evidence.states])
    weight = np.where(inside, time_s, 0.0)
    large = weight > _SMALL * weight.sum()
    lasting = time_s > 0
    other = lasting & ~inside & (time_s > 0.0)
    rows = np.flatnonzero(large | other)
    if large.sum() < 2:
        return "only one phase is long enough to matter"
    shortest_s = min(lengths_s.get(evidence.states[row], np.inf) for row in np.flatnonzero(large))
    bounds_w = (evidence.idle_w or 0.0, np.inf if evidence.limit_w is None else evidence.limit_w)
    result: Regression | NotSeparable = regress(seen, lambda at: spent_s(at)[rows], large[rows], shortest_s, bounds_w)
    if isinstance(result, NotSeparable):
        return result.reason
    return {
        evidence.states[row]: Estimate(
            float(result.power_w[number] * time_s[row]),
            float(result.low_w[number] * time_s[row]),
            float(result.high_w[number] * time_s[row]),
            Tier.REGRESSION,
            str(result),
        )
        for number, row in enumerate(rows)
        if large[row]
    }


def _proportional(estimates: Mapping[str, Estimate], total_j: float) -> dict[str, Estimate]:
    """Scale estimates to a total; what that moves them by is added to their intervals."""
    scale = total_j / max(sum(one.energy_j for one in estimates.values()), 1e-300)
    moved = {}
    for state, one in estimates.items():
        energy_j, by_j = scale * one.energy_j, abs(1 - scale) * one.energy_j
        moved[state] = replace(
            one,
            energy_j=energy_j,
            low_j=max(min(one.low_j, scale * one.low_j) - by_j, 0.0),
            high_j=max(one.high_j, scale * one.high_j) + by_j,
        )
    return moved


def _shared(
    evidence: Evidence, states: set[str], total_j: float, why: str, *, total_is_known: bool
) -> dict[str, Estimate]:
    """Share a total by time, within what the device can draw.

    Args:
        evidence: what is known of the domain.
        states: who shares.
        total_j: what they share.
        why: why no better tier was possible.
        total_is_known: whether the total bounds them; what others leave is uncertain and does not.
    """
    time_s = {state: float(evidence.lasted_s[evidence.states.index(state)].sum()) for state in states}
    total_s = sum(time_s.values())
    if evidence.cpu_s is not None:
        points = _by_processor(evidence, states, Tier.SHARED, why, total_j)
    else:
        points = {state: Estimate(total_j * time_s[state] / total_s, 0.0, 0.0, Tier.SHARED, why) for state in states}
    span_s = evidence.lasted_s.sum(axis=0)
    seen_w = float((evidence.energy_j[span_s > 0] / span_s[span_s > 0]).max(initial=0.0))
    mean_w = total_j / max(total_s, 1e-12)
    least_w = min(evidence.idle_w or 0.0, mean_w)
    most_w = max(np.inf if evidence.limit_w is None else evidence.limit_w, mean_w)
    bounded = {}
    for state, one in points.items():
        mine_s, others_s = time_s[state], total_s - time_s[state]
        low_j, high_j = least_w * mine_s, min(most_w, 2 * seen_w) * mine_s
        if total_is_known:
            low_j = max(low_j, total_j - most_w * others_s if others_s > 0 else total_j)
            high_j = min(most_w * mine_s, total_j - least_w * others_s)
        bounded[state] = replace(one, low_j=min(low_j, one.energy_j), high_j=max(high_j, one.energy_j))
    return bounded


def _by_processor(
    evidence: Evidence, states: set[str], tier: Tier, why: str, total_j: float | None = None
) -> dict[str, Estimate]:
    """Share energy: the idle part by time, the rest by processor time."""
    time_s = {state: float(spent) for state, spent in zip(evidence.states, evidence.lasted_s.sum(axis=1), strict=True)}
    cpu_s = {state: 0.0 for state in states}
    if evidence.cpu_s is not None:
        cpu_s = {state: float(evidence.cpu_s[evidence.states.index(state)]) for state in states}
    total = float(evidence.energy_j.sum()) if total_j is None else total_j
    all_s, all_cpu_s = sum(time_s[state] for state in states), sum(cpu_s.values())
    idle_j = total if all_cpu_s <= 0 else min((evidence.idle_w or 0.0) * all_s, total)
    result = {}
    for state in states:
        energy_j = idle_j * time_s[state] / max(all_s, 1e-300)
        if all_cpu_s > 0:
            energy_j += (total - idle_j) * cpu_s[state] / all_cpu_s
        result[state] = Estimate(energy_j, energy_j, energy_j, tier, why)
    return result


def _scaled(estimates: Mapping[str, Estimate], evidence: Evidence) -> dict[str, Estimate]:
    """Widen every interval by what the sensor itself may be off."""
    low, high = evidence.accuracy
    unseen_j = dict(zip(evidence.states, evidence.offset_w * evidence.lasted_s.sum(axis=1), strict=True))
    return {
        state: replace(one, low_j=one.low_j * low, high_j=max(one.high_j * high, one.high_j + float(unseen_j[state])))
        for state, one in estimates.items()
    }
