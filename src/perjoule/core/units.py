"""Quantities for people: SI inside, a readable unit at the edge."""

from __future__ import annotations

import re
from collections.abc import Mapping

J_PER_KWH = 3.6e6

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
_ENERGY_J = {"J": 1.0, "kJ": 1e3, "MJ": 1e6, "GJ": 1e9, "Wh": 3.6e3, "kWh": 3.6e6, "MWh": 3.6e9}
_MASS_G = {"mg": 1e-3, "g": 1.0, "kg": 1e3, "t": 1e6}
_QUANTITY = re.compile(r"(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)\s*([A-Za-z]+)")


def si(value: float, unit: str = "", digits: int = 3) -> str:
    """Format ``value`` with a decimal prefix: ``si(5264640) == '5.26M'``, ``si(0.0123, 's') == '12.3 ms'``."""
    if value == 0:
        return f"0 {unit}".strip()
    magnitude = abs(float(f"{value:.{digits}g}"))  # 999,999 is 1M, not 1000k
    scales = _PREFIXES if magnitude >= 1e3 else _SMALL
    factor, prefix = next(((f, p) for f, p in scales if magnitude >= f), scales[-1])
    number = f"{value / factor:.{digits}g}"
    if "e" in number:
        number = f"{value / factor:.0f}"
    return f"{number} {prefix}{unit}" if unit else f"{number}{prefix}"


def duration(seconds: float) -> str:
    """Format a duration: ``500 ms``, ``12.3 s``, ``2 min 05 s``, ``3 h 07 min``."""
    if seconds < 59.95:
        return si(seconds, "s")
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def byte_size(num_bytes: float) -> str:
    """Format a size in decimal bytes: ``byte_size(2_500_000) == '2.5 MB'``."""
    return si(num_bytes, "B")


def parse_energy_j(value: object) -> object:
    """Return the joules of ``"50kJ"`` or ``"2 kWh"``; anything but text is returned as it is, a number being joules.

    Raises:
        ValueError: if a text is no amount of energy.
    """
    return _parse(value, _ENERGY_J, "an energy such as 500 J, 50kJ, 1.5 MJ or 2 kWh, or a number of joules")


def parse_mass_g(value: object) -> object:
    """Return the grams of ``"10g"`` or ``"0.2 kg"``; anything but text is returned as it is, a number being grams.

    Raises:
        ValueError: if a text is no mass.
    """
    return _parse(value, _MASS_G, "a mass such as 500 mg, 10g or 0.2 kg, or a number of grams")


def _parse(value: object, units: Mapping[str, float], accepted: str) -> object:
    """Return the number in front of a unit, in the base unit."""
    if isinstance(value, bool):  # which Python counts among the numbers
        raise ValueError(f"must be {accepted}, not {str(value).lower()}")
    if not isinstance(value, str):
        return value
    found = _QUANTITY.fullmatch(value.strip())
    if found is None or found[2] not in units:
        near = next((unit for unit in units if found and unit.lower() == found[2].lower()), None)
        hint = f"; did you mean {found[1]} {near}?" if found and near else ""
        raise ValueError(f"must be {accepted}, not {value!r}{hint}")
    return float(found[1]) * units[found[2]]
