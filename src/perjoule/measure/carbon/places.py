"""Names of places: codes of two letters and names in common use become the code of three letters that the tables have.

Codes are never compared by their letters: ``CH`` is Switzerland and not nearly ``CHN``. A suggestion is made only for
names that are misspelt, and for regions and parts of countries that are known by their name.
"""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from perjoule.core.errors import nearest

_RESERVED = {"UK": "GBR", "EL": "GRC"}
"""Codes that are not ISO 3166 but are in use, in the European Union for one."""
_PARTS = {
    **dict.fromkeys(("england", "scotland", "wales", "northernireland"), "GBR"),
    "korea": "KOR",
}
"""Names that mean a part of a country, or more than one country: suggested, never assumed."""


@cache
def countries() -> dict[str, tuple[str, str]]:
    """Return code of three letters to (code of two letters, name) of every country of ISO 3166-1."""
    return {alpha3: (alpha2, names[0]) for alpha3, (alpha2, names) in _rows().items()}


def canonical(location: str) -> str:
    """Return a place with its country as a code of three letters; unchanged if its country is not known.

    Args:
        location: ``DE``, ``deu``, ``Germany``, ``UK``, or one of these with a region: ``US-california``.
    """
    given = location.strip()
    code = _by_name().get(_plain(given))
    if code is not None:
        return code
    country, dash, region = given.partition("-")
    return f"{_by_code().get(country.upper(), country)}{dash}{region}"


def country_name(code: str) -> str | None:
    """Return the English name of a country by its code of three letters; None if there is no such country."""
    found = countries().get(code)
    return found[1] if found else None


def unknown_place(location: str, names: Mapping[str, str], where: str) -> str:
    """Return the message for a place that is not among ``names``: what it may be, and what is accepted.

    Args:
        location: as the user wrote it.
        names: code to name of the places that are there; of regions, the name ends with ``: region``.
        where: "in the table".
    """
    place = canonical(location)
    name = country_name(place)
    about = [word for word in (place, name) if name and word and _plain(word) != _plain(location)]
    known = f" ({', '.join(about)})" if about else ""
    close = _suggested(location, names)
    hint = f"did you mean {close} ({names[close]})? " if close else ""
    return (
        f"{location!r}{known} is not {where}: {hint}Accepted: an ISO 3166 code such as DEU or a region such as "
        f"USA-california, {len(names)} in all; for any other place give carbon.intensity_g_per_kwh"
    )


def _suggested(location: str, names: Mapping[str, str]) -> str | None:
    """Return the code of a place that a name may mean, if it is among those that are there."""
    plain = _plain(location)
    part = _PARTS.get(plain)
    if part in names:
        return part
    regions = {_plain(name.rpartition(": ")[2]): code for code, name in names.items() if "-" in code}
    regions |= {_plain(code.partition("-")[2]): code for code in names if "-" in code}
    if plain in regions:
        return regions[plain]
    place = canonical(location)
    if place.upper() in countries():
        return None  # it is a country, only not one of these
    country, _, region = place.partition("-")
    if region and country.upper() in countries():
        within = {_plain(code.partition("-")[2]): code for code in names if code.startswith(f"{country.upper()}-")}
        near = nearest(_plain(region), within)
        return within[near] if near else None
    if len(plain) <= 3:
        return None
    spelt = {name: code for name, code in _by_name().items() if code in names} | regions
    near = nearest(plain, spelt)
    return spelt[near] if near else None


@cache
def _rows() -> dict[str, tuple[str, list[str]]]:
    text = files("perjoule.measure.carbon").joinpath("countries.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {row["alpha3"]: (row["alpha2"], row["names"].split("|")) for row in rows}


@cache
def _by_name() -> dict[str, str]:
    return {_plain(name): alpha3 for alpha3, (_, names) in _rows().items() for name in names}


@cache
def _by_code() -> dict[str, str]:
    codes = {alpha2: alpha3 for alpha3, (alpha2, _) in countries().items()}
    return {**codes, **{alpha3: alpha3 for alpha3 in countries()}, **_RESERVED}


def _plain(name: str) -> str:
    """Return the letters of a name, without case, accents, spaces and dashes."""
    parts = unicodedata.normalize("NFKD", name).casefold()
    return "".join(letter for letter in parts if letter.isalnum())
