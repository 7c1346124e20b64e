"""Compiling a whole training step changes nothing: one graph for every architecture that can be compiled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.models.every_model import PATTERNS
from torch import Tensor

from perjoule.models.layers.language import LanguageModel
from perjoule.models.longnet import LongNetConfig
from perjoule.models.retnet import RetNetConfig
from perjoule.models.transformer import Transformer, TransformerConfig

SIZES: dict[str, Any] = {"dim": 32, "num_layers": 1, "num_heads": 4, "ffn_dim": 48}
SAVING: dict[str, Any] = {"activation_checkpointing": True, "loss_chunk_rows": 50}
CONFIGS: dict[str, Callable[..., Any]] = {
    "transformer-sdpa": lambda **more: TransformerConfig(**SIZES, num_kv_heads=2, attention="sdpa", **more),
    "transformer-blocked": lambda **more: TransformerConfig(**SIZES, num_kv_heads=2, attention="blocked", **more),
    "transformer-xpos": lambda **more: TransformerConfig(**SIZES, positions="xpos", **more),
    "longnet": lambda **more: LongNetConfig(**SIZES, **PATTERNS, **more),
    "retnet-parallel": lambda **more: RetNetConfig(**SIZES, value_dim=40, retention="parallel", **more),
    "retnet-chunkwise": lambda **more: RetNetConfig(**SIZES, value_dim=40, chunk_len=7, **more),
}


def assert_compiled_equals_eager(model: LanguageModel, batch: dict[str, Tensor], backend: str, autocast: bool) -> None:
    torch.compiler.reset()
    results = []
    for step in (model, torch.compile(model, fullgraph=True, backend=backend)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = step(batch).loss
        results.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-3 if autocast else 1e-5)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while tracing
@pytest.mark.parametrize(
    ("name", "saving"), [*((name, True) for name in CONFIGS), ("transformer-sdpa", False), ("retnet-chunkwise", False)]
)
def test_whole_step_is_one_graph(batch: dict[str, Tensor], name: str, saving: bool) -> None:
    model = CONFIGS[name](**SAVING if saving else {}).build({"vocab_size": 48, "seq_len": 24})
    assert_compiled_equals_eager(model, batch, "aot_eager", autocast=saving)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while its code generator is imported
def test_generated_code_computes_the_same_model(tiny: Callable[..., Transformer], batch: dict[str, Tensor]) -> None:
    assert_compiled_equals_eager(tiny(num_layers=1, attention="blocked"), batch, "inductor", autocast=False)
