"""``cross_check.jsonl``: what CodeCarbon says about the same run, one line per segment and node that it metered."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perjoule.runs.lines import append_line, read_lines

CROSS_CHECK = "cross_check.jsonl"


@dataclass(frozen=True)
class CrossCheck:
    """One segment on one node as CodeCarbon saw it.

    Args:
        segment: its number.
        node: name of the machine.
        row: CodeCarbon's row, by its column names; empty if there is none.
        hardware: what CodeCarbon metered and how, in its own words.
        unavailable: why there is no row, "" if there is one.
    """

    segment: int
    node: str
    row: dict[str, Any]
    hardware: tuple[str, ...] = ()
    unavailable: str = ""


def add_cross_check(run: Path, check: CrossCheck) -> None:
    """Append a line.

    Raises:
        RunFolderError: if the disk is full or the folder is gone.
    """
    append_line(run / CROSS_CHECK, asdict(check))


def read_cross_checks(run: Path) -> tuple[CrossCheck, ...]:
    """Return the checks of a run, in the order they were written; none if it was not checked.

    Raises:
        RunFolderError: if the file exists and cannot be read.
    """
    return tuple(
        CrossCheck(
            segment=int(entry.get("segment") or 0),
            node=str(entry.get("node") or ""),
            row=dict(entry.get("row") or {}),
            hardware=tuple(entry.get("hardware") or ()),
            unavailable=str(entry.get("unavailable") or ""),
        )
        for entry in read_lines(run / CROSS_CHECK)
    )
