"""When a run ends: its goal, its patience, a budget, or a signal."""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import FrameType
from typing import Any

from perjoule.train.budget import Budget
from perjoule.train.config import StopConfig

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


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
        top: the lowest held-out losses with their steps, whose checkpoints are kept; lowest first.
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

    @classmethod
    def revive(cls, plain: Mapping[str, Any]) -> Progress:
        """Return the progress from what JSON made of it; a checkpoint of an older version knows the best one only."""
        best = [(plain["best_loss"], plain["best_step"])] if plain["best_step"] is not None else []
        top = tuple((float(loss), int(step)) for loss, step in plain.get("top", best))
        return cls(**{**plain, "top": top})

    @property
    def is_among_the_best(self) -> bool:
        """Return whether the loss of the present step is one of the lowest."""
        return any(step == self.step for _, step in self.top)

    def saw_held_out_loss(self, loss: float, keep: int = 1) -> bool:
        """Take note of an evaluation; return whether it is the best so far.

        Args:
            loss: nats per position.
            keep: how many of the lowest losses to remember.
        """
        if not math.isfinite(loss):
            self.stale_evaluations += 1
            return False
        self.top = tuple(sorted((*self.top, (loss, self.step)))[:keep])
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step, self.stale_evaluations = loss, self.step, 0
            return True
        self.stale_evaluations += 1
        return False


class SignalFlag:
    """Turns SIGINT, SIGTERM and SIGUSR1 into a wish to stop after the current step; a second SIGINT interrupts."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalFlag:
        try:
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        except ValueError:  # not in the main thread: signals stay with the program that called us
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


@dataclass(frozen=True)
class Goal:
    """The configured end of a run, in the units of its progress.

    Args:
        config: the stop section.
        samples_per_step: global batch size.
        samples_per_epoch: size of the training split.
        tokens_per_step: label positions of one step.
        budgets: of energy and carbon; the leading rank has them.
    """

    config: StopConfig
    samples_per_step: int
    samples_per_epoch: int
    tokens_per_step: int
    budgets: tuple[Budget, ...] = ()

    @cached_property
    def last_step(self) -> int | None:
        """Return the step at which the run ends at the latest, or None if only time can tell."""
        bounds = [self.config.steps]
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

    def used_up(self, progress: Progress) -> str | None:
        """Return why time, energy or carbon is used up, as this process sees it; ranks must agree before they act."""
        if self.config.seconds is not None and progress.seconds >= self.config.seconds:
            return f"reached {self.config.seconds:g} s"
        for budget in self.budgets:
            if (reason := budget.used_up()) is not None:
                return reason
        return None

    def remaining(self, progress: Progress) -> tuple[int | None, float | None]:
        """Return the steps and the seconds that are left, each None if unbounded."""
        steps, seconds = self.last_step, self.config.seconds
        return (
            None if steps is None else max(0, steps - progress.step),
            None if seconds is None else max(0.0, seconds - progress.seconds),
        )

    def fraction(self, progress: Progress) -> float:
        """Return how much of the run is done, 0 to 1, by the condition that is nearest."""
        shares = [progress.step / self.last_step] if self.last_step else []
        if self.config.seconds is not None:
            shares.append(progress.seconds / self.config.seconds)
        shares += [budget.fraction for budget in self.budgets]
        return min(1.0, max(shares, default=0.0))
