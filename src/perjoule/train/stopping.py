"""When a run ends: its goal, its patience, a budget, or a signal."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from perjoule.core.errors import ConfigError, PerjouleError
from perjoule.runs import checkpoints, folder
from perjoule.train.budget import Budget
from perjoule.train.config import StopConfig

if TYPE_CHECKING:
    from perjoule.train.costs import Costs

T = TypeVar("T")
WATCH_EVERY_S = 0.2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclass
class Progress:
    """Where a run is. All of it is in every checkpoint.

    Args:
        step: optimizer steps taken.
        samples: global position in the training stream.
        tokens: label positions seen; ``useful``: those trained on.
        seconds: time spent in steps, over all segments.
        best_loss: lowest held-out loss so far, with ``best_step``.
        stale_evaluations: evaluations since then.
        top: the best values of what checkpoints are ranked by with their steps, whose checkpoints are kept; best first.
        ranked_by: what that is: a direction and ``checkpoint.monitor``.
        monitored_sum: of what is ranked by, over ``monitored_steps`` since the last evaluation; 0 for held-out losses.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    useful: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    best_step: int | None = None
    stale_evaluations: int = 0
    top: tuple[tuple[float, int], ...] = ()
    ranked_by: str = checkpoints.BY_LOSS
    monitored_sum: float = 0.0
    monitored_steps: int = 0

    @classmethod
    def revive(cls, plain: Mapping[str, Any]) -> Progress:
        """Return the progress from what JSON made of it; a checkpoint of an older version knows the best one only."""
        best = [(plain["best_loss"], plain["best_step"])] if plain["best_step"] is not None else []
        top = tuple((float(loss), int(step)) for loss, step in plain.get("top", best))
        return cls(**{**plain, "top": top})

    @property
    def is_among_the_best(self) -> bool:
        """Return whether the present step is one of the best."""
        return any(step == self.step for _, step in self.top)

    def rank(self, value: float, keep: int, direction: str = "lowest") -> None:
        """Rank the present step.

        Args:
            value: of what checkpoints are ranked by; never among the best if it is not finite.
            keep: how many of the best to remember.
            direction: ``lowest`` or ``highest``; of equal values the earlier is the better.
        """
        if math.isfinite(value):
            sign = -1 if direction == "highest" else 1
            ranked = sorted((*self.top, (value, self.step)), key=lambda pair: (sign * pair[0], pair[1]))
            self.top = tuple(ranked[:keep])

    def saw_held_out_loss(self, loss: float) -> bool:
        """Take note of an evaluation; return whether its loss, in nats per position, is the lowest so far."""
        if not math.isfinite(loss):
            self.stale_evaluations += 1
            return False
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step, self.stale_evaluations = loss, self.step, 0
            return True
        self.stale_evaluations += 1
        return False


class Interrupted(KeyboardInterrupt):
    """Ends a segment at once, because nothing of it would be lost.

    Args:
        reason: in words.
        signal: that asked for it; None if a budget is used up.
    """

    def __init__(self, reason: str, signal: signal.Signals | None = None) -> None:
        super().__init__(reason)
        self.reason, self.signal = reason, signal


