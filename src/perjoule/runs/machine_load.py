"""What other programs did while a segment was recorded, and when that is worth a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from perjoule.runs.tables import Run

KEY = "machine_load"
"""Name in a segment's entry of the manifest."""
BUSY = 0.10
"""A machine is called busy if other programs used more than this share of its cores: times and energies of package
sensors are then not the run's alone."""
STOLEN = 0.02
"""Share of the cores that a hypervisor may give to other machines without a word."""


def busy_line(facts: Any) -> str | None:
    """Return the remark on a busy machine; None if it was quiet, or if that was not measured.

    Args:
        facts: as :class:`perjoule.measure.machine_load.MachineLoad` gives them: ``others`` and ``steal``, shares of all
            cores.
    """
    if not isinstance(facts, Mapping):
        return None
    others, steal = facts.get("others"), facts.get("steal")
    said = []
    if isinstance(others, int | float) and others > BUSY:
        said.append(f"other programs used {100 * others:.0f} % of the cores")
    if isinstance(steal, int | float) and steal > STOLEN:
        said.append(f"the hypervisor withheld {100 * steal:.0f} % of them")
    return f"the machine was busy: {' and '.join(said)}" if said else None


def busy_lines(run: Run) -> Iterator[str]:
    """Yield a remark for each segment of a run during which the machine was busy."""
    for segment in run.segments:
        if line := busy_line(segment.facts.get(KEY)):
            yield line if len(run.segments) == 1 else f"segment {segment.number}: {line}"
