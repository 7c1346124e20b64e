"""Where the time of the measured window went: by phase, and by phase and rank.

Everything here is over the same steps, those of ``counted_steps``, and is added up in whole nanoseconds, so that the
phases and ``other`` are together exactly the wall clock of these steps. A compilation in the first step is thereby no
part of ``forward``; it stands on the line of the warm-up steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perjoule.core.phases import OTHER, STEP, parent
from perjoule.report.quantity import Distribution, Unavailable, spread
from perjoule.runs.phase_table import PhaseTable
from perjoule.runs.tables import Run

_NS_PER_S = 1e9


@dataclass(frozen=True)
class PhaseCost:
    """What one phase cost in the counted steps.

    Args:
        phase: its name; ``other`` is the step without its phases.
        wall_s: seconds over all segments, without nested phases, on the clock of the lowest rank.
        share: of the time of all counted steps; the shares of a run add up to 1.
        cpu_s: CPU seconds, added over threads and ranks.
        per_step: over the steps in which it occurred.
        how: how the seconds were obtained.
    """

    phase: str
    wall_s: float
    share: float
    cpu_s: float
    per_step: Distribution | Unavailable
    how: str


@dataclass(frozen=True)
class RankCost:
    """What the counted steps cost one rank.

    Args:
        rank: its number; in a resumed run the ranks of the same number are added.
        num_steps: how many of the counted steps it recorded.
        wall_s: phase to seconds without nested phases, ``other`` last.
        cpu_s: CPU seconds of the steps, all threads.
    """

    rank: int
    num_steps: int
    wall_s: Mapping[str, float]
    cpu_s: float


def counted_steps(run: Run) -> NDArray[np.bool_]:
    """Return which rows of ``run.steps`` are counted: the measured window, or every timed step if that is empty."""
    return run.steps.in_window if run.steps.in_window.any() else np.isfinite(run.steps.wall_s)


def phase_costs(run: Run) -> tuple[PhaseCost, ...]:
    """Return what every phase cost in the counted steps, ``other`` last. Their shares add up to 1."""
    segments = _counted_tables(run)
    total_ns = sum(
        ranks[min(ranks)].total_ns(phase) for ranks in segments for phase in (*ranks[min(ranks)].phases, STEP)
    )
    if total_ns == 0:
        return ()
    fences = sorted({str(segment.facts.get("fence", "unknown")) for segment in run.segments})
    how = f"the wall clock at the edges of each phase, fence: {', '.join(fences)}"
    costs = []
    for phase in (*_phases(segments), STEP):
        wall_ns = sum(ranks[min(ranks)].total_ns(phase) for ranks in segments)
        seconds = np.concatenate([ranks[min(ranks)].exclusive_s(phase) for ranks in segments])
        costs.append(
            PhaseCost(
                phase=OTHER if phase == STEP else phase,
                wall_s=wall_ns / _NS_PER_S,
                share=wall_ns / total_ns,
                cpu_s=sum(table.total_cpu_ns(phase) for ranks in segments for table in ranks.values()) / _NS_PER_S,
                per_step=spread(seconds if phase == STEP else seconds[seconds > 0]),
                how="the step without its phases" if phase == STEP else how,
            )
        )
    return tuple(costs)


def rank_costs(run: Run) -> tuple[RankCost, ...]:
    """Return what the counted steps cost each rank; nothing if the run had one rank only."""
    segments = _counted_tables(run)
    if all(int(segment.facts.get("world_size") or 1) == 1 for segment in run.segments):
        return ()
    costs = []
    for rank in sorted({rank for ranks in segments for rank in ranks}):
        tables = [ranks[rank] for ranks in segments if rank in ranks]
        phases = (*_phases(segments), STEP)
        wall_ns = {OTHER if name == STEP else name: sum(table.total_ns(name) for table in tables) for name in phases}
        cpu_ns = sum(table.total_cpu_ns(name) for table in tables for name in phases)
        wall_s = {name: spent / _NS_PER_S for name, spent in wall_ns.items()}
        costs.append(RankCost(rank, sum(len(table.steps) for table in tables), wall_s, cpu_ns / _NS_PER_S))
    return tuple(costs)


def _counted_tables(run: Run) -> list[dict[int, PhaseTable]]:
    """Return for each segment that has a journal the tables of its ranks, cut down to the counted steps."""
    counted = counted_steps(run)
    return [
        {
            rank: table.only(run.steps.step[counted & (run.steps.segment == segment.number)])
            for rank, table in segment.ranks.items()
        }
        for segment in run.segments
        if segment.ranks
    ]


def _phases(segments: list[dict[int, PhaseTable]]) -> list[str]:
    """Return the phases that occur in the counted steps, nested ones behind their parent."""
    names: list[str] = []
    for ranks in segments:
        for table in ranks.values():
            names += [name for name in table.phases if name not in names and table.wall_ns[name].any()]
    place = {name: number for number, name in enumerate(names)}
    return sorted(names, key=lambda name: (place.get(parent(name), place[name]), place[name]))
