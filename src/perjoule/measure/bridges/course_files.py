"""The files of the course toolkit's *codecarbon* stats, filled from our ledger, so that its analysis scripts read them.

::

    run_<n>_cc_full_rank_<device>.csv                  one row for the run
    run_<n>_cc_step_rank_<device>-steps.csv            Step #1, Step #2, …
    run_<n>_cc_substep_rank_<device>-substeps.csv      Forward pass #1, Backward pass #1, Optimisation step #1, …
    losses/run_<n>_cc_loss_rank_<device>.csv           columns literally 0 and 1: task and loss

The columns are those of CodeCarbon 3.1, which the toolkit uses, and ``provenance`` behind them. The two by-products
that the toolkit writes besides are not written. A step is what the toolkit calls one: without the fetch of its data, an
evaluation or a checkpoint.

The energy of one execution of a phase is *its share by time of the energy of the phase*, which the ledger measured,
calibrated or modelled over the run: no sensor tells single steps of milliseconds apart (CodeCarbon's rows for such are
0 in 30 to 99 of 100). The last column says so by the words ``by time``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perjoule.core.errors import RunFolderError
from perjoule.core.phases import BACKWARD, FORWARD, OPTIMIZER, OTHER, STEP, TRANSFER
from perjoule.measure.bridges.codecarbon_schema import (
    OWN_COLUMNS,
    RUN_COLUMNS,
    TASK_COLUMNS,
    UJ_PER_J,
    UJ_PER_KWH,
    Entry,
    cells,
    common_facts,
    metered_s,
    word,
)
from perjoule.measure.ledger import PROVENANCE, Account, Ledger, Total
from perjoule.runs.exports import Cell, write_csv
from perjoule.runs.phase_table import PhaseTable
from perjoule.runs.step_table import Floats, Ints
from perjoule.runs.tables import Run

_SINCE_3_2 = {"cpu_utilization_percent", "gpu_utilization_percent", "ram_utilization_percent", "ram_used_gb"}
FULL_COLUMNS = tuple(column for column in RUN_COLUMNS if column not in _SINCE_3_2)
COURSE_TASK_COLUMNS = tuple(column for column in TASK_COLUMNS if column not in _SINCE_3_2)
STEPS = "Step"
SUBSTEPS: Mapping[str, tuple[str, ...]] = {
    "Forward pass": (FORWARD,),
    "Backward pass": (BACKWARD,),
    "Optimisation step": (OPTIMIZER,),
}
_IN_STEP = (TRANSFER, FORWARD, BACKWARD, OPTIMIZER, OTHER)


@dataclass(frozen=True)
class Tasks:
    """All executions of one task in one segment.

    Args:
        name: such as ``Forward pass``.
        steps: (num_steps,) their numbers.
        seconds: (num_steps,) how long each took.
        spent_uj: for each account the (num_steps,) energies.
        words: where the energies are from.
        gco2e_per_kwh: of the segment, PUE included; None if it is not known.
    """

    name: str
    steps: Ints
    seconds: Floats
    spent_uj: Sequence[tuple[Account, Floats]]
    words: tuple[str, ...]
    gco2e_per_kwh: float | None

    def entries(self) -> Iterator[Entry]:
        """Yield one entry per execution."""
        for row, step in enumerate(self.steps):
            spent = [(account, float(energies[row])) for account, energies in self.spent_uj]
            grams = _grams(sum(used_uj for _, used_uj in spent), self.gco2e_per_kwh)
            yield Entry(f"{self.name} #{step}", float(self.seconds[row]), spent, self.words, grams)


def write_course_files(run: Run, ledger: Ledger, folder: Path, number: int, device: str) -> tuple[Path, ...]:
    """Write the four files.

    Args:
        run: a run whose steps are timed.
        ledger: its energy.
        folder: where to; made if it is missing.
        number: of the run, for the names.
        device: of the rank, for the names, such as ``0``.

    Returns:
        The files that were written; only the losses if nothing was metered.

    Raises:
        RunFolderError: if a file cannot be written.
    """
    try:
        (folder / "losses").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"cannot create {folder / 'losses'}: {error.strerror}") from error
    start, steps = f"run_{number}_cc_", run.steps
    losses = (
        (f"{STEPS} #{step}", float(loss) if np.isfinite(loss) else None)
        for step, loss in zip(steps.step, steps.loss, strict=True)
    )
    written = [write_csv(folder / "losses" / f"{start}loss_rank_{device}.csv", ("0", "1"), losses)]
    accounts = _counted(ledger)
    if not accounts:
        return tuple(written)
    facts = common_facts(run, accounts)
    tables = (
        (f"{start}full_rank_{device}.csv", FULL_COLUMNS, iter([_whole(run, accounts)])),
        (f"{start}step_rank_{device}-steps.csv", COURSE_TASK_COLUMNS, _steps(run, accounts)),
        (f"{start}substep_rank_{device}-substeps.csv", COURSE_TASK_COLUMNS, _substeps(run, accounts)),
    )
    for name, columns, entries in tables:
        rows: Iterator[list[Cell]] = (cells(columns, entry, facts) for entry in entries)
        written.append(write_csv(folder / name, (*columns, *OWN_COLUMNS), rows))
    return tuple(written)


def course_table(run: Run, ledger: Ledger) -> list[str]:
    """Return the lines that are printed at the end: mean time and energy of every task."""
    accounts = _counted(ledger)
    if not accounts:
        return ["no energy: " + ("; ".join(missing.reason for _, missing in ledger.unavailable) or "no meter")]
    lines = [f"{'task':<18}{'number':>8}{'mean ms':>12}{'mean J':>12}  provenance"]
    for name, phases in ((STEPS, _IN_STEP), *SUBSTEPS.items()):
        parts = [one for one in _tasks(run, accounts, name, phases) if len(one.steps)]
        num = sum(len(one.steps) for one in parts)
        if num:
            mean_s = sum(float(one.seconds.sum()) for one in parts) / num
            mean_j = sum(float(energies.sum()) for one in parts for _, energies in one.spent_uj) / UJ_PER_J / num
            words = "+".join(dict.fromkeys(part for one in parts for part in one.words))
            lines.append(f"{name:<18}{num:>8}{mean_s * 1e3:>12.3f}{mean_j:>12.4g}  {words}")
    return lines


def _counted(ledger: Ledger) -> list[Account]:
    total = ledger.total()
    return [one for one in ledger.accounts if isinstance(total, Total) and one.label in total.domains]


def _whole(run: Run, accounts: Sequence[Account]) -> Entry:
    grams = [_grams(one.total_uj, _gco2e_per_kwh(run, one.segment)) for one in accounts]
    known = [one for one in grams if one is not None]
    spent = [(one, one.total_uj) for one in accounts]
    gco2e = sum(known) if len(known) == len(grams) else None
    return Entry(run.name, metered_s(accounts), spent, map(word, accounts), gco2e)


def _steps(run: Run, accounts: Sequence[Account]) -> Iterator[Entry]:
    for tasks in _tasks(run, accounts, STEPS, _IN_STEP):
        yield from tasks.entries()


def _substeps(run: Run, accounts: Sequence[Account]) -> Iterator[Entry]:
    """Yield the substeps of step after step."""
    kinds = [_tasks(run, accounts, name, phases) for name, phases in SUBSTEPS.items()]
    for of_one_segment in zip(*kinds, strict=True):
        for of_one_step in zip(*(tasks.entries() for tasks in of_one_segment), strict=True):
            yield from of_one_step


def _tasks(run: Run, accounts: Sequence[Account], name: str, phases: tuple[str, ...]) -> Iterator[Tasks]:
    """Yield the executions of ``phases`` in each segment that was timed and metered."""
    for segment in run.segments:
        mine = [one for one in accounts if one.segment == segment.number]
        if segment.phases is None or not mine:
            continue
        table = segment.phases
        seconds = sum((_seconds(table, one) for one in _parts(table, phases)), np.zeros(len(table.steps)))
        buckets = [bucket for one in mine for bucket in one.buckets if _is_in(bucket.name, phases)]
        words = dict.fromkeys(PROVENANCE[bucket.tier] for bucket in buckets)
        yield Tasks(
            name=name,
            steps=table.steps,
            seconds=seconds,
            spent_uj=[(one, _spread(one, table, phases)) for one in mine],
            words=(*words, "by time"),
            gco2e_per_kwh=_gco2e_per_kwh(run, segment.number),
        )


def _parts(table: PhaseTable, phases: tuple[str, ...]) -> list[str]:
    return [name for name in (*table.phases, OTHER) if _is_in(name, phases)]


def _is_in(bucket: str, phases: tuple[str, ...]) -> bool:
    """Return whether a bucket is one of the phases or nested in one."""
    return bucket.partition("/")[0] in phases


def _seconds(table: PhaseTable, bucket: str) -> Floats:
    return table.exclusive_s(STEP if bucket == OTHER else bucket)


def _spread(account: Account, table: PhaseTable, phases: tuple[str, ...]) -> Floats:
    """Return the (num_steps,) energies: every bucket's energy by the time that each step spent in it."""
    spread_uj = np.zeros(len(table.steps))
    for bucket in account.buckets:
        seconds = _seconds(table, bucket.name) if _is_in(bucket.name, phases) else np.zeros(0)
        if seconds.sum() > 0:
            spread_uj += bucket.energy_uj * seconds / seconds.sum()
    return spread_uj


def _gco2e_per_kwh(run: Run, segment: int) -> float | None:
    """Return what the manifest says of a segment's intensity, times its PUE."""
    facts: Any = run.segments[segment].facts.get("carbon")
    if not isinstance(facts, Mapping) or facts.get("g_per_kwh") is None:
        return None
    return float(facts["g_per_kwh"]) * float(facts.get("pue") or 1.0)


def _grams(used_uj: float, gco2e_per_kwh: float | None) -> float | None:
    return None if gco2e_per_kwh is None else used_uj / UJ_PER_KWH * gco2e_per_kwh
