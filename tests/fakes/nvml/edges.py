"""The file that a workload and the fake library share: settings of each GPU's sensors, and its power as a staircase.

::

    0            magic, num_devices, capacity, device_bytes, edges_at, init_error      (uint64 each)
    4096 …       one block of 4096 bytes for each device: its settings, three names, num_edges
    edges_at …   (num_devices, capacity) edges of 24 bytes: t_ns, energy until t in mW ns, power from t on in mW, label

An edge counts once ``num_edges`` says so, which is written last.
"""

import mmap
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

_MAGIC = 0x4E564D4C45444745
_PAGE = 4096
_EDGE = np.dtype([("t_ns", "<i8"), ("energy_pj", "<i8"), ("power_mw", "<u4"), ("label", "<u4")])
_PACK_EDGE = struct.Struct("<qqII")
_COUNT = struct.Struct("<Q")
_PJ_PER_UJ = 1_000_000


@dataclass
class Gpu:
    """One GPU: what it is and what its sensors do. The numbers may be changed while it is read, by :meth:`Edges.set`.

    Args:
        refresh_ms: time between two values of the power; 0 for always the newest.
        window_ms: what power usage and instant power average over; 0 for the power at that moment.
        average_window_ms: the same of the average power.
        lag_ms: age of a value when it appears, of the counter as well.
        lowpass_tau_ms: time constant of a filter in front of the power's window.
        jitter: how late a refresh may come, as a share of a refresh.
        gain: reading over truth, of power and counter.
        noise: standard deviation of a power reading over its value.
        call_delay_us: what every call takes.
        counter_refresh_ms: time between two values of the counter.
        counter_offset_mj: value of the counter before the first edge; lower it to reset the driver.
        module_extra_w: power of the rest of a module such as Grace Hopper's; 0 for a GPU that stands alone.
        has_counter: whether there is an energy counter.
        has_fields: whether instant and average power exist.
        has_power: whether power usage exists.
        frozen_counter: whether the counter stands still at its offset.
        error: NVML error of every call to the device; 0 for none.
        partitioned: whether the GPU is partitioned (MIG), with one instance.
        architecture: NVML's number: 7 Ampere, 8 Ada, 9 Hopper.
        limit_mw: enforced power limit.
        min_limit_mw: lowest limit.
        max_limit_mw: highest and default limit.
        name: of the model.
        uuid: of the GPU; by default made of its index.
        mig_uuid: of its instance.
    """

    refresh_ms: float = 100.0
    window_ms: float = 25.0
    average_window_ms: float = 1000.0
    lag_ms: float = 0.0
    lowpass_tau_ms: float = 0.0
    jitter: float = 0.0
    gain: float = 1.0
    noise: float = 0.0
    call_delay_us: float = 0.0
    counter_refresh_ms: float = 100.0
    counter_offset_mj: float = 123_456_000.0
    module_extra_w: float = 0.0
    has_counter: int = 1
    has_fields: int = 1
    has_power: int = 1
    frozen_counter: int = 0
    error: int = 0
    partitioned: int = 0
    architecture: int = 7
    limit_mw: int = 400_000
    min_limit_mw: int = 100_000
    max_limit_mw: int = 400_000
    name: str = "NVIDIA A100-SXM4-40GB"
    uuid: str = ""
    mig_uuid: str = ""


_FORMATS = {float: "d", int: "Q", str: "96s"}
_FIELDS = {each.name: _FORMATS[type(each.default)] for each in fields(Gpu)}
_GPU = struct.Struct("<" + "".join(_FIELDS.values()))
_ENDS = np.cumsum([struct.calcsize("<" + letter) for letter in _FIELDS.values()]).tolist()
_OFFSETS = dict(zip(_FIELDS, [0, *_ENDS[:-1]], strict=True))


