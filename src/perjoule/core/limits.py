"""Cores and memory that a process may use: those of the machine, less by its affinity and the limits of its container.

A container or a batch job is limited by control groups (cgroups): a *quota* of CPU time per period, and a number of
bytes. Groups are nested, and the tightest limit on the way up is in force. Both versions are read::

    version 2    cpu.max                                  memory.max
    version 1    cpu.cfs_quota_us / cpu.cfs_period_us     memory.limit_in_bytes

``os.cpu_count`` and the affinity know nothing of quotas: 128 cores may be visible where half of one may be used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")
_ESCAPE = re.compile(r"\\([0-7]{3})")


def usable_cores(pids: Iterable[int] = (), root: Path = ROOT) -> float:
    """Return how many logical cores processes may keep busy on average, which a quota may make a fraction.

    Args:
        pids: the processes, together; this one if left out.
        root: where ``proc`` and the mount points lie; for tests.
    """
    ids = tuple(pids) or (os.getpid(),)
    if hasattr(os, "sched_getaffinity"):
        visible = len(set().union(*map(os.sched_getaffinity, ids)))
    else:
        visible = os.cpu_count() or 1
    return min(float(visible), cpu_quota(ids, root))


def num_cores() -> int:
    """Return how many threads can run at once in this process: its usable cores, rounded down, at least 1."""
    return max(1, int(usable_cores()))


def cpu_quota(pids: Iterable[int] = (), root: Path = ROOT) -> float:
    """Return the CPU time per second that the cgroups of processes allow, in cores; infinity without a limit.

    Args:
        pids: the processes; those in different groups have the sum of their quotas, at most that of a common parent.
        root: where ``proc`` and the mount points lie.
    """
    chains = {frozenset(_groups(pid, "cpu", root)) for pid in tuple(pids) or (os.getpid(),)}
    common = frozenset.intersection(*chains)
    each = sum(min(map(_quota, chain), default=float("inf")) for chain in chains)
    return min([each, *map(_quota, common)])


def memory_bytes(root: Path = ROOT) -> int:
    """Return the bytes of memory that this process may use: those of the machine, or fewer by its cgroups.

    Args:
        root: where ``proc`` and the mount points lie.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    names = ("memory.max", "memory.limit_in_bytes")
    limits = [_read(folder / name) for folder in _groups(os.getpid(), "memory", root) for name in names]
    return min([machine, *(int(limit) for limit in limits if limit.isdecimal())])


def available_bytes(root: Path = ROOT) -> int:
    """Return the bytes that this process can still allocate: what the machine has available, or fewer by its cgroups.

    What a group uses for cached files counts as available: the kernel gives it up.

    Args:
        root: where ``proc`` and the mount points lie.
    """
    available = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    available += _numbers(_read(root / "proc/meminfo"), "MemAvailable:", 1024)
    for folder in _groups(os.getpid(), "memory", root):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, now = _read(folder / limit), _read(folder / used)
            if most.isdecimal() and now.isdecimal():
                given_up = sum(_numbers(_read(folder / "memory.stat"), cached, 1))
                available.append(max(0, int(most) - int(now) + given_up))
    return min(available)


def _numbers(text: str, name: str, factor: int) -> list[int]:
    """Return the number behind a name in a table of the kernel's, if it has one."""
    rows = (line.split() for line in text.splitlines())
    return [int(row[1]) * factor for row in rows if len(row) > 1 and row[0] == name and row[1].isdecimal()]


def _quota(folder: Path) -> float:
    """Return the cores that one group allows, infinity if it sets no limit."""
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if not quota.isdecimal() or not period.isdecimal() or not int(period):
        return float("inf")  # "max" in version 2, -1 in version 1
    return int(quota) / int(period)


def _groups(pid: int, controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of a process's groups that may limit something, from the process's own upwards.

    Args:
        pid: the process.
        controller: ``cpu`` or ``memory``; version 2 has one hierarchy for all.
        root: where ``proc`` and the mount points lie.
    """
    mounts = list(_mounts(pid, controller, root))
    for line in _read(root / f"proc/{pid}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for is_v2, begins_at, folder in mounts:
            if is_v2 != (not controllers):
                continue
            # Where the container does not hide it, the path is the host's, and the mount shows a part of it.
            inside = PurePosixPath(path)
            within = inside.relative_to(begins_at) if inside.is_relative_to(begins_at) else PurePosixPath()
            here = folder.joinpath(*(part for part in within.parts if part != ".."))
            yield here
            while here != folder:
                here = here.parent
                yield here


def _mounts(pid: int, controller: str, root: Path) -> Iterator[tuple[bool, str, Path]]:
    """Yield (is version 2, the group that is mounted, where) of each hierarchy that a process sees."""
    for line in _read(root / f"proc/{pid}/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        places, kind = fields.split(), rest.split()
        if len(places) < 5 or len(kind) < 3:
            continue
        begins_at, point = (_ESCAPE.sub(lambda found: chr(int(found[1], 8)), word) for word in places[3:5])
        if kind[0] == "cgroup2" or (kind[0] == "cgroup" and controller in kind[2].split(",")):
            yield kind[0] == "cgroup2", begins_at, root / point.lstrip("/")


def _read(path: Path) -> str:
    """Return a small file's text; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
