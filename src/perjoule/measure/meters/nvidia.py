"""NVIDIA GPUs by NVML: energy counter, instant and average power of each GPU that the run uses.

What a reading is depends on the generation (``_SENSORS``; Yang et al., arXiv 2312.02741, and NVML's own text). A power
sensor shows, every 20 to 100 ms, the mean over a *window* that may be a quarter of that time or ten times as long. The
gain of these sensors is uncertain: eight cards against an external meter read 6 % too little to 11 % too much, which
every figure carries. Only energy and power are ever asked for: a list of processes would hold the driver's lock for
milliseconds.

A GPU is named by its UUID, because CUDA and NVML number devices differently. On Grace Hopper the counter holds the
whole module, processor and memory included, and so says its scope. An instance of a partitioned GPU (MIG) has no
sensors of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from perjoule.config import Config
from perjoule.measure.contract import Form, Meter, Sensor, Site, Unavailable

_ACCURACY = (0.90, 1.08)
"""The truth over the reading of the cards that Yang et al. metered: 0.90 (RTX 2060 Super) to 1.07 (RTX 2080 Ti)."""
_OFFSET_W = 20.0
"""What a card may draw beside what its sensor sees: at idle one read 56 W where an external meter had 74.9 W."""
_REFRESH_S = 0.1


@dataclass(frozen=True)
class _Generation:
    """What the power sensors of a generation do; None where sources disagree or there is none.

    Args:
        refresh_s: time between two values.
        instant_s: averaging window of the instant power.
        usage_s: averaging window of ``nvmlDeviceGetPowerUsage``, the only sensor of older drivers.
    """

    refresh_s: float = _REFRESH_S
    instant_s: float | None = None
    usage_s: float | None = None


_AVERAGE_S = 1.0
"""Averaging window of the average power, wherever that exists."""
_SENSORS = {
    4: _Generation(0.02, 0.01, 0.01),  # Pascal
    5: _Generation(0.02, 0.01, 0.01),  # Volta
    6: _Generation(),  # Turing: 20 ms on some cards, 100 ms on others
    7: _Generation(instant_s=0.1),  # Ampere GA10x; its power usage is over 0.1 or 1 s, by driver
    8: _Generation(instant_s=0.1),  # Ada
    9: _Generation(instant_s=0.025, usage_s=1.0),  # Hopper
}
"""By NVML's number of the architecture."""
_GA100 = _Generation(instant_s=0.025, usage_s=0.025)
_GA100_NAME = re.compile(r"\b(A100X?|A800|A30X?)\b")

