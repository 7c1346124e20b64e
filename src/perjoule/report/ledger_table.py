"""The ledger as a table: one row per bucket, the sum, and the words below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perjoule.core.units import duration, si
from perjoule.measure.ledger import MONITOR, PROVENANCE, UNKNOWN, Bucket, Tier
from perjoule.measure.occupancy import OUTSIDE
from perjoule.report.energy import UJ_PER_J, Sheet
from perjoule.report.quantity import Unavailable
from perjoule.report.summary import Summary
from perjoule.report.what_ran import MISSING
from perjoule.report.wording import between, joules, percent

NO_PHASE = (OUTSIDE, MONITOR, UNKNOWN)
SUM = "sum"
_HEADINGS = ("Bucket", "Energy", "How", "95 % interval", "Time", "Share", "Per step", "Idle", "CO2e", "Why")
_HOW, _WHY = _HEADINGS.index("How"), "Why"


def ledger_headings(sheet: Sheet, narrow: bool = False) -> tuple[str, ...]:
    """Return the headings of a ledger: the columns that have something to say.

    Args:
        sheet: the ledger.
        narrow: leave out what can be computed from the other columns.
    """
    return tuple(heading for heading in _HEADINGS if heading not in _left_out(sheet, narrow))


def ledger_rows(sheet: Sheet, narrow: bool = False) -> list[tuple[str, ...]]:
    """Return the cells of a ledger as under :func:`ledger_headings`; the last row is the sum, which is the total."""
    account, grams = sheet.account, {} if isinstance(sheet.gco2e, Unavailable) else sheet.gco2e
    assert sum(bucket.energy_uj for bucket in account.buckets) == account.total_uj, "a ledger's buckets are its total"
    rows = [_row(bucket, sheet, grams.get(bucket.name, 0.0)) for bucket in account.buckets]
    idle_uj = [bucket.idle_uj for bucket in account.buckets if bucket.idle_uj is not None]
    rows.append(
        (
            SUM,
            joules(account.total_uj / UJ_PER_J),
            sheet.provenance,
            between(account.low_uj / UJ_PER_J, account.high_uj / UJ_PER_J, "J"),
            duration(sum(bucket.time_ns for bucket in account.buckets) / 1e9),
            percent(1.0),
            "",
            si(sum(idle_uj) / UJ_PER_J, "J") if len(idle_uj) == len(account.buckets) else MISSING,
            si(sum(grams.values()), "g"),
            "",
        )
    )
    left_out = [_HEADINGS.index(heading) for heading in _left_out(sheet, narrow)]
    return [tuple(cell for column, cell in enumerate(row) if column not in left_out) for row in rows]


def _row(bucket: Bucket, sheet: Sheet, grams: float) -> tuple[str, ...]:
    energy_j, total_j = bucket.energy_uj / UJ_PER_J, sheet.account.total_uj / UJ_PER_J
    in_steps = bucket.name not in NO_PHASE and sheet.num_steps > 0
    return (
        bucket.name,
        si(energy_j, "J"),
        PROVENANCE[bucket.tier],
        between(bucket.low_uj / UJ_PER_J, bucket.high_uj / UJ_PER_J, "J"),
        duration(bucket.time_ns / 1e9),
        percent(energy_j / total_j) if total_j else MISSING,
        si(energy_j / sheet.num_steps, "J") if in_steps else MISSING,
        MISSING if bucket.idle_uj is None else si(bucket.idle_uj / UJ_PER_J, "J"),
        si(grams, "g"),
        bucket.why,
    )


def _left_out(sheet: Sheet, narrow: bool) -> set[str]:
    """Return the columns that would be empty, and those for which there is no room."""
    left_out = {"Time", "Per step", "Idle", "CO2e"} if narrow else set()
    if not _knows_idle(sheet):
        left_out.add("Idle")
    if isinstance(sheet.gco2e, Unavailable):
        left_out.add("CO2e")
    if not any(bucket.why for bucket in sheet.account.buckets):
        left_out.add(_WHY)
    return left_out


def _knows_idle(sheet: Sheet) -> bool:
    return any(bucket.idle_uj is not None for bucket in sheet.account.buckets)


PROVENANCE_KEY: Mapping[Tier, str] = {
    Tier.DIRECT: "measured: readings of the sensor alone",
    Tier.BURST: "calibrated: power of the phase from repeating it, scaled to what was measured",
    Tier.REGRESSION: "regressed: from readings that each cover several phases",
    Tier.SHARED: "shared: split by time; the interval is what is possible at all",
    Tier.MODELLED: "modelled: from a model, not from a sensor",
}
"""What the word of each tier means."""


def provenance_key(summaries: Sequence[Summary]) -> list[str]:
    """Return what the words of provenance in these runs' ledgers mean, best first."""
    return [PROVENANCE_KEY[tier] for tier in tiers(summaries)]


