"""Thinking without learning: more steps, several first guesses, refusing steps uphill, stopping early.

Nothing here needs a graph beyond one slope. Candidates of one position are rows that do not see one another, so that
the best of several costs their forward passes and shares the context.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from perjoule.core.errors import ConfigError
from perjoule.models.ebt_body import Context
from perjoule.models.thinking import Energy, Space, slope_of


@dataclass(frozen=True)
class Decoding:
    """How to think about a token that is to be written.

    Args:
        steps: at most; None is the most of training. Steps beyond the trained landscapes repeat the last one.
        candidates: first guesses, of which the one that ends with the least energy counts.
        accept_lower: take a step only where it lowers the energy of its landscape.
        stop_below: a position is done when a step in one landscape changes its energy by less; None is never.

    Raises:
        ConfigError: if a number is not positive.
    """

    steps: int | None = None
    candidates: int = 1
    accept_lower: bool = False
    stop_below: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "candidates", "stop_below"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"thinking {name} must be positive, not {value}")


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
        stages: the start and what followed, if it was asked for.
    """

    logits: Tensor
    energy: Tensor
    steps: Tensor
    stages: list[Stage] = field(default_factory=list)


@dataclass(frozen=True)
class Cache:
    """What a decoder remembers.

    Args:
        contexts: keys and values under each landscape that thinking will need.
        num_tokens: columns read so far, padding included.
        starts: (candidates, vocab) first guesses.
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
        landscape_of: landscape of a step.
        staged: keep every stage, at the price of one more forward pass and one state for each.
        scored: find the energy of the end, one more forward pass; otherwise that before the last step is given.

    Raises:
        TrainingDiverged: if a slope is not finite.
    """

    def judged(state: Tensor) -> Tensor:
        return energy(space.enter(state)[1], steps - 1)

    state, before = start, torch.zeros(())
    active = torch.ones(start.shape[:-1], dtype=torch.bool, device=start.device)
    taken = torch.zeros(active.shape, dtype=torch.int64, device=start.device)
    stages = [Stage(state, judged(state))] if staged else []
    for number in range(steps):
        base, candidate = space.enter(state)
        value, slope = slope_of(energy, candidate, number, steps, learned=False)
        if decoding.stop_below is not None and number > 0 and landscape_of(number) == landscape_of(number - 1):
            active = active & ((value - before).abs() >= decoding.stop_below)
            if not active.any():
                break
        proposal, accepted, before = space.leave(base, step_size * slope), active, value
        if decoding.accept_lower:
            accepted = accepted & (energy(space.enter(proposal)[1], number) < value)
        state = torch.where(accepted.unsqueeze(-1), proposal, state)
        taken = taken + accepted
        if staged:
            stages.append(Stage(state, judged(state)))
    if staged:
        before = stages[-1].energy
    elif scored:
        before = judged(state)
    return Verdict(state, before, taken, stages)


def best_row(verdict: Verdict) -> Float[Tensor, "batch vocab"]:
    """Return the logits of the row of least energy."""
    index: Int64[Tensor, " batch"] = verdict.energy.argmin(dim=1)
    return verdict.logits[torch.arange(len(index), device=index.device), index]


def better_of(one: Verdict, other: Verdict) -> Verdict:
    """Return for each position the verdict of less energy, without stages."""
    wins = other.energy < one.energy
    logits = torch.where(wins.unsqueeze(-1), other.logits, one.logits)
    return Verdict(logits, torch.minimum(one.energy, other.energy), torch.where(wins, other.steps, one.steps))
