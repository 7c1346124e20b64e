"""What the steps that write a folder share: one writer at a time, one line for a full disk, a manifest written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perjoule.core import file_lock
from perjoule.core.errors import DataError, RunFolderError
from perjoule.runs.files import flush, read_json

MANIFEST, PROVENANCE = "manifest.json", "provenance.json"
WORK = ".work"
"""Subfolder for what is not finished; a step that was stopped goes on from it."""


@contextmanager
def writing(folder: Path, remedy: str = "run the same command again to go on") -> Iterator[None]:
    """Turn a failed write below ``folder`` into one line.

    Raises:
        DataError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}; {remedy}") from error
    except RunFolderError as error:
        raise DataError(f"{error}; {remedy}") from error


@contextmanager
def exclusive(folder: Path) -> Iterator[Path]:
    """Create ``folder`` and its work folder, and keep other processes out; the kernel lets go when this one ends.

    Yields:
        The work folder.

    Raises:
        DataError: if another process is writing there, or the folder cannot be written.
    """
    with writing(folder, "choose another folder"):
        work = folder / WORK
        work.mkdir(parents=True, exist_ok=True)
        try:
            lock = file_lock.take(work / "lock")
        except file_lock.Busy as busy:
            raise DataError(
                f"another process is writing {folder}; wait for it, or choose another folder ({busy})"
            ) from busy
    try:
        yield work
    finally:
        lock.release()


def start_over_or_go_on(folder: Path, work: Path, plan: Mapping[str, Any]) -> bool:
    """Return whether ``folder`` is finished; else note the plan, so that a later run knows what this one was doing.

    Args:
        folder: what is written.
        work: its work folder, locked.
        plan: all that the result depends on (JSON).

    Raises:
        DataError: if the folder is finished, or half written, to another plan.
    """
    identity = identity_of(plan)
    if (folder / MANIFEST).is_file():
        found = read_object(folder / MANIFEST)
        if found.get("identity") == identity:
            return True
        raise DataError(f"{folder} {_holds(found.get('plan'), plan)}; choose another folder, or remove this one")
    path = work / "plan.json"
    if path.is_file():
        found = read_object(path)
        if found != json.loads(json.dumps(plan)):
            raise DataError(f"{folder} is half written and {_holds(found, plan)}; finish that, or remove the folder")
        return False
    foreign = next((entry.name for entry in folder.iterdir() if entry.name != WORK), None)
    if foreign is not None:
        raise DataError(f"{folder} is not empty (there is {foreign}); choose another folder")
    write_json(path, plan)
    return False


def identity_of(plan: Mapping[str, Any]) -> str:
    """Return a hash of a JSON value."""
    return hashlib.blake2b(json.dumps(plan, sort_keys=True).encode(), digest_size=16).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a kill never leaves half of it.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a kill never leaves half of it.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Flush a complete file to the disk and give it its name."""
    with temporary.open("rb") as file:
        flush(file)
    temporary.replace(path)


def provenance_of(path: Path) -> Any:
    """Return what an earlier step wrote beside its files about where they are from; None if nothing."""
    folder = path if path.is_dir() else path.parent
    if (folder / PROVENANCE).is_file():
        return read_object(folder / PROVENANCE)
    if (folder / MANIFEST).is_file():
        return {key: value for key, value in read_object(folder / MANIFEST).items() if key != "splits"}
    return None


def read_object(path: Path) -> Any:
    """Read a JSON object that a step wrote.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        found = read_json(path)
    except RunFolderError as error:
        raise DataError(str(error)) from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged: it must be an object")
    return found


def _holds(found: Any, plan: Mapping[str, Any]) -> str:
    """Say in which settings a folder differs from the plan."""
    found = found if isinstance(found, dict) else {}
    differ = [key for key in plan if found.get(key) != json.loads(json.dumps(plan[key]))]
    return f"was made with another {', '.join(differ)}" if found else "holds something else"
