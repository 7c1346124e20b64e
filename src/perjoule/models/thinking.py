"""Thinking: descend an energy from a first guess, and learn through the descent.

    repeat for step k:    state = state + noise
                          base, candidate = space.enter(state, number)
                          δ = d ΣE_k(candidate) / d candidate
                          state = space.leave(base, α·δ)

An energy is any function of a candidate, one number for each; candidates do not see one another, so one backward pass
gives every candidate its own slope. A *space* says what the descent moves: the distribution of the next token, or an
image. The task's loss is put on the states, so that training differentiates the slope once more.

How far gradients reach back is the *detach* mode: with ``all`` each step is learned by itself, its start a constant;
with ``none`` all steps are one computation; with ``last-n`` the steps before the last n are taken without a graph and
the last n are one computation. (In the released code "no detach" changes nothing where steps are truncated, because a
step that is taken without a graph has no gradient to hand on. Here it cannot be asked for.)

Gladstone et al., Energy-Based Transformers are Scalable Learners and Thinkers, 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
)
from torch import Tensor

from perjoule.config import Config
from perjoule.core.errors import ConfigError, TrainingDiverged

Energy = Callable[[Tensor, int], Tensor]
"""Returns the energies of embedded candidates at a thinking step."""


@runtime_checkable
class Space(Protocol):
    """What a descent moves."""

    def enter(self, state: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the point that a step starts from, and the candidate as the energy sees it."""

    def leave(self, base: Tensor, move: Tensor) -> Tensor:
        """Return the state after the candidate is moved by ``-move``."""


@dataclass(frozen=True)
class Schedule:
    """How many steps, and which of them are learned from.

    Args:
        steps: at least 1.
        window: steps at the end that are taken with a graph.
        joint: whether gradients flow from one step of the window to the one before.
    """

    steps: int
    window: int
    joint: bool

    @classmethod
    def of(cls, steps: int, detach: str) -> Schedule:
        """Return the schedule of a detach mode, ``all | none | last-n``.

        Raises:
            ConfigError: if there is no such mode.
        """
        if detach in {"all", "none"}:
            return cls(steps, steps, joint=detach == "none")
        last = detach.removeprefix("last-")
        if last == detach or not last.isdecimal() or int(last) < 1:
            raise ConfigError(f"unknown detach mode {detach!r}; accepted: all, none, or last-n such as last-1")
        return cls(steps, min(int(last), steps), joint=True)

    def with_graph(self, step: int) -> bool:
        """Return whether a step is learned from."""
        return step >= self.steps - self.window

    def cuts(self, step: int) -> bool:
        """Return whether the state before a step is a constant."""
        return not self.joint or step <= self.steps - self.window


def _known(detach: str) -> str:
    try:
        Schedule.of(1, detach)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return detach


Detach = Annotated[str, AfterValidator(_known)]
"""A detach mode, checked."""


