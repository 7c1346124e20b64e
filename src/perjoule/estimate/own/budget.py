"""What a budget of energy, time or carbon suffices for: models of several sizes, and the tokens each can be trained on.

Width and depth grow together, as the shapes of published families do. A budget buys either a larger model or more
tokens; which of the two lowers the loss more is not known here. Two rows are marked: the largest model that still sees
as many samples as the recipe does, and the largest that sees 20 tokens for each of its weights, where the loss of
language models was lowest for their compute (Hoffmann et al., Training Compute-Optimal Large Language Models, 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perjoule.core.errors import ConfigError, DataError
from perjoule.core.units import duration, parse_energy_j, parse_mass_g, si
from perjoule.estimate.contract import Estimate
from perjoule.estimate.own.alternatives import Estimating
from perjoule.estimate.own.recipe import Machine, RecipeEstimate

if TYPE_CHECKING:
    from perjoule.train.config import TrainConfig

_FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
_TIME_S = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_ACCEPTED = "an energy such as 100kJ or 2 kWh, a time such as 30min or 2h, or a mass of CO2e such as 10g"
TOKENS_PER_PARAMETER = 20.0


@dataclass(frozen=True)
class Budget:
    """An amount that may be spent.

    Args:
        amount: in ``unit``.
        unit: ``J``, ``s`` or ``gCO2e``.
    """

    amount: float
    unit: str

    def __str__(self) -> str:
        return duration(self.amount) if self.unit == "s" else si(self.amount, self.unit)

    def cost(self, of: RecipeEstimate) -> Estimate:
        """Return what a recipe spends of it.

        Raises:
            ConfigError: if its carbon is not known.
        """
        if self.unit == "gCO2e" and of.gco2e is None:
            raise ConfigError("--budget in grams needs carbon.location, such as DEU, or carbon.intensity_g_per_kwh")
        cost = {"J": of.joules, "s": of.seconds, "gCO2e": of.gco2e}[self.unit]
        assert cost is not None
        return cost


@dataclass(frozen=True)
class Fit:
    """A model and what it can be trained on within the budget.

    Args:
        overrides: that make the recipe's model this one; none for itself.
        shape: width and depth in words.
        parameters: weights that are trained.
        steps: that the budget suffices for, with the interval of what a step costs.
        tokens: label positions in them.
        sees_all: whether it sees at least as many samples as the recipe trains on.
    """

    overrides: tuple[str, ...]
    shape: str
    parameters: float
    steps: Estimate
    tokens: Estimate
    sees_all: bool

    @property
    def tokens_per_parameter(self) -> float:
        """Return the tokens for each weight."""
        return self.tokens.mean / self.parameters


def parse_budget(text: str) -> Budget:
    """Return the amount of ``100kJ``, ``2h`` or ``10g``.

    Raises:
        ConfigError: if the text is none of these, or not above 0.
    """
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = text[len(number) :]
    found: Budget | None = None
    try:
        if unit in _TIME_S:
            found = Budget(float(number) * _TIME_S[unit], "s")
        else:
            parse: Callable[[object], object] = parse_mass_g if unit in ("mg", "g", "kg", "t") else parse_energy_j
            value = parse(text) if unit else None
            found = None if value is None else Budget(float(str(value)), "gCO2e" if parse is parse_mass_g else "J")
    except ValueError:
        found = None
    if found is None or not (found.amount > 0 and math.isfinite(found.amount)):
        raise ConfigError(f"--budget must be {_ACCEPTED}, and above 0, not {text!r}")
    return found


def fit_budget(
    config: TrainConfig,
    budget: Budget,
    here: Machine,
    base: RecipeEstimate,
    tokens_per_step: int,
    estimate: Estimating,
) -> list[Fit]:
    """Return models of several sizes with what they can be trained on, the smallest first.

    Args:
        config: the recipe.
        budget: what may be spent.
        here: the machine.
        base: the recipe's estimate.
        tokens_per_step: label positions of one step.
        estimate: estimates it with changes.

    Raises:
        ConfigError: if the budget is one of carbon and that is not known.
    """
    dim, layers = (getattr(config.model, name, None) for name in ("dim", "num_layers"))
    found: dict[str, Fit] = {}
    for factor in _FACTORS:
        overrides, shape = _shape(dim, layers, factor)
        if not overrides and factor != 1.0:
            continue
        try:
            other = base if factor == 1.0 else estimate(overrides, here)
        except (ConfigError, DataError):  # sizes that do not divide
            continue
        one = _fit(overrides if factor != 1.0 else (), shape, budget, base, other, tokens_per_step)
        found.setdefault(shape, one)
    return sorted(found.values(), key=lambda one: one.parameters)


def _shape(dim: object, layers: object, factor: float) -> tuple[tuple[str, ...], str]:
    """Return the overrides of a model whose width and depth are scaled, and its shape in words."""
    sizes = {name: value for name, value in (("dim", dim), ("num_layers", layers)) if isinstance(value, int)}
    scaled = {name: max(1, round(value * factor)) for name, value in sizes.items()}
    overrides = tuple(f"model.{name}={value}" for name, value in scaled.items())
    return overrides, " x ".join(str(value) for value in scaled.values()) or "as it is"


def _fit(
    overrides: tuple[str, ...],
    shape: str,
    budget: Budget,
    base: RecipeEstimate,
    other: RecipeEstimate,
    tokens_per_step: int,
) -> Fit:
    cost, num = budget.cost(other), other.steps.mean
    low, mean, high = (math.floor(budget.amount * num / one) for one in (cost.high, cost.mean, cost.low))
    return Fit(
        overrides=overrides,
        shape=shape,
        parameters=other.parameters,
        steps=Estimate(mean, low, high, "steps", cost.method),
        tokens=Estimate(mean * tokens_per_step, low * tokens_per_step, high * tokens_per_step, "tokens", cost.method),
        sees_all=mean * other.samples / num >= base.samples,
    )


def marks(found: Sequence[Fit]) -> list[str]:
    """Return what is to be said of each model: of the largest that sees all samples, and of the balanced one."""
    words: list[list[str]] = [[] for _ in found]
    for says, fits in (
        ("largest that sees the recipe's samples", [one.sees_all for one in found]),
        ("largest with 20 tokens a weight", [one.tokens_per_parameter >= TOKENS_PER_PARAMETER for one in found]),
    ):
        if any(fits):
            words[max(number for number, fit in enumerate(fits) if fit)].append(says)
    return [", ".join(one) for one in words]
