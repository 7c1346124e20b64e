"""What this machine is, and what was measured on it: facts for the manifest, a profile that is kept between runs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from perjoule.core.cache import cache_folder
from perjoule.core.errors import RunFolderError
from perjoule.core.limits import memory_bytes, usable_cores
from perjoule.runs.files import read_json, write_json

_LOCK_S = 2.0
"""How long to wait for another process that stores a measurement."""


def cpu_info() -> dict[str, Any]:
    """Return the processor's model name, feature flags and the cores this process may use; a quota allows fractions."""
    model, flags = platform.processor() or platform.machine(), ""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() in {"flags", "Features"}:
                flags = value.strip()
                break
    except OSError:
        pass
    cores = usable_cores()
    return {"model": model, "flags": frozenset(flags.split()), "cores": int(cores) if cores.is_integer() else cores}


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def host_facts() -> dict[str, Any]:
    """Return what the manifest says about the machine; nothing that identifies the user."""
    cpu = cpu_info()
    return {
        "name": platform.node(),
        "cpu": cpu["model"],
        "cores": cpu["cores"],
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": installed("torch"),
        "perjoule": installed("perjoule"),
    }


def device_name(index: int, visible: str | None, uuid: str | None = None) -> str:
    """Return the name by which a meter finds the device that torch calls ``cuda:<index>``.

    Args:
        index: torch's number, which counts the visible devices only.
        visible: ``CUDA_VISIBLE_DEVICES``: numbers, or (the beginnings of) UUIDs of GPUs or MIG instances; None if it is
            not set.
        uuid: what the driver says of the device, with or without ``GPU-``. It is better than a number, because CUDA
            numbers devices by speed and NVML by their place on the bus.

    Returns:
        a UUID as far as one is known, else the device's number without a mask.
    """
    entries = [word.strip() for word in (visible or "").split(",") if word.strip()]
    entry = entries[index] if index < len(entries) else str(index)
    if not entry.isdigit():
        return entry
    return f"GPU-{uuid.removeprefix('GPU-')}" if uuid else entry


def others_running(samples: int = 8, pause_s: float = 0.004) -> float:
    """Return how many other processes and threads of this machine want a core just now, 0 where that is unknown.

    Args:
        samples: readings of the number of runnable processes, of which one is this process.
        pause_s: seconds between two readings.
    """
    counts = []
    for _ in range(samples):
        try:
            lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
        except OSError:
            return 0.0
        counts += [int(line.split()[1]) - 1 for line in lines if line.startswith("procs_running ")]
        time.sleep(pause_s)
    return sum(counts) / len(counts) if counts else 0.0


def process_age_s() -> float:
    """Return the seconds since this process was started, interpreter start-up included."""
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return time.process_time()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class MachineProfile:
    """Measurements of this machine that are worth keeping, one JSON file per machine and torch version.

    The key is made of the CPU model, its feature flags, the number of usable cores and torch's version, so that a
    profile is never used for another machine. Probes ask :meth:`get` and fill with :meth:`put`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        cpu = cpu_info()
        identity = [cpu["model"], sorted(cpu["flags"]), cpu["cores"], installed("torch")]
        key = hashlib.blake2b(json.dumps(identity).encode(), digest_size=6).hexdigest()
        self.path = (folder or cache_folder()) / f"machine-{key}.json"
        self._values = self._stored()

    def get(self, name: str) -> Any | None:
        """Return a stored measurement, or None if it was never made."""
        return self._values.get(name)

    def put(self, name: str, value: Any) -> None:
        """Store a measurement (JSON) at once; where the folder cannot be written, for this process only.

        What other processes stored meanwhile is kept.
        """
        self._values[name] = value
        with contextlib.suppress(OSError, RunFolderError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.parent):
                stored = {**self._stored(), name: value}
                write_json(self.path, stored)
                self._values |= stored

    def forget(self) -> None:
        """Drop every measurement."""
        self._values = {}
        self.path.unlink(missing_ok=True)

    def _stored(self) -> dict[str, Any]:
        """Return what the file holds; a missing or damaged profile is measured again."""
        with contextlib.suppress(RunFolderError):
            stored = read_json(self.path)
            return stored if isinstance(stored, dict) else {}
        return {}


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, or go on without it after a moment or on a file system that has none."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end_s = time.monotonic() + _LOCK_S
        while time.monotonic() < end_s:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)
