"""What was found about a run's model: one JSON file for each evaluation, and one table of all of them.

::

    evaluations/0001-loss.json       schema, kind, date, checkpoint, machine, settings, metrics, details
    evaluations/evaluations.csv      one row for each metric of each of these files

An evaluation may be recorded while the run is being trained, and several at once: whoever writes holds a lock on the
folder, for milliseconds, that the kernel drops when the process dies. The JSON files are the record. The table is made
from them anew whenever one is added, so that a kill between the two, or a row that was cut off, is repaired by the
next evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perjoule.core import file_lock
from perjoule.core.errors import RunFolderError
from perjoule.runs.exports import write_csv
from perjoule.runs.files import read_json, write_json
from perjoule.runs.folder import read_manifest

SCHEMA_VERSION = 1
EVALUATIONS = "evaluations"
TABLE = "evaluations.csv"
COLUMNS = ("date", "run", "step", "kind", "of", "metric", "value", "stderr", "low", "high", "unit", "file")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run.

    Args:
        kind: what was evaluated: ``loss``, ``thinking``, …
        step: of the checkpoint.
        checkpoint: how it was chosen: ``last``, ``best`` or its step.
        device: where the model ran.
        host: the machine and the versions of the software.
        settings: of the evaluation.
        seconds: how long it took.
        metrics: each with ``name value unit stderr low high of``; a value that is None was not measured.
        details: everything else; curves, and reasons under the name of what was not measured.
        date: when it was recorded, ISO 8601 in UTC.
        file: its name in the folder; empty before it is recorded.
    """

    kind: str
    step: int
    checkpoint: str | int
    device: str
    host: Mapping[str, Any]
    settings: Mapping[str, Any]
    seconds: float
    metrics: Sequence[Mapping[str, Any]]
    details: Mapping[str, Any]
    date: str = ""
    file: str = ""


def record_evaluation(run: Path, evaluation: Evaluation) -> tuple[Path, Path]:
    """Write an evaluation into a run folder, under the next number, and renew the table.

    Args:
        run: the run folder.
        evaluation: ``date`` and ``file`` are filled in here. What is not finite in it becomes null.

    Returns:
        The paths of the JSON file and of the table.

    Raises:
        RunFolderError: if it is no run folder or cannot be written.
    """
    read_manifest(run)
    folder = run / EVALUATIONS
    with _locked(folder):
        number = max((_number(path) for path in _files(folder)), default=0) + 1
        path = folder / f"{number:04d}-{evaluation.kind}.json"
        date = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"schema": SCHEMA_VERSION, "run": run.resolve().name, **vars(evaluation), "date": date}
        del entry["file"]
        write_json(path, _as_json(entry))
        rows = (row for recorded in read_evaluations(run) for row in _rows(run, recorded))
        return path, write_csv(folder / TABLE, COLUMNS, rows)


def read_evaluations(run: Path) -> list[Evaluation]:
    """Return the evaluations of a run in the order in which they were recorded; files that are damaged are left out.

    Raises:
        RunFolderError: if it is no run folder, or an evaluation was recorded by a newer perjoule.
    """
    read_manifest(run)
    evaluations = []
    for path in _files(run / EVALUATIONS):
        try:
            entry = read_json(path)
            schema = entry.pop("schema")
            if schema == SCHEMA_VERSION:
                entry.pop("run")
                evaluations.append(Evaluation(**entry, file=path.name))
                continue
        except (RunFolderError, KeyError, AttributeError, TypeError):
            continue
        raise RunFolderError(f"{path} has schema {schema!r}; this perjoule reads {SCHEMA_VERSION}: upgrade perjoule")
    return evaluations


def _files(folder: Path) -> list[Path]:
    """Return the JSON files by number."""
    return sorted((path for path in folder.glob("*-*.json") if _number(path) > 0), key=_number)


def _number(path: Path) -> int:
    """Return the number of an evaluation's file; 0 if it is none."""
    digits = path.name.partition("-")[0]
    return int(digits) if digits.isdecimal() else 0


def _rows(run: Path, evaluation: Evaluation) -> Iterator[list[Any]]:
    """Yield the table's rows of one evaluation."""
    known = {**vars(evaluation), "run": run.resolve().name}
    for metric in evaluation.metrics:
        row = {**known, **metric, "metric": metric["name"]}
        yield [row.get(column) for column in COLUMNS]


def _as_json(value: Any) -> Any:
    """Return plain JSON: keys are text, sequences lists, and a number that is not finite is null."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Create the folder and hold its lock."""
    try:
        folder.mkdir(exist_ok=True)
        lock = file_lock.take(folder, wait=True)
    except OSError as error:
        raise RunFolderError(f"cannot write {folder}: {error.strerror}") from error
    except file_lock.Busy as busy:
        raise RunFolderError(f"{folder} is being written by {busy}") from busy
    try:
        yield
    finally:
        lock.release()
