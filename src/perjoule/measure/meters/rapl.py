"""Processor packages and memory by RAPL, the energy counters of Intel and AMD, as Linux shows them in powercap.

Read are the packages and their DRAM zones; ``core`` and ``uncore`` are parts of a package. ``psys``, the whole board of
some laptops, holds the packages and is read only if asked for. The same packages appear a second time under
``intel-rapl-mmio``, which is left alone.

Some AMD machines with several dies show one and the same counter under each of them: adding those up would count every
joule twice. Counters that stay equal over several readings are one.

A counter has 32 bits of 15 or 61 µJ; it wraps after minutes to an hour at full power. The reader of the samples undoes
that (``measure.counter``).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from perjoule.config import Config
from perjoule.measure.contract import Form, Meter, Sensor, Site, Unavailable
from perjoule.measure.meters.sysfs import NumberFile, number, text

_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")
_ROUNDS, _PAUSE_S = 5, 0.003
_ACCURACY = {"package": (0.95, 1.05), "psys": (0.9, 1.1), "dram": (0.8, 1.25)}
"""Our prior. No vendor states one. Comparisons with meters agree best on packages; the DRAM figure of many machines is
a model of the controller with an offset at idle."""

_FORBIDDEN = "only root may read it, because energy readings can leak secrets (CVE-2020-8694, PLATYPUS)"
_RULE = (
    "let one group read this one file by a udev rule: "
    'SUBSYSTEM=="powercap", ACTION=="add", RUN+="/bin/chgrp power /sys%p/energy_uj", '
    'RUN+="/bin/chmod 0440 /sys%p/energy_uj"; do not open the whole tree to everybody'
)


class RaplConfig(Config):
    """Energy counters of the processor packages and their memory."""

    kind: Literal["rapl"] = "rapl"
    psys: bool = False
    """Also read ``psys``, the energy of the whole board, where there is one."""
    root: Path = Path("/sys/class/powercap")
    """Folder of the zones; another one where a container has the host's mounted elsewhere."""

    def build(self, site: Site) -> tuple[Meter | Unavailable, ...]:
        """Open every zone, or say why it cannot be read."""
        names = {zone: text(zone / "name") for zone in _zones(self.root)}
        found: list[Meter | Unavailable] = []
        for zone, name in names.items():
            sort = re.split(r"[-_]", name)[0]
            if sort == "psys" and not self.psys:
                found.append(
                    Unavailable("psys: it holds the packages, which are read", "`{kind: rapl, psys: true}` reads it")
                )
            elif sort in _ACCURACY:
                parent = names.get(_parent(zone), "")
                domain = f"dram-{parent.removeprefix('package-')}" if sort == "dram" else name
                found.append(_open(zone, domain, sort))
        if not found:
            reason = f"no RAPL zone in {self.root}: a virtual machine, a container, or a processor without it"
            return (Unavailable(reason, "train on the host itself; here `cpu_time` models the processor"),)
        return tuple(_without_mirrors(found))


def _zones(root: Path) -> list[Path]:
    """Return the zones in the order of their numbers, parents first."""
    zones = [path for path in root.glob("intel-rapl:*") if _ZONE.fullmatch(path.name)]
    return sorted(zones, key=lambda path: [int(part) for part in path.name.split(":")[1:]])


def _parent(zone: Path) -> Path:
    return zone.with_name(zone.name.rpartition(":")[0])


def _open(zone: Path, domain: str, sort: str) -> Meter | Unavailable:
    path = zone / "energy_uj"
    sensor = Sensor(
        domain=domain,
        form=Form.COUNTER,
        scope=sort,
        method=f"RAPL energy counter, powercap zone {zone.name}",
        unit="µJ",
        resolution_s=0.001,
        wraps_at=number(zone / "max_energy_range_uj"),
        accuracy=_ACCURACY[sort],
        limit_w=_limit_w(zone),
        device=str(zone),
    )
    try:
        meter = NumberFile(sensor, path)
    except PermissionError:
        return Unavailable(f"{domain}: {path}: {_FORBIDDEN}", _RULE)
    except OSError as error:
        return Unavailable(f"{domain}: {path}: {error.strerror}")
    first = meter.read()
    if isinstance(first, Unavailable):
        meter.close()
        return first
    return meter


def _limit_w(zone: Path) -> float | None:
    """Return the highest of a zone's power limits, which bounds the power over any time longer than milliseconds."""
    files = [*zone.glob("constraint_*_power_limit_uw"), *zone.glob("constraint_*_max_power_uw")]
    limits = [value for value in map(number, files) if value]
    return max(limits) / 1e6 if limits else None


def _without_mirrors(found: list[Meter | Unavailable]) -> Iterator[Meter | Unavailable]:
    """Replace every meter whose counter is that of an earlier one by a word about it."""
    originals: list[Meter] = []
    for meter in found:
        same = None
        if not isinstance(meter, Unavailable):
            alike = (original for original in originals if original.sensor.scope == meter.sensor.scope)
            same = next((original for original in alike if _same_counter(original, meter)), None)
        if isinstance(meter, Unavailable) or same is None:
            originals += [] if isinstance(meter, Unavailable) else [meter]
            yield meter
        else:
            meter.close()
            yield Unavailable(f"{meter.sensor.domain}: its counter is that of {same.sensor.domain}, which is read")


def _same_counter(one: Meter, other: Meter) -> bool:
    """Return whether the reading of ``other`` always lies between two of ``one`` that are microseconds apart.

    A counter that moved tells: two that were never written are equal without being the same.
    """
    seen = set()
    for _ in range(_ROUNDS):
        before, between, after = one.read(), other.read(), one.read()
        if isinstance(before, Unavailable) or isinstance(between, Unavailable) or isinstance(after, Unavailable):
            return False
        if not min(before, after) <= between <= max(before, after):  # a wrap in these microseconds is told apart later
            return False
        seen.add(between)
        time.sleep(_PAUSE_S)
    return len(seen) > 1
