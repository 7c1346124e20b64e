"""Locks on files, also where a file system has none (Lustre without ``-o flock``, some NFS and FUSE mounts).

The kernel drops a lock when its holder dies, however it dies. Where it keeps none, the holder is named in a file beside
the locked one, by process, machine and boot, so that one which has died is recognised; only on the machine itself can
that be seen, and elsewhere the caller decides.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import platform
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

_log = logging.getLogger(__name__)
_BUSY = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_SETTLE_S = 0.1
_UNREADABLE_POLLS = 20
_told: set[int] = set()
"""Devices of the file systems that were said to keep no locks."""


class LockState(Enum):
    """What the kernel said to the wish for a lock."""

    TAKEN = "taken"
    BUSY = "another process has it"
    NOT_OFFERED = "the file system keeps no locks"


class Busy(Exception):  # not a mistake of the user's until the caller says so
    """Another process holds the lock.

    Args:
        holder: who, as far as that is known.
        path: of the file that names it; None where the kernel keeps the lock.
    """

    def __init__(self, holder: Holder | None, path: Path | None = None) -> None:
        super().__init__(str(holder.pid) if holder else "unknown")
        self.holder, self.path = holder, path

    def __str__(self) -> str:
        """Return ``process 123``, with its machine and the remedy where it cannot be seen from here."""
        if self.holder is None:
            return "another process"
        if self.path is None or self.holder.alive() is not None:
            return f"process {self.holder.pid}"
        return (
            f"process {self.holder.pid} on {self.holder.host}, which cannot be seen from here; if it has ended, "
            f"delete {self.path}"
        )


@dataclass(frozen=True)
class Holder:
    """A process, so that it is not taken for a later one of the same number.

    Args:
        pid: its number.
        started: when, in the kernel's ticks since the machine started; 0 where that cannot be read.
        host: name of the machine.
        where: the machine's present boot and the process's namespace of numbers.
    """

    pid: int
    started: int
    host: str
    where: str

    @classmethod
    def here(cls) -> Holder:
        """Return this process."""
        return cls(os.getpid(), _started(os.getpid()), platform.node(), _where())

    @classmethod
    def parse(cls, text: str) -> Holder | None:
        """Return who is named in a lock file, or None."""
        try:
            known = json.loads(text)
            return cls(int(known["pid"]), int(known["started"]), str(known["host"]), str(known["where"]))
        except (ValueError, KeyError, TypeError):
            return None

    def text(self) -> str:
        """Return what :meth:`parse` reads."""
        return json.dumps(asdict(self))

    def alive(self) -> bool | None:
        """Return whether it still runs; None if that cannot be seen from here."""
        here = Holder.here()
        if self.host != here.host:
            return None
        if self.where != here.where:  # another boot: it is gone; another container: nobody can tell
            return False if self.where.partition(" ")[0] != here.where.partition(" ")[0] else None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:  # it belongs to somebody else
            pass
        return not self.started or _started(self.pid) == self.started


def try_lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> LockState:
    """Ask the kernel for a lock. Only "would block" means that somebody has it.

    Args:
        descriptor: an open file or folder.
        shared: for reading.
        wait: until it is free.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except OSError as error:
        return LockState.BUSY if error.errno in _BUSY else LockState.NOT_OFFERED
    return LockState.TAKEN


def unlock(descriptor: int) -> None:
    """Give a lock back, also where a forked child still has the descriptor, and take the holder's name away."""
    with contextlib.suppress(OSError):  # a name that stays is recognised as that of a process which has ended
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.ftruncate(descriptor, 0)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)


