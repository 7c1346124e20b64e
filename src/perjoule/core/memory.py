"""How much memory this process can still have: the machine's, or what its container or job allows, if that is less."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60


def available_bytes() -> int:
    """Return the bytes that can be allocated before the kernel ends processes; a large number if nothing says so."""
    return min(_of_machine(), *_of_groups(), _UNLIMITED)


def _of_machine() -> int:
    """Return what the kernel says is available, or else what is free."""
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return _UNLIMITED


def _of_groups() -> Iterator[int]:
    """Yield what each control group of this process has left, up to the root of all (versions 2 and 1)."""
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        number, _, controllers_and_path = line.partition(":")
        controllers, _, path = controllers_and_path.partition(":")
        if number == "0":
            top, names = _GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = (
                _GROUPS / "memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        else:
            continue
        own = PurePosixPath(path.lstrip("/"))
        for group in (top / own, *(top / above for above in own.parents), top):
            limit, used = _text(group / names[0]).strip(), _text(group / names[1]).strip()
            if limit.isdigit() and used.isdigit() and int(limit) < _UNLIMITED:
                yield max(0, int(limit) - int(used) + _statistic(group, names[2]))


def _statistic(group: Path, name: str) -> int:
    """Return a line of ``memory.stat``: cached files are given up when memory is needed."""
    for line in _text(group / "memory.stat").splitlines():
        if line.startswith(f"{name} "):
            return int(line.split()[1])
    return 0


def _text(path: Path) -> str:
    """Return what the kernel says in a file; nothing if there is none."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
