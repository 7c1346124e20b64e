"""AMD GPUs, Apple silicon and Jetson boards, through the device layer of Zeus (``pip install 'perjoule[zeus]'``).

Zeus is imported when the meter is built, which is in the sampler and not in training: it is large. Of it only the
device layer is used; its windows and monitors are not. NVIDIA GPUs, Grace Hopper among them, are read by ``nvidia``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from perjoule.config import Config
from perjoule.measure.contract import Form, Meter, Sensor, Site, Unavailable

_INSTALL = "pip install 'perjoule[zeus]'; on Apple silicon 'zeus[apple]' besides"
_FIELDS = {
    "total_energy_mj": ("soc", "module"),  # Jetson
    "cpu_energy_mj": ("soc-cpu", "package"),
    "gpu_energy_mj": ("soc-gpu", "gpu"),
    "cpu_total_mj": ("soc-cpu", "package"),  # Apple
    "gpu_mj": ("soc-gpu", "gpu"),
    "dram_mj": ("soc-dram", "dram"),
}
"""Domain and scope of those fields of Zeus's measurements of a system on a chip that are not parts of another one."""
_ACCURACY = (0.9, 1.1)
"""Our prior; these vendors state none."""


class ZeusConfig(Config):
    """Devices that Zeus finds; it heeds ``HIP_VISIBLE_DEVICES`` and ``CUDA_VISIBLE_DEVICES`` by itself."""

    kind: Literal["zeus"] = "zeus"

    def build(self, site: Site) -> tuple[Meter | Unavailable, ...]:
        """Open every device that Zeus finds, or say why there is none."""
        try:
            from zeus.device import get_gpus, get_soc  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            return (Unavailable(f"zeus cannot be imported: {error}", _INSTALL),)
        found: list[Meter | Unavailable] = []
        for get, meters_of in ((get_gpus, _gpus), (get_soc, _soc)):
            try:
                found += meters_of(get())
            except Exception as error:  # zeus's own for no device, and what the vendors' libraries beneath it raise
                found.append(Unavailable(f"zeus: {error}"))
        meters = [each for each in found if not isinstance(each, Unavailable)]
        return tuple(meters or found) or (Unavailable("zeus shows no device"),)


def _gpus(gpus: Any) -> Iterator[Meter | Unavailable]:
    """Yield a meter for each GPU: its energy counter, or its power where it has none."""
    if type(gpus).__name__ == "NVIDIAGPUs":
        yield Unavailable("zeus shows NVIDIA GPUs only", "the meter `nvidia` reads them")
        return
    for index in range(len(gpus)):
        counts = gpus.supports_get_total_energy_consumption(index)
        read = partial(gpus.get_total_energy_consumption if counts else gpus.get_instant_power_usage, index)
        method = f"{'energy counter' if counts else 'power'} of GPU {index}, {gpus.get_name(index)}"
        domain = f"gpu-{index}"
        yield _meter(domain, "gpu", domain, Form.COUNTER if counts else Form.POWER, method, read)


def _soc(soc: Any) -> Iterator[Meter | Unavailable]:
    """Yield a meter for each subsystem."""
    for field in sorted(_FIELDS.keys() & soc.get_available_metrics()):

        def read(field: str = field) -> float:
            return float(getattr(soc.get_total_energy_consumption(), field))

        domain, scope = _FIELDS[field]
        yield _meter(domain, scope, "soc", Form.COUNTER, f"{field} of {type(soc).__name__}", read)


def _meter(domain: str, scope: str, device: str, form: Form, method: str, read: Callable[[], float]) -> Meter:
    counts = form == Form.COUNTER
    sensor = Sensor(
        domain=domain,
        form=form,
        scope=scope,
        method=f"zeus: {method}",
        unit="µJ" if counts else "µW",
        resolution_s=0.1,
        accuracy=_ACCURACY,
        device=device,
    )
    return ZeusDevice(sensor, read)


class ZeusDevice:
    """One figure of one device.

    Args:
        sensor: what is said of it.
        read: returns it in mJ or mW.
    """

    def __init__(self, sensor: Sensor, read: Callable[[], float]) -> None:
        self.sensor = sensor
        self._read = read

    def read(self) -> int | Unavailable:
        """Return the energy in µJ or the power in µW."""
        try:
            return round(1000 * self._read())
        except Exception as error:  # of a vendor's library
            return Unavailable(f"{self.sensor.domain}: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Zeus keeps its devices open for the life of the process."""