class ThinkingConfig(Config):
    """How an energy is descended while training: steps, noise, and what is learned from."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # Gladstone et al., 2025, and their job scripts. System 1 learns: two steps, each by itself, learned step size.
        "s1": {},
        # System 2 thinks: a random number of steps in one landscape from remembered states, with noise; only where it
        # ends is judged. The step size is fixed and random about its mean. Its scale is ours, found by trial (dim 64,
        # 300 to 400 steps, held-out loss after three steps of thinking, by seed): at 1 and at 10, characters 2.037 and
        # 1.983, 2.061 and 1.965; brackets 0.058 and 0.030, 0.062 and 0.066, 0.053 and 0.039. At the first seed 3 lies
        # between in both, and so does 30 for brackets.
        # Why is not known: what a step writes may have to stand out from the noise the next one adds, but System 1,
        # which has none, learned brackets better, too (0.054 and 0.036, one seed).
        "s2": {
            "steps": 2,
            "max_steps": 3,
            "landscapes": 1,
            "detach": "last-1",
            "loss_on": "last",
            "learn_step_size": False,
            "step_size_scale": 10.0,
            "random_step_size": 2.0,
            "langevin_noise": 1.0,
            "replay_fraction": 0.5,
        },
    }

    preset: str | None = None
    """``s1`` or ``s2``; keys that are given beside it win."""
    steps: PositiveInt = 2
    """Steps of each batch; the fewest if ``max_steps`` is given."""
    max_steps: PositiveInt | None = Field(None, validate_default=True)
    """The most steps: each batch draws a number, and evaluation takes the most; null is ``steps``."""
    landscapes: PositiveInt | None = None
    """Energies for the first steps, the last of them for all further steps; null is one for each of ``steps``. The
    variant ``default`` has a single one whatever stands here."""
    detach: Detach = "all"
    """How far gradients reach back: ``all`` (each step by itself), ``none`` (through all) or ``last-n``."""
    loss_on: Literal["all", "last"] = "all"
    """States that are judged: those of all steps that have a graph, or the last."""
    step_size: PositiveFloat | None = None
    """α at the beginning; null is scaled to the vocabulary, the width and the initial weights."""
    step_size_scale: PositiveFloat = 1.0
    """Multiplies that scaled α; without effect where ``step_size`` is given."""
    learn_step_size: bool = True
    """Learn α, with a learning rate of its own."""
    step_size_lr: PositiveFloat = 3.0
    """Learning rate of α in units of the initial α, as a multiple of the others'."""
    random_step_size: Annotated[float, Field(ge=1)] = 1.0
    """Draw α for each position between α divided and multiplied by this."""
    langevin_noise: NonNegativeFloat = 0.0
    """Standard deviation of the noise on the state before every step of training."""
    learn_noise: bool = False
    """Learn that standard deviation, as fast as α."""
    start: Literal["noise", "zeros", "learned", "recent"] = "noise"
    """First guess of every position's logits: drawn, 0, one learned vector for all, or the token before it."""
    start_std: PositiveFloat = 1.0
    """Standard deviation of drawn guesses, and of a learned one before it learns."""
    softmax_on: Literal["all", "first", "none"] = "all"
    """Steps that start from the distribution of the state; the others start from the logits themselves."""
    sharpen: PositiveFloat = 1.0
    """Divides the logits after every step: below 1 their distribution becomes sharper."""
    max_change: PositiveFloat | None = None
    """The most that a step changes a logit; null is unbounded."""
    max_logit: PositiveFloat | None = None
    """The largest absolute logit after a step, before ``sharpen``; null is unbounded."""
    replay_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Remembered samples added to a batch, as a share of its size; 0 remembers nothing."""
    replay_capacity: PositiveInt = 64
    """Samples that are remembered, 2·seq_len·vocab_size bytes each."""
    replay_max_age: PositiveInt = 8
    """Batches that a sample is learned from before it is forgotten."""
    contrastive: NonNegativeFloat = 0.0
    """Weight of the loss that lowers the true token's energy below the candidate's."""
    soft_targets: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the first step's target that is spread over the vocabulary."""
    soft_targets_on: Literal["falling", "first"] = "falling"
    """Steps with soft targets: less and less of it down to none at the last step, or the first step alone."""

    @field_validator("max_steps")
    @classmethod
    def _check_max_steps(cls, max_steps: int | None, info: ValidationInfo) -> int | None:
        steps = info.data.get("steps")
        if max_steps is not None and steps is not None and max_steps < steps:
            raise ValueError(f"{max_steps} is below steps {steps}; accepted: null or at least {steps}")
        return max_steps

    @field_validator("start")
    @classmethod
    def _check_start(cls, start: str, info: ValidationInfo) -> str:
        steps, detach = info.data.get("max_steps") or info.data.get("steps"), info.data.get("detach")
        if start == "learned" and steps and detach and not Schedule.of(steps, detach).with_graph(0):
            raise ValueError(
                f"learned needs a first step that is learned from, and detach {detach} of {steps} has none"
            )
        return start

    @field_validator("learn_noise")
    @classmethod
    def _check_noise(cls, learn_noise: bool, info: ValidationInfo) -> bool:
        if learn_noise and info.data.get("langevin_noise") == 0:
            raise ValueError("there is no noise to learn; accepted: false, or a langevin_noise above 0")
        return learn_noise

    @property
    def shapes_logits(self) -> bool:
        """Return whether a state is more than what is read out, so that its loss cannot be taken with the read-out."""
        return self.sharpen != 1 or self.max_change is not None or self.max_logit is not None

    def smoothing(self, step: int, last: int) -> float:
        """Return the share of a step's target that is spread over the vocabulary.

        Args:
            step: from 0.
            last: the number of the last step.
        """
        if self.soft_targets_on == "first":
            return self.soft_targets if step == 0 else 0.0
        return self.soft_targets * (last - step) / max(last, 1)

    @property
    def most_steps(self) -> int:
        """Return the most steps of a batch, which are also those of evaluation."""
        return self.max_steps or self.steps

    @property
    def landscapes_or_steps(self) -> int:
        """Return the number of landscapes of a variant that has several."""
        return self.landscapes or self.steps


