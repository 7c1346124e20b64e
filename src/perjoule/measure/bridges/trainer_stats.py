"""A user's ``TrainerStats`` in our loop: the fifteen hooks of the course toolkit, in its order.

::

    start_train
      [start_dataloading … stop_dataloading]         only if the class has them; the toolkit itself has no such hook
      start_step                                     behind the fetch of the data
        start_forward … stop_forward                 once per micro-batch
        start_backward … stop_backward
        start_optimizer_step … stop_optimizer_step   or optimiser_step
      stop_step
      [start_save_checkpoint … stop_save_checkpoint]
      log_loss(loss), log_step                       on an accelerator one step late, as the loop reads the loss then
    stop_train, log_stats

A class needs no base class of ours. A hook's own time lies outside of our phase, so that it is in ``other``. What a
hook raises ends the training, as in the toolkit, with one line that names the hook. Evaluations have no hook there and
none here. ``stop_train`` is called once whatever ends the training, so that what stats have started is stopped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any

from perjoule.core import phases
from perjoule.core.errors import ConfigError, PerjouleError
from perjoule.measure.bridges.stats_name import failure
from perjoule.measure.device_clock import DeviceClock
from perjoule.measure.recorder import FencePolicy, Recorder, Timed
from perjoule.runs.journal import JournalWriter

Hook = Callable[[], object]
TIMED = ("train", "step", "forward", "backward", "optimizer_step", "save_checkpoint")
LOGGED = ("log_loss", "log_step", "log_stats")
_ALIASES = {"start_optimizer_step": "start_optimiser_step", "stop_optimizer_step": "stop_optimiser_step"}
_AROUND = {
    phases.FORWARD: "forward",
    phases.BACKWARD: "backward",
    phases.CHECKPOINT: "save_checkpoint",
}


class NoOpStats:
    """The fifteen hooks, all of which do nothing; the base of our own stats."""

    def start_train(self) -> None:
        """Begin the training."""

    def stop_train(self) -> None:
        """End the training."""

    def start_step(self) -> None:
        """Begin a step, behind the fetch of its data."""

    def stop_step(self) -> None:
        """End a step."""

    def start_forward(self) -> None:
        """Begin a forward pass."""

    def stop_forward(self) -> None:
        """End a forward pass."""

    def start_backward(self) -> None:
        """Begin a backward pass."""

    def stop_backward(self) -> None:
        """End a backward pass."""

    def start_optimizer_step(self) -> None:
        """Begin the update of the weights."""

    def stop_optimizer_step(self) -> None:
        """End the update of the weights."""

    def start_save_checkpoint(self) -> None:
        """Begin to save."""

    def stop_save_checkpoint(self) -> None:
        """End saving."""

    def log_loss(self, loss: Any) -> None:
        """Take the loss of a step."""

    def log_step(self) -> None:
        """Say what a step took."""

    def log_stats(self) -> None:
        """Say what the training took."""


def find_hooks(stats: object) -> dict[str, Callable[..., object]]:
    """Return the hooks of ``stats`` by the toolkit's names; those it may lack, as far as it has them.

    Raises:
        ConfigError: naming every hook that is missing.
    """
    names = [f"{edge}_{what}" for what in TIMED for edge in ("start", "stop")] + list(LOGGED)
    found: dict[str, Callable[..., object]] = {}
    for name in (*names, "start_dataloading", "stop_dataloading"):
        hook = getattr(stats, name, None) or getattr(stats, _ALIASES.get(name, name), None)
        if callable(hook):
            found[name] = hook
    missing = [name for name in names if name not in found]
    if missing:
        raise ConfigError(f"{type(stats).__name__} is not a TrainerStats: it lacks {', '.join(missing)}")
    return found


def _in_one_line(name: str, hook: Callable[..., object]) -> Callable[..., object]:
    """Let what a foreign hook raises say which hook it was."""

    @functools.wraps(hook)
    def called(*arguments: object) -> object:
        try:
            return hook(*arguments)
        except PerjouleError:
            raise
        except Exception as error:
            raise ConfigError(failure(name, "failed", error)) from error

    return called


class StatsBridge:
    """Calls a ``TrainerStats`` from our loop.

    Args:
        stats: any object with the fifteen hooks.
        as_loss: makes of a float what ``log_loss`` expects, such as ``torch.tensor``.

    Raises:
        ConfigError: naming every hook that is missing.
    """

    def __init__(self, stats: object, as_loss: Callable[[float], object] = float) -> None:
        kind = type(stats).__name__
        self._hooks = {name: _in_one_line(f"{kind}.{name}", hook) for name, hook in find_hooks(stats).items()}
        self._as_loss = as_loss
        self._losses: list[float] = []
        self._begun = self._ended = False

    def begin(self) -> None:
        """Call ``start_train``; to be called before the first step."""
        self._begun = True
        self._hooks["start_train"]()

    def take_loss(self, loss: float) -> None:
        """Take the loss of a step as soon as it is known; ``log_loss`` is called when the loop's step ends."""
        self._losses.append(loss)

    def end(self) -> None:
        """Call ``stop_train``, after the hooks of a loss that came late. Nothing if training never began or has ended.

        Raises:
            ConfigError: if a hook fails.
        """
        if self._begun and not self._ended:
            self._ended = True
            self._log_steps()
            self._hooks["stop_train"]()

    def report(self) -> None:
        """Call ``log_stats``; to be called when the run folder is complete, so that stats may read it.

        Raises:
            ConfigError: if the hook fails.
        """
        if self._begun:
            self._hooks["log_stats"]()

    def around(self, phase: str) -> tuple[list[Hook], list[Hook]]:
        """Return what is to be called before a phase of the loop begins and after it has ended."""
        hooks = self._hooks
        if (what := _AROUND.get(phase)) is not None:
            return [hooks[f"start_{what}"]], [hooks[f"stop_{what}"]]
        if phase == phases.DATA:
            fetching = [[hooks[name]] if name in hooks else [] for name in ("start_dataloading", "stop_dataloading")]
            return fetching[0], [*fetching[1], hooks["start_step"]]
        if phase == phases.OPTIMIZER:
            return [hooks["start_optimizer_step"]], [hooks["stop_optimizer_step"], hooks["stop_step"]]
        if phase == phases.STEP:
            return [], [self._log_steps]
        return [], []

    def _log_steps(self) -> None:
        """Call ``log_loss`` and ``log_step`` for every loss that has come."""
        losses, self._losses = self._losses, []
        for loss in losses:
            self._hooks["log_loss"](self._as_loss(loss))
            self._hooks["log_step"]()


