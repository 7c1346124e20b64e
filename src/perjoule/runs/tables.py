"""Read a run folder back: finished, failed, killed, or still being written.

Nothing here waits for a run or changes it. What cannot be read is left out and said in ``Run.warnings``; only a folder
that is no run is an error.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perjoule.core.errors import RunFolderError
from perjoule.core.phases import ON_SCHEDULE, STEP
from perjoule.runs.files import read_json
from perjoule.runs.folder import CHECKPOINTS, EVENTS, INTERRUPTED, METRICS, RESOLVED, RUNNING, is_live, read_manifest
from perjoule.runs.journal import read_journal
from perjoule.runs.phase_table import PhaseTable, build_phase_table
from perjoule.runs.samples import sample_files
from perjoule.runs.step_table import Checkpoint, Evaluation, Metrics, Note, StepTable, read_metrics

DAMAGED = "damaged"
"""The status that ``list_runs`` gives to a folder whose manifest cannot be read."""
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Segment:
    """One uninterrupted stretch of training.

    Args:
        number: from 0.
        facts: its entry in the manifest: host, device, versions, start-up, peak, fence policy.
        ranks: rank to what its journal recorded; empty if no journal can be read.
    """

    number: int
    facts: Mapping[str, Any]
    ranks: Mapping[int, PhaseTable]

    @property
    def phases(self) -> PhaseTable | None:
        """Return the table of the lowest rank, whose clock stands for the segment's."""
        return self.ranks[min(self.ranks)] if self.ranks else None

    def in_window(self, steps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which step numbers come after the warm-up of this segment."""
        warmup, first = int(self.facts.get("warmup_steps") or 0), self.facts.get("first_step")
        if first is None:
            first = int(steps.min()) if len(steps) else 0
        after: NDArray[np.bool_] = steps >= int(first) + warmup
        return after


@dataclass(frozen=True)
class Run:
    """Everything that a run folder says.

    Args:
        path: the folder.
        manifest: as written, with what model, data and recipe are.
        resolved: dotted configuration key to its ``value`` and ``source``.
        status: as in the manifest; ``interrupted`` if it claims to be running and no process holds its lock.
        reason: why it ended, in words.
        segments: in order.
        steps: one row per optimizer step that was taken.
        evaluations: every evaluation, in order.
        checkpoints: every checkpoint that was written, in order.
        notes: remarks of the training loop, in order.
        warnings: one line for everything that could not be read.
    """

    path: Path
    manifest: Mapping[str, Any]
    resolved: Mapping[str, Mapping[str, Any]]
    status: str
    reason: str
    segments: tuple[Segment, ...]
    steps: StepTable
    evaluations: tuple[Evaluation, ...]
    checkpoints: tuple[Checkpoint, ...]
    notes: tuple[Note, ...]
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the run's name."""
        return str(self.manifest.get("id") or self.path.name)

    @property
    def kept_evaluations(self) -> tuple[Evaluation, ...]:
        """Return the evaluations of the steps that led to the last weights."""
        first = _first_steps(self.steps.segment, self.steps.step)
        return tuple(
            one
            for one in self.evaluations
            if all(one.step < step for later, step in first.items() if later > one.segment)
        )

    def fact(self, section: str, key: str) -> Any:
        """Return a fact of a manifest section such as ``model`` or ``data``, or None."""
        facts = self.manifest.get(section)
        return facts.get(key) if isinstance(facts, Mapping) else None

    def phase_s(self, phase: str) -> NDArray[np.float64]:
        """Return the seconds of ``phase``, without nested ones, of each row of ``steps``; NaN where it is not timed."""
        seconds = np.full(len(self.steps), np.nan)
        for segment in self.segments:
            if segment.phases is not None:
                rows = self.steps.segment == segment.number
                seconds[rows] = _join(self.steps.step[rows], segment.phases, segment.phases.exclusive_s(phase))
        return seconds


def load_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        RunFolderError: if the folder is missing, is no run folder, or was written by a newer perjoule.
    """
    manifest = read_manifest(path)
    status, reason = _status(path, manifest)
    warnings: list[str] = []
    segments = tuple(
        _read_segment(path, number, facts, warnings) for number, facts in enumerate(manifest.get("segments") or ())
    )
    try:
        metrics = read_metrics(path / METRICS)
    except RunFolderError as error:
        warnings.append(str(error))
        metrics = Metrics({}, (), (), (), ())
    steps = _build_steps(metrics, segments)
    warnings += _missing(path, segments, steps)
    return Run(
        path=path,
        manifest=manifest,
        resolved=_read_resolved(path, warnings),
        status=status,
        reason=reason,
        segments=segments,
        steps=steps,
        evaluations=metrics.evaluations,
        checkpoints=metrics.checkpoints,
        notes=metrics.notes,
        warnings=(*warnings, *metrics.warnings),
    )


def _missing(path: Path, segments: tuple[Segment, ...], steps: StepTable) -> Iterator[str]:
    """Yield a line for each part that should be there and is not: somebody deleted or cut it, or copied half a run."""
    last = max((int(one.facts.get("last_step") or 0) for one in segments), default=0)
    recorded = int(steps.step.max()) if len(steps) else 0
    if recorded < last and any(one.phases is not None for one in segments):
        yield f"{METRICS} ends at step {recorded}, and the run at step {last}: losses after it are unknown"
    if last and not (path / CHECKPOINTS).is_dir() and segments and "stop" in segments[-1].facts:
        yield f"the folder {CHECKPOINTS} is missing: the model cannot be used or trained on"
    for one in segments:
        energy = one.facts.get("energy")
        config = energy.get("config") if isinstance(energy, Mapping) else None
        metered = isinstance(config, Mapping) and config.get("sampler") != "off" and config.get("meters")
        if metered and one.facts.get("ended") and not sample_files(path, one.number):
            yield f"segment {one.number}: its samples are missing: what it used is unknown"


def _status(path: Path, manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Return the status and the reason, seeing through the manifest of a run that was killed."""
    status, reason = str(manifest.get("status")), str(manifest.get("reason") or "")
    if status == RUNNING and not is_live(path):
        return INTERRUPTED, "its process was killed or its machine stopped"
    return status, reason


def _read_resolved(path: Path, warnings: list[str]) -> dict[str, dict[str, Any]]:
    try:
        resolved = read_json(path / RESOLVED)
    except RunFolderError as error:
        warnings.append(str(error))
        return {}
    if not isinstance(resolved, dict):
        warnings.append(f"{path / RESOLVED} is damaged: it holds no JSON object")
        return {}
    return {str(key): entry for key, entry in resolved.items() if isinstance(entry, dict)}


def _read_segment(path: Path, number: int, facts: Mapping[str, Any], warnings: list[str]) -> Segment:
    """Read the journals of all ranks of a segment; those that cannot be read become warnings."""
    ranks: dict[int, PhaseTable] = {}
    where = f"segment {number}"
    for file in sorted((path / EVENTS).glob(f"{number:04d}-rank*.bin")):
        found = re.fullmatch(r"\d+-rank(\d+)\.bin", file.name)
        if found is None:
            continue
        try:
            journal = read_journal(file)
            ranks[int(found[1])] = table = build_phase_table(journal)
        except RunFolderError as error:
            warnings.append(f"{where}: {error}")
            continue
        if journal.num_lost:
            warnings.append(f"{where}: {file.name} is damaged; {journal.num_lost} later records are not used")
        if table.num_unclosed > 0 and not is_live(path):
            warnings.append(
                f"{where}: {file.name} ends within a step: {table.num_unclosed} phases that were under way have no end "
                "and are not counted"
            )
    missing = [rank for rank in range(int(facts.get("world_size") or 1)) if rank not in ranks]
    if missing:
        warnings.append(f"{where}: no readable journal of rank {', '.join(map(str, missing))}; its times are unknown")
    return Segment(number, facts, ranks)


def _first_steps(segment: NDArray[np.int64], step: NDArray[np.int64]) -> dict[int, int]:
    """Return the first step that each segment completed, by segment number."""
    return {int(number): int(step[segment == number].min()) for number in np.unique(segment)}


def _build_steps(metrics: Metrics, segments: tuple[Segment, ...]) -> StepTable:
    """Join the lines of the steps with the journals' times."""
    columns = metrics.columns
    integers = {name: columns.get(name, np.empty(0, np.int64)) for name in ("segment", "step")}
    integers |= {name: columns.get(name, np.empty(0, np.int64)) for name in ("samples", "tokens", "useful")}
    reals = {name: columns.get(name, np.empty(0)) for name in ("loss", "grad_norm", "lr", "memory_bytes")}
    segment, step = integers["segment"], integers["step"]
    wall_s, training_s = np.full(len(step), np.nan), np.full(len(step), np.nan)
    in_window, superseded = np.zeros(len(step), bool), np.zeros(len(step), bool)
    for one in segments:
        rows = segment == one.number
        if one.phases is not None:
            whole = one.phases.wall_s(STEP)
            wall_s[rows] = _join(step[rows], one.phases, whole)
            on_schedule = sum((one.phases.wall_s(phase) for phase in ON_SCHEDULE), np.zeros(len(whole)))
            training_s[rows] = _join(step[rows], one.phases, whole - on_schedule)
        in_window[rows] = one.in_window(step[rows])
    for number, first in _first_steps(segment, step).items():
        superseded |= (segment < number) & (step >= first)
    return StepTable(
        **integers,
        **reals,
        wall_s=wall_s,
        training_s=training_s,
        in_window=in_window & np.isfinite(wall_s) & ~superseded,
        superseded=superseded,
    )


def _join(steps: NDArray[np.int64], table: PhaseTable, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ``seconds`` (a column of ``table``) of the given steps; NaN for steps that the table does not have."""
    found = np.full(len(steps), np.nan)
    if len(table.steps):
        rows = np.searchsorted(table.steps, steps).clip(max=len(table.steps) - 1)
        same = table.steps[rows] == steps
        found[same] = seconds[rows[same]]
    return found


@dataclass(frozen=True)
class RunSummary:
    """One line about a run, from its manifest and the end of its metrics only.

    Args:
        path: the folder.
        name: the run's name.
        status: as :class:`Run`, or ``damaged``.
        reason: why it ended, or what is damaged.
        created: ISO 8601 time, "" if unknown.
        model: kind of the model, "" if unknown.
        data: kind of the data, "" if unknown.
        parameters: number of weights, None if unknown.
        step: last step that is recorded, None if there is none.
        loss: its training loss, None if there is none or it was not finite.
    """

    path: Path
    name: str
    status: str
    reason: str = ""
    created: str = ""
    model: str = ""
    data: str = ""
    parameters: int | None = None
    step: int | None = None
    loss: float | None = None


def list_runs(root: Path) -> list[RunSummary]:
    """Return one line for each run folder in ``root``, oldest first; other folders are passed over.

    Raises:
        RunFolderError: if ``root`` is not a folder.
    """
    if not root.is_dir():
        raise RunFolderError(f"no folder {root}: give the folder that holds the runs")
    runs = [_summarize(path) for path in sorted(root.iterdir()) if (path / "manifest.json").is_file()]
    return sorted(runs, key=lambda run: run.created)


def _summarize(path: Path) -> RunSummary:
    try:
        manifest = read_manifest(path)
    except RunFolderError as error:
        return RunSummary(path, path.name, DAMAGED, str(error))
    status, reason = _status(path, manifest)
    model, data = manifest.get("model") or {}, manifest.get("data") or {}
    last = _last_step(path / METRICS)
    return RunSummary(
        path=path,
        name=str(manifest.get("id") or path.name),
        status=status,
        reason=reason,
        created=str(manifest.get("created") or ""),
        model=str(model.get("kind") or ""),
        data=str(data.get("kind") or ""),
        parameters=model.get("parameters"),
        step=last.get("step"),
        loss=last.get("loss"),
    )


def last_step(run: Path) -> int:
    """Return the last step that a run folder has recorded, 0 if there is none."""
    return int(_last_step(run / METRICS).get("step") or 0)


def _last_step(metrics: Path) -> dict[str, Any]:
    """Return the last step's line, looking at the end of the file only."""
    try:
        with metrics.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            parsed = json.loads(line)
        except ValueError:
            continue
        if isinstance(parsed, dict) and parsed.get("kind") == "step":
            return parsed
    return {}
