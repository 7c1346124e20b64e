"""How busy other programs kept the machine while something was measured: all CPU time, less that of our own processes.

The kernel counts the time of all cores in ``/proc/stat``, in a container those of the whole machine. *Steal* is the
time for which a virtual machine wanted a core and its hypervisor gave it to another one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from perjoule.measure.process_tree import CpuClocks

_STAT = Path("/proc/stat")
_LEAST_S = 0.5
"""Time is counted in ticks of 10 ms: over less than this they say little."""


class MachineLoad:
    """Watches from when it is made on; nothing is done until it is asked.

    Args:
        pids: our own processes; with what they start they are not other programs. This one if left out.
        parent: a process whose children are ours, without being counted itself; 0 if there is none.
        without: processes that are not ours although ours started them.
    """

    def __init__(self, pids: Collection[int] = (), parent: int = 0, without: Collection[int] = ()) -> None:
        self._begun_s = time.monotonic()
        self._missing = ""
        try:
            self._clocks = CpuClocks(pids or (() if parent else (os.getpid(),)), parent, without)
            self._begun = _read()
        except (OSError, ValueError, IndexError) as error:
            self._missing = f"the system does not tell the load of its cores: {error}"

    def facts(self) -> dict[str, Any]:
        """Return, for a manifest, the shares of all cores that other programs and the hypervisor took, or why not."""
        seconds = time.monotonic() - self._begun_s
        if self._missing or seconds < _LEAST_S:
            return {"unavailable": self._missing or f"shorter than {_LEAST_S:g} s"}
        try:
            now = _read()
        except (OSError, ValueError, IndexError) as error:
            return {"unavailable": f"the system does not tell the load of its cores: {error}"}
        busy_s, steal_s, cores_s = (after - before for after, before in zip(now, self._begun, strict=True))
        if cores_s <= 0:
            return {"unavailable": "the kernel counted no time of any core"}
        others_s = max(busy_s - self._clocks.spent_ns() / 1e9, 0.0)
        shares = {"others": round(min(others_s / cores_s, 1.0), 4), "steal": round(max(steal_s, 0.0) / cores_s, 4)}
        return {**shares, "seconds": round(seconds, 3)}


def _read() -> tuple[float, float, float]:
    """Return the seconds of all cores since the machine was started: busy, stolen, and all in all.

    Raises:
        OSError: if the system has no such file.
        ValueError: if it has other contents.
        IndexError: if it has fewer.
    """
    words = _STAT.read_text(encoding="ascii").splitlines()[0].split()
    user, nice, system, idle, iowait, irq, softirq, steal = (int(word) for word in words[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + softirq
    return busy / tick, steal / tick, (busy + idle + iowait + steal) / tick