def tiers(summaries: Sequence[Summary]) -> list[Tier]:
    """Return the tiers that occur in the ledgers of these runs, best first."""
    found = {bucket.tier for one in summaries for sheet in one.sheets for bucket in sheet.account.buckets}
    return [tier for tier in Tier if tier in found]


def footnoted(
    sheet: Sheet, notes: dict[str, int], narrow: bool = False
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and rows of a ledger without ``Why``, which becomes footnotes with a number behind ``How``.

    Args:
        sheet: the ledger.
        notes: the footnotes so far, each with its number; new ones are added.
        narrow: as in :func:`ledger_headings`.
    """
    headings, rows = ledger_headings(sheet, narrow), ledger_rows(sheet, narrow)
    if headings[-1] != _WHY:
        return headings, rows
    marked = []
    for *cells, why in rows:
        if why:
            cells[_HOW] += f" [{notes.setdefault(why, len(notes) + 1)}]"
        marked.append(tuple(cells))
    return headings[:-1], marked


def sides(headings: Sequence[str]) -> str:
    """Return a letter for each column of a ledger: ``l`` left, ``r`` right, ``w`` text that wraps."""
    return "".join({"Bucket": "l", "How": "l", "Why": "w"}.get(heading, "r") for heading in headings)


def ledger_title(sheet: Sheet, summary: Summary) -> str:
    """Return ``gpu-0``, on several machines ``gpu-0 on node1``; what is not added to the total says so."""
    account = sheet.account
    where = f" on {account.node}" if len({one.account.node for one in summary.sheets}) > 1 else ""
    return f"{account.sensor.domain}{where}, {sheet.provenance}{'' if sheet.counted else ', not added to the total'}"


def ledger_caption(sheet: Sheet, narrow: bool = False) -> str:
    """Return what has to be known to read a ledger.

    Args:
        sheet: the ledger.
        narrow: as in :func:`ledger_headings`; columns that are left out are not explained.
    """
    left_out = _left_out(sheet, narrow)
    account, sensor = sheet.account, sheet.account.sensor
    words = [f"{sensor.method}, scope {sensor.scope}"]
    if account.refresh_s is not None and not sensor.modelled:
        words.append(f"its value changes every {duration(account.refresh_s)}")
    if not sheet.counted:
        words.append("part of another domain, so it is not added to the total")
    if sheet.num_segments > 1:
        words.append(f"{sheet.num_segments} segments added up")
    if sheet.num_steps and "Per step" not in left_out:
        words.append(f"per step: over all {sheet.num_steps:,} steps, warm-up and recomputed ones included")
    if account.unread_s > 0:
        words.append(f"{duration(account.unread_s)} at the ends were not read, their energy is in no bucket")
    if account.scale is not None:
        words.append(f"measured over calibrated: {account.scale:.3g}")
    if "Idle" not in left_out:
        words.append("idle: what an idle device would have used in that time, contained in the energy")
    if isinstance(sheet.gco2e, Unavailable) and not narrow:
        words.append(f"no carbon: {sheet.gco2e.reason}")
    text = "; ".join([*words, *account.notes])
    return f"{text[0].upper()}{text[1:]}."


def not_metered(summary: Summary) -> list[str]:
    """Return one line for each meter that could not be read beside those that could, then CodeCarbon's view."""
    return [f"not metered: {line}" for line in summary.not_metered if summary.sheets] + list(summary.cross_check)
