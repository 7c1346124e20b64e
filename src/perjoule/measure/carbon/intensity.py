"""What a kilowatt hour emits at a place, and how far that figure can be trusted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Intensity:
    """Grams of CO2 equivalent per kilowatt hour of electricity.

    Args:
        g_per_kwh: the figure, PUE not included.
        low: lower end of what the figure might be, None if nothing is known of that.
        high: upper end.
        location: the place, such as ``DEU`` or ``CAN-quebec``; "" if it was not named.
        year: which year the figure is the mean of; None for a live or a given one.
        source: who published it.
        kind: what is counted: ``life cycle`` or ``direct`` emissions, of what is generated or what is consumed there.
        why: where ``low`` and ``high`` come from, or why there are none.
    """

    g_per_kwh: float
    low: float | None
    high: float | None
    location: str
    year: int | None
    source: str
    kind: str
    why: str

    def facts(self) -> dict[str, Any]:
        """Return the fields for a manifest."""
        return asdict(self)
