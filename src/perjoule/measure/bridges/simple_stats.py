"""Time per step and phase, printed: the toolkit's *simple* stats, which here need no GPU.

What is printed: a line per step in milliseconds; at the end the mean of each, and a table of quantiles. The device is
waited for at every edge by the fence that is given, so that a phase is what the device did in it; on a GPU the waiting
itself slows training (30 % and more were measured without loader workers).
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable

import numpy as np

from perjoule.measure.bridges.trainer_stats import NoOpStats

QUANTILES = (0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
_SHOWN = {"step": "step", "forward": "forward", "backward": "backward", "optimizer_step": "optimizer step"}
_SAVING = "save_checkpoint"


def _do_nothing() -> None:
    """Wait for nothing: a CPU has done what it was told."""


class SimpleStats(NoOpStats):
    """Times steps and phases.

    Args:
        fence: waits until the device is idle.
        say: takes a line of text.
        clock: returns nanoseconds.
    """

    def __init__(
        self,
        fence: Callable[[], None] = _do_nothing,
        say: Callable[[str], None] = print,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._fence, self._say, self._clock = fence, say, clock
        self._begun_ns: dict[str, int] = {}
        self._in_step_ns: dict[str, int] = {}
        self._lines: deque[str] = deque()
        self.spent_ns: dict[str, array[int]] = {name: array("q") for name in (*_SHOWN, _SAVING)}

    def _start(self, name: str) -> None:
        self._fence()
        self._begun_ns[name] = self._clock()

    def _stop(self, name: str) -> bool:
        """Add what ``name`` took, and return whether it had begun."""
        if name not in self._begun_ns:
            return False
        self._fence()
        spent_ns = self._clock() - self._begun_ns.pop(name)
        # Several micro-batches make one step, and their passes one figure.
        self._in_step_ns[name] = self._in_step_ns.get(name, 0) + spent_ns
        return True

    def start_step(self) -> None:
        """Begin a step."""
        self._start("step")

    def stop_step(self) -> None:
        """End a step and keep what it took; its line waits for ``log_step``, which may come one step late."""
        if not self._stop("step"):
            return
        spent, self._in_step_ns = self._in_step_ns, {}
        for name, spent_ns in spent.items():
            self.spent_ns[name].append(spent_ns)
        self._lines.append(" -- ".join(f"{words} {_ms(spent.get(name, 0))}" for name, words in _SHOWN.items()))

    def start_forward(self) -> None:
        """Begin a forward pass."""
        self._start("forward")

    def stop_forward(self) -> None:
        """End a forward pass."""
        self._stop("forward")

    def start_backward(self) -> None:
        """Begin a backward pass."""
        self._start("backward")

    def stop_backward(self) -> None:
        """End a backward pass."""
        self._stop("backward")

    def start_optimizer_step(self) -> None:
        """Begin the update of the weights."""
        self._start("optimizer_step")

    def stop_optimizer_step(self) -> None:
        """End the update of the weights."""
        self._stop("optimizer_step")

    def start_save_checkpoint(self) -> None:
        """Begin to save."""
        self._start(_SAVING)

    def stop_save_checkpoint(self) -> None:
        """End saving."""
        if self._stop(_SAVING):
            self.spent_ns[_SAVING].append(self._in_step_ns.pop(_SAVING))

    def log_step(self) -> None:
        """Print the line of the step, if it has ended."""
        if self._lines:
            self._say(self._lines.popleft())

    def log_stats(self) -> None:
        """Print the means, and the quantiles of every phase that occurred."""
        columns = {name.replace("_", " "): np.array(spent) for name, spent in self.spent_ns.items() if len(spent)}
        if not columns:
            self._say("no step was taken")
            return
        self._say(f"mean of {len(self.spent_ns['step'])} steps, ms")
        self._say(" -- ".join(f"{name} {_ms(float(spent.mean()))}" for name, spent in columns.items()))
        self._say("".join(f"{name:>16}" for name in ("quantile, ms", *columns)))
        for quantile in QUANTILES:
            at = (float(np.quantile(spent, quantile, method="nearest")) for spent in columns.values())
            self._say("".join(f"{cell:>16}" for cell in (f"{quantile:g}", *map(_ms, at))))


def _ms(spent_ns: float) -> str:
    return f"{spent_ns / 1e6:.3f}"
