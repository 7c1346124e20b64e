"""The ``with`` blocks of a measured loop: a step, and a phase of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any


@dataclass
class Step:
    """One step of a loop. What is set on it before it ends is written down with it.

    Args:
        begin: what to do at its begin.
        end: what to do at its end; is given the step and whether it came to a proper end.
        samples: that the step trains on.
        tokens: label positions.
        useful: those that are trained on; None for all.
        loss: anything that ``float`` takes; None if it is not known.
        lr: learning rate.
    """

    begin: Callable[[], None]
    end: Callable[[Step, bool], None]
    samples: int
    tokens: int
    useful: int | None
    loss: Any
    lr: float | None

    def __enter__(self) -> Step:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(self, error is None)

    def as_line(self, segment: int, number: int) -> str:
        """Return the step's line of the metrics: a loss that is not known is left out, one that is not finite null."""
        line: dict[str, Any] = {"kind": "step", "segment": segment, "step": number}
        if self.loss is not None:
            line["loss"] = _finite(self.loss)
        line |= {"grad_norm": None, "lr": _finite(self.lr), "samples": int(self.samples), "tokens": int(self.tokens)}
        line |= {"useful": int(self.tokens if self.useful is None else self.useful), "memory_bytes": None}
        return json.dumps(line, allow_nan=False)


class Phase:
    """One phase of a loop, to be entered as often as wanted, but not within itself.

    Args:
        enter: what to do at its begin, given its name.
        leave: what to do at its end.
        name: as the loop calls it.
    """

    __slots__ = ("_enter", "_leave", "name")

    def __init__(self, enter: Callable[[str], None], leave: Callable[[], None], name: str) -> None:
        self._enter, self._leave, self.name = enter, leave, name

    def __enter__(self) -> None:
        self._enter(self.name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()


def _finite(value: Any) -> float | None:
    # A tensor that is part of a graph warns when it is made a number.
    number = None if value is None else float(value.detach() if hasattr(value, "detach") else value)
    return number if number is not None and math.isfinite(number) else None
