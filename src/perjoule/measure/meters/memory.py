"""Memory in use by each process of the run: pages that are in RAM, as Linux counts them."""

from __future__ import annotations

import os
from typing import Literal

from perjoule.config import Config
from perjoule.measure.contract import Form, Meter, Sensor, Site, Unavailable


class MemoryConfig(Config):
    """Resident memory of each process."""

    kind: Literal["memory"] = "memory"

    def build(self, site: Site) -> tuple[Meter | Unavailable, ...]:
        """Open one meter for each process, or say why it cannot be read."""
        return tuple(map(_open, site.pids))


def _open(pid: int) -> Meter | Unavailable:
    path = f"/proc/{pid}/statm"
    try:
        return ProcessMemory(pid, os.open(path, os.O_RDONLY))
    except OSError as error:
        return Unavailable(f"{path}: {error.strerror}; only Linux counts a process's pages there")


class ProcessMemory:
    """Reads ``/proc/<pid>/statm`` from a descriptor that is kept; one reading costs about 2 µs.

    Args:
        pid: of the process.
        descriptor: of the open file; closed by :meth:`close`.
    """

    def __init__(self, pid: int, descriptor: int) -> None:
        self.sensor = Sensor(
            domain=f"memory-{pid}",
            form=Form.LEVEL,
            scope="process",
            method="resident pages from /proc/<pid>/statm",
            unit="bytes",
            resolution_s=0.0,
        )
        self._descriptor = descriptor
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")

    def read(self) -> int | Unavailable:
        """Return the bytes in RAM now."""
        try:
            return int(os.pread(self._descriptor, 64, 0).split()[1]) * self._page_bytes
        except (OSError, IndexError):
            return Unavailable("the process has ended")

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
