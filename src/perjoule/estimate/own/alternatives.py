"""What a recipe would cost otherwise.

All alternatives (batch size, precision, compiled, device, power limit) train on as many samples as the recipe does, so
that they are compared at equal training; whether a loss is reached as well with them, only a run answers.
"""

from __future__ import annotations

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
