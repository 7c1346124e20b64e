"""How a run ended, and what a run that is continued takes over from before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perjoule.config.resolve import Resolved
from perjoule.runs import folder
from perjoule.runs.folder import RunFolder
from perjoule.train.config import BackendConfig, TrainConfig
from perjoule.train.console import Console
from perjoule.train.identity import changed_sections


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Args:
        run: its folder; None if the run only walked over the data.
        status: ``finished`` or ``stopped``.
        reason: why.
        step: optimizer steps taken.
        held_out_loss: of the last evaluation in nats per token; None if there was none.
        signal: number of the signal that stopped it, or None.
    """

    run: Path | None
    status: str
    reason: str
    step: int
    held_out_loss: float | None = None
    signal: int | None = None


def say_done(console: Console, done: TrainResult) -> None:
    """Say that a run which is finished is left as it is."""
    console.line(f"finished: {done.reason}, at step {done.step}; nothing to do (to train on, raise what stop says)")


def was_finished(run: RunFolder | None) -> bool:
    """Return whether a run had reached its goal before it was opened again."""
    return run is not None and run.manifest["status"] == folder.FINISHED


def finished_before(resume: Path, resolved: Resolved[TrainConfig]) -> TrainResult | None:
    """Return how a run ended that reached its goal, if it is asked to go on to the same goal."""
    manifest = folder.read_manifest(resume)
    last = manifest["segments"][-1] if manifest["segments"] else {}
    now = resolved.config.stop.model_dump(mode="json")
    same = last["stop"] == now if "stop" in last else "stop" not in changed_sections(resume, resolved)
    if manifest["status"] != folder.FINISHED or not same:
        return None
    return TrainResult(resume, folder.FINISHED, str(manifest["reason"]), int(last.get("last_step") or 0))


def backend_config(config: TrainConfig, resume: Path | None) -> BackendConfig:
    """Return the backend section; a resumed run repeats what was chosen before, except what is now set by hand."""
    if resume is None:
        return config.backend
    segments = folder.read_manifest(resume)["segments"]
    given = config.backend.model_dump(exclude={"preset"})
    # A segment that failed early has chosen nothing.
    chosen: dict[str, Any] = next((one["backend"]["chosen"] for one in reversed(segments) if "backend" in one), {})
    return BackendConfig(**{**chosen, **{key: value for key, value in given.items() if value != "auto"}})
