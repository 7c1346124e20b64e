"""What a meter is: one quantity of one thing, read in no time, that says how good it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Unavailable:
    """A quantity that is not measured, and why. It is never replaced by 0.

    Args:
        reason: what is missing, and what would help.
    """

    reason: str


@runtime_checkable
class Meter(Protocol):
    """One measured quantity. It opens its files when it is built, never waits for a device, never sees the model.

    Attributes:
        resolution_s: shortest time over which a difference of two readings means something.
        scope: what is measured: ``process``, ``package``, ``gpu``, ``node``.
        method: how the figure comes about, in a few words; printed beside it.
        unit: SI unit of a reading.
    """

    resolution_s: float
    scope: str
    method: str
    unit: str

    def read(self) -> int | Unavailable:
        """Return the current reading in ``unit``, or why there is none."""

    def close(self) -> None:
        """Give back what was opened."""
