"""Gradients of thinking: against finite differences, of one candidate at a time, and where they must not flow."""

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.models.ebt_cases import VARIANTS, guesses, tiny_ebt, tokens
from torch import Tensor

from perjoule.core.errors import ConfigError, TrainingDiverged
from perjoule.models.ebt import EBT
from perjoule.models.ebt_simplex import Simplex
from perjoule.models.thinking import Schedule, ThinkingConfig, slope_of


@pytest.fixture(autouse=True, params=["large", "small"])
def tensors_are(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take both ways through layers/twice.py, as sizes that are used and those of these tests would."""
    if request.param == "large":
        monkeypatch.setattr("perjoule.models.layers.twice.SMALL", 0)


DETACH = ("all", "none", "last-1", "last-2")


def frozen_objective(model: EBT, batch: dict[str, Tensor], states: list[Tensor]) -> Tensor:
    """Return what a detach mode minimises, as a plain function of the weights: the states it cuts at are given.

    Steps are written out here once more, without the code under test: softmax, embed, energy, slope, read out.
    """
    thinking, total, losses = model.config.thinking, len(states), []
    window = {"all": total, "none": total}.get(thinking.detach) or min(int(thinking.detach[5:]), total)
    energy = model.energy(batch["input_ids"])
    weight, state = model.candidate_matrix(), states[total - window]
    for number in range(total - window, total):
        if thinking.detach == "all":
            state = states[number]
        base = state.softmax(-1)
        candidate = (base @ weight).requires_grad_()
        (slope,) = torch.autograd.grad(energy(candidate, number).sum(), candidate, create_graph=True)
        state = base - model.step_size * slope @ weight.T
        if thinking.loss_on == "all" or number == total - 1:
            labels = batch["labels"].flatten()
            losses.append(torch.nn.functional.cross_entropy(state.flatten(0, 1), labels, ignore_index=-100))
    return torch.stack(losses).mean()


def states_before_steps(model: EBT, batch: dict[str, Tensor], start: Tensor) -> list[Tensor]:
    path = model.think(model.energy(batch["input_ids"]), start, last_state=True)
    return [start, *(state.detach() for state in path.states[:-1])]


@pytest.mark.parametrize("loss_on", ["all", "last"])
@pytest.mark.parametrize("detach", DETACH)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_equals_finite_differences_of_what_the_detach_mode_minimises(
    variant: str, detach: str, loss_on: str
) -> None:
    thinking = {"steps": 3, "detach": detach, "loss_on": loss_on, "step_size": 0.5}
    model = tiny_ebt(thinking, variant=variant).double()
    batch, start = tokens(), guesses().double()
    states = states_before_steps(model, batch, start)
    loss = model(batch, start=start).loss
    assert loss.item() == pytest.approx(frozen_objective(model, batch, states).item(), rel=1e-12)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    directions = [torch.randn_like(parameter) for parameter in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)
    values = []
    for change in (1e-8, -2e-8):  # up, then as far down; thinking bends much within 1e-6
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=change)
        values.append(frozen_objective(model, batch, states).item())
    assert float(slope) == pytest.approx((values[0] - values[1]) / 2e-8, rel=1e-5)


def gradient(detach: str, loss_on: str, steps: int) -> Tensor:
    model = tiny_ebt({"steps": steps, "detach": detach, "loss_on": loss_on, "step_size": 0.5}).double()
    torch.manual_seed(5)
    batch, start = tokens(), guesses().double()
    model(batch, start=start).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_not_detaching_changes_gradients_and_the_last_n_of_as_many_steps_are_none() -> None:
    through, single = gradient("none", "last", 3), gradient("all", "last", 3)
    assert (through - single).norm() > 0.1 * single.norm()
    torch.testing.assert_close(gradient("last-1", "last", 3), single)
    torch.testing.assert_close(gradient("last-3", "last", 3), through)
    torch.testing.assert_close(gradient("last-9", "last", 3), through)


@pytest.mark.parametrize("variant", VARIANTS)
def test_slope_of_a_candidate_comes_from_its_own_energy_only(variant: str) -> None:
    model = tiny_ebt(variant=variant)
    energy = model.energy(tokens()["input_ids"])
    candidates = torch.randn(2, 12, 16).requires_grad_()
    energies = energy(candidates, 1)
    (alone,) = torch.autograd.grad(energies[0, 5], candidates, retain_graph=True)
    (together,) = torch.autograd.grad(energies.sum(), candidates)
    torch.testing.assert_close(alone[0, 5], together[0, 5])
    alone[0, 5] = 0.0
    assert torch.count_nonzero(alone) == 0


def test_landscapes_differ_and_the_last_is_repeated_when_there_are_more_steps() -> None:
    model = tiny_ebt({"steps": 2}, variant="time_embed")
    energy, candidates = model.energy(tokens()["input_ids"]), torch.randn(2, 12, 16)
    first, second, third = (energy(candidates, step) for step in (0, 1, 7))
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(second, third)
    single = tiny_ebt({"steps": 2})
    energy = single.energy(tokens()["input_ids"])
    torch.testing.assert_close(energy(candidates, 0), energy(candidates, 1))


def test_schedule_knows_which_steps_learn_and_where_the_state_is_cut() -> None:
    def table(steps: int, detach: str) -> list[tuple[bool, bool]]:
        schedule = Schedule.of(steps, detach)
        return [(schedule.with_graph(step), schedule.cuts(step)) for step in range(steps)]

    assert table(3, "all") == [(True, True)] * 3
    assert table(3, "none") == [(True, True), (True, False), (True, False)]
    assert table(3, "last-2") == [(False, True), (True, True), (True, False)]


@pytest.mark.parametrize("detach", ["lastt-1", "last-0", "last-", "last-x", "2"])
def test_unknown_detach_mode_is_refused_with_the_accepted_ones(detach: str) -> None:
    message = f"unknown detach mode '{detach}'; accepted: all, none, or last-n such as last-1"
    with pytest.raises(ConfigError, match=message):
        Schedule.of(3, detach)
    with pytest.raises(ValidationError, match=message):
        ThinkingConfig(detach=detach)


@pytest.mark.parametrize("training", [True, False])
def test_slope_that_is_not_finite_is_one_clear_line(training: bool) -> None:
    model = tiny_ebt().train(training)
    with torch.no_grad():
        model.body.head.weight[0, 0] = float("nan")
    with pytest.raises(
        TrainingDiverged, match=r"thinking step 1 of 2: the energy's gradient .* model.thinking.step_size"
    ):
        model(tokens())


def test_evaluation_keeps_no_graph_and_training_needs_no_input_that_learns() -> None:
    value, slope = slope_of(lambda c, _: (c**3).sum(-1), torch.ones(4, 2), 0, 1, learned=False)
    assert not value.requires_grad and not slope.requires_grad
    assert torch.equal(slope, torch.full((4, 2), 3.0))
    value, slope = slope_of(lambda c, _: (c**3).sum(-1), torch.ones(4, 2), 0, 1, learned=True)
    assert value.requires_grad and slope.requires_grad


def test_read_out_is_the_gradient_at_the_distribution() -> None:
    weight, state = torch.randn(7, 4), torch.randn(3, 7)
    space = Simplex(weight)
    base, candidate = space.enter(state, 0)
    at_distribution = base.clone().requires_grad_()
    (expected,) = torch.autograd.grad((at_distribution @ weight).pow(3).sum(), at_distribution)
    torch.testing.assert_close(space.leave(base, 0.5 * 3 * candidate**2), base - 0.5 * expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 3, "max_steps": 2}, "2 is below steps 3; accepted: null or at least 3"),
        ({"preset": "s3"}, "unknown preset 's3': accepted: s1, s2"),
    ],
)
def test_impossible_thinking_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ThinkingConfig(**settings)


def test_presets_are_the_two_systems() -> None:
    system1, system2 = ThinkingConfig(preset="s1"), ThinkingConfig(preset="s2")
    assert (system1.steps, system1.detach, system1.loss_on, system1.learn_step_size) == (2, "all", "all", True)
    assert (system2.steps, system2.most_steps, system2.landscapes_or_steps) == (2, 3, 1)
    assert (system2.detach, system2.loss_on, system2.learn_step_size) == ("last-1", "last", False)
    assert min(system2.langevin_noise, system2.replay_fraction, system2.random_step_size - 1) > 0
    assert ThinkingConfig(preset="s2", langevin_noise=0.0).langevin_noise == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_slope_of_a_step_is_near_float64_and_what_later_steps_amplify_is_the_function_itself(
    variant: str,
) -> None:
    narrow = tiny_ebt({"steps": 2}, variant=variant)
    wide, ids, start = copy.deepcopy(narrow).double(), tokens()["input_ids"], guesses()
    candidate = start.softmax(-1) @ narrow.candidate_matrix().detach()

    def slope(model: EBT, at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(model.energy(ids)(at, 0).sum(), at)[0].double()

    exact = slope(wide, candidate.double())
    size = exact.norm(dim=-1)
    assert ((slope(narrow, candidate) - exact).norm(dim=-1) / size).max() < 1e-4
    moved = candidate.double() * (1 + 1e-7 * torch.randn(candidate.shape, dtype=torch.float64))
    gain = (slope(wide, moved) - exact).norm(dim=-1) / (moved - candidate.double()).norm(dim=-1)
    assert gain.max() > 10  # in float64: a state that is off by float32's rounding is off by more after one more step