class SignalFlag:
    """Turns SIGINT, SIGTERM, SIGHUP and SIGUSR1 into a wish to stop after the current step; a second SIGINT interrupts.

    As long as a segment has done nothing that could be lost (it starts, it compiles its first step), it ends at once.
    SIGHUP stays ignored where it is, under ``nohup``.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.nothing_to_lose: Callable[[], bool] = lambda: False
        self._before: dict[signal.Signals, Any] = {}
        self._used_up: str | None = None

    def __enter__(self) -> SignalFlag:
        try:
            for number in SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        except ValueError:  # not in the main thread: signals stay with the program that called us
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def interrupt(self, reason: str) -> None:
        """End the segment from another thread, if it has nothing to lose.

        Args:
            reason: which budget is used up.
        """
        self._used_up = reason
        if self._before:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._used_up is not None and number == signal.SIGUSR1:
            if self.nothing_to_lose():
                raise Interrupted(self._used_up)
            return
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        if self.nothing_to_lose():
            raise Interrupted(f"stopped by {self.received.name} before its first step was done", self.received)


class GivenUp(Exception):
    """An evaluation was not finished, because somebody asked to stop."""


def until(asked: Callable[[], bool], items: Iterator[T]) -> Iterator[T]:
    """Yield items until somebody asks to stop.

    Raises:
        GivenUp: then.
    """
    for item in items:
        if asked():
            raise GivenUp
        yield item


def ending_of(error: BaseException) -> tuple[str, str]:
    """Return the status and the reason that an error gives to a run."""
    if isinstance(error, Interrupted):
        return folder.STOPPED if error.signal else folder.FINISHED, error.reason
    status = folder.STOPPED if isinstance(error, KeyboardInterrupt) else folder.FAILED
    return status, str(error) if isinstance(error, PerjouleError) else f"{type(error).__name__}: {error}".rstrip(": ")


@dataclass(frozen=True)
class Goal:
    """The configured end of a run, in the units of its progress.

    Args:
        config: the stop section.
        samples_per_step: global batch size.
        samples_per_epoch: size of the training split.
        tokens_per_step: label positions of one step.
        budgets: of energy and carbon; the leading rank has them.
        costs: of what is still to be done when a budget ends the run; None: nothing is kept back.
    """

    config: StopConfig
    samples_per_step: int
    samples_per_epoch: int
    tokens_per_step: int
    budgets: tuple[Budget, ...] = ()
    costs: Costs | None = None

    @cached_property
    def last_step(self) -> int | None:
        """Return the step at which the run ends at the latest, or None if only time can tell."""
        bounds = [self.config.steps]
        if self.config.tokens is not None and not self.tokens_per_step:
            raise ConfigError("stop.tokens: the samples of this data have no tokens; use stop.steps or stop.epochs")
        if self.config.epochs is not None:
            bounds.append(math.ceil(self.config.epochs * self.samples_per_epoch / self.samples_per_step))
        if self.config.tokens is not None:
            bounds.append(math.ceil(self.config.tokens / self.tokens_per_step))
        known = [bound for bound in bounds if bound is not None]
        return min(known) if known else None

    def reached(self, progress: Progress) -> str | None:
        """Return why the run is over, or None. Depends on shared values only, so all ranks agree."""
        config = self.config
        if config.steps is not None and progress.step >= config.steps:
            return f"reached {config.steps} steps"
        if config.epochs is not None and progress.samples >= config.epochs * self.samples_per_epoch:
            return f"reached {config.epochs:g} epochs"
        if config.tokens is not None and progress.tokens >= config.tokens:
            return f"reached {config.tokens} tokens"
        if config.patience is not None and progress.stale_evaluations >= config.patience:
            return f"no better held-out loss in {config.patience} evaluations since step {progress.best_step}"
        return None

    def used_up(self, progress: Progress, num_steps: int = 0) -> str | None:
        """Return why there is no room for more steps, as this process sees it; ranks must agree before they act.

        Args:
            progress: where the run is.
            num_steps: that would still be taken; what follows them, and the end of the run, is counted in.
        """
        ahead_s = self.costs.ahead_s(num_steps) if self.costs is not None else 0.0
        if (reason := self._seconds_used_up(progress.seconds, ahead_s)) is not None:
            return reason
        return next((reason for one in self.budgets if (reason := one.used_up(ahead_s)) is not None), None)

    def first_step_used_up(self, progress: Progress, elapsed_s: float) -> str | None:
        """Return why the first step, which may be compiling, must be given up.

        Args:
            progress: where the segment began.
            elapsed_s: since then.
        """
        if (reason := self._seconds_used_up(progress.seconds + elapsed_s, 0.0)) is not None:
            return reason
        return next((reason for one in self.budgets if (reason := one.used_up(2 * WATCH_EVERY_S)) is not None), None)

    def has_room(self, progress: Progress, seconds: float) -> bool:
        """Return whether the budgets leave room for so many seconds of work."""
        in_time = self.config.seconds is None or progress.seconds + seconds <= self.config.seconds
        return in_time and all(one.used_up(seconds) is None for one in self.budgets)

    def _seconds_used_up(self, seconds: float, ahead_s: float) -> str | None:
        limit = self.config.seconds
        if limit is None or seconds + ahead_s < limit:
            return None
        return f"reached {limit:g} s" if seconds >= limit else f"{limit:g} s leave no room for another step"

    def remaining(self, progress: Progress) -> tuple[int | None, Callable[[], float | None]]:
        """Return the steps that are left, None if unbounded, and what returns the seconds at the present power.

        The seconds are None if unbounded, and 0 while it is not known how long a budget lasts.
        """
        steps = self.last_step

        def seconds() -> float | None:
            known = [one.remaining_s() or 0.0 for one in self.budgets]
            if self.config.seconds is not None:
                known.append(max(0.0, self.config.seconds - progress.seconds))
            return min(known, default=None)

        return None if steps is None else max(0, steps - progress.step), seconds

    def fraction(self, progress: Progress) -> float:
        """Return how much of the run is done, 0 to 1, by the condition that is nearest."""
        shares = [progress.step / self.last_step] if self.last_step else []
        if self.config.seconds is not None:
            shares.append(progress.seconds / self.config.seconds)
        shares += [budget.fraction for budget in self.budgets]
        return min(1.0, max(shares, default=0.0))


class FirstStepWatch:
    """Gives the first step of a segment up when it alone would use up a budget: it may have to be compiled.

    Args:
        goal: with the budgets.
        progress: shared with the loop.
        signals: interrupt the main thread.
    """

    def __init__(self, goal: Goal, progress: Progress, signals: SignalFlag) -> None:
        self._goal, self._progress, self._signals = goal, progress, signals
        self._first, self._begun_s, self._closed = progress.step, time.monotonic(), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> FirstStepWatch:
        if self._goal.budgets or self._goal.config.seconds is not None:
            self._thread = threading.Thread(target=self._watch, name="perjoule-first-step", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while self._progress.step == self._first and not self._closed.wait(WATCH_EVERY_S):
            elapsed_s = time.monotonic() - self._begun_s
            if (reason := self._goal.first_step_used_up(self._progress, elapsed_s)) is not None:
                self._signals.interrupt(reason)
                return
