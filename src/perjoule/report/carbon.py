"""What a kilowatt hour of each segment emits and costs.

The training wrote into the manifest what it knew when the segment began. Where a live source was asked, the run folder
holds a series of intensities; the segment's is then their mean, weighted by its energy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from perjoule.config import Config, resolve
from perjoule.measure.carbon import Intensity
from perjoule.measure.carbon.config import NO_LOCATION, CarbonConfig
from perjoule.measure.carbon.emissions import live_intensity
from perjoule.measure.contract import Unavailable as Unresolved
from perjoule.measure.ledger import Account, Ledger
from perjoule.report.quantity import Unavailable
from perjoule.runs.carbon_series import read_carbon_series
from perjoule.runs.tables import Run, Segment

NO_CURRENCY = "¤"
"""The sign of a currency that nobody has named."""
LIVE_SOURCE = "Electricity Maps"


@dataclass(frozen=True)
class Factors:
    """What a kilowatt hour at the meter stands for.

    Args:
        gco2e_per_kwh: grams of CO2 equivalent, PUE included, or why they are not known.
        water_l_per_kwh: litres, PUE included; None if no factor was given.
        price_per_kwh: in ``currency``, PUE included; None if no price was given.
        currency: of the price.
        how: where the intensity is from, with its own uncertainty; "" without one.
    """

    gco2e_per_kwh: float | Unavailable
    water_l_per_kwh: float | None
    price_per_kwh: float | None
    currency: str
    how: str


def with_carbon(run: Run, overrides: Sequence[str]) -> Run:
    """Return a run with what is said of its electricity afterwards; its folder stays as it is.

    Args:
        run: as its folder says.
        overrides: ``carbon.key=value``. What they leave open stays as recorded.

    Raises:
        ConfigError: if they have a mistake.
    """
    if not overrides:
        return run
    currencies = [str(facts.get("currency") or "") for one in run.segments if (facts := one.facts.get("carbon"))]
    if not any(one.startswith("carbon.currency=") for one in overrides):
        known = next(filter(None, currencies), NO_CURRENCY)
        overrides = [*overrides, *(f"carbon.currency={known}" for one in overrides if "price_per_kwh=" in one)]
    given = resolve.load(_Afterwards, None, overrides)
    keys = {key.removeprefix("carbon.") for key, source in given.sources.items() if source == resolve.COMMAND_LINE}
    config = given.config.carbon
    found = config.resolve() if keys & {"location", "intensity_g_per_kwh", "source", "zone"} else None
    segments = []
    for segment in run.segments:
        before = segment.facts.get("carbon")
        facts = dict(before) if isinstance(before, Mapping) else {"unavailable": NO_LOCATION}
        new = config.facts(found) if found is not None else config.facts(Unresolved(NO_LOCATION))
        factors = {key: new[key] for key in ("pue", "water_l_per_kwh", "price_per_kwh", "currency") if key in keys}
        if found is not None:
            facts = {key: facts[key] for key in ("pue", "water_l_per_kwh", "price_per_kwh", "currency") if key in facts}
            facts |= {key: value for key, value in new.items() if key not in facts}
            facts["source"] = f"{facts['source']}, given with this report" if "source" in facts else None
        segments.append(replace(segment, facts={**segment.facts, "carbon": {**facts, **factors}}))
    said = f"carbon: given with this report and not when the run trained: {' '.join(overrides)}"
    return replace(run, segments=tuple(segments), warnings=(*run.warnings, said))


class _Afterwards(Config):
    """What a report may be told: the run's own section."""

    carbon: CarbonConfig = CarbonConfig()


def segment_factors(run: Run, ledger: Ledger) -> dict[int, Factors | Unavailable]:
    """Return what a kilowatt hour stands for in every segment."""
    series = read_carbon_series(run.path)
    factors: dict[int, Factors | Unavailable] = {}
    for segment in run.segments:
        facts = segment.facts.get("carbon")
        known = facts if isinstance(facts, Mapping) else {"unavailable": NO_LOCATION}
        accounts = [one for one in ledger.accounts if one.segment == segment.number]
        if len(series.t_wall_s) and accounts and _is_live(known):
            known = {**known, **_live(run, segment, accounts[0])}
        factors[segment.number] = _factors(known)
    return factors


def _is_live(facts: Mapping[str, Any]) -> bool:
    """Tell whether the segment's intensity was fetched, or should have been."""
    return "unavailable" in facts or str(facts.get("source")).startswith(LIVE_SOURCE)


def _live(run: Run, segment: Segment, account: Account) -> dict[str, Any]:
    """Return the intensity of a segment from the series in the run folder."""
    begin = datetime.fromisoformat(str(segment.facts["started"])).timestamp()
    found = live_intensity(run.path, begin, account.timeline.edges_s, account.timeline.power_w)
    return found.facts() if isinstance(found, Intensity) else {"unavailable": found.reason}


def _factors(facts: Mapping[str, Any]) -> Factors | Unavailable:
    pue = float(facts.get("pue") or 1.0)
    grams, water, price = (facts.get(key) for key in ("g_per_kwh", "water_l_per_kwh", "price_per_kwh"))
    unknown = Unavailable(str(facts.get("unavailable") or NO_LOCATION))
    if grams is None and water is None and price is None:
        return unknown
    return Factors(
        gco2e_per_kwh=unknown if grams is None else float(grams) * pue,
        water_l_per_kwh=None if water is None else float(water) * pue,
        price_per_kwh=None if price is None else float(price) * pue,
        currency=str(facts.get("currency") or ""),
        how="" if grams is None else _how(facts, pue),
    )


def _how(facts: Mapping[str, Any], pue: float) -> str:
    """Return ``380 g/kWh (350 to 420: …), DEU 2023, life cycle, Ember, PUE 1``."""
    intensity = f"{float(facts['g_per_kwh']):.4g} g/kWh"
    if facts.get("low") is not None and facts.get("high") is not None:
        why = f", {facts['why']}" if facts.get("why") else ""
        intensity += f" ({float(facts['low']):.4g} to {float(facts['high']):.4g}{why}; not part of the interval)"
    place = " ".join(str(facts[key]) for key in ("location", "year") if facts.get(key))
    words = (intensity, place, str(facts.get("kind") or ""), str(facts.get("source") or ""), f"PUE {pue:g}")
    return ", ".join(word for word in words if word)
