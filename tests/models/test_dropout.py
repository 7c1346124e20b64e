"""Dropout: nothing at rate 0 and in evaluation, the stated share in training, the same again from the same state."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.models.ebt_cases import tiny_ebt
from tests.models.every_model import SEQ_LEN, VOCAB_SIZE, longnet, retnet, transformer
from torch import Tensor

from perjoule.models.layers.attention import KERNELS
from perjoule.models.layers.dilated import Pattern, dilated_attention
from perjoule.models.layers.dropout import dropout_layer, same_masks
from perjoule.models.retnet import RetNetConfig

RATES: dict[str, float] = {"dropout": 0.2, "activation_dropout": 0.3}
ATTENTION = {"attention_dropout": 0.25}


def ebt(thinking: dict[str, Any], **settings: Any) -> Callable[[], Any]:
    return lambda: tiny_ebt({"step_size": 0.5, **thinking}, 0.2, SEQ_LEN, **settings)


BUILDS: dict[str, Callable[..., Callable[[], Any]]] = {
    "transformer": transformer,
    "transformer-blocked": lambda **rates: transformer(attention="blocked", **rates),
    "longnet": longnet,
    "longnet-gelu": lambda **rates: longnet(ffn="gelu", sub_norm=True, **rates),
    "retnet": retnet,
    "ebt": lambda **rates: ebt({}, **rates),
    "ebt-adaln-replay": lambda **rates: ebt({"replay_fraction": 0.5}, variant="adaln", **rates),
}


def build(kind: str, **rates: float) -> Any:
    torch.manual_seed(0)
    return BUILDS[kind](**rates)()


def rates_of(kind: str) -> dict[str, float]:
    return RATES | (ATTENTION if kind.startswith(("transformer", "longnet")) else {})


def batch() -> dict[str, Tensor]:
    input_ids, labels = torch.randint(VOCAB_SIZE, (2, 2, SEQ_LEN), generator=torch.Generator().manual_seed(3))
    return {"input_ids": input_ids, "labels": labels}


def train(model: Any, steps: int) -> list[float]:
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.01), []
    for _ in range(steps):
        loss = model.train()(batch()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", BUILDS)
def test_rate_of_zero_draws_nothing_and_dropping_ends_with_training(kind: str) -> None:
    plain, dropping = build(kind), build(kind, **rates_of(kind))
    expected = plain.eval()(batch()).loss
    state = torch.get_rng_state()
    torch.testing.assert_close(dropping.eval()(batch()).loss, expected)
    assert torch.equal(torch.get_rng_state(), state)
    if not kind.startswith("ebt"):  # which draws its first guesses
        plain.train()(batch())
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", BUILDS)
def test_every_rate_changes_the_loss_of_training_by_itself(kind: str) -> None:
    expected = build(kind)
    torch.manual_seed(4)
    before = expected.train()(batch()).loss.item()
    for name, rate in rates_of(kind).items():
        model = build(kind, **{name: rate})
        torch.manual_seed(4)
        assert model.train()(batch()).loss.item() != pytest.approx(before, rel=1e-6), name


@pytest.mark.parametrize("kind", BUILDS)
def test_training_from_a_saved_state_draws_the_masks_that_it_would_have_drawn(kind: str) -> None:
    model = build(kind, **rates_of(kind))
    torch.manual_seed(4)
    train(model, 2)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    further = train(model, 2)
    resumed = build(kind, **rates_of(kind))
    resumed.load_state_dict(weights)
    torch.set_rng_state(state)
    assert train(resumed, 2) == pytest.approx(further, rel=1e-4)


@pytest.mark.parametrize("kind", ["transformer", "longnet", "retnet"])
def test_computing_blocks_again_sees_the_masks_of_the_first_time(kind: str) -> None:
    gradients = []
    for again in (False, True):
        model = BUILDS[kind](activation_checkpointing=again, **rates_of(kind))
        torch.manual_seed(0)
        built = model()
        torch.manual_seed(4)
        built.train()(batch()).loss.backward()
        gradients.append([parameter.grad for parameter in built.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_every_step_of_thinking_descends_the_same_energy() -> None:
    model = build("ebt", **RATES)
    model.train()
    candidates = torch.randn(2, SEQ_LEN, 16)
    energy, another = model.energy(batch()["input_ids"]), model.energy(batch()["input_ids"])
    torch.testing.assert_close(energy(candidates, 0), energy(candidates, 1))
    assert (energy(candidates, 0) - another(candidates, 0)).abs().max() > 1e-3


def test_slopes_through_dropout_are_differentiated_exactly() -> None:
    model: Any = ebt({"detach": "none"}, **RATES)().double().train()
    start = torch.zeros(2, SEQ_LEN, VOCAB_SIZE, dtype=torch.float64)

    def loss_of() -> Tensor:
        loss: Tensor = model(batch(), start=start).loss
        return loss

    weight = model.body.blocks[0].ffn.down.weight
    torch.manual_seed(4)
    (gradient,) = torch.autograd.grad(loss_of(), weight)
    direction, losses = torch.randn_like(weight), []
    for change in (1e-6, -2e-6):
        with torch.no_grad():
            weight.add_(direction, alpha=change)
        torch.manual_seed(4)
        losses.append(loss_of().item())
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx((gradient * direction).sum().item(), rel=1e-4)


def test_mean_of_many_masks_is_what_nothing_dropped_gives() -> None:
    q, k, v = torch.randn(3, 1, 2, 8, 4)
    patterns = [Pattern(4, 1), Pattern(8, 2)]
    rq, rk, rv = (x.expand(4000, -1, -1, -1) for x in (q, k, v))
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        name: (kernel(q, k, v), kernel(rq, rk, rv, dropout=0.3)) for name, kernel in KERNELS.items()
    }
    pairs["dilated"] = (dilated_attention(q, k, v, patterns), dilated_attention(rq, rk, rv, patterns, dropout=0.3))
    for name, (exact, dropped) in pairs.items():
        torch.testing.assert_close(dropped.mean(0), exact[0], rtol=0.0, atol=0.1, msg=name)
        assert dropped.std(0).max() > 0.1, name
    x = torch.randn(3)
    assert dropout_layer(0.0)(x) is x
    with pytest.raises(ValidationError, match="dropout"):
        RetNetConfig(dropout=1.0)


def test_same_masks_leave_the_generator_as_it_was() -> None:
    state, drawn = torch.get_rng_state(), []
    for seed in (1, 1, 2):
        with same_masks(seed, torch.device("cpu")):
            drawn.append(torch.rand(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
