"""What a meter is: one quantity of one thing, read in no time, that says how good it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable


class Form(StrEnum):
    """What a reading is."""

    COUNTER = "counter"
    """Energy since some moment in the past, µJ; it grows until it wraps or is reset."""
    POWER = "power"
    """Power, µW, averaged over the sensor's window."""
    LEVEL = "level"
    """Anything else, such as bytes in use."""


@dataclass(frozen=True)
class Unavailable:
    """A quantity that is not measured, and why. It is never replaced by 0.

    Args:
        reason: what is missing.
        remedy: the safest thing that would help, "" if there is none.
    """

    reason: str
    remedy: str = ""


@dataclass(frozen=True)
class Site:
    """Where meters are opened: the processes of one run on one node.

    Args:
        pids: process ids of the run's ranks on this node.
        devices: accelerators they use, as in ``CUDA_VISIBLE_DEVICES`` (indices, UUIDs or MIG UUIDs) after torch's own
            numbering was mapped through it; empty if they use none.
        parent: a process whose children are the run, without being part of it itself; 0 if there is none.
    """

    pids: tuple[int, ...]
    devices: tuple[str, ...] = ()
    parent: int = 0


@dataclass(frozen=True)
class Sensor:
    """What is known of a meter before it is read. It stands in the header of every file of samples.

    Args:
        domain: what is metered, unique on its node: ``gpu-<uuid>``, ``package-0``, ``dram-0``, ``cpu``, ``ram``.
            Several meters may read the same domain (a counter and a power sensor of one GPU).
        form: what a reading is.
        scope: the part of the machine: ``process``, ``gpu``, ``mig``, ``module``, ``package``, ``dram``, ``psys``,
            ``node``, ``ram``.
        method: how the figure comes about, in a few words; printed beside it.
        unit: of a reading: ``µJ``, ``µW``, ``bytes``.
        resolution_s: shortest time over which a difference of two readings means something, as documented; the
            refresh that is seen in the samples replaces it.
        window_s: length of time that a power reading averages over; None if it is not known.
        wraps_at: value at which a counter starts again from 0; None if it does not.
        accuracy: 95 % of true values lie between a reading times the first and times the second factor.
        offset_w: what the true power may exceed a reading by at any power, where that is more than the accuracy's
            factor: parts of a board that the sensor does not see.
        modelled: whether the figure comes from a model and not from a sensor.
        idle_w: power that the domain never falls below, None if it is not known.
        limit_w: power that the domain cannot exceed for longer than a refresh, None if it is not known.
        device: what two runs must not meter at once without knowing of each other; "" if that does no harm.
        model: what the device calls itself; "" if it does not.
    """

    domain: str
    form: Form
    scope: str
    method: str
    unit: str
    resolution_s: float
    window_s: float | None = None
    wraps_at: int | None = None
    accuracy: tuple[float, float] = (1.0, 1.0)
    modelled: bool = False
    idle_w: float | None = None
    limit_w: float | None = None
    device: str = ""
    model: str = ""
    offset_w: float = 0.0


@runtime_checkable
class Meter(Protocol):
    """One measured quantity. It opens its files when it is built, never waits for a device, never sees the model.

    Its config's ``build(site)`` returns one meter, or one :class:`Unavailable`, for each quantity it knows of; the
    tuple is never empty.
    """

    @property
    def sensor(self) -> Sensor:
        """What is measured, and how well."""

    def read(self) -> int | Unavailable:
        """Return the current reading in the sensor's unit, or why there is none."""

    def close(self) -> None:
        """Give back what was opened. May be called twice."""
