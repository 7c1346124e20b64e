"""Memory power of the run, modelled: watts for each GiB that its processes hold in RAM.

The default is 0.3725 W per GB (0.4 W per GiB), the figure that Green Algorithms uses (Lannelongue, Grealey and Inouye
2021, after Karyakin and Salem 2017). Modules draw power whether they are used or not, and more when they are accessed;
neither is modelled. Pages that processes share are counted for each. Hence the wide interval, and hence this meter is
read only if asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from perjoule.config import Config
from perjoule.measure.contract import Form, Meter, Sensor, Site, Unavailable
from perjoule.measure.meters.memory import MemoryConfig

_W_PER_GIB = 0.4
_SOURCE = "0.3725 W/GB, Green Algorithms 2021"


class RamConfig(Config):
    """Watts per GiB."""

    kind: Literal["ram"] = "ram"
    w_per_gib: float = Field(default=_W_PER_GIB, gt=0, le=10)
    """Power of a GiB of memory in use."""

    def build(self, site: Site) -> tuple[Meter | Unavailable, ...]:
        """Open the memory meter of every process, or say why one cannot be read."""
        found = MemoryConfig().build(site)
        missing = [each for each in found if isinstance(each, Unavailable)]
        meters = [each for each in found if not isinstance(each, Unavailable)]
        if missing or not meters:
            for meter in meters:
                meter.close()
            return (missing[0] if missing else Unavailable("there is no process to meter"),)
        source = _SOURCE if self.w_per_gib == _W_PER_GIB else "given by the user"
        sensor = Sensor(
            domain="ram",
            form=Form.POWER,
            scope="ram",
            method=f"modelled from memory in use: {self.w_per_gib:g} W per GiB ({source})",
            unit="µW",
            resolution_s=1e-6,
            window_s=0.0,
            accuracy=(0.3, 3.0),
            modelled=True,
        )
        return (ModelledRam(sensor, meters, self.w_per_gib),)


class ModelledRam:
    """Turns memory in use into power; one reading costs about 2 µs for each process.

    Args:
        sensor: what is said of the figure.
        meters: of the bytes in use; closed by :meth:`close`.
        w_per_gib: power of a GiB.
    """

    def __init__(self, sensor: Sensor, meters: Sequence[Meter], w_per_gib: float) -> None:
        self.sensor = sensor
        self._meters = meters
        self._uw_per_byte = 1e6 * w_per_gib / 2**30

    def read(self) -> int | Unavailable:
        """Return the power of the memory that is in use now; a process that has ended uses none."""
        sizes = [size for size in (meter.read() for meter in self._meters) if not isinstance(size, Unavailable)]
        return round(self._uw_per_byte * sum(sizes)) if sizes else Unavailable("all processes of the run have ended")

    def close(self) -> None:
        """Close the files."""
        for meter in self._meters:
            meter.close()
