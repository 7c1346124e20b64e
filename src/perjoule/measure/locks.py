"""One meter, one run: locks on devices that the kernel drops when their holder dies, however it dies."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path

from perjoule.core.file_lock import Holder, LockState, try_lock, unlock
from perjoule.measure.contract import Unavailable


class DeviceLocks:
    """The devices that this process meters, for one run.

    Args:
        run: the run folder, told to others who want the same device.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._held: dict[str, int] = {}

    def take(self, device: str) -> Unavailable | None:
        """Take a device, or return why not. What this object holds it may take again; "" needs no lock."""
        if not device or device in self._held:
            return None
        try:
            folder = _own_folder()
            path = folder / f"{re.sub(r'[^A-Za-z0-9.-]', '-', device)}.lock"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            return Unavailable(
                f"{device}: cannot make sure that no other run meters it: {error}",
                "let XDG_RUNTIME_DIR name a folder of your own",
            )
        state = try_lock(descriptor)
        holder_line, _, run = os.pread(descriptor, 4096, 0).decode(errors="replace").partition("\n")
        holder = Holder.parse(holder_line)
        if state is LockState.NOT_OFFERED and holder is not None and holder.alive() is not False:
            state = LockState.BUSY
        if state is LockState.BUSY:
            os.close(descriptor)
            return Unavailable(
                f"{device} is metered by process {holder.pid if holder else 'unknown'} (run {run or 'unknown'}): "
                "its energy would be counted twice"
            )
        with contextlib.suppress(OSError):  # a full disk; the lock counts, not who holds it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{Holder.here().text()}\n{self._run}".encode(), 0)
        self._held[device] = descriptor
        return None

    def release(self) -> None:
        """Let go of all devices. May be called twice."""
        while self._held:
            _, descriptor = self._held.popitem()
            unlock(descriptor)
            os.close(descriptor)


def _own_folder() -> Path:
    """Return a folder that belongs to this user alone.

    Raises:
        PermissionError: if somebody else made it or may write to it.
        OSError: if it cannot be made.
    """
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or "/nonexistent")
    folder = base / "perjoule" if os.access(base, os.W_OK) else Path(f"/tmp/perjoule-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder that belongs to you alone")
    return folder
