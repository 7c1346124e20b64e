"""A measured step: what a run folder says of the time, energy and memory of one optimizer step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perjoule.core.errors import DataError
from perjoule.core.phases import ON_SCHEDULE, STEP
from perjoule.estimate.own.work import Work
from perjoule.measure.book import build_ledger
from perjoule.measure.ledger import outermost_accounts
from perjoule.runs.tables import Run, load_run


@dataclass(frozen=True)
class Sample:
    """One configuration, measured on this machine.

    Args:
        name: of the configuration.
        work: of one optimizer step.
        step_s: median seconds of a step behind the warm-up, without evaluations and checkpoints.
        cpu_s: median processor seconds of such a step, all threads.
        step_j: mean joules of such a step over all meters; None if nothing was metered.
        meters: how the joules were obtained.
        num_steps: steps behind the warm-up.
    """

    name: str
    work: Work
    step_s: float
    cpu_s: float
    step_j: float | None
    meters: str
    num_steps: int

    @property
    def watts(self) -> float | None:
        """Return the mean power, or None."""
        return None if self.step_j is None else self.step_j / self.step_s

    def as_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Sample:
        """Return what :meth:`as_json` wrote.

        Raises:
            TypeError, KeyError: if it did not.
        """
        return cls(**{**stored, "work": Work(**stored["work"])})


def read_sample(path: Path, name: str, work: Work) -> Sample:
    """Return what a run folder says of its steps.

    Args:
        path: the run folder.
        name: of the configuration.
        work: of one of its steps.

    Raises:
        DataError: if no step of it was timed behind the warm-up.
        RunFolderError: if it is no run folder.
    """
    run = load_run(path)
    rows = run.steps.in_window & np.isfinite(run.steps.training_s)
    if not rows.any():
        why = f" ({'; '.join(run.warnings)})" if run.warnings else ""
        raise DataError(f"{path} has no step that was timed behind the warm-up{why}: let it run longer")
    step_j, meters = joules_per_step(run)
    return Sample(
        name=name,
        work=work,
        step_s=float(np.median(run.steps.training_s[rows])),
        cpu_s=_cpu_s(run),
        step_j=step_j,
        meters=meters,
        num_steps=int(rows.sum()),
    )


def joules_per_step(run: Run) -> tuple[float | None, str]:
    """Return the mean joules of a step in the measured window over all meters, and how they were obtained."""
    counted = [one for one in outermost_accounts(build_ledger(run).merged()) if one.window_uj and one.window_steps]
    if not counted:
        return None, "not metered"
    joules = sum((one.window_uj or 0) / one.window_steps for one in counted) / 1e6
    words = (f"{'modelled' if one.sensor.modelled else 'measured'}: {one.sensor.domain}" for one in counted)
    return joules, ", ".join(dict.fromkeys(words))


def _cpu_s(run: Run) -> float:
    """Return the median processor seconds of a step behind the warm-up, over the ranks' processes; NaN if unknown."""
    found = []
    for segment in run.segments:
        kept = run.steps.step[(run.steps.segment == segment.number) & run.steps.in_window]
        tables = [table.only(kept) for table in segment.ranks.values()]
        if tables and all(STEP in table.cpu_ns for table in tables):
            spent = [
                table.cpu_ns[STEP] - sum(table.cpu_ns[one] for one in ON_SCHEDULE if one in table.cpu_ns)
                for table in tables
            ]
            found.append(sum(float(np.median(one)) for one in spent if len(one)) / 1e9)
    return float(np.mean(found)) if found else float("nan")
