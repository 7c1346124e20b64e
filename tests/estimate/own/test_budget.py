from collections.abc import Sequence

import pytest
from tests.estimate.own.test_alternatives import BASE, estimate
from tests.estimate.own.test_recipe import CALIBRATED, recipe

from perjoule.core.errors import ConfigError
from perjoule.estimate.own.budget import Budget, fit_budget, marks, parse_budget
from perjoule.estimate.own.recipe import Machine, RecipeEstimate

TOKENS = 2048


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("100kJ", 1e5, "J"),
        ("2 kWh", 7.2e6, "J"),
        ("90s", 90.0, "s"),
        ("30 min", 1800.0, "s"),
        ("2h", 7200.0, "s"),
        ("1.5d", 129600.0, "s"),
        ("10g", 10.0, "gCO2e"),
        ("0.2 kg", 200.0, "gCO2e"),
    ],
)
def test_a_budget_is_an_energy_a_time_or_a_mass(text: str, amount: float, unit: str) -> None:
    assert parse_budget(text) == Budget(pytest.approx(amount), unit)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["5 cows", "h", "100", "", "-5h", "0kJ", "1e999 h", "nan h"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--budget must be an energy such as 100kJ or 2 kWh, a time such as .*not '"):
        parse_budget(text)


def test_the_recipe_as_it_is_gets_as_many_steps_as_it_costs() -> None:
    base = estimate((), CALIBRATED)
    for budget in (Budget(10 * base.joules.mean, "J"), Budget(10 * base.seconds.mean, "s")):
        found = fit_budget(recipe(*BASE), budget, CALIBRATED, base, TOKENS, estimate)
        own = next(one for one in found if not one.overrides)
        assert own.shape == "64 x 2"
        assert own.steps.mean == pytest.approx(3000, abs=1)
        assert own.steps.low < own.steps.mean < own.steps.high
        assert own.tokens.mean == own.steps.mean * TOKENS


def test_a_larger_model_gets_fewer_tokens() -> None:
    base = estimate((), CALIBRATED)
    found = fit_budget(recipe(*BASE), Budget(10 * base.joules.mean, "J"), CALIBRATED, base, TOKENS, estimate)
    assert [one.parameters for one in found] == sorted(one.parameters for one in found)
    tokens = [one.tokens.mean for one in found]
    assert tokens == sorted(tokens, reverse=True)
    assert {"model.dim=128", "model.num_layers=4"} in [set(one.overrides) for one in found]


def test_the_largest_that_sees_all_samples_and_the_balanced_one_are_marked() -> None:
    base = estimate((), CALIBRATED)
    found = fit_budget(recipe(*BASE), Budget(3 * base.joules.mean, "J"), CALIBRATED, base, TOKENS, estimate)
    says = marks(found)
    (place,) = (number for number, one in enumerate(says) if "samples" in one)
    assert found[place].sees_all
    assert not any(one.sees_all for one in found[place + 1 :])
    assert all(one.tokens_per_parameter < 20 for one, word in zip(found, says, strict=True) if not word)


def test_a_budget_that_buys_nothing_marks_nothing() -> None:
    base = estimate((), CALIBRATED)
    found = fit_budget(recipe(*BASE), Budget(1e-9, "J"), CALIBRATED, base, TOKENS, estimate)
    assert all(one.steps.mean == 0 for one in found)
    assert not any(marks(found))


def test_sizes_that_the_model_refuses_are_left_out() -> None:
    def picky(overrides: Sequence[str], machine: Machine) -> RecipeEstimate:
        if "model.dim=32" in overrides:
            raise ConfigError("no")
        return estimate(overrides, machine)

    base = estimate((), CALIBRATED)
    found = fit_budget(recipe(*BASE), Budget(1e4, "J"), CALIBRATED, base, TOKENS, picky)
    assert "32 x 1" not in [one.shape for one in found]


def test_grams_need_a_place() -> None:
    base = estimate((), CALIBRATED)
    with pytest.raises(ConfigError, match=r"--budget in grams needs carbon.location, such as DEU, or carbon.intensity"):
        fit_budget(recipe(*BASE), Budget(10, "gCO2e"), CALIBRATED, base, TOKENS, estimate)
