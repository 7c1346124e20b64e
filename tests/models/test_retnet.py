from typing import Any

import pytest
import torch
from tests.models.every_model import all_logits, counted_flops_per_token, loss_and_gradients
from torch import Tensor

from perjoule.models.contract import FlopsPerToken
from perjoule.models.retnet import RetNet, RetNetCache, RetNetConfig

VOCAB_SIZE, SEQ_LEN = 48, 24
FORMS = ("parallel", "recurrent", "chunkwise")
Tensors = dict[str, Tensor]


def tiny(**overrides: Any) -> RetNet:
    sizes: dict[str, Any] = {"dim": 32, "num_layers": 2, "num_heads": 4, "value_dim": 40, "chunk_len": 7}
    return RetNetConfig(**(sizes | overrides)).build({"vocab_size": VOCAB_SIZE, "seq_len": SEQ_LEN})


def on_meta(vocab_size: int = 500, **settings: Any) -> RetNet:
    with torch.device("meta"):
        return RetNetConfig(**settings).build({"vocab_size": vocab_size, "seq_len": 16})


@pytest.mark.parametrize("decay", ["halving", "geometric"])
@pytest.mark.parametrize("positions", ["rotation", "none"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("seq_len", [1, 7, 14, 23])
def test_forms_are_the_same_model(
    batch: Tensors, decay: str, positions: str, dtype: torch.dtype, tolerance: float, seq_len: int
) -> None:
    batch = {name: tensor[:, :seq_len] for name, tensor in batch.items()}
    results = []
    for form in FORMS:
        torch.manual_seed(1)
        model = tiny(retention=form, decay=decay, positions=positions).to(dtype)
        results.append((all_logits(model, batch["input_ids"]), loss_and_gradients(model, batch)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=tolerance)


def test_options_are_different_models(batch: Tensors) -> None:
    losses = set()
    for settings in ({}, {"decay": "geometric"}, {"positions": "none"}, {"activation": "gelu"}):
        torch.manual_seed(1)
        losses.add(tiny(**settings, init_std=0.3)(batch).loss.item())
    assert len(losses) == 4


def test_cache_does_not_grow_and_nothing_is_too_long(batch: Tensors) -> None:
    model = tiny()

    def size(cache: RetNetCache) -> int:
        return sum(state.numel() for state in cache.states) + cache.num_read.numel() + cache.num_steps.numel()

    _, cache = model.prefill(batch["input_ids"][:, :2])
    sizes = {size(cache)}
    _, cache = model.prefill(batch["input_ids"].repeat(1, 5))
    for n in range(SEQ_LEN):
        logits, cache = model.decode(batch["input_ids"][:, n], cache)
        sizes.add(size(cache))
    whole = all_logits(model, batch["input_ids"].repeat(1, 6))
    torch.testing.assert_close(logits, whole[:, -1], rtol=0, atol=1e-5)
    assert sizes == {2 * 3 * 4 * 8 * 10 + 3 + 1}


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_autocast_stays_close_to_float32(batch: Tensors, form: str) -> None:
    model = tiny(retention=form)
    exact_loss, exact = loss_and_gradients(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch, with_logits=True)
        loss, rough = loss_and_gradients(model, batch)
        logits, cache = model.prefill(batch["input_ids"])
        logits, _ = model.decode(batch["input_ids"][:, 0], cache)
    assert output.logits.dtype == torch.bfloat16
    assert loss.dtype == logits.dtype == torch.float32
    assert all(state.dtype == torch.float32 for state in cache.states)
    assert abs(loss - exact_loss) < 1e-3
    for name, gradient in exact.items():
        similarity = torch.cosine_similarity(gradient.flatten(), rough[name].flatten(), dim=0)
        assert similarity > 0.998, name


def test_bfloat16_weights_train_and_decode(batch: Tensors) -> None:
    model = tiny().bfloat16()
    loss, gradients = loss_and_gradients(model, batch)
    assert loss.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients.values()} == {torch.bfloat16}
    logits, cache = model.prefill(batch["input_ids"])
    logits, _ = model.decode(batch["input_ids"][:, 0], cache)
    assert logits.dtype == torch.float32
    assert all(state.dtype == torch.float32 for state in cache.states)


@pytest.mark.parametrize(
    "settings",
    [
        {"retention": "parallel"},
        {"chunk_len": 8},
        {"chunk_len": 39},
        {"chunk_len": 40},
        {"chunk_len": 256},
        {"chunk_len": 10, "value_dim": 64, "ffn_dim": 100},
        {"preset": "7b", "num_layers": 2, "chunk_len": 20},
    ],
)
def test_flops_equal_what_torch_counts_up_to_the_norm_weights(settings: dict[str, Any]) -> None:
    model = on_meta(131072, **settings)
    norm_weights = 6 * (2 * model.config.num_layers + 1) * model.config.dim
    stated = model.flops_per_token(40)
    assert counted_flops_per_token(model, 40) == stated.full - norm_weights
    assert stated.causal < stated.full


def test_flops_do_not_grow_with_the_length_once_there_are_chunks() -> None:
    model, quadratic = on_meta(chunk_len=64), on_meta(retention="parallel")
    assert model.flops_per_token(64 * 500) == model.flops_per_token(64 * 2)
    grown = quadratic.flops_per_token(32000).full - quadratic.flops_per_token(16000).full
    assert grown == 6 * 4 * (256 + 432) * 16000
    state_only = on_meta(retention="recurrent").flops_per_token(32000)
    assert state_only == FlopsPerToken(state_only.causal, state_only.causal)


def test_recomputation_is_not_stated() -> None:
    plain, saving = on_meta(), on_meta(activation_checkpointing=True, loss_chunk_rows=16)
    assert saving.flops_per_token(40) == plain.flops_per_token(40)
    assert counted_flops_per_token(saving, 40) > counted_flops_per_token(plain, 40)
