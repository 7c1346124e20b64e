"""What a recipe would cost otherwise.

All alternatives (batch size, precision, compiled, device, power limit) train on as many samples as the recipe does, so
that they are compared at equal training; whether a loss is reached as well with them, only a run answers.

What can be changed here comes first. Accelerators by their data sheets come after it: who asks may not have one, and
their joules are those of the accelerator alone, so that against a processor's no saving is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perjoule.core.errors import ConfigError, DataError
from perjoule.estimate.contract import Estimate
from perjoule.estimate.devices import DEVICES, Device
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
        saved_s: share of the recipe's time that it saves; negative if it takes longer.
        saved_j: share of the recipe's energy; None if the two energies are not of the same kind of device.
        within_error: whether the difference is smaller than what the interval of the recipe's own figure leaves open;
            None where energies cannot be compared.
        elsewhere: whether it is another device.
    """

    change: str
    seconds: float
    joules: float
    saved_s: float
    saved_j: float | None
    within_error: bool | None
    elsewhere: bool


def rank(
    config: TrainConfig,
    here: Machine,
    base: RecipeEstimate,
    estimate: Estimating,
    devices: Mapping[str, Device] | None = None,
) -> list[Alternative]:
    """Return the alternatives: those on this device, then other devices, of each the one with the least energy first.

    Args:
        config: the recipe.
        here: the machine of ``base``.
        base: the recipe's estimate.
        estimate: estimates it with changes.
        devices: data sheets beyond those of :data:`perjoule.estimate.devices.DEVICES`, by name.
    """
    found = []
    for change, overrides, machine in _changes(config, here, {**DEVICES, **(devices or {})}):
        try:
            other = estimate(overrides, machine)
        except (ConfigError, DataError):  # a recipe that is not accepted like this is no alternative
            continue
        elsewhere = machine.device is not None and (here.device is None or here.device.name != machine.device.name)
        found.append(_compare(change, base, other, elsewhere, comparable=not elsewhere or here.device is not None))
    return sorted(found, key=lambda one: (one.elsewhere, one.joules))


def _changes(
    config: TrainConfig, here: Machine, devices: Mapping[str, Device]
) -> Iterator[tuple[str, tuple[str, ...], Machine]]:
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
    for device in devices.values():
        if here.device is None or here.device.name != device.name:
            yield f"--device {device.name!r}", (), Machine(here.model, here.chosen, device)
    if here.device is not None:
        for share in _LIMITS:
            limited = Machine(here.model, here.chosen, here.device, share * here.device.tdp_w)
            yield f"power limit {share * here.device.tdp_w:.0f} W", (), limited


def _compare(
    change: str, base: RecipeEstimate, other: RecipeEstimate, elsewhere: bool, *, comparable: bool
) -> Alternative:
    """Return the alternative, scaled to as many samples as the recipe trains on."""
    scale = base.samples / other.samples
    joules, seconds = other.joules.mean * scale, other.seconds.mean * scale
    return Alternative(
        change=change,
        seconds=seconds,
        joules=joules,
        saved_s=1 - seconds / base.seconds.mean,
        saved_j=1 - joules / base.joules.mean if comparable else None,
        within_error=_overlap(base.joules, other.joules, scale) if comparable else None,
        elsewhere=elsewhere,
    )


def _overlap(one: Estimate, other: Estimate, scale: float) -> bool:
    return one.low <= other.mean * scale <= one.high
