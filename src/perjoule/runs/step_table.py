"""Read ``metrics.jsonl``: one line per optimizer step, evaluation, checkpoint and note.

Lines are parsed a few thousand at a time, which is several times faster than one by one, and go straight into typed
columns, so that a million steps take seconds and some 100 MB. A line that a kill tore apart is skipped; the last one
silently, as it is what every kill may leave, any other with a warning.
"""

from __future__ import annotations

import json
import math
from array import array
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perjoule.core.errors import RunFolderError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_LINES = 4096
_INTEGERS = ("segment", "step", "samples", "tokens", "useful")
_REALS = ("grad_norm", "lr", "memory_bytes")
"""These may be null: a device that does not count its memory, say. They are NaN in a column."""
_LOSS = "loss"
"""Left out where it was not logged, which is NaN in the column; null where it was not finite, which is infinity."""


@dataclass(frozen=True)
class Evaluation:
    """One pass over held-out data. ``loss`` is None if it was not finite."""

    segment: int
    step: int
    split: str
    loss: float | None
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint. ``blocked_s`` is how long training waited for it."""

    segment: int
    step: int
    path: str
    bytes: int
    blocked_s: float
    best: bool


@dataclass(frozen=True)
class Note:
    """A remark that the training loop wrote down."""

    segment: int
    step: int
    text: str


@dataclass(frozen=True)
class Metrics:
    """What ``metrics.jsonl`` holds.

    Args:
        columns: field of a step's line to (num_rows,) values, in the order they were written.
        evaluations: every evaluation.
        checkpoints: every checkpoint.
        notes: every note.
        warnings: one line for every damaged line before the last.
    """

    columns: dict[str, NDArray[Any]]
    evaluations: tuple[Evaluation, ...]
    checkpoints: tuple[Checkpoint, ...]
    notes: tuple[Note, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class StepTable:
    """Every optimizer step that was taken, in order; a step that was taken again after a resume has a row for each.

    All columns have shape (num_rows,).

    Args:
        segment: number of the segment.
        step: number of the optimizer step, from 1.
        loss: training loss of the step over all ranks; infinity if it was not finite, NaN if it was not logged.
        grad_norm: norm of the gradient before clipping; NaN if it was not finite or not computed.
        lr: learning rate.
        samples: samples of the step over all ranks.
        tokens: label positions, ignored ones included.
        useful: label positions that are trained on.
        memory_bytes: memory in use at the end of the step; NaN where it was not read.
        wall_s: seconds of the whole iteration; NaN where the journal has no end of it.
        training_s: the same without evaluations and checkpoints.
        in_window: whether the step is timed, comes after the warm-up of its segment and was not thrown away.
        superseded: whether a later segment started at or before this step, so that its work was thrown away.
    """

    segment: Ints
    step: Ints
    loss: Floats
    grad_norm: Floats
    lr: Floats
    samples: Ints
    tokens: Ints
    useful: Ints
    memory_bytes: Floats
    wall_s: Floats
    training_s: Floats
    in_window: NDArray[np.bool_]
    superseded: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.step)

    def where(self, rows: NDArray[np.bool_]) -> StepTable:
        """Return the rows of a mask."""
        return StepTable(**{column.name: getattr(self, column.name)[rows] for column in fields(self)})

    @property
    def kept(self) -> StepTable:
        """Return the rows that led to the last weights: one per step, ascending. Curves are drawn from these."""
        return self if not self.superseded.any() else self.where(~self.superseded)


class _Reading:
    """The columns and the rare lines while they grow."""

    def __init__(self) -> None:
        codes = dict.fromkeys(_INTEGERS, "q") | dict.fromkeys((_LOSS, *_REALS), "d")
        self.columns: dict[str, array[Any]] = {name: array(code) for name, code in codes.items()}
        self.rare: list[Evaluation | Checkpoint | Note] = []

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Take in parsed lines, all or none of them.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: if a line lacks a field or has another type in it.
        """
        steps = [line for line in lines if line["kind"] == "step"]
        rare = [_rare(line) for line in lines if line["kind"] in ("evaluate", "checkpoint", "note")]
        new: dict[str, array[Any]] = {name: array("q", [line[name] for line in steps]) for name in _INTEGERS}
        for name in _REALS:
            values = [line.get(name) for line in steps]
            new[name] = array("d", [math.nan if value is None else value for value in values])
        losses = [line.get(_LOSS, math.nan) for line in steps]
        new[_LOSS] = array("d", [math.inf if loss is None else loss for loss in losses])
        for name, column in new.items():
            self.columns[name].extend(column)
        self.rare += rare


def _rare(line: dict[str, Any]) -> Evaluation | Checkpoint | Note:
    """Return what a line that is not a step says."""
    segment, step = int(line["segment"]), int(line["step"])
    if line["kind"] == "evaluate":
        loss = None if line["loss"] is None else float(line["loss"])
        return Evaluation(segment, step, str(line["split"]), loss, int(line["tokens"]), float(line["seconds"]))
    if line["kind"] == "checkpoint":
        size, blocked_s, best = int(line["bytes"]), float(line["blocked_s"]), bool(line["best"])
        return Checkpoint(segment, step, str(line["path"]), size, blocked_s, best)
    return Note(segment, step, str(line["text"]))


def read_metrics(path: Path) -> Metrics:
    """Read ``metrics.jsonl``, also while it is being written or after a kill.

    Raises:
        RunFolderError: if the file cannot be read.
    """
    reading, num_lines, damaged = _Reading(), 0, []
    try:
        with path.open("rb") as file:
            while lines := list(islice(file, _LINES)):
                damaged += [num_lines + 1 + row for row in _add_batch(reading, lines)]
                num_lines += len(lines)
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror}") from error
    return Metrics(
        columns={
            name: np.frombuffer(column, column.typecode) if column else np.empty(0, column.typecode)
            for name, column in reading.columns.items()
        },
        evaluations=tuple(line for line in reading.rare if isinstance(line, Evaluation)),
        checkpoints=tuple(line for line in reading.rare if isinstance(line, Checkpoint)),
        notes=tuple(line for line in reading.rare if isinstance(line, Note)),
        warnings=tuple(f"{path.name} line {line} is damaged and was skipped" for line in damaged if line != num_lines),
    )


def _add_batch(reading: _Reading, lines: list[bytes]) -> list[int]:
    """Add many lines at once, or one by one if that fails; return the positions of those that are damaged."""
    try:
        parsed = json.loads(b"[" + b",".join(lines) + b"]")
        if len(parsed) == len(lines):
            reading.add(parsed)
            return []
    except (ValueError, KeyError, TypeError, OverflowError):
        pass
    damaged = []
    for row, line in enumerate(lines):
        try:
            reading.add([json.loads(line)])
        except (ValueError, KeyError, TypeError, OverflowError):
            damaged.append(row)
    return damaged
