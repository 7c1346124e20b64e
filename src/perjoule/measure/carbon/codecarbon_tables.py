"""The tables that an installed CodeCarbon brings: over 200 countries, and regions of the USA, China and the Nordics.

Only its data files are read; none of its code is imported. For Canadian provinces CodeCarbon has a mix, of which it
multiplies the shares of coal, oil and gas only, everything else being 0 (Quebec: 4 g/kWh); that is done here as well,
and said in ``kind``. perjoule's own table counts the life cycle of the rest (Quebec: 28 g/kWh).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from perjoule.core.errors import ConfigError, MissingExtra
from perjoule.measure.carbon.intensity import Intensity
from perjoule.measure.carbon.places import canonical, unknown_place

LB_PER_MWH = 0.45359237
"""Grams per kilowatt hour in one pound per megawatt hour."""
_FOSSIL_G_PER_KWH = {"coal": 995.7, "petroleum": 816.7, "naturalGas": 743.8}
"""What CodeCarbon multiplies a province's shares with."""
_NO_RANGE = "CodeCarbon's tables have no range"


def look_up(location: str) -> Intensity:
    """Return the intensity of a place as CodeCarbon's data files have it.

    Args:
        location: as for :func:`perjoule.measure.carbon.table.look_up`; a Chinese province or a Nordic bidding zone by
            its code: ``CHN-bj``, ``SWE-se3``.

    Raises:
        MissingExtra: if CodeCarbon is not installed.
        ConfigError: naming the nearest place of the tables, or saying that they cannot be read.
    """
    if find_spec("codecarbon") is None:
        raise MissingExtra(
            "carbon.source=codecarbon needs CodeCarbon's tables: pip install 'perjoule[codecarbon]', or use "
            "carbon.source=table"
        )
    place = canonical(location)
    country, _, region = place.partition("-")
    read = _READERS.get(country.upper(), _read_country) if region else _read_country
    release = version("codecarbon")
    try:
        places = read()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"CodeCarbon {release}'s tables cannot be read ({error!r}); use carbon.source=table"
        ) from error
    found = next((entry for key, entry in places.items() if key.lower() == place.lower()), None)
    if found is None:
        names = {key: name for key, (name, *_) in places.items()}
        raise ConfigError(unknown_place(location, names, f"in CodeCarbon {release}'s tables"))
    name, g_per_kwh, year, kind = found
    return Intensity(g_per_kwh, None, None, place, year, f"CodeCarbon {release} ({name})", kind, _NO_RANGE)


Place = tuple[str, float, int | None, str]
"""Name, g/kWh, year, kind."""


def _load(path: str) -> Any:
    """Read a data file. ``importlib.resources`` would import the package, and with it pandas and its trackers."""
    spec = find_spec("codecarbon")
    folders = spec.submodule_search_locations if spec is not None else None
    return json.loads(Path((folders or [""])[0], "data", "private_infra", path).read_text(encoding="utf-8"))


def _read_country() -> dict[str, Place]:
    return {
        code: (str(mix["country_name"]), float(mix["carbon_intensity"]), int(mix["year"]), "life cycle, production")
        for code, mix in _load("global_energy_mix.json").items()
        if mix.get("carbon_intensity") is not None
    }


def _read_states() -> dict[str, Place]:
    table = _load("2023/usa_emissions.json")
    year = int(table["_source"]["year"])
    return {
        f"USA-{name.replace(' ', '-')}": (name.title(), entry["emissions"] * LB_PER_MWH, year, "direct, production")
        for name, entry in table.items()
        if not name.startswith("_")
    }


def _read_canada() -> dict[str, Place]:
    return {
        f"CAN-{name.replace(' ', '-')}": (
            name.title(),
            sum(mix[fuel] * factor for fuel, factor in _FOSSIL_G_PER_KWH.items()) / mix["total"],
            2023,
            "coal, oil and gas only, production",
        )
        for name, mix in _load("2023/canada_energy_mix.json").items()
    }


def _read_china() -> dict[str, Place]:
    return _read_zones("CHN", "CN", "2023/china_provincial_emissions.json", "direct, production")


def _nordic(country: str, prefix: str) -> Callable[[], dict[str, Place]]:
    kind = "life cycle, production, sources without a factor as 0"
    return lambda: _read_zones(country, prefix, "nordic_emissions.json", kind)


def _read_zones(country: str, prefix: str, path: str, kind: str) -> dict[str, Place]:
    """Read a file of factors by zone: ``CN-BJ`` and ``SE3`` become ``CHN-BJ`` and ``SWE-SE3``."""
    return {
        f"{country}-{code.split('-')[-1]}": (
            str(zone["description"]),
            float(zone["emission_factor"]),
            zone["year"],
            kind,
        )
        for code, zone in _load(path)["data"].items()
        if code.startswith(prefix)
    }


_READERS: dict[str, Callable[[], dict[str, Place]]] = {
    "USA": _read_states,
    "CAN": _read_canada,
    "CHN": _read_china,
    "SWE": _nordic("SWE", "SE"),
    "NOR": _nordic("NOR", "NO"),
    "FIN": _nordic("FIN", "FI"),
}
