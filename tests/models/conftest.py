"""Tiny models and batches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from perjoule.models.transformer import Transformer, TransformerConfig

VOCAB_SIZE = 48
SEQ_LEN = 24


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than ten seconds")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the blocked kernel cut even the tests' short sequences into its usual number of blocks."""
    monkeypatch.setattr("perjoule.models.layers.attention.SMALLEST_BLOCK", 1)


@pytest.fixture
def tiny() -> Callable[..., Transformer]:
    """Return a function that builds a tiny model; keywords override the config."""

    def build(**overrides: Any) -> Transformer:
        sizes: dict[str, Any] = {"dim": 32, "num_layers": 2, "num_heads": 4, "ffn_dim": 48}
        config = TransformerConfig(**(sizes | overrides))
        return config.build({"vocab_size": VOCAB_SIZE, "seq_len": SEQ_LEN})

    return build


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Return three full sequences; a quarter of the labels is ignored."""
    input_ids, labels = torch.randint(VOCAB_SIZE, (2, 3, SEQ_LEN))
    labels[torch.rand(labels.shape) < 0.25] = -100
    return {"input_ids": input_ids, "labels": labels}
