"""Memory power of the run, modelled: watts for each GiB that its processes hold in RAM.

The default is 0.3725 W per GB (0.4 W per GiB), the figure of Green Algorithms (Lannelongue, Grealey and Inouye 2021;
its data/v2.2/referenceValues.csv, CC BY 4.0, after Karyakin and Salem 2017). Earlier it had 0.08 W per GB from the same
source, and modules draw power whether they are used or not, and more when they are accessed, which is not modelled:
hence the wide interval. Memory is an account of its own; where a sensor reads the DRAM, that counts instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from perjoule.config import Config
from perjoule.measure.contract import Form, Meter, Sensor, Site, Unavailable
from perjoule.measure.process_tree import ResidentMemory

_W_PER_GIB = 0.4
_SOURCE = "0.3725 W/GB, Green Algorithms 2021"


class RamConfig(Config):
    """Watts per GiB."""

    kind: Literal["ram"] = "ram"
    w_per_gib: float = Field(default=_W_PER_GIB, gt=0, le=10)
    """Power of a GiB of memory in use."""

    def build(self, site: Site) -> tuple[Meter | Unavailable, ...]:
        """Look for the processes, or say why their memory cannot be read."""
        if not site.pids and not site.parent:
            return (Unavailable("there is no process to meter"),)
        memory = ResidentMemory(site.pids, site.parent)
        for pid in site.pids:
            if not Path(f"/proc/{pid}/statm").is_file():
                return (Unavailable(f"there is no /proc/{pid}/statm; only Linux counts a process's pages there"),)
        source = _SOURCE if self.w_per_gib == _W_PER_GIB else "given by the user"
        sensor = Sensor(
            domain="ram",
            form=Form.POWER,
            scope="ram",
            method=f"modelled from memory in use: {self.w_per_gib:g} W per GiB ({source})",
            unit="µW",
            resolution_s=1e-6,
            window_s=0.0,
            accuracy=(0.2, 3.0),
            modelled=True,
        )
        return (ModelledRam(sensor, memory, self.w_per_gib),)


class ModelledRam:
    """Turns memory in use into power; one reading costs about 20 µs for each process.

    Args:
        sensor: what is said of the figure.
        memory: the bytes in use.
        w_per_gib: power of a GiB.
    """

    def __init__(self, sensor: Sensor, memory: ResidentMemory, w_per_gib: float) -> None:
        self.sensor = sensor
        self._memory = memory
        self._uw_per_byte = 1e6 * w_per_gib / 2**30

    def read(self) -> int | Unavailable:
        """Return the power of the memory that is in use now; a process that has ended uses none."""
        used_bytes = self._memory.read_bytes()
        if used_bytes is None:
            return Unavailable("all processes of the run have ended")
        return round(self._uw_per_byte * used_bytes)

    def close(self) -> None:
        """Nothing is kept open."""