_REMEDIES = {
    4: ("this user may not read it", "in a container, start it with the NVIDIA Container Toolkit"),
    9: ("the NVIDIA kernel driver is not loaded", "load it: `nvidia-smi` as root, or restart the machine"),
    12: (
        "no NVIDIA driver: libnvidia-ml.so.1 was not found",
        "install the driver; a container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    ),
    15: ("the GPU is lost: it has fallen off the bus", "see `dmesg` for its Xid error, and restart the machine"),
    16: ("the GPU must be reset", "`nvidia-smi --gpu-reset`, or restart the machine"),
    18: ("driver and library are of different versions", "restart the machine after the driver was updated"),
}
"""What an NVML error code means here, and what helps. Others are given in NVML's words."""
_NOT_SUPPORTED = (3, 13)


class NvidiaConfig(Config):
    """Which GPUs to read."""

    kind: Literal["nvidia"] = "nvidia"
    all: bool = False
    """Read every GPU of the machine, whether the run uses it or not."""
    devices: tuple[int | str, ...] = ()
    """Read these instead of those that the run uses: UUIDs, their beginnings, or numbers as in ``nvidia-smi``."""
    mig_parent: bool = False
    """For an instance of a partitioned GPU, read the whole GPU, the other instances included."""

    def build(self, site: Site) -> tuple[Meter | Unavailable, ...]:
        """Open every quantity of every GPU, or say why it cannot be read."""
        wanted = [str(device) for device in self.devices] or list(site.devices)
        if not wanted and not self.all:
            return (Unavailable("the run uses no CUDA device"),)
        import pynvml  # type: ignore[import-untyped]  # here: it takes 20 ms

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            return (_unavailable("NVML", error),)
        try:
            gpus = _Gpus(pynvml)
            if self.all:
                wanted = [str(index) for index in range(len(gpus))]
            targets = dict.fromkeys(self._target(gpus, name) for name in wanted)
            found = [meter for target in targets for meter in _open(pynvml, target)]
        except pynvml.NVMLError as error:
            found = [_unavailable("NVML", error)]
        finally:
            pynvml.nvmlShutdown()
        return tuple(found) or (Unavailable("NVML shows no GPU"),)

    def _target(self, gpus: _Gpus, name: str) -> _Gpu | Unavailable:
        """Return the GPU that a name means, or why its energy would not be the run's."""
        asked_for = self.all or bool(self.devices)
        gpu = gpus.find(name, by_nvml=asked_for)
        whole = asked_for and not name.startswith("MIG-")
        if isinstance(gpu, Unavailable) or not gpu.partitioned or whole or self.mig_parent:
            return gpu
        return Unavailable(
            f"{name}: an instance of a partitioned GPU (MIG) has no sensors of its own",
            "`{kind: nvidia, mig_parent: true}` reads the whole GPU, the other instances included",
        )


@dataclass(frozen=True)
class _Gpu:
    uuid: str
    name: str
    partitioned: bool

    def __str__(self) -> str:
        return f"{self.name} ({self.uuid})"


class _Gpus:
    """The GPUs of this machine in NVML's order."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._known = [self._look(index) for index in range(nvml.nvmlDeviceGetCount())]

    def __len__(self) -> int:
        return len(self._known)

    def find(self, name: str, by_nvml: bool) -> _Gpu | Unavailable:
        """Return the GPU of a number, of a UUID or its beginning, or of a MIG instance.

        Args:
            name: as in ``CUDA_VISIBLE_DEVICES``.
            by_nvml: whether numbers are NVML's own and not CUDA's.
        """
        if name.isdecimal():
            return self._numbered(int(name), by_nvml)
        if name.startswith("MIG-"):
            return self._parent(name)
        prefix = name if name.startswith("GPU-") else f"GPU-{name}"
        gpus = [gpu for gpu in self._known if isinstance(gpu, _Gpu)]
        matching = [gpu for gpu in gpus if gpu.uuid.startswith(prefix)]
        if len(matching) == 1:
            return matching[0]
        there = ", ".join(gpu.uuid for gpu in matching or gpus) or "none"
        return Unavailable(f"{'several GPUs begin' if matching else 'no GPU begins'} with {prefix}; there are: {there}")

    def _look(self, index: int) -> _Gpu | Unavailable:
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            uuid, name = self._nvml.nvmlDeviceGetUUID(handle), self._nvml.nvmlDeviceGetName(handle)
        except self._nvml.NVMLError as error:
            return _unavailable(f"GPU {index}", error)
        try:
            partitioned = self._nvml.nvmlDeviceGetMigMode(handle)[0] == self._nvml.NVML_DEVICE_MIG_ENABLE
        except self._nvml.NVMLError:
            partitioned = False
        return _Gpu(uuid, name, partitioned)

    def _numbered(self, index: int, by_nvml: bool) -> _Gpu | Unavailable:
        if index >= len(self):
            return Unavailable(f"no GPU {index}: NVML shows {len(self)}")
        models = {gpu.name for gpu in self._known if isinstance(gpu, _Gpu)}
        if len(models) > 1 and not by_nvml and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            return Unavailable(
                f"GPU {index} may be any of {', '.join(sorted(models))}: CUDA numbers them by speed, NVML by place",
                "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name GPUs by UUID in CUDA_VISIBLE_DEVICES",
            )
        return self._known[index]

    def _parent(self, name: str) -> _Gpu | Unavailable:
        try:
            instance = self._nvml.nvmlDeviceGetHandleByUUID(name)
            parent = self._nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance)
            return self.find(self._nvml.nvmlDeviceGetUUID(parent), by_nvml=True)
        except self._nvml.NVMLError as error:
            return _unavailable(name, error)


def _open(nvml: Any, gpu: _Gpu | Unavailable) -> Iterator[Meter | Unavailable]:
    """Yield a meter for each quantity of a GPU."""
    if isinstance(gpu, Unavailable):
        yield gpu
        return
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
        generation = _generation(nvml, handle, gpu.name)
    except nvml.NVMLError as error:
        yield _unavailable(str(gpu), error)
        return
    instant, average = nvml.NVML_FI_DEV_POWER_INSTANT, nvml.NVML_FI_DEV_POWER_AVERAGE
    whole, module = nvml.NVML_POWER_SCOPE_GPU, nvml.NVML_POWER_SCOPE_MODULE
    opener = _Opener(nvml, gpu, _limit_w(nvml, handle), generation.refresh_s)
    in_module = _is_part_of_a_module(nvml, handle)
    yield opener.open("energy counter", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle), None, in_module)
    meter = opener.open("instant power", lambda: _field(nvml, handle, instant, whole), generation.instant_s)
    if isinstance(meter, Unavailable):
        older = opener.open("power usage", lambda: nvml.nvmlDeviceGetPowerUsage(handle), generation.usage_s)
        meter = meter if isinstance(older, Unavailable) else older
    yield meter
    yield opener.open("average power", lambda: _field(nvml, handle, average, whole), _AVERAGE_S)
    if in_module:
        yield opener.open("module power", lambda: _field(nvml, handle, instant, module), None, in_module)


@dataclass(frozen=True)
class _Opener:
    """Makes the meters of one GPU.

    Args:
        nvml: the module pynvml.
        gpu: the GPU.
        limit_w: its power limit.
        refresh_s: time between two values of its sensors.
    """

    nvml: Any
    gpu: _Gpu
    limit_w: float | None
    refresh_s: float

    def open(
        self, quantity: str, read: Callable[[], int], window_s: float | None, in_module: bool = False
    ) -> Meter | Unavailable:
        """Return the meter of a quantity if it can be read.

        Args:
            quantity: its name.
            read: returns it in mJ or mW.
            window_s: averaging window of a power.
            in_module: whether it covers the whole module.
        """
        counts = quantity == "energy counter"
        scope = "module" if in_module else "gpu"
        others = ", the whole GPU with all its MIG instances" if self.gpu.partitioned else ""
        sensor = Sensor(
            domain=f"{scope}-{self.gpu.uuid.removeprefix('GPU-')}",
            form=Form.COUNTER if counts else Form.POWER,
            scope=scope,
            method=f"NVML {quantity} of {self.gpu.name}{others}",
            unit="µJ" if counts else "µW",
            resolution_s=_REFRESH_S if counts else self.refresh_s,
            window_s=window_s,
            accuracy=_ACCURACY,
            offset_w=_OFFSET_W,
            limit_w=None if in_module else self.limit_w,
            device=self.gpu.uuid,
            model=self.gpu.name,
        )
        try:
            if not read() and not counts:
                return Unavailable(f"{quantity} of {self.gpu}: NVML says 0 W, which no GPU draws")
            return NvidiaMeter(sensor, self.nvml, read)
        except self.nvml.NVMLError as error:
            return _unavailable(f"{quantity} of {self.gpu}", error)


class NvidiaMeter:
    """One quantity of one GPU; a reading costs what the driver takes, some 10 µs to a few milliseconds.

    Args:
        sensor: what is said of it.
        nvml: the module pynvml; it is held open until :meth:`close`.
        read: returns the reading in mJ or mW.
    """

    def __init__(self, sensor: Sensor, nvml: Any, read: Callable[[], int]) -> None:
        nvml.nvmlInit()
        self.sensor = sensor
        self._nvml = nvml
        self._read = read
        self._closed = False

    def read(self) -> int | Unavailable:
        """Return the energy in µJ or the power in µW."""
        try:
            return 1000 * self._read()
        except self._nvml.NVMLError as error:
            return _unavailable(self.sensor.domain, error)

    def close(self) -> None:
        """Give NVML back; the last meter that does so shuts it down."""
        if not self._closed:
            self._closed = True
            self._nvml.nvmlShutdown()


def _field(nvml: Any, handle: Any, field: int, scope: int) -> int:
    """Return a power in mW that has no function of its own.

    Raises:
        NVMLError: if this GPU or driver does not have it.
    """
    (value,) = nvml.nvmlDeviceGetFieldValues(handle, [(field, scope)])
    if value.nvmlReturn != nvml.NVML_SUCCESS:
        raise nvml.NVMLError(value.nvmlReturn)
    return int(value.value.uiVal)


def _generation(nvml: Any, handle: Any, name: str) -> _Generation:
    """Return what is known of the sensors of a GPU."""
    try:
        architecture = nvml.nvmlDeviceGetArchitecture(handle)
    except nvml.NVMLError:
        return _Generation()
    if architecture == nvml.NVML_DEVICE_ARCH_AMPERE and _GA100_NAME.search(name):
        return _GA100
    return _SENSORS.get(architecture, _Generation())


def _is_part_of_a_module(nvml: Any, handle: Any) -> bool:
    """Return whether the GPU shares a module with a processor, as Grace Hopper does."""
    try:
        return bool(nvml.nvmlDeviceGetC2cModeInfoV(handle).isC2cEnabled)
    except nvml.NVMLError:
        return False


def _limit_w(nvml: Any, handle: Any) -> float | None:
    try:
        return float(nvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / 1000
    except nvml.NVMLError:
        return None


def _unavailable(what: str, error: Any) -> Unavailable:
    """Say in a line what an NVML error means."""
    if error.value in _NOT_SUPPORTED:
        return Unavailable(f"{what}: this GPU or its driver does not have it")
    reason, remedy = _REMEDIES.get(error.value, (str(error), ""))
    return Unavailable(f"{what}: {reason}", remedy)
