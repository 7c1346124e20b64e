from typing import Any

import pytest
import torch
from tests.models.every_model import counted_flops_per_token

from perjoule.models.contract import FlopsPerToken
from perjoule.models.transformer import Transformer, TransformerConfig

SMALL: dict[str, Any] = {"dim": 64, "num_layers": 3, "num_heads": 4}


def on_meta(vocab_size: int, seq_len: int, **settings: Any) -> Transformer:
    with torch.device("meta"):
        return TransformerConfig(**settings).build({"vocab_size": vocab_size, "seq_len": seq_len})


def flops_of_norm_weights(model: Transformer) -> int:
    """Return the term of the convention that no matrix product spends."""
    return 6 * (2 * model.config.num_layers + 1) * model.config.dim


@pytest.mark.parametrize(
    ("seq_len", "full", "causal"),
    [(2048, 48_319_979_520, 46_709_366_784), (4096, 51_541_204_992, 48_319_979_520)],
)
def test_flops_of_8b_equal_the_published_ones_compiled_or_not(seq_len: int, full: int, causal: int) -> None:
    model = on_meta(131072, seq_len, preset="8b")
    assert model.flops_per_token(seq_len) == FlopsPerToken(full, causal)
    model.compile(backend="eager")
    assert model.flops_per_token(seq_len) == FlopsPerToken(full, causal)
    wrapped: Any = torch.compile(model, backend="eager")
    assert wrapped.flops_per_token(seq_len) == FlopsPerToken(full, causal)


@pytest.mark.parametrize(
    "settings",
    [
        SMALL,
        SMALL | {"num_kv_heads": 1},
        SMALL | {"tie_embeddings": True},
        SMALL | {"ffn_dim": 100},
        {"preset": "xxs"},
        {"preset": "8b", "num_layers": 2},
    ],
)
def test_flops_equal_what_torch_counts_up_to_the_norm_weights(settings: dict[str, Any]) -> None:
    model = on_meta(131072, 40, **settings, attention="sdpa")
    counted = counted_flops_per_token(model, 40)
    assert counted == model.flops_per_token(40).full - flops_of_norm_weights(model)


@pytest.mark.parametrize(("seq_len", "smallest_block", "share"), [(40, 1, 0.625), (512, 128, 0.625), (256, 128, 0.75)])
def test_blocked_attention_forms_less_than_all_and_at_least_the_causal_half(
    seq_len: int, smallest_block: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perjoule.models.layers.attention.SMALLEST_BLOCK", smallest_block)
    model = on_meta(500, seq_len, **SMALL, attention="blocked")
    counted = counted_flops_per_token(model, seq_len) + flops_of_norm_weights(model)
    stated = model.flops_per_token(seq_len)
    assert stated.causal <= counted < stated.full
    attention = stated.full - (2 * stated.causal - stated.full)
    assert counted - (stated.full - attention) == pytest.approx(share * attention)


def test_recomputation_is_spent_but_not_stated() -> None:
    plain = on_meta(500, 40, **SMALL)
    saving = on_meta(500, 40, **SMALL, activation_checkpointing=True, loss_chunk_rows=16)
    assert saving.flops_per_token(40) == plain.flops_per_token(40)
    # Forward is a third of a step. The blocks' is computed twice, but for their last product, which nothing needs.
    step = counted_flops_per_token(plain, 40)
    blocks = step / 3 - 2 * plain.embedding.weight.numel()
    last_products = 3 * 2 * plain.config.ffn_width * plain.config.dim
    assert counted_flops_per_token(saving, 40) == step + blocks - last_products