class HookedRecorder(Recorder):
    """A recorder whose phases call the hooks of a ``TrainerStats``; it stands in for a :class:`Recorder`.

    Args:
        bridge: whose hooks are called.
        journal: as for :class:`Recorder`, like the rest.
        fence: as there.
        policy: as there.
        device_clock: as there.
    """

    def __init__(
        self,
        bridge: StatsBridge,
        journal: JournalWriter | None,
        fence: Callable[[], None],
        policy: FencePolicy,
        device_clock: DeviceClock | None = None,
    ) -> None:
        super().__init__(journal, fence, policy, device_clock)
        self._bridge = bridge

    def phase(self, name: str) -> Timed:
        """Return the phase with its hooks around it; a phase that has none is the recorder's own."""
        before, after = self._bridge.around(name)
        inner = super().phase(name)
        return _Hooked(inner, before, after) if before or after else inner


class _Hooked:
    """A phase with hooks around it. A phase that fails calls none behind it, as in the toolkit."""

    __slots__ = ("_after", "_before", "_inner")

    def __init__(self, inner: Timed, before: list[Hook], after: list[Hook]) -> None:
        self._inner, self._before, self._after = inner, before, after

    def __enter__(self) -> None:
        for hook in self._before:
            hook()
        self._inner.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, error, trace)
        if error is None:
            for hook in self._after:
                hook()
