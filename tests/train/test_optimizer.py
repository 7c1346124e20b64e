"""AdamW's groups, and clipping."""

from typing import Any

import pytest
import torch
from torch import nn

from perjoule.train.optimizer import Clipper, OptimizerConfig


class Small(nn.Module):
    """Two matrices, of which one is tied, a norm, and something frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.norm = nn.LayerNorm(3)
        self.output = nn.Linear(3, 5)
        self.output.weight = self.embedding.weight
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


class Grouped(Small):
    """A model with groups of its own."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [self.embedding.weight], "weight_decay": 0.5, "lr": 7.0},
            {"params": [], "weight_decay": 1.0},
            {"params": [*self.norm.parameters(), self.output.bias], "weight_decay": 0.0},
        ]


def _gradients(scale: float, *sizes: int) -> list[nn.Parameter]:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * scale
    return parameters


def _grads(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]


def test_weight_decay_is_on_matrices_only_and_tied_weights_are_there_once() -> None:
    model = Small()
    decayed, plain = OptimizerConfig(weight_decay=0.1).build(model, fused=False).param_groups
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert [id(parameter) for parameter in decayed["params"]] == [id(model.embedding.weight)]
    others = [model.norm.weight, model.norm.bias, model.output.bias]
    assert [id(parameter) for parameter in plain["params"]] == [id(parameter) for parameter in others]


def test_model_without_vectors_has_one_group() -> None:
    groups = OptimizerConfig().build(nn.Linear(2, 2, bias=False), fused=False).param_groups
    assert [len(group["params"]) for group in groups] == [1]


def test_groups_of_the_model_are_kept_with_our_decay_as_a_factor() -> None:
    groups = OptimizerConfig(weight_decay=0.1, lr=0.5).build(Grouped(), fused=False).param_groups
    assert [(len(group["params"]), group["weight_decay"], group["lr"]) for group in groups] == [
        (1, 0.05, 7.0),
        (3, 0.0, 0.5),
    ]


@pytest.mark.parametrize("fused", [False, True])
def test_settings_reach_adamw(fused: bool) -> None:
    config = OptimizerConfig(lr=0.25, beta1=0.5, beta2=0.75, eps=1e-3, weight_decay=0.125)
    optimizer = config.build(Small(), fused)
    assert isinstance(optimizer, torch.optim.AdamW)
    expected = {"lr": 0.25, "betas": (0.5, 0.75), "eps": 1e-3, "fused": fused, "foreach": None if fused else False}
    for group in optimizer.param_groups:
        assert {key: group[key] for key in expected} == expected


def test_first_step_moves_by_the_learning_rate_and_decays_decoupled() -> None:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(model.bias, 2.0)
    optimizer = OptimizerConfig(lr=0.1, weight_decay=0.5).build(model, fused=False)
    model.weight.grad = torch.full_like(model.weight, 3.0)
    model.bias.grad = torch.full_like(model.bias, -3.0)
    optimizer.step()
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1)
    assert model.bias.item() == pytest.approx(2.0 + 0.1)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_clipping_equals_that_of_torch(scale: float) -> None:
    ours, theirs = _gradients(scale, 10, 300, 1), _gradients(scale, 10, 300, 1)
    norm = Clipper(ours, 1.0)()
    expected = nn.utils.clip_grad_norm_(theirs, 1.0)
    torch.testing.assert_close(norm, expected, rtol=0, atol=0)
    for mine, other in zip(_grads(ours), _grads(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=3e-7, atol=0)


def test_clipped_gradient_has_the_largest_norm() -> None:
    parameters = _gradients(10.0, 40, 7)
    Clipper(parameters, 0.25)()
    total = torch.cat(_grads(parameters)).norm().item()
    assert total == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("max_norm", [None, 1e9])
def test_gradients_within_the_bound_are_not_touched(max_norm: float | None) -> None:
    parameters = _gradients(3.0, 40, 7)
    before = _grads(parameters)
    versions = [parameter.grad._version for parameter in parameters if parameter.grad is not None]
    norm = Clipper(parameters, max_norm)()
    assert norm.item() == pytest.approx(torch.cat(before).norm().item(), rel=1e-6)
    assert [parameter.grad._version for parameter in parameters if parameter.grad is not None] == versions
    assert all(torch.equal(mine, other) for mine, other in zip(_grads(parameters), before, strict=True))


def test_parameters_without_gradient_are_passed_over() -> None:
    parameters = [*_gradients(10.0, 5), nn.Parameter(torch.zeros(3))]
    Clipper(parameters, 1.0)()
    assert parameters[1].grad is None
    assert torch.cat(_grads(parameters)).norm().item() == pytest.approx(1.0, rel=1e-5)


def test_norm_of_no_gradients_is_zero() -> None:
    assert Clipper([nn.Parameter(torch.zeros(3))], 1.0)().item() == 0


def test_gradient_that_is_not_finite_is_seen_in_the_norm() -> None:
    parameters = _gradients(1.0, 5)
    assert parameters[0].grad is not None
    parameters[0].grad[2] = torch.nan
    assert Clipper(parameters, 1.0)().isnan()


def test_a_group_that_asks_for_another_rate_keeps_its_factor_for_the_schedule() -> None:
    class TwoRates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slow, self.fast = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

        def parameter_groups(self) -> list[dict[str, Any]]:
            return [
                {"params": [self.slow], "weight_decay": 1.0},
                {"params": [self.fast], "weight_decay": 0.0, "lr_scale": 30.0},
            ]

    optimizer = OptimizerConfig(lr=0.01).build(TwoRates(), fused=False)
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0, 30.0]
