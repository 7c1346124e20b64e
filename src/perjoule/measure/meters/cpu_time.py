"""Processor energy of the run, modelled from its CPU time: watts of a busy and of an idle core times the time of each.

::

    energy = idle_w_per_core × num_cores × time + (active_w_per_core - idle_w_per_core) × core-seconds of the run

This is a model, for machines without an energy counter. It knows nothing of clock rates, instructions or temperature.
CPU time is that of the run's processes and of all that they start (loaders, not the sampler itself), also of those that
ended (:mod:`perjoule.measure.process_tree`). Charged are only the cores that the run may use, by its affinity and the
quota of its cgroups, never the whole socket.

**Where the watts come from.** ``active_w_per_core`` is thermal design power divided by cores, the median of the twelve
processors of ``processors.csv``, rounded. They range from 3.5 to 13.1 W, which is the interval of a factor 2 in both
directions that the figure carries. ``idle_w_per_core`` is a quarter of that: the median share, over the nine families
of ``idle_power.csv``, of what a server draws at idle in what it draws at full load (0.15 to 0.37). Each row of both
tables names its source.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from perjoule.config import Config
from perjoule.core.limits import cpu_quota
from perjoule.measure.contract import Form, Meter, Sensor, Site, Unavailable
from perjoule.measure.meters.sysfs import text
from perjoule.measure.process_tree import CpuClocks

_ACTIVE_W_PER_CORE, _IDLE_W_PER_CORE = 7.0, 1.8
_PRIOR = "medians of public tables for 12 processors; not of this machine"


class CpuTimeConfig(Config):
    """Watts of a core, and the number of cores."""

    kind: Literal["cpu_time"] = "cpu_time"
    active_w_per_core: float = Field(default=_ACTIVE_W_PER_CORE, gt=0, le=200)
    """Power of a busy core, its share of the caches and the memory controller included."""
    idle_w_per_core: float = Field(default=_IDLE_W_PER_CORE, ge=0, le=200)
    """Power of an idle core."""
    cores: float | None = Field(default=None, gt=0)
    """Physical cores to charge to the run; those it may use if not given, a hyper-thread being a part of one."""

    @model_validator(mode="after")
    def _active_is_more(self) -> CpuTimeConfig:
        if self.active_w_per_core < self.idle_w_per_core:
            raise ValueError("active_w_per_core must be at least idle_w_per_core")
        return self

    def build(self, site: Site) -> tuple[Meter | Unavailable, ...]:
        """Start counting, or say why the system does not tell a process's CPU time."""
        pids = site.pids or ((site.parent,) if site.parent else ())
        if not pids:
            return (Unavailable("there is no process to meter"),)
        try:
            allowed = set().union(*map(os.sched_getaffinity, pids))
            quota = cpu_quota(pids)
            processes = CpuClocks(site.pids, site.parent)
        except (OSError, AttributeError) as error:
            known = isinstance(error, ProcessLookupError)
            return (Unavailable("the run's process has ended" if known else f"only Linux has such clocks: {error}"),)
        physical = physical_cores(allowed)
        given = (self.active_w_per_core != _ACTIVE_W_PER_CORE) + (self.idle_w_per_core != _IDLE_W_PER_CORE)
        source = (_PRIOR, f"partly given by the user, else {_PRIOR}", "watts given by the user")[given]
        cores = physical * min(quota / len(allowed), 1.0) if self.cores is None else self.cores
        sensor = Sensor(
            domain="cpu",
            form=Form.COUNTER,
            scope="process",
            method=(
                f"modelled from CPU time: {self.active_w_per_core:g} W a busy and {self.idle_w_per_core:g} W an idle "
                f"core, {cores:g} cores ({source})"
            ),
            unit="µJ",
            resolution_s=1e-6,
            accuracy=(0.5, 2.0),
            modelled=True,
            idle_w=self.idle_w_per_core * cores,
            # A quota holds on average over its period: for a moment all cores may be busy.
            limit_w=self.active_w_per_core * (physical if self.cores is None else self.cores),
        )
        dynamic_w = (self.active_w_per_core - self.idle_w_per_core) * physical / len(allowed)
        return (ModelledCpu(sensor, processes, dynamic_w),)


class ModelledCpu:
    """Turns CPU time into energy; one reading costs about 1 µs for each process.

    Args:
        sensor: what is said of the figure; ``idle_w`` is used.
        clocks: CPU time of the run's processes.
        dynamic_w: power of a second of CPU time each second, above idle; less than that of a core where several
            hyper-threads share one.
    """

    def __init__(self, sensor: Sensor, clocks: CpuClocks, dynamic_w: float) -> None:
        self.sensor = sensor
        self._clocks = clocks
        self._idle_w = sensor.idle_w or 0.0
        self._dynamic_w = dynamic_w
        self._started_ns = time.monotonic_ns()

    def read(self) -> int | Unavailable:
        """Return the energy since the meter was built."""
        lasted_ns = time.monotonic_ns() - self._started_ns
        return round((self._idle_w * lasted_ns + self._dynamic_w * self._clocks.spent_ns()) / 1000)

    def close(self) -> None:
        """Nothing was opened."""


def physical_cores(cpus: Iterable[int], root: Path = Path("/sys/devices/system/cpu")) -> float:
    """Return how many physical cores a set of logical ones is: a hyper-thread of two is half of one.

    Args:
        cpus: numbers of the logical cores.
        root: folder of the processors.
    """
    return sum(1 / _siblings(text(root / f"cpu{cpu}" / "topology" / "thread_siblings_list")) for cpu in cpus)


def _siblings(listing: str) -> int:
    """Return how many cores ``0,32`` or ``0-1`` names, 1 for an empty list."""
    num = 0
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", listing):
        num += int(last or first) - int(first) + 1
    return max(num, 1)
