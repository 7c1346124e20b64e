"""The process in which CodeCarbon meters a whole run: ``python -m perjoule.measure.bridges.codecarbon_child``.

One JSON object on standard input starts it: the keyword arguments of the tracker. A second line, ``stop``, ends it;
then it writes its row as one line of JSON. If the input ends before, the trainer is gone, and so is this process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
from typing import Any


def main() -> None:
    """Meter until told to stop."""
    # What CodeCarbon prints must not get between the lines of the answer.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    tracker = _start(json.loads(sys.stdin.readline()))
    answer.write('{"ready": true}\n')
    answer.flush()
    if sys.stdin.readline().strip() == "stop":
        tracker.stop()
        row = {name: _plain(value) for name, value in tracker.final_emissions_data.values.items()}
        answer.write(json.dumps({"row": row, "hardware": _hardware(tracker)}, allow_nan=False) + "\n")
        answer.flush()
    os._exit(0)  # no thread of CodeCarbon's may keep this process


def _start(arguments: dict[str, Any]) -> Any:
    tracker = importlib.import_module("codecarbon").OfflineEmissionsTracker(**arguments)
    tracker.start()
    return tracker


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def _hardware(tracker: Any) -> list[str]:
    """Return how CodeCarbon came by its figures; it says so nowhere in its row."""
    with contextlib.suppress(Exception):  # a private field, which another version may not have
        return [str(part.description()).removesuffix("()") for part in tracker._hardware]
    return []


if __name__ == "__main__":
    main()
