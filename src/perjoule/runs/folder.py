"""A run folder while it is being written: create it, lock it, append to it, end it.

::

    runs/<id>/
      manifest.json            schema, status, model, data, one entry per segment (host, versions, window, …)
      config.yaml              the resolved configuration, ready to be trained again
      resolved.json            every value of it with its source: default, preset, file or command line
      tokenizer.json           what made the tokens, if the data is text (Hugging Face tokenizers)
      events/0000-rank0.bin    the journal of segment 0, rank 0 (runs.journal)
      samples/0000-host-0.bin  the readings of all meters of one node in segment 0 (runs.samples)
      metrics.jsonl            one line per step, evaluation and checkpoint, in the order they happened
      checkpoints/00000200/    weights, optimizer, position, random states, checksums
      evaluations/             what `perjoule evaluate` found, and evaluations.csv (runs.evaluations)
      train.log                what was printed, with times
      report.html report.md    written by `perjoule report`

A *segment* is one uninterrupted stretch of training: a run that is resumed twice has three. While a segment is being
written its process holds a lock on ``lock`` that the kernel drops when the process dies, however it dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perjoule.core import file_lock
from perjoule.core.errors import RunFolderError
from perjoule.core.file_lock import FileLock
from perjoule.runs.files import read_json, write_atomically, write_json
from perjoule.runs.source_code import source_code

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CONFIG = "config.yaml"
RESOLVED = "resolved.json"
TOKENIZER = "tokenizer.json"
METRICS = "metrics.jsonl"
LOG = "train.log"
EVENTS = "events"
SAMPLES = "samples"
CHECKPOINTS = "checkpoints"
LOCK = "lock"
REPORT_HTML, REPORT_MARKDOWN = "report.html", "report.md"
SILENT_S = 600.0
"""After so long without a line, a writer on another machine counts as ended where the file system keeps no locks."""
RUNNING, FINISHED, STOPPED, FAILED, INTERRUPTED = "running", "finished", "stopped", "failed", "interrupted"
"""``finished`` reached its goal; ``stopped`` was asked to end early; ``interrupted`` is read, never written."""


_LONGEST_STEM = 40
"""Characters, of four bytes at most; a file system takes names of 255 bytes."""


def new_run_id(stem: str) -> str:
    """Return a readable, unique name: ``default-20261124-061530-3fa2``.

    Args:
        stem: of a recipe or a program; what a shell or a terminal would take for more than a name is replaced.
    """
    readable = re.sub(r"[^\w.-]+", "_", stem)[:_LONGEST_STEM].lstrip("-.") or "run"
    return f"{readable}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def event_path(run: Path, segment: int, rank: int) -> Path:
    """Return the journal of one segment and rank."""
    return run / EVENTS / f"{segment:04d}-rank{rank}.bin"


def device_event_path(run: Path, segment: int, rank: int) -> Path:
    """Return the journal of one segment and rank in the time of its accelerator, which only runs on one have."""
    return run / EVENTS / f"{segment:04d}-rank{rank}-device.bin"


def sample_path(run: Path, segment: int, node: str, attempt: int = 0) -> Path:
    """Return the samples of one segment and node; ``attempt`` counts the samplers that were started one after another.

    Args:
        run: the run folder.
        segment: its number.
        node: name of the machine; letters other than ASCII ones, digits, dots and dashes become dashes.
        attempt: from 0.
    """
    return run / SAMPLES / f"{segment:04d}-{re.sub(r'[^A-Za-z0-9.-]', '-', node)}-{attempt}.bin"


def is_live(run: Path) -> bool:
    """Return whether a process is writing this run now."""
    return file_lock.is_held(run / LOCK, ended=lambda: _is_silent(run))


def _is_silent(run: Path) -> bool:
    """Return whether nothing was written for so long that a writer which cannot be seen has surely ended."""
    newest = 0.0
    for name in (LOCK, METRICS, LOG, MANIFEST):
        with contextlib.suppress(OSError):
            newest = max(newest, (run / name).stat().st_mtime)
    return time.time() - newest > SILENT_S


def read_manifest(run: Path) -> dict[str, Any]:
    """Read the manifest of a run folder.

    Raises:
        RunFolderError: if the folder is missing, is no run folder, or was written by a newer perjoule.
    """
    if not run.is_dir():
        raise RunFolderError(f"no run folder {run}")
    if not (run / MANIFEST).is_file():
        raise RunFolderError(f"{run} is not a run folder: it has no {MANIFEST}")
    manifest = read_json(run / MANIFEST)
    if not isinstance(manifest, dict):
        raise RunFolderError(f"{run / MANIFEST} is damaged: it holds no JSON object")
    schema = manifest.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA_VERSION:
        raise RunFolderError(
            f"{run / MANIFEST} has schema {schema!r}; this perjoule reads 1 to {SCHEMA_VERSION}: upgrade perjoule"
        )
    _check_kinds(run / MANIFEST, manifest)
    return manifest


def _check_kinds(path: Path, manifest: dict[str, Any]) -> None:
    """Refuse a manifest whose parts are not what they are read as.

    Raises:
        RunFolderError: naming the part.
    """
    segments = manifest.get("segments", [])
    if not isinstance(segments, list) or not all(isinstance(one, dict) for one in segments):
        raise RunFolderError(f"{path} is damaged: segments must be a list of objects")
    for name, kind in (("status", str), ("model", dict), ("data", dict)):
        if manifest.get(name) is not None and not isinstance(manifest[name], kind):
            raise RunFolderError(f"{path} is damaged: {name} must be {'an object' if kind is dict else 'text'}")
    manifest.setdefault("segments", [])


def read_resolved(run: Path) -> dict[str, dict[str, Any]]:
    """Read a run's configuration as ``{dotted key: {"value": …, "source": …}}``.

    Raises:
        RunFolderError: if the folder is no run folder, or the file is damaged.
    """
    read_manifest(run)
    resolved = read_json(run / RESOLVED)
    if not isinstance(resolved, dict) or not all(
        isinstance(entry, dict) and "value" in entry for entry in resolved.values()
    ):
        raise RunFolderError(f"{run / RESOLVED} is damaged: it must be an object of values with their sources")
    return resolved


class RunFolder:
    """The one writer of a run folder. Use :meth:`create` or :meth:`reopen`, and :meth:`close` at the end."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.checkpoints = path / CHECKPOINTS
        self._lock = _take_lock(path)
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._metrics = os.open(path / METRICS, flags, 0o644)
            _end_torn_line(path / METRICS, self._metrics)
        except OSError as error:
            self._lock.release()
            raise RunFolderError(f"cannot write {path / METRICS}: {error.strerror}") from error

    @classmethod
    def create(cls, path: Path, config_yaml: str, resolved: dict[str, Any], facts: dict[str, Any]) -> RunFolder:
        """Make a new run folder with its manifest and configuration.

        Args:
            path: the folder, which must not exist.
            config_yaml: the resolved configuration as YAML.
            resolved: ``{dotted key: {"value": …, "source": …}}``.
            facts: what the manifest says of model, data and configuration.

        Raises:
            RunFolderError: if the folder exists or cannot be written.
        """
        try:
            path.mkdir(parents=True)
            (path / EVENTS).mkdir()
            (path / SAMPLES).mkdir()
            (path / CHECKPOINTS).mkdir()
        except FileExistsError as error:
            raise RunFolderError(
                f"the run folder {path} exists already: continue it with `perjoule train --resume {path}`, "
                "or choose another with name=… or runs=…"
            ) from error
        except OSError as error:
            raise RunFolderError(f"cannot create the run folder {path}: {error.strerror}") from error
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        manifest = {"schema": SCHEMA_VERSION, "id": path.name, "created": created, "status": RUNNING}
        manifest |= {"reason": None, "code": source_code(Path.cwd()), **facts, "segments": []}
        write_atomically(path / CONFIG, config_yaml)
        write_json(path / RESOLVED, resolved)
        write_json(path / MANIFEST, manifest)
        return cls(path, manifest)

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Open an existing run folder to add a segment.

        Raises:
            RunFolderError: if it is no run folder, or another process is writing it.
        """
        return cls(path, read_manifest(path))

    @property
    def segment(self) -> int:
        """Return the number of the current segment."""
        return len(self.manifest["segments"]) - 1

    def begin_segment(self, facts: dict[str, Any]) -> int:
        """Add a segment to the manifest and return its number."""
        started = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.manifest["segments"].append({"started": started, "status": RUNNING, **facts})
        self.manifest |= {"status": RUNNING, "reason": None}
        write_json(self.path / MANIFEST, self.manifest)
        return self.segment

    def update_segment(self, **facts: Any) -> None:
        """Merge facts into the current segment's entry."""
        self.manifest["segments"][-1] |= facts
        write_json(self.path / MANIFEST, self.manifest)

    def event_path(self, rank: int) -> Path:
        """Return the journal of the current segment."""
        return event_path(self.path, self.segment, rank)

    def append(self, line: str) -> None:
        """Append one line (a JSON object without its newline) to ``metrics.jsonl`` in one system call.

        Raises:
            RunFolderError: if the disk is full.
        """
        data = f"{line}\n".encode()
        try:
            written = os.write(self._metrics, data)
        except OSError as error:
            raise RunFolderError(f"cannot write {self.path / METRICS}: {error.strerror}") from error
        if written != len(data):
            raise RunFolderError(f"cannot write {self.path / METRICS}: the disk is full")

    def append_event(self, kind: str, **facts: Any) -> None:
        """Append a record that is not a training step: an evaluation, a checkpoint, a note."""
        self.append(json.dumps({"kind": kind, "segment": self.segment, **facts}, allow_nan=False))

    def end(self, status: str, reason: str, **facts: Any) -> None:
        """Write how the segment and the run ended."""
        ended = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.manifest |= {"status": status, "reason": reason}
        if self.manifest["segments"]:
            self.manifest["segments"][-1] |= {"status": status, "reason": reason, "ended": ended, **facts}
        write_json(self.path / MANIFEST, self.manifest)

    def close(self) -> None:
        """Close the files and release the lock."""
        if self._metrics >= 0:
            os.close(self._metrics)
            self._metrics = -1
        self._lock.release()


def _end_torn_line(path: Path, descriptor: int) -> None:
    """End a line that a kill cut off, so that the next one is not glued to it and lost with it."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            os.write(descriptor, b"\n")


def _take_lock(path: Path) -> FileLock:
    """Take the folder's lock or say who holds it."""
    try:
        return file_lock.take(path / LOCK, ended=lambda: _is_silent(path))
    except file_lock.Busy as busy:
        raise RunFolderError(f"{path} is being written by {busy}; wait for it or stop it") from busy
    except OSError as error:
        raise RunFolderError(f"cannot write {path / LOCK}: {error.strerror}") from error
