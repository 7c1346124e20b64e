"""What a recipe would cost otherwise, and what fits into a budget.

All alternatives (batch size, precision, compiled, device, power limit) train on as many samples as the recipe does, so
that they are compared at equal training; whether a loss is reached as well with them, only a run answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perjoule.core.errors import ConfigError, DataError
from perjoule.estimate.contract import Estimate
from perjoule.estimate.devices import DEVICES
from perjoule.estimate.own.recipe import Machine, RecipeEstimate

if TYPE_CHECKING:
    from perjoule.train.config import TrainConfig

Estimating = Callable[[Sequence[str], Machine], RecipeEstimate]
"""Estimates the recipe with further overrides on a machine."""
_DIM_FACTORS = (0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
_LIMITS = (0.9, 0.8, 0.7, 0.6)


@dataclass(frozen=True)
class Alternative:
    """A change and what it would do.

    Args:
        change: overrides, or the device.
        seconds: of as much training as the recipe's.
        joules: of it.
        saved_j: share of the recipe's energy that it saves; negative if it costs more.
        saved_s: share of the recipe's time.
        within_error: whether the difference is smaller than what the interval of the recipe's own figure leaves open.
    """

    change: str
    seconds: float
    joules: float
    saved_j: float
    saved_s: float
    within_error: bool


def rank(config: TrainConfig, here: Machine, base: RecipeEstimate, estimate: Estimating) -> list[Alternative]:
    """Return the alternatives, the most saving one first.

    Args:
        config: the recipe.
        here: the machine of ``base``.
        base: the recipe's estimate.
        estimate: estimates it with changes.
    """
    found = []
    for change, overrides, machine in _changes(config, here):
        try:
            other = estimate(overrides, machine)
        except (ConfigError, DataError):  # a recipe that is not accepted like this is no alternative
            continue
        found.append(_compare(change, base, other))
    return sorted(found, key=lambda one: one.joules)


def _changes(config: TrainConfig, here: Machine) -> Iterator[tuple[str, tuple[str, ...], Machine]]:
    """Yield each change with its overrides and where it runs."""
    size = config.batch.size
    for other in (size // 4, size // 2, size * 2, size * 4):
        if other >= 1 and other % config.batch.accumulation == 0:
            yield f"batch.size={other}", (f"batch.size={other}",), here
    precision = here.precision(config.backend.precision)
    for name in ("float32", "bf16-autocast"):
        if name != precision:
            yield f"backend.precision={name}", (f"backend.precision={name}",), here
    if config.backend.compile is not True and here.device is None:
        yield "backend.compile=true", ("backend.compile=true",), here
    for device in DEVICES.values():
        if here.device is None or here.device.name != device.name:
            yield f"--device {device.name!r}", (), Machine(here.model, here.chosen, device)
    if here.device is not None:
        for share in _LIMITS:
            limited = Machine(here.model, here.chosen, here.device, share * here.device.tdp_w)
            yield f"power limit {share * here.device.tdp_w:.0f} W", (), limited


def _compare(change: str, base: RecipeEstimate, other: RecipeEstimate) -> Alternative:
    """Return the alternative, scaled to as many samples as the recipe trains on."""
    scale = base.samples / other.samples
    joules, seconds = other.joules.mean * scale, other.seconds.mean * scale
    return Alternative(
        change=change,
        seconds=seconds,
        joules=joules,
        saved_j=1 - joules / base.joules.mean,
        saved_s=1 - seconds / base.seconds.mean,
        within_error=_overlap(base.joules, other.joules, scale),
    )


def _overlap(one: Estimate, other: Estimate, scale: float) -> bool:
    return one.low <= other.mean * scale <= one.high


@dataclass(frozen=True)
class Fit:
    """What a budget of energy suffices for.

    Args:
        steps: of the recipe as it is; its interval is that of the energy of a step.
        tokens: label positions in them.
        override: the change to the largest model that trains on the recipe's samples within the budget; None if there
            is none, or the model has no ``dim``.
        parameters: its weights; 0 without one.
        joules: what it takes; 0 without one.
    """

    steps: Estimate
    tokens: float
    override: str | None
    parameters: float
    joules: float


def fit_budget(
    config: TrainConfig,
    budget_j: float,
    here: Machine,
    base: RecipeEstimate,
    tokens_per_step: int,
    estimate: Estimating,
) -> Fit:
    """Return the most steps, and the largest model, that an amount of energy suffices for.

    Args:
        config: the recipe.
        budget_j: joules.
        here: the machine.
        base: the recipe's estimate.
        tokens_per_step: label positions of one step.
        estimate: estimates it with changes.

    Raises:
        ConfigError: if the budget is not above 0.
    """
    if not budget_j > 0:
        raise ConfigError(f"--budget must be above 0 J, not {budget_j:g}")
    num = base.steps.mean
    steps = Estimate(
        mean=math.floor(budget_j * num / base.joules.mean),
        low=math.floor(budget_j * num / base.joules.high),
        high=math.floor(budget_j * num / base.joules.low),
        unit="steps",
        method=base.joules.method,
    )
    best: tuple[str, RecipeEstimate] | None = None
    dim = getattr(config.model, "dim", None)
    sizes = [round(dim * factor) for factor in _DIM_FACTORS] if isinstance(dim, int) else []
    for override in (f"model.dim={max(1, size)}" for size in sizes):
        try:
            other = estimate((override,), here)
        except ConfigError:  # sizes that do not divide
            continue
        if other.joules.mean * base.samples / other.samples <= budget_j:
            best = override, other
    if best is None:
        return Fit(steps, steps.mean * tokens_per_step, None, 0.0, 0.0)
    override, other = best
    joules = other.joules.mean * base.samples / other.samples
    return Fit(steps, steps.mean * tokens_per_step, override, other.parameters, joules)
