"""Tables for other programs: CodeCarbon's ``emissions.csv`` for run, steps and phases, and our own ``energy.csv``.

The first three are in the schema of :mod:`perjoule.measure.bridges.codecarbon_schema`, so that CodeCarbon's dashboard
and the scripts that people have read them. Unlike CodeCarbon's, the rows of the step and phase tables add up to the
run's row: what lies outside of steps or phases has a row of its own. A domain that lies inside another one is in none
of the three, so that nothing counts twice; ``energy.csv`` lists it too, with tier, interval and reason of every bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perjoule.measure.bridges.codecarbon_schema import (
    OWN_COLUMNS,
    PROVENANCE_COLUMN,
    RUN_COLUMNS,
    TASK_COLUMNS,
    UJ_PER_KWH,
    Entry,
    cells,
    common_facts,
    metered_s,
    word,
)
from perjoule.measure.ledger import MONITOR, PROVENANCE, UNKNOWN, Account, Ledger, Tier
from perjoule.measure.occupancy import OUTSIDE
from perjoule.report.carbon import Factors, segment_factors
from perjoule.report.energy import counted
from perjoule.report.quantity import Unavailable
from perjoule.runs.exports import EMISSIONS, EMISSIONS_PHASES, EMISSIONS_STEPS, ENERGY, Cell, write_csv
from perjoule.runs.step_table import Floats, Ints
from perjoule.runs.tables import Run

ENERGY_COLUMNS = (
    *("node", "domain", "scope", "in_total", "bucket", "energy_j", "low_j", "high_j", "idle_j", "time_s", "tier"),
    *(PROVENANCE_COLUMN, "gco2e", "gco2e_low", "gco2e_high", "why"),
)
REST_OF_RUN = "Start-up, first step and end"
_REFRESHES = 5
"""A row of the step table lasts at least this many refreshes of the slowest meter, else its energy would be a guess."""
Spent = Sequence[tuple[Account, float]]
FactorsBySegment = Mapping[int, Factors | Unavailable]


def write_emissions(run: Run, ledger: Ledger, folder: Path | None = None) -> tuple[Path, ...]:
    """Write ``emissions.csv``, ``emissions_steps.csv``, ``emissions_phases.csv`` and ``energy.csv``.

    Args:
        run: the run.
        ledger: its energy; without an account nothing is written.
        folder: where to; the run's own folder if left out.

    Returns:
        The files that were written.

    Raises:
        RunFolderError: if a file cannot be written.
    """
    accounts = counted(ledger)
    if not accounts:
        return ()
    folder, factors, facts = folder or run.path, segment_factors(run, ledger), common_facts(run, accounts)
    whole = Entry(run.name, metered_s(accounts), [(one, one.total_uj) for one in accounts], map(word, accounts))
    tables = (
        (EMISSIONS, RUN_COLUMNS, iter([whole])),
        (EMISSIONS_STEPS, TASK_COLUMNS, step_entries(run, accounts)),
        (EMISSIONS_PHASES, TASK_COLUMNS, phase_entries(accounts)),
    )
    written = [
        write_csv(
            folder / name,
            (*columns, *OWN_COLUMNS),
            (cells(columns, _with_consequences(entry, factors), facts) for entry in entries),
        )
        for name, columns, entries in tables
    ]
    return (*written, write_csv(folder / ENERGY, ENERGY_COLUMNS, _energy_rows(ledger, accounts, factors)))


def phase_entries(accounts: Sequence[Account]) -> Iterator[Entry]:
    """Yield one entry per bucket: the phases, then what lies outside of them, the monitor, and what is unknown."""
    names = dict.fromkeys(bucket.name for one in accounts for bucket in one.buckets)
    last = [name for name in (OUTSIDE, MONITOR, UNKNOWN) if name in names]
    for name in [*(name for name in names if name not in last), *last]:
        mine = [(one, bucket) for one in accounts for bucket in one.buckets if bucket.name == name]
        times_ns: dict[str, int] = {}
        for one, bucket in mine:
            times_ns[one.label] = times_ns.get(one.label, 0) + bucket.time_ns
        tiers = sorted({bucket.tier for _, bucket in mine}, key=list(Tier).index)
        spent = [(one, bucket.energy_uj) for one, bucket in mine]
        yield Entry(name, max(times_ns.values()) / 1e9, spent, [PROVENANCE[tier] for tier in tiers])


def step_entries(run: Run, accounts: Sequence[Account]) -> Iterator[Entry]:
    """Yield groups of consecutive steps, and for each segment what it used besides.

    A group is as short as the meters allow (five refreshes of the slowest one) and as the ledger's curve has points
    (1,000 to a segment). The first step is not told apart from the start-up before it.
    """
    for segment in dict.fromkeys(one.segment for one in accounts):
        mine = [one for one in accounts if one.segment == segment]
        words = [word(one) for one in mine]
        ends = _group_ends(run, mine, segment)
        rest_uj = {one.label: one.total_uj for one in mine}
        for row in range(1, len(ends.steps)):
            before, last = int(ends.steps[row - 1]), int(ends.steps[row])
            spent = [(one, _between_uj(one, before, last)) for one in mine]
            for one, used_uj in spent:
                rest_uj[one.label] -= used_uj
            name = f"Step #{last}" if last == before + 1 else f"Steps #{before + 1}-{last}"
            yield Entry(name, float(ends.at_s[row] - ends.at_s[row - 1]), spent, words)
        in_groups_s = float(ends.at_s[-1] - ends.at_s[0]) if len(ends.steps) else 0.0
        left_s = max(metered_s(mine) - in_groups_s, 0.0)
        yield Entry(REST_OF_RUN, left_s, [(one, rest_uj[one.label]) for one in mine], words)


class _Ends(NamedTuple):
    """The last step of each group, and the seconds that steps had taken until its end."""

    steps: Ints
    at_s: Floats


def _group_ends(run: Run, accounts: Sequence[Account], segment: int) -> _Ends:
    """Return where groups of steps end: at steps for which every account knows its energy, far enough apart."""
    known: NDArray[np.int64] = accounts[0].by_step.steps
    for one in accounts[1:]:
        known = np.intersect1d(known, one.by_step.steps)
    rows = run.steps.where(run.steps.segment == segment)
    until_s = np.concatenate([[0.0], np.cumsum(np.nan_to_num(rows.wall_s))])
    at_s = until_s[np.searchsorted(rows.step, known, side="right")]
    shortest_s = max(_REFRESHES * (one.refresh_s or one.sensor.resolution_s) for one in accounts)
    kept: list[int] = []
    for row, moment_s in enumerate(at_s):
        if not kept or moment_s - at_s[kept[-1]] >= shortest_s:
            kept.append(row)
    return _Ends(known[kept], at_s[kept])


def _between_uj(account: Account, before: int, last: int) -> int:
    """Return the microjoules between the ends of two steps of the account's curve."""
    rows = np.searchsorted(account.by_step.steps, (before, last))
    begin_uj, end_uj = account.by_step.energy_uj[rows]
    return int(end_uj - begin_uj)