class FileLock:
    """A lock that is held. Made by :func:`take`."""

    def __init__(self, descriptor: int, beside: Path | None) -> None:
        self._descriptor, self._beside = descriptor, beside

    def release(self) -> None:
        """Let go. May be called twice."""
        if self._descriptor < 0:
            return
        if self._beside is not None:
            with contextlib.suppress(OSError):
                self._beside.unlink()
        unlock(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1


def take(path: Path, *, wait: bool = False, ended: Callable[[], bool] = lambda: False) -> FileLock:
    """Lock a file, which is made if it is not there, or a folder.

    Args:
        path: what is locked.
        wait: until it is free, if its holder can be seen from here.
        ended: says whether a holder on another machine has surely ended; asked only where the file system keeps no
            locks.

    Raises:
        Busy: if another process has it.
        OSError: if the file cannot be opened.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    beside = None
    try:
        state = try_lock(descriptor, wait=wait)
        if state is LockState.BUSY:
            time.sleep(_SETTLE_S)  # `is_held` of a reader has it for microseconds; a writer has it for good
            state = try_lock(descriptor)
        if state is LockState.BUSY:
            raise Busy(_named_in(descriptor))
        if state is LockState.NOT_OFFERED:
            _say_once(os.fstat(descriptor).st_dev, path)
            beside = _take_beside(path, descriptor, wait, ended)
        with contextlib.suppress(OSError):  # a full disk; the lock counts, not who holds it
            if flags & os.O_RDWR:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, Holder.here().text().encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return FileLock(descriptor, beside)


@contextmanager
def held_lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a file or a folder.

    Raises:
        Busy: as :func:`take`.
        OSError: as :func:`take`.
    """
    lock = take(path, wait=wait)
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path, *, ended: Callable[[], bool] = lambda: False) -> bool:
    """Return whether a process has the lock of a file.

    Args:
        path: what is locked.
        ended: as in :func:`take`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        state = try_lock(descriptor, shared=True)
        return state is LockState.BUSY or (
            state is LockState.NOT_OFFERED and _holder_without_locks(path, descriptor, ended) is not None
        )
    finally:
        os.close(descriptor)


def _take_beside(path: Path, descriptor: int, wait: bool, ended: Callable[[], bool]) -> Path:
    """Put a file with this process's name beside the locked one, as soon as no other has one there."""
    beside, here, unreadable = _beside(path), Holder.here(), 0
    while True:
        holder = _holder_without_locks(path, descriptor, ended)
        if holder is not None:
            if not wait or holder.alive() is None:
                raise Busy(holder, beside if beside.exists() else path)
        elif _named_beside(path) is None and beside.exists() and unreadable < _UNREADABLE_POLLS:
            unreadable += 1  # another process is writing its name just now
        else:
            beside.unlink(missing_ok=True)
            with contextlib.suppress(FileExistsError), beside.open("x", encoding="utf-8") as file:
                file.write(here.text())
            time.sleep(_SETTLE_S)  # somebody who looked before may take it away as of a process that has ended
            if _named_beside(path) == here:
                return beside
        time.sleep(_SETTLE_S)


def _holder_without_locks(path: Path, descriptor: int, ended: Callable[[], bool]) -> Holder | None:
    """Return the process that is named beside the file or in it, unless it has ended."""
    for holder in (_named_beside(path), _named_in(descriptor)):
        if holder is not None:
            alive = holder.alive()
            if alive or (alive is None and not ended()):
                return holder
    return None


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.holder")


def _named_beside(path: Path) -> Holder | None:
    try:
        return Holder.parse(_beside(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _named_in(descriptor: int) -> Holder | None:
    try:
        return Holder.parse(os.pread(descriptor, 4096, 0).decode(errors="replace"))
    except OSError:  # a folder
        return None


def _say_once(device: int, path: Path) -> None:
    """Say once for each file system that it keeps no locks."""
    if device in _told:
        return
    _told.add(device)
    _log.warning("the file system of %s keeps no file locks; writers are told apart by process and machine", path)


@functools.cache
def _where() -> str:
    """Return this boot and this namespace of process numbers."""
    boot, namespace = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return f"{boot} {namespace}"


def _started(pid: int) -> int:
    """Return when a process started, in ticks since the machine did; 0 where that cannot be read."""
    try:
        return int(
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    except (OSError, ValueError, IndexError):
        return 0
