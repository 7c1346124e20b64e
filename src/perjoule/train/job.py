"""What the training loop is given, and what it hands on after each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from signal import Signals
from typing import NamedTuple

import torch
from torch import nn

from perjoule.data.contract import Batch
from perjoule.measure.recorder import Recorder
from perjoule.train.backend import Backend
from perjoule.train.calendar import Calendar
from perjoule.train.config import TrainConfig
from perjoule.train.distributed import Ranks
from perjoule.train.optimizer import Clipper
from perjoule.train.stopping import Goal, SignalFlag


class StepRecord(NamedTuple):
    """What one step did, over all ranks. A tuple, because one is made at every step."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    samples: int
    tokens: int
    useful: int

    @property
    def finite(self) -> bool:
        """Return whether loss and gradient are finite."""
        return math.isfinite(self.loss + self.grad_norm)

    def as_json(self) -> dict[str, float | None]:
        """Return the fields with null where a number is not finite, which JSON cannot say."""
        return {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}


@dataclass(frozen=True)
class Ending:
    """Why a loop ended.

    Args:
        reason: in words.
        signal: the one that asked to stop, on whichever rank it arrived; None if the goal was reached.
    """

    reason: str
    signal: Signals | None = None


@dataclass(frozen=True)
class Job:
    """Everything a loop needs, built by :mod:`perjoule.train.run`.

    Args:
        config: the run's configuration.
        model: what is called: the module, compiled or wrapped for several ranks.
        optimizer: with learning rates that the loop sets.
        clipper: bounds the gradient and returns its norm.
        batches: this rank's micro-batches, in the order of the stream.
        recorder: of phases.
        backend: precision and device.
        ranks: this process's place.
        goal: when it is over.
        calendar: after which steps it evaluates and saves.
        signals: whether somebody asked to stop.
        on_step: takes the step's record; may print and write, never changes training.
        evaluate: measures the held-out loss; returns whether the state shall be saved.
        save: writes a checkpoint.
        after_optimizer_step: what the model wants done to itself after each step (an averaged teacher, say).
    """

    config: TrainConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer
    clipper: Clipper
    batches: Iterator[Batch]
    recorder: Recorder
    backend: Backend
    ranks: Ranks
    goal: Goal
    calendar: Calendar
    signals: SignalFlag
    on_step: Callable[[StepRecord], None]
    evaluate: Callable[[], bool]
    save: Callable[[], None]
    after_optimizer_step: Callable[[], None] | None = None
