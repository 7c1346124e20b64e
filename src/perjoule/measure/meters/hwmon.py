"""Power and energy sensors of boards, power supplies and graphics cards, as Linux shows them in hwmon.

What such a sensor covers only the driver knows: a power supply holds the whole machine, a rail a part of it. Known
drivers have their scope below; all others count as ``board``, which stands beside other domains and is never added to
them. Ask for this meter once you know what your sensors cover.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from pydantic import Field

from perjoule.config import Config
from perjoule.measure.contract import Form, Meter, Sensor, Site, Unavailable
from perjoule.measure.meters.sysfs import NumberFile, number, text

_SCOPES = {
    "corsairpsu": "node",
    "power_meter": "node",  # ACPI; where it names a part of the machine, see below
    "amdgpu": "gpu",
    "i915": "gpu",
    "xe": "gpu",
    "nouveau": "gpu",
    "amd_energy": "package",
}
_PARTS = {"module": "module", "grace": "package"}
"""First word of a label by which ``power_meter`` names the part of a machine; other parts lie within these."""
_CORES = re.compile(r"ecore\d+", re.IGNORECASE)
"""``amd_energy`` shows every core beside the socket that holds it."""
_SENSOR_FILE = re.compile(r"(power|energy)(\d+)_(input|average)")


class HwmonConfig(Config):
    """Sensors of power supplies, boards and cards."""

    kind: Literal["hwmon"] = "hwmon"
    only: tuple[str, ...] = ()
    """Patterns of domains to read, such as ``hwmon-corsairpsu-*``; all of them if empty."""
    scope: Literal["node", "psys", "module", "package", "dram", "gpu", "board"] | None = None
    """What the sensors cover; by the driver's name if not given."""
    accuracy: tuple[float, float] = (0.9, 1.1)
    """95 % of true values lie between a reading times the first and times the second; no driver states it."""
    root: Path = Field(default=Path("/sys/class/hwmon"))
    """Folder of the devices."""

    def build(self, site: Site) -> tuple[Meter | Unavailable, ...]:
        """Open every sensor, or say why it cannot be read."""
        files = list(_sensor_files(self.root))
        chosen = [file for file in files if not self.only or any(fnmatch(file.domain, each) for each in self.only)]
        if not files:
            return (Unavailable(f"no power or energy sensor in {self.root}", "load the driver of your power supply"),)
        if not chosen:
            there = ", ".join(file.domain for file in files)
            return (Unavailable(f"no sensor matches {', '.join(self.only)}; there are: {there}"),)
        return tuple(self._open(file) for file in chosen)

    def _open(self, file: _SensorFile) -> Meter | Unavailable:
        interval_ms = number(file.path.with_name(f"{file.quantity}_average_interval"))
        averaged = file.path.name.endswith("_average")
        sensor = Sensor(
            domain=file.domain,
            form=Form.COUNTER if file.quantity.startswith("energy") else Form.POWER,
            scope=self.scope or file.scope,
            method=f"hwmon sensor {file.path.name} of the driver {file.driver}",
            unit="µJ" if file.quantity.startswith("energy") else "µW",
            resolution_s=((averaged and interval_ms) or number(file.path.with_name("update_interval")) or 1000) / 1000,
            window_s=interval_ms / 1000 if averaged and interval_ms else None,
            accuracy=self.accuracy,
            limit_w=_limit_w(file),
        )
        try:
            meter = NumberFile(sensor, file.path)
        except OSError as error:
            return Unavailable(f"{file.domain}: {file.path}: {error.strerror}")
        first = meter.read()
        if isinstance(first, Unavailable):  # a sensor that is switched off is there and gives an error
            meter.close()
            return first
        return meter


@dataclass(frozen=True)
class _SensorFile:
    domain: str
    driver: str
    quantity: str
    scope: str
    path: Path


def _sensor_files(root: Path) -> Iterator[_SensorFile]:
    """Yield every sensor once, the smoothed one where a driver shows both, with a domain of its own."""
    found: dict[tuple[Path, str], _SensorFile] = {}
    for device in sorted(root.glob("hwmon*"), key=lambda path: int(re.sub(r"\D", "", path.name) or 0)):
        driver = text(device / "name") or device.name
        for path in sorted(device.glob("*")):
            match = _SENSOR_FILE.fullmatch(path.name)
            if match is None:
                continue
            quantity = match[1] + match[2]
            label = text(device / f"{quantity}_label") or text(device / f"{quantity}_oem_info")
            if not _CORES.fullmatch(label) and (device, quantity) not in found:
                domain = f"hwmon-{driver}-{_slug(label) or quantity}"
                found[device, quantity] = _SensorFile(domain, driver, quantity, _scope(driver, label), path)
    count = Counter(file.domain for file in found.values())
    for (device, _), file in found.items():
        unique = file.domain if count[file.domain] == 1 else f"{file.domain}-{device.name}-{file.quantity}"
        yield _SensorFile(unique, file.driver, file.quantity, file.scope, file.path)


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def _scope(driver: str, label: str) -> str:
    """Return what a sensor covers, as far as the names tell."""
    if driver == "corsairpsu" and label and "total" not in label.lower():
        return "board"  # one of its rails
    if driver == "power_meter" and label:
        return _PARTS.get(_slug(label).split("-")[0], "board")
    return _SCOPES.get(driver, "board")


def _limit_w(file: _SensorFile) -> float | None:
    limits = [number(file.path.with_name(f"{file.quantity}_{name}")) for name in ("cap", "rated_max", "crit")]
    known = [limit for limit in limits if limit]
    return max(known) / 1e6 if known else None