@dataclass(frozen=True)
class Step:
    """One step of thinking.

    Args:
        base: what it started from.
        energy: of the candidate before the step.
        move: the slope times the step size.
        learned: whether its state is to be learned from.
    """

    base: Tensor
    energy: Tensor
    move: Tensor
    learned: bool


@dataclass(frozen=True)
class Path:
    """What thinking went through.

    Args:
        steps: all of them.
        states: the state after each step; that of the last is left out unless asked for.
    """

    steps: list[Step]
    states: list[Tensor]


def think(
    energy: Energy,
    space: Space,
    start: Tensor,
    schedule: Schedule,
    step_size: Tensor,
    noise_std: Tensor | float = 0.0,
    last_state: bool = True,
) -> Path:
    """Think, with a graph for learning where gradients are enabled and the schedule says so.

    Args:
        energy: of embedded candidates at a step.
        space: what is moved.
        start: the first guess; learned if it wants a gradient.
        schedule: steps and how far gradients reach back.
        step_size: positive, broadcast against the slope.
        noise_std: of the noise added to the state before every step (Langevin dynamics).
        last_state: form the last state; without it its loss may be taken in chunks from ``steps[-1]``. It is formed all
            the same if gradients reach the point that it starts from, for which chunks have no room.

    Raises:
        TrainingDiverged: if a slope is not finite.
    """
    learning = torch.is_grad_enabled()
    state, steps, states = start, [], []
    for number in range(schedule.steps):
        learned = learning and schedule.with_graph(number)
        if not learned or (schedule.cuts(number) and number > 0):
            state = state.detach()
        if isinstance(noise_std, Tensor) or noise_std > 0:
            state = state + noise_std * torch.randn_like(state)
        with torch.set_grad_enabled(learned):
            base, candidate = space.enter(state, number)
            value, slope = slope_of(energy, candidate, number, schedule.steps, learned)
            step = Step(base, value, step_size * slope, learned)
            if last_state or number < schedule.steps - 1 or base.requires_grad:
                state = space.leave(base, step.move)
                states.append(state)
        steps.append(step)
    return Path(steps, states)


def slope_of(energy: Energy, candidate: Tensor, number: int, total: int, learned: bool) -> tuple[Tensor, Tensor]:
    """Return the energies of candidates and the slope of each.

    Args:
        energy: of embedded candidates at a step.
        candidate: embedded.
        number: the step, from 0.
        total: how many there are, for the message.
        learned: whether both shall be differentiable.

    Raises:
        TrainingDiverged: if a slope is not finite.
    """
    with torch.enable_grad():
        if not learned or candidate.is_leaf:
            candidate = candidate.detach()
        if not candidate.requires_grad:
            # A view, because hooks on modules, such as those that count FLOPs, cannot be asked for a leaf's gradient.
            candidate = candidate.requires_grad_().view_as(candidate)
        value = energy(candidate, number)
        (slope,) = torch.autograd.grad(value.sum(), candidate, create_graph=learned)
    if not slope.is_meta and not bool(slope.isfinite().all()):
        raise TrainingDiverged(
            f"thinking step {number + 1} of {total}: the energy's gradient at the candidate is not finite; "
            "lower model.thinking.step_size or optimizer.lr"
        )
    return (value, slope) if learned else (value.detach(), slope)
