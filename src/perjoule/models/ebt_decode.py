"""Thinking without learning: more or other steps, several first guesses, refusing steps uphill, stopping early.

Nothing here needs a graph beyond one slope. Candidates of one position are rows that do not see one another, so that
the best of several costs their forward passes and shares the context.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from perjoule.core.errors import ConfigError
from perjoule.models.ebt_body import Context
from perjoule.models.thinking import Energy, Space, slope_of

NoiseOn = Literal["all", "first"]
Landscape = Literal["own", "last"]
Choice = Literal["least", "most", "fall"]

LAST = 1 << 30
"""A step beyond all landscapes, whose landscape is the last."""


@dataclass(frozen=True)
class Decoding:
    """How to think about a token that is to be written.

    Args:
        steps: at most; None is the most of training. Steps beyond the trained landscapes repeat the last one.
        candidates: first guesses, of which the one that ``choose`` prefers counts.
        accept_lower: take a step only where it lowers the energy of its landscape.
        stop_below: a position is done when a step in one landscape changes its energy by less; None is never.
        step_size: α; None is the learned one.
        step_size_scale: multiplies it.
        noise: standard deviation of the noise on the state before a step (Langevin dynamics), from torch's default
            generator.
        noise_on: the steps that have it.
        landscape: of a step: its own, or the last that was trained for all.
        choose: the candidate of the least energy at its end, of the largest, or of the largest fall from its start,
            all in the last step's landscape.

    Raises:
        ConfigError: if a number is not positive, or there is no such choice.
    """

    steps: int | None = None
    candidates: int = 1
    accept_lower: bool = False
    stop_below: float | None = None
    step_size: float | None = None
    step_size_scale: float = 1.0
    noise: float = 0.0
    noise_on: NoiseOn = "all"
    landscape: Landscape = "own"
    choose: Choice = "least"

    def __post_init__(self) -> None:
        for name in ("steps", "candidates", "stop_below", "step_size", "step_size_scale"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"thinking {name} must be positive, not {value}")
        if not self.noise >= 0:
            raise ConfigError(f"thinking noise must be at least 0, not {self.noise}")
        for name, accepted in (("noise_on", NoiseOn), ("landscape", Landscape), ("choose", Choice)):
            if getattr(self, name) not in get_args(accepted):
                raise ConfigError(
                    f"thinking {name} must be one of {', '.join(get_args(accepted))}, not {getattr(self, name)!r}"
                )


@dataclass(frozen=True)
class Stage:
    """Where thinking stood after a step.

    Args:
        logits: (batch, rows, vocab).
        energy: (batch, rows) in the last step's landscape, so that stages can be compared.
    """

    logits: Tensor
    energy: Tensor


@dataclass(frozen=True)
class Verdict:
    """Where thinking ended.

    Args:
        logits: (batch, rows, vocab).
        energy: (batch, rows) of those logits in the last step's landscape.
        steps: (batch, rows) steps that were taken.
        score: (batch, rows) by which candidates are chosen: the least is the best.
        stages: the start and what followed, if it was asked for.
    """

    logits: Tensor
    energy: Tensor
    steps: Tensor
    score: Tensor
    stages: list[Stage] = field(default_factory=list)


@dataclass(frozen=True)
class Cache:
    """What a decoder remembers.

    Args:
        contexts: keys and values under each landscape that thinking will need.
        num_tokens: columns read so far, padding included.
        starts: (1, candidates, vocab) first guesses; a ``recent`` one is made for each token.
        decoding: how to think.
    """

    contexts: dict[int, Context]
    num_tokens: int
    starts: Tensor
    decoding: Decoding

    def select(self, rows: Int64[Tensor, " batch"]) -> Cache:
        """Return the cache of these rows, in this order."""
        contexts = {landscape: context.select(rows) for landscape, context in self.contexts.items()}
        return replace(self, contexts=contexts)


@torch.no_grad()
def deliberate(
    energy: Energy,
    space: Space,
    start: Float[Tensor, "batch rows vocab"],
    step_size: Float[Tensor, ""],
    steps: int,
    decoding: Decoding,
    landscape_of: Callable[[int], int],
    staged: bool = False,
    scored: bool = True,
) -> Verdict:
    """Think about every row by itself.

    Args:
        energy: of embedded candidates at a step.
        space: what is moved.
        start: first guesses.
        step_size: positive.
        steps: at most.
        decoding: accepting and stopping.
        landscape_of: landscape of a step; that of a large one is the last.
        staged: keep every stage, at the price of one more forward pass and one state for each.
        scored: find the energy of the end, one more forward pass; otherwise that before the last step is given.

    Raises:
        TrainingDiverged: if a slope is not finite.
    """

    def at(number: int) -> int:
        return LAST if decoding.landscape == "last" else number

    def judged(state: Tensor, number: int) -> Tensor:
        return energy(space.enter(state, number)[1], at(steps - 1))

    state, before = start, torch.zeros(())
    active = torch.ones(start.shape[:-1], dtype=torch.bool, device=start.device)
    taken = torch.zeros(active.shape, dtype=torch.int64, device=start.device)
    stages = [Stage(state, judged(state, 0))] if staged else []
    first = judged(state, 0) if decoding.choose == "fall" and scored else None
    for number in range(steps):
        base, candidate = space.enter(_noisy(state, number, decoding), number)
        value, slope = slope_of(lambda x, k: energy(x, at(k)), candidate, number, steps, learned=False)
        if decoding.stop_below is not None and number > 0 and landscape_of(at(number)) == landscape_of(at(number - 1)):
            active = active & ((value - before).abs() >= decoding.stop_below)
            if not active.any():
                break
        proposal, accepted, before = space.leave(base, step_size * slope), active, value
        if decoding.accept_lower:
            accepted = accepted & (energy(space.enter(proposal, number + 1)[1], at(number)) < value)
        state = torch.where(accepted.unsqueeze(-1), proposal, state)
        taken = taken + accepted
        if staged:
            stages.append(Stage(state, judged(state, number + 1)))
    if staged:
        before = stages[-1].energy
    elif scored:
        before = judged(state, steps)
    score = {"least": before, "most": -before, "fall": before if first is None else before - first}[decoding.choose]
    return Verdict(state, before, taken, score, stages)


def _noisy(state: Tensor, number: int, decoding: Decoding) -> Tensor:
    """Return the state with the noise of a step."""
    if decoding.noise == 0 or (number > 0 and decoding.noise_on == "first"):
        return state
    return state + decoding.noise * torch.randn_like(state)


def best_row(verdict: Verdict) -> Float[Tensor, "batch vocab"]:
    """Return the logits of the row of the best score."""
    index: Int64[Tensor, " batch"] = verdict.score.argmin(dim=1)
    return verdict.logits[torch.arange(len(index), device=index.device), index]


def better_of(one: Verdict, other: Verdict) -> Verdict:
    """Return for each position the verdict of the better score, without stages."""
    wins = other.score < one.score
    pairs = ((other.energy, one.energy), (other.steps, one.steps), (other.score, one.score))
    energy, steps, score = (torch.where(wins, yes, no) for yes, no in pairs)
    return Verdict(torch.where(wins.unsqueeze(-1), other.logits, one.logits), energy, steps, score)
