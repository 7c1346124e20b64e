"""What every decoder-only language model has from its base, whatever its blocks."""

import math
from typing import Any

import pytest
import torch
from tests.models.every_model import MAGNETO, PATTERNS, loss_and_gradients
from torch import Tensor

from perjoule.models.contract import Trainable
from perjoule.models.layers.language import LanguageModel
from perjoule.models.layers.sizes import LanguageConfig
from perjoule.models.longnet import LongNetConfig
from perjoule.models.retnet import RetNetConfig
from perjoule.models.transformer import TransformerConfig

Tensors = dict[str, Tensor]
SHAPE = {"vocab_size": 48, "seq_len": 24}
SIZES: dict[str, Any] = {"dim": 32, "num_layers": 2, "num_heads": 4, "ffn_dim": 48}
CONFIGS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "transformer": (TransformerConfig, {}),
    "longnet": (LongNetConfig, PATTERNS),
    "longnet-magneto": (LongNetConfig, PATTERNS | MAGNETO),
    "retnet": (RetNetConfig, {"value_dim": 40, "chunk_len": 7}),
}


@pytest.fixture(params=CONFIGS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(kind: str, shape: dict[str, int] = SHAPE, **settings: Any) -> LanguageModel:
    config, own = CONFIGS[kind]
    model = config(**{**SIZES, **own, **settings}).build(shape)
    assert isinstance(model, LanguageModel)
    return model


def test_model_meets_the_contract_of_the_loop(kind: str) -> None:
    assert isinstance(build(kind), Trainable)


def test_logits_are_returned_only_when_asked(kind: str, batch: Tensors) -> None:
    model = build(kind)
    silent, spoken = model(batch), model(batch, with_logits=True)
    assert silent.logits is None
    assert spoken.logits.shape == (3, 24, 48)
    torch.testing.assert_close(silent.loss, spoken.loss)
    by_hand = torch.nn.functional.cross_entropy(spoken.logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(spoken.loss, by_hand)


@pytest.mark.parametrize("option", [{"activation_checkpointing": True}, {"loss_chunk_rows": 7}])
def test_memory_saving_option_changes_neither_loss_nor_gradients(
    kind: str, batch: Tensors, option: dict[str, Any]
) -> None:
    plain, saving = build(kind), build(kind, **option)
    saving.load_state_dict(plain.state_dict())
    torch.testing.assert_close(
        loss_and_gradients(saving, batch), loss_and_gradients(plain, batch), rtol=1e-5, atol=1e-6
    )


def test_activation_checkpointing_keeps_fewer_numbers_for_the_backward_pass(kind: str, batch: Tensors) -> None:
    def kept(model: LanguageModel) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(batch)
        return sum(sizes)

    assert kept(build(kind, activation_checkpointing=True)) < 0.5 * kept(build(kind))


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_initial_loss_is_near_the_logarithm_of_the_vocabulary(kind: str, tie_embeddings: bool) -> None:
    model = build(kind, {"vocab_size": 4096, "seq_len": 32}, dim=256, tie_embeddings=tie_embeddings)
    input_ids, labels = torch.randint(4096, (2, 8, 32))
    loss = model({"input_ids": input_ids, "labels": labels}).loss.item()
    spread = 0.02 * math.sqrt(256)
    assert loss == pytest.approx(math.log(4096) + spread**2 / 2, abs=0.05)


def test_initial_weights_have_the_documented_spread(kind: str) -> None:
    for name, weight in build(kind, dim=256, ffn_dim=512, num_layers=8).named_parameters():
        if weight.ndim == 1:
            assert torch.equal(weight, torch.full_like(weight, float(name.endswith("norm.weight")))), name
        else:
            adds_to_residual = name.startswith("blocks") and name.endswith((".output.weight", ".down.weight"))
            spread = 0.02 / math.sqrt(2 * 8) if adds_to_residual else 0.02
            assert weight.std().item() == pytest.approx(spread, rel=0.03), name


def test_weights_depend_on_the_seed_only(kind: str) -> None:
    def weights(seed: int) -> Tensors:
        torch.manual_seed(seed)
        return build(kind).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_model_from_the_meta_device_equals_one_built_in_memory(kind: str, batch: Tensors, tie_embeddings: bool) -> None:
    with torch.device("meta"):
        late = build(kind, tie_embeddings=tie_embeddings)
    early = build(kind, tie_embeddings=tie_embeddings)
    late.to_empty(device="cpu")
    for model in (early, late):
        torch.manual_seed(3)
        model.reset_parameters()
    assert late.state_dict().keys() == early.state_dict().keys()
    torch.testing.assert_close(late(batch).loss, early(batch).loss)


def test_state_holds_weights_only_and_a_tied_matrix_once(kind: str) -> None:
    untied, tied = build(kind), build(kind, tie_embeddings=True)
    assert set(untied.state_dict()) == {name for name, _ in untied.named_parameters()}
    assert set(untied.state_dict()) - set(tied.state_dict()) == {"output.weight"}
    rows = torch.randn(3, untied.config.dim)
    torch.testing.assert_close(tied.logits(rows), rows @ tied.embedding.weight.T)
    torch.testing.assert_close(untied.logits(rows), rows @ untied.state_dict()["output.weight"].T)


def test_parameter_groups_decay_all_matrices_and_nothing_else(kind: str) -> None:
    model = build(kind)
    decayed, spared = model.parameter_groups()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] is True
    assert spared["weight_decay"] is False
    vectors = {name for name in names.values() if "norm" in name or name.endswith("bias")}
    assert {names[id(parameter)] for parameter in spared["params"]} == vectors
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_a_few_steps_learn_a_constant_batch(kind: str, batch: Tensors) -> None:
    model = build(kind, tie_embeddings=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss, _ = loss_and_gradients(model, batch)
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 3.5
    assert losses[-1] < 0.2


def test_sizes_of_every_model_have_one_base() -> None:
    assert all(issubclass(config, LanguageConfig) for config, _ in CONFIGS.values())
