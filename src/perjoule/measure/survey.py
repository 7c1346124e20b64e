"""What every meter of the shelf can do on this machine: readable or why not, how fast, how often its value changes."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from perjoule.measure import SHELF
from perjoule.measure.contract import Meter, Sensor, Site, Unavailable
from perjoule.measure.polling import in_words
from perjoule.measure.sensors import Refresh, observed_refresh

MIN_READINGS = 50
PAUSE_S = 0.001


@dataclass(frozen=True)
class Finding:
    """A meter that was read for a while.

    Args:
        sensor: what it says of itself.
        read_s: median time of a reading.
        refresh: how often its value was seen to change, or why that cannot be said.
        num_readings: how often it was read; in between it was left alone for ``PAUSE_S``.
    """

    sensor: Sensor
    read_s: float
    refresh: Refresh | Unavailable
    num_readings: int


def survey(site: Site, seconds: float = 1.0) -> Iterator[tuple[str, Finding | Unavailable]]:
    """Open every meter, read each for a while, and yield (kind, finding) for every quantity, in the shelf's order.

    Args:
        site: whose energy is asked for.
        seconds: how long each meter is read, 50 times at least.
    """
    for kind in SHELF.names():
        try:
            cls = SHELF.load(kind)
            looks_at_all = {"all": True} if "all" in getattr(cls, "model_fields", {}) else {}
            meters = cls(**looks_at_all).build(site)
        except ValidationError as error:
            missing = ", ".join(str(detail["loc"][0]) for detail in error.errors() if detail["loc"])
            yield kind, Unavailable(f"needs to be told {missing}", f"energy.meters=[{{kind: {kind}, {missing}: …}}]")
            continue
        except Exception as error:  # whatever one package's meter does, the others are looked at
            yield kind, Unavailable(in_words(error))
            continue
        for meter in meters:
            yield kind, meter if isinstance(meter, Unavailable) else _examine(meter, seconds)


def _examine(meter: Meter, seconds: float) -> Finding | Unavailable:
    """Read one meter for a while, and close it."""
    moments: list[int] = []
    values: list[int] = []
    lasted: list[int] = []
    begun = time.monotonic()
    try:
        while len(lasted) < MIN_READINGS or time.monotonic() - begun < seconds:
            before_ns = time.monotonic_ns()
            try:
                value = meter.read()
            except Exception as error:
                return Unavailable(f"it cannot be read: {in_words(error)}")
            after_ns = time.monotonic_ns()
            if isinstance(value, Unavailable):
                return value
            moments.append((before_ns + after_ns) // 2)
            values.append(value)
            lasted.append(after_ns - before_ns)
            time.sleep(PAUSE_S)
    finally:
        with contextlib.suppress(Exception):
            meter.close()
    refresh = observed_refresh(np.array(moments), np.array(values))
    return Finding(meter.sensor, statistics.median(lasted) / 1e9, refresh, len(lasted))
