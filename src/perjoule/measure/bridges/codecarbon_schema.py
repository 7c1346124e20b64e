"""The columns that CodeCarbon 3.3.2 writes, in its order and units, and how a ledger fills them.

Units: kWh, kg CO2 equivalent, seconds, watts, litres, GiB. ``cpu_energy`` is what packages and processes used,
``gpu_energy`` GPUs and modules (of a GH200 with its CPU), ``ram_energy`` memory; what was metered for a whole machine
is in ``energy_consumed`` only. What was not measured is an empty cell, never 0. A country that was not given is the
text ``not given``, because CodeCarbon's dashboard expects one there. One column more, ``provenance``, stands last:
pandas, and so the dashboard, find columns by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from perjoule.core.units import J_PER_KWH
from perjoule.measure.carbon.table import read_table
from perjoule.measure.ledger import Account
from perjoule.runs.exports import Cell
from perjoule.runs.tables import Run

TASK_COLUMNS = (
    *("task_name", "timestamp", "project_name", "run_id", "duration", "emissions", "emissions_rate"),
    *("cpu_power", "gpu_power", "ram_power", "cpu_energy", "gpu_energy", "ram_energy", "energy_consumed"),
    *("water_consumed", "country_name", "country_iso_code", "region", "cloud_provider", "cloud_region", "os"),
    *("python_version", "codecarbon_version", "cpu_count", "cpu_model", "gpu_count", "gpu_model", "longitude"),
    *("latitude", "ram_total_size", "tracking_mode", "cpu_utilization_percent", "gpu_utilization_percent"),
    *("ram_utilization_percent", "ram_used_gb", "on_cloud"),
)
RUN_COLUMNS = (*TASK_COLUMNS[1:4], "experiment_id", *TASK_COLUMNS[4:], "pue", "wue")
PROVENANCE_COLUMN = "provenance"
MEASURED, MODELLED = "measured", "modelled"
NOT_GIVEN = "not given"
UJ_PER_J = 1e6
UJ_PER_KWH = J_PER_KWH * UJ_PER_J
_PARTS = {"gpu": "gpu", "mig": "gpu", "module": "gpu", "package": "cpu", "process": "cpu", "dram": "ram", "ram": "ram"}


@dataclass(frozen=True)
class Entry:
    """What one row says.

    Args:
        name: the task.
        duration_s: how long it took.
        spent: energy in microjoules, each with the account that it is from.
        words: where the energy is from; repeated ones are written once.
        gco2e: grams of CO2 equivalent; None if there is no intensity.
        water_l: litres; None if there is no factor.
    """

    name: str
    duration_s: float
    spent: Sequence[tuple[Account, float]]
    words: Iterable[str]
    gco2e: float | None = None
    water_l: float | None = None


def part_of(account: Account) -> str:
    """Return which of CodeCarbon's parts an account belongs to: ``cpu``, ``gpu``, ``ram``, or "" for none of them."""
    return _PARTS.get(account.sensor.scope, "")


def word(account: Account) -> str:
    """Return where the total of an account is from."""
    return MODELLED if account.sensor.modelled else MEASURED


def cells(columns: Sequence[str], entry: Entry, facts: Mapping[str, Cell]) -> list[Cell]:
    """Return the cells of a row under ``columns`` and the provenance behind them; what is not known is None.

    Args:
        columns: their names.
        entry: what differs from row to row.
        facts: what does not, from :func:`common_facts`.
    """
    parts: dict[str, float] = {}
    for account, used_uj in entry.spent:
        part = part_of(account)
        parts[part] = parts.get(part, 0.0) + used_uj
    kg = None if entry.gco2e is None else entry.gco2e / 1e3
    known: dict[str, Cell] = {
        **facts,
        "task_name": entry.name,
        "duration": entry.duration_s,
        "emissions": kg,
        "emissions_rate": _per_second(kg, entry.duration_s),
        "energy_consumed": sum(parts.values()) / UJ_PER_KWH,
        "water_consumed": entry.water_l,
    }
    for part in ("cpu", "gpu", "ram"):
        if part in parts:
            known[f"{part}_energy"] = parts[part] / UJ_PER_KWH
            known[f"{part}_power"] = _per_second(parts[part] / UJ_PER_J, entry.duration_s)
    return [*(known.get(column) for column in columns), "+".join(dict.fromkeys(entry.words))]


def _per_second(amount: float | None, seconds: float) -> float | None:
    return None if amount is None or seconds <= 0 else amount / seconds


def metered_s(accounts: Sequence[Account]) -> float:
    """Return how long accounts were metered: in each segment by the domain that was metered longest."""
    seconds: dict[int, float] = {}
    for one in accounts:
        span_s = sum(bucket.time_ns for bucket in one.buckets) / 1e9
        seconds[one.segment] = max(seconds.get(one.segment, 0.0), span_s)
    return sum(seconds.values())


def common_facts(run: Run, accounts: Sequence[Account]) -> dict[str, Cell]:
    """Return the cells that are the same in every row: place, machine and versions of the last segment.

    Args:
        run: the run.
        accounts: those that are part of its total.
    """
    facts = run.segments[-1].facts if run.segments else {}
    host, carbon = _section(facts, "host"), _section(facts, "carbon")
    place = str(carbon.get("location") or "")
    country, _, region = place.partition("-")
    known = read_table()
    gpus = {one.label for one in accounts if part_of(one) == "gpu"}
    memory = host.get("memory_bytes")
    return {
        "timestamp": _timestamp(facts.get("ended") or facts.get("started") or run.manifest.get("created")),
        "project_name": str(run.manifest.get("recipe") or "perjoule"),
        "run_id": run.name,
        "country_name": known[country][0] if country in known else country or NOT_GIVEN,
        "country_iso_code": country or NOT_GIVEN,
        "region": region.replace("-", " ") or None,
        "os": host.get("system"),
        "python_version": host.get("python"),
        "codecarbon_version": f"perjoule {host.get('perjoule') or ''}".rstrip(),
        "cpu_count": host.get("cores"),
        "cpu_model": host.get("cpu"),
        "gpu_count": len(gpus) or None,
        "ram_total_size": None if memory is None else memory / 2**30,
        "tracking_mode": "process" if {one.sensor.scope for one in accounts} <= {"process", "ram"} else "machine",
        "on_cloud": "N",
        "pue": carbon.get("pue"),
        "wue": carbon.get("water_l_per_kwh"),
    }


def _section(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = facts.get(key)
    return section if isinstance(section, Mapping) else {}


def _timestamp(moment: Any) -> str | None:
    """Return an ISO 8601 time as CodeCarbon writes it: whole seconds, here always UTC."""
    if moment is None:
        return None
    return datetime.fromisoformat(str(moment)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
