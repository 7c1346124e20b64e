"""The table that comes with perjoule: yearly means by country and region, each with its year and source.

The factors are of *production* (what is generated in the place, imports left out). For countries and Canadian provinces
they count the *life cycle* (fuel supply and construction besides what is burnt), for states of the USA the *direct*
emissions of the power stations. ``intensity.csv`` says in its head where the numbers are from.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

from perjoule.core.errors import ConfigError
from perjoule.measure.carbon.intensity import Intensity
from perjoule.measure.carbon.places import canonical, unknown_place

_SOURCES = {
    "owid": "Our World in Data after Ember (CC BY 4.0)",
    "cer": "mix by the Canada Energy Regulator × IPCC AR5 medians",
    "egrid": "U.S. EPA eGRID2023",
}
_FROM_MIX = (
    "the same mix with the lowest and the highest life-cycle factors of UNECE 2021 and IPCC; hours and imports not"
)
_NO_RANGE = "the source publishes no range"


@cache
def read_table() -> dict[str, tuple[str, Intensity]]:
    """Return location to (name, intensity) of the whole table."""
    text = files("perjoule.measure.carbon").joinpath("intensity.csv").read_text(encoding="utf-8")
    table = {}
    for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        known = bool(row["low"])
        table[row["location"]] = (
            row["name"],
            Intensity(
                g_per_kwh=float(row["g_per_kwh"]),
                low=float(row["low"]) if known else None,
                high=float(row["high"]) if known else None,
                location=row["location"],
                year=int(row["year"]),
                source=_SOURCES[row["source"]],
                kind=f"{row['kind']}, production",
                why=_FROM_MIX if known else _NO_RANGE,
            ),
        )
    return table


def look_up(location: str) -> Intensity:
    """Return the intensity of a place in the table.

    Args:
        location: ISO 3166 code or name of a country, or its code and a region: ``DEU``, ``DE``, ``Germany``,
            ``USA-california``; in any case.

    Raises:
        ConfigError: naming the nearest place of the table.
    """
    table, place = read_table(), canonical(location).lower()
    found = next((entry for key, (_, entry) in table.items() if key.lower() == place), None)
    if found is None:
        raise ConfigError(unknown_place(location, {key: name for key, (name, _) in table.items()}, "in the table"))
    return found