def _with_consequences(entry: Entry, factors: FactorsBySegment) -> Entry:
    return replace(entry, gco2e=_grams(entry.spent, factors), water_l=_litres(entry.spent, factors))


def _grams(spent: Spent, factors: FactorsBySegment) -> float | None:
    """Return the grams of CO2 equivalent, each segment with its own intensity; None if one has none."""
    grams = 0.0
    for account, used_uj in spent:
        factor = factors.get(account.segment)
        if not isinstance(factor, Factors) or isinstance(factor.gco2e_per_kwh, Unavailable):
            return None
        grams += used_uj / UJ_PER_KWH * factor.gco2e_per_kwh
    return grams


def _litres(spent: Spent, factors: FactorsBySegment) -> float | None:
    litres = 0.0
    for account, used_uj in spent:
        factor = factors.get(account.segment)
        if not isinstance(factor, Factors) or factor.water_l_per_kwh is None:
            return None
        litres += used_uj / UJ_PER_KWH * factor.water_l_per_kwh
    return litres


def _energy_rows(ledger: Ledger, accounts: Sequence[Account], factors: FactorsBySegment) -> Iterator[list[Cell]]:
    """Yield one row per domain and bucket, the segments of a resumed run added up."""
    in_total = {one.label for one in accounts}
    for account in ledger.merged():
        parts = [one for one in ledger.accounts if one.label == account.label]
        for bucket in account.buckets:
            mine = [(one, part) for one in parts for part in one.buckets if part.name == bucket.name]
            grams = (
                _grams([(one, getattr(part, end)) for one, part in mine], factors)
                for end in ("energy_uj", "low_uj", "high_uj")
            )
            yield [
                *(account.node, account.sensor.domain, account.sensor.scope),
                "yes" if account.label in in_total else "no",
                bucket.name,
                *(_joules(used_uj) for used_uj in (bucket.energy_uj, bucket.low_uj, bucket.high_uj, bucket.idle_uj)),
                bucket.time_ns / 1e9,
                *(bucket.tier.value, PROVENANCE[bucket.tier], *grams, bucket.why),
            ]


def _joules(used_uj: int | None) -> str | None:
    """Return whole microjoules as joules with all their digits, so that the cells add up exactly."""
    if used_uj is None:
        return None
    return f"{'-' if used_uj < 0 else ''}{abs(used_uj) // 10**6}.{abs(used_uj) % 10**6:06d}"
