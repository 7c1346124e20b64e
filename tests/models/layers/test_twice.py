from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from perjoule.models.layers.norm import RMSNorm
from perjoule.models.layers.positions import Positions, XPosTable, place, position_table
from perjoule.models.layers.rope import rotate
from perjoule.models.layers.twice import EnergyRMSNorm, gated, placed, turned

Function = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True, params=["small", "large"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Take both ways: torch's own kernels, and the derivatives that are written out."""
    if request.param == "large":
        monkeypatch.setattr("perjoule.models.layers.twice.SMALL", 0)
    return str(request.param)


def silu_times(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def pairs(dtype: torch.dtype) -> dict[str, tuple[Function, Function, list[Tensor]]]:
    """Return ours, the definition, and the weights of each."""
    norm, energy_norm, table = RMSNorm(8, 1e-2).to(dtype), EnergyRMSNorm(8, 1e-2).to(dtype), XPosTable(5, 8, 100.0)(5)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(8))
    energy_norm.weight = norm.weight
    return {
        "norm": (energy_norm, norm, [norm.weight]),
        "gate": (gated, silu_times, []),
        "turn": (lambda x: turned(x, table[:2]), lambda x: rotate(x, table[:2]), []),
        "turn back": (lambda x: turned(x, table[2:]), lambda x: rotate(x, table[2:]), []),
    }


@pytest.mark.parametrize("kind", ["norm", "gate", "turn", "turn back"])
def test_values_slopes_and_gradients_of_slopes_are_those_of_the_definition(kind: str) -> None:
    ours, definition, weights = pairs(torch.float64)[kind]
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    results = []
    for function in (ours, definition):
        torch.manual_seed(1)
        y = function(x)
        outer = torch.randn(y.shape, dtype=y.dtype, requires_grad=True)
        (slope,) = torch.autograd.grad((y * outer).sum(), x, create_graph=True)
        first = torch.autograd.grad((function(x) * outer).sum(), [x, *weights])
        second = torch.autograd.grad((slope * torch.randn_like(slope)).sum() + y.sin().sum(), [x, outer, *weights])
        results.append([y, slope, *first, *second])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("kind", ["norm", "gate", "turn", "turn back"])
def test_bfloat16_is_computed_in_float32_and_returned_as_it_came(kind: str) -> None:
    ours, definition, _ = pairs(torch.bfloat16)[kind]
    x = torch.randn(2, 3, 5, 8).bfloat16().requires_grad_()
    y = ours(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((slope.float() ** 2).sum() + y.sum(), x)
    assert {y.dtype, slope.dtype, second.dtype} == {torch.bfloat16}
    torch.testing.assert_close(y.float(), definition(x).float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", get_args(Positions))
def test_queries_and_keys_are_placed_together_as_apart(kind: Positions) -> None:
    table = position_table(kind, 5, 8, 100.0)(5)
    q, k = torch.randn(2, 3, 2, 5, 8)
    torch.testing.assert_close(placed(torch.cat((q, k), dim=1), table), place(q, k, table))


@pytest.mark.parametrize("path", ["large"], indirect=True)
def test_slope_of_large_tensors_is_one_of_the_input_and_not_of_a_norms_weight(path: str) -> None:
    norm = EnergyRMSNorm(8, 1e-5)
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        torch.autograd.grad(norm(torch.randn(3, 8)).sum(), norm.weight, create_graph=True)
