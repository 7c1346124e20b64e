"""``cross_check.json``: what CodeCarbon says about the same run, one entry per segment that it metered."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perjoule.core.errors import RunFolderError
from perjoule.runs.files import read_json, write_json

CROSS_CHECK = "cross_check.json"


@dataclass(frozen=True)
class CrossCheck:
    """One segment as CodeCarbon saw it.

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
    """Add an entry, atomically.

    Raises:
        RunFolderError: if the file is damaged or cannot be written.
    """
    entries = [asdict(one) for one in (*read_cross_checks(run), check)]
    write_json(run / CROSS_CHECK, {"checks": entries})


def read_cross_checks(run: Path) -> tuple[CrossCheck, ...]:
    """Return the entries of a run, in the order they were written; none if it was not checked.

    Raises:
        RunFolderError: if the file cannot be read or is damaged.
    """
    path = run / CROSS_CHECK
    if not path.exists():
        return ()
    try:
        return tuple(
            CrossCheck(**{**entry, "hardware": tuple(entry["hardware"])}) for entry in read_json(path)["checks"]
        )
    except (KeyError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged: {error!r}") from error