class Edges:
    """Writer of the file, and keeper of the truth. Make it by :meth:`create`; one process writes, any number read."""

    def __init__(self, path: Path, num_devices: int, capacity: int) -> None:
        self.path = path
        self.labels = [""]
        self._codes = {"": 0}
        self._capacity = capacity
        self._edges_at = _PAGE * (1 + num_devices)
        self._num = [0] * num_devices
        self._last = [(0, 0, 0)] * num_devices
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    @classmethod
    def create(
        cls,
        path: Path,
        gpus: Sequence[Gpu],
        idle_w: float = 60.0,
        capacity: int = 4_000_000,
        init_error: int = 0,
    ) -> "Edges":
        """Make a file for some GPUs; it takes disk space only for the edges that are written.

        Args:
            path: where.
            gpus: what they are.
            idle_w: power that they draw from three seconds ago on.
            capacity: edges of each GPU.
            init_error: NVML error of every attempt to open the library; 0 for none.
        """
        edges_at = _PAGE * (1 + len(gpus))
        with path.open("wb") as file:
            file.write(struct.pack("<6Q", _MAGIC, len(gpus), capacity, _PAGE, edges_at, init_error))
            os.truncate(file.fileno(), edges_at + len(gpus) * capacity * _EDGE.itemsize)
        edges = cls(path, len(gpus), capacity)
        for index, gpu in enumerate(gpus):
            gpu.uuid = gpu.uuid or f"GPU-{index:08x}-0000-4000-8000-{index:012x}"
            gpu.mig_uuid = gpu.mig_uuid or gpu.uuid.replace("GPU-", "MIG-")
            values = {name: getattr(gpu, name) for name in _FIELDS}
            edges.set(index, **values)
            edges.set_power(idle_w, device=index, t_ns=time.monotonic_ns() - 3_000_000_000)
        return edges

    def set(self, device: int = 0, **settings: float | str) -> None:
        """Change settings of a GPU, at once."""
        for name, value in settings.items():
            packed = value.encode() if isinstance(value, str) else value
            struct.pack_into("<" + _FIELDS[name], self._map, self._block(device) + _OFFSETS[name], packed)

    def set_power(self, watts: float, label: str = "", device: int = 0, t_ns: int | None = None) -> int:
        """Let a GPU draw ``watts`` from a moment on, and return that moment.

        Args:
            watts: true power.
            label: what it is doing, for :meth:`energy_by_label_uj`.
            device: which GPU.
            t_ns: the moment, CLOCK_MONOTONIC, not before the last one; now by default. It may lie in the future: a
                whole timeline can be written before it happens.

        Raises:
            ValueError: if the moment lies before the last one.
            IndexError: if the file is full.
        """
        if t_ns is None:
            t_ns = time.monotonic_ns()
        last_ns, energy_pj, power_mw = self._last[device]
        num = self._num[device]
        if t_ns < last_ns:
            raise ValueError(f"edge at {t_ns} ns lies before the last one at {last_ns} ns")
        if num >= self._capacity:
            raise IndexError(f"{self.path} holds {self._capacity} edges of a GPU and is full")
        energy_pj += power_mw * (t_ns - last_ns)
        power_mw = round(1000 * watts)
        code = self._codes.get(label)
        if code is None:
            code = self._codes[label] = len(self.labels)
            self.labels.append(label)
        at = self._edges_at + (device * self._capacity + num) * _EDGE.itemsize
        _PACK_EDGE.pack_into(self._map, at, t_ns, energy_pj, power_mw, code)
        _COUNT.pack_into(self._map, self._block(device) + _GPU.size, num + 1)
        self._num[device] = num + 1
        self._last[device] = (t_ns, energy_pj, power_mw)
        return t_ns

    def energy_uj(self, t0_ns: int, t1_ns: int, device: int = 0) -> float:
        """Return the true energy between two moments."""
        return float(np.diff(self._energy_pj(np.array([t0_ns, t1_ns]), device))[0]) / _PJ_PER_UJ

    def energy_by_label_uj(self, t0_ns: int, t1_ns: int, device: int = 0) -> dict[str, float]:
        """Return the true energy between two moments by what the GPU was doing; the parts add up to the whole."""
        written = self.written(device)
        edges = np.clip(np.append(written["t_ns"], np.iinfo(np.int64).max), t0_ns, t1_ns)
        energy = np.diff(self._energy_pj(edges, device)) / _PJ_PER_UJ
        codes = written["label"]
        return {self.labels[code]: float(energy[codes == code].sum()) for code in np.unique(codes)}

    def time_by_label_ns(self, t0_ns: int, t1_ns: int, device: int = 0) -> dict[str, int]:
        """Return the time between two moments by what the GPU was doing."""
        written = self.written(device)
        lasted = np.diff(np.clip(np.append(written["t_ns"], np.iinfo(np.int64).max), t0_ns, t1_ns))
        codes = written["label"]
        return {self.labels[code]: int(lasted[codes == code].sum()) for code in np.unique(codes)}

    def written(self, device: int = 0) -> NDArray[np.void]:
        """Return a copy of the (num_edges,) edges so far, with fields t_ns, energy_pj, power_mw and label."""
        at = self._edges_at + device * self._capacity * _EDGE.itemsize
        return np.frombuffer(self._map[at : at + self._num[device] * _EDGE.itemsize], _EDGE)

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()

    def __enter__(self) -> "Edges":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _block(self, device: int) -> int:
        return _PAGE * (1 + device)

    def _energy_pj(self, t_ns: NDArray[np.int64], device: int) -> NDArray[np.int64]:
        """Return the true energy until moments, exactly."""
        written = self.written(device)
        at = np.searchsorted(written["t_ns"], t_ns, side="right") - 1
        before = np.maximum(at, 0)
        energy = written["energy_pj"][before] + written["power_mw"][before].astype(np.int64) * (
            t_ns - written["t_ns"][before]
        )
        found: NDArray[np.int64] = np.where(at >= 0, energy, 0)
        return found
