"""Quantities for people: SI inside, a readable unit at the edge."""

from __future__ import annotations

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


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
