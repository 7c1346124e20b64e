"""The columns that CodeCarbon 3.3.2 writes, in its order and units, and how a ledger fills them.

Units: kWh, kg CO2 equivalent, seconds, watts, litres, GiB. ``cpu_energy`` is what packages and processes used,
``gpu_energy`` GPUs and modules (of a GH200 with its CPU), ``ram_energy`` memory; what was metered for a whole machine
is in ``energy_consumed`` only. What was not measured is an empty cell, never 0.

CodeCarbon's dashboard needs a number under ``emissions`` and a text for the country in every row. Where no intensity
is known the number is what CodeCarbon itself would take, its mean of the world, and the row says so twice: the country
is ``not given``, and ``emissions_basis`` names the stand-in. perjoule's own reports say "not computed" then.

Three columns more stand last; pandas, and so the dashboard, find columns by name: ``provenance`` of the energy,
``energy_parts``, what ``energy_consumed`` holds and what was not metered, and ``emissions_basis``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from perjoule.core.units import J_PER_KWH
from perjoule.measure.carbon.places import canonical, country_name
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
OWN_COLUMNS = (PROVENANCE_COLUMN, "energy_parts", "emissions_basis")
WORLD_G_PER_KWH = 475.0
"""CodeCarbon 3.3.2, ``data/private_infra/carbon_intensity_per_source.json``, after IEA, Global Energy & CO2 Status
Report 2019."""
_STAND_IN = f"no intensity known: CodeCarbon's mean of the world, {WORLD_G_PER_KWH:g} g/kWh, stands in"
_ZONES = "Electricity Maps"
"""A source whose places are zones of its own: the country is known, and no region."""
MEASURED, MODELLED = "measured", "modelled"
NOT_GIVEN = "not given"
UJ_PER_J = 1e6
UJ_PER_KWH = J_PER_KWH * UJ_PER_J
_WHOLE = {"psys": {"cpu", "ram"}, "module": {"cpu", "ram"}, "node": {"cpu", "gpu", "ram"}}
"""Scopes that hold several parts."""
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
    """Return the cells of a row under ``columns`` and :data:`OWN_COLUMNS`; what is not known is None.

    Args:
        columns: their names.
        entry: what differs from row to row.
        facts: what does not, from :func:`common_facts`.
    """
    parts: dict[str, float] = {}
    for account, used_uj in entry.spent:
        part = part_of(account)
        parts[part] = parts.get(part, 0.0) + used_uj
    kwh = sum(parts.values()) / UJ_PER_KWH
    kg = (kwh * WORLD_G_PER_KWH * float(facts.get("pue") or 1.0) if entry.gco2e is None else entry.gco2e) / 1e3
    known: dict[str, Cell] = {
        **facts,
        **({"emissions_basis": _STAND_IN} if entry.gco2e is None else {}),
        PROVENANCE_COLUMN: "+".join(dict.fromkeys(entry.words)),
        "task_name": entry.name,
        "duration": entry.duration_s,
        "emissions": kg,
        "emissions_rate": _per_second(kg, entry.duration_s),
        "energy_consumed": kwh,
        "water_consumed": entry.water_l,
    }
    for part in ("cpu", "gpu", "ram"):
        if part in parts:
            known[f"{part}_energy"] = parts[part] / UJ_PER_KWH
            known[f"{part}_power"] = _per_second(parts[part] / UJ_PER_J, entry.duration_s)
    return [known.get(column) for column in (*columns, *OWN_COLUMNS)]


def _per_second(amount: float, seconds: float) -> float | None:
    return None if seconds <= 0 else amount / seconds


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
    place = canonical(str(carbon.get("location") or ""))
    country, _, region = place.partition("-")
    name, zone = country_name(country), str(carbon.get("source")).startswith(_ZONES)
    last = [one for one in accounts if one.segment == accounts[-1].segment]
    gpus = {one.label: one.sensor.model for one in last if part_of(one) == "gpu"}
    memory = host.get("memory_bytes")
    return {
        "timestamp": _timestamp(facts.get("ended") or facts.get("started") or run.manifest.get("created")),
        "project_name": str(run.manifest.get("recipe") or "perjoule"),
        "run_id": run.name,
        "country_name": name or NOT_GIVEN,
        "country_iso_code": country if name else NOT_GIVEN,
        "region": region.replace("-", " ") or None if name and not zone else None,
        "os": host.get("system"),
        "python_version": host.get("python"),
        "codecarbon_version": f"perjoule {host.get('perjoule') or ''}".rstrip(),
        "cpu_count": host.get("cores"),
        "cpu_model": host.get("cpu"),
        "gpu_count": len(gpus) or None,
        "gpu_model": _models(gpus.values()),
        "ram_total_size": None if memory is None else memory / 2**30,
        "tracking_mode": "process" if {one.sensor.scope for one in accounts} <= {"process", "ram"} else "machine",
        "on_cloud": "N",
        "pue": carbon.get("pue"),
        "wue": carbon.get("water_l_per_kwh"),
        "energy_parts": _parts(accounts, uses_gpu=str(facts.get("device") or "cpu") != "cpu"),
        "emissions_basis": "; ".join(_bases(run, accounts)),
    }


def _models(names: Iterable[str]) -> str | None:
    """Return ``8 x NVIDIA A40``, as CodeCarbon writes it; None unless every name is known."""
    counts = Counter(names)
    return None if "" in counts else " | ".join(f"{number} x {name}" for name, number in counts.items()) or None


def _parts(accounts: Sequence[Account], uses_gpu: bool) -> str:
    """Return what the energy holds, and what was not metered and so is not in it."""
    held = dict.fromkeys(part_of(one) or one.sensor.scope for one in accounts)
    covered = set(held).union(*(_WHOLE.get(one.sensor.scope, ()) for one in accounts))
    missing = [part for part in ("cpu", "gpu", "ram") if part not in covered and (part != "gpu" or uses_gpu)]
    return "+".join(held) + (f"; not metered: {'+'.join(missing)}" if missing else "")


def _bases(run: Run, accounts: Sequence[Account]) -> dict[str, None]:
    """Return what the emissions are computed with, where an intensity is known; each once, over the segments."""
    bases: dict[str, None] = {}
    for number in dict.fromkeys(one.segment for one in accounts):
        carbon = _section(run.segments[number].facts, "carbon")
        place = " ".join(str(carbon[key]) for key in ("location", "year") if carbon.get(key))
        intensity = "" if carbon.get("g_per_kwh") is None else f"{float(carbon['g_per_kwh']):.4g} g/kWh"
        bases[", ".join(word for word in (place, intensity, str(carbon.get("source") or "")) if word)] = None
    return bases


def _section(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = facts.get(key)
    return section if isinstance(section, Mapping) else {}


def _timestamp(moment: Any) -> str | None:
    """Return an ISO 8601 time as CodeCarbon writes it: whole seconds, here always UTC."""
    if moment is None:
        return None
    return datetime.fromisoformat(str(moment)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
