"""Tiny Hugging Face models of every architecture, with weights far from their start, where every term counts."""

from typing import Any

import torch
from torch import Tensor

from perjoule.models.huggingface import ARCHITECTURES

VOCAB_SIZE, SEQ_LEN, BOS, PAD = 48, 24, 0, 1
SIZES: dict[str, Any] = {"dim": 32, "num_layers": 2, "num_heads": 2, "init_std": 0.3}
STEPS: dict[str, Any] = {"step_size": 0.5, "steps": 2}
CASES: dict[str, dict[str, Any]] = {
    "retnet": {"chunk_len": 4},
    "longnet": {"segment_lengths": [3, 7, 16], "dilations": [1, 2, 4]},
    "ebt": {"thinking": STEPS},
    "transformer": {"num_kv_heads": 1},
    "retnet-geometric": {"decay": "geometric", "retention": "recurrent"},
    "longnet-magneto": {"norm": "layer", "bias": True, "sub_norm": True, "ffn": "gelu", "positions": "xpos"},
    "ebt-time_embed": {"variant": "time_embed", "thinking": STEPS},
    "ebt-adaln": {"variant": "adaln", "tie_candidates": True, "thinking": STEPS},
    "ebt-adaln_zero": {"variant": "adaln_zero", "thinking": {**STEPS, "max_steps": 3, "landscapes": 2}},
    "transformer-tied": {"tie_embeddings": True, "positions": "none"},
}
KINDS = ("retnet", "longnet", "ebt", "transformer")
"""One case for each architecture."""


def new_model(case: str, **settings: Any) -> Any:
    """Build the model of a case, in evaluation mode."""
    architecture: Any = ARCHITECTURES[case.partition("-")[0]]
    special = {"bos_token_id": BOS, "eos_token_id": BOS, "pad_token_id": PAD}
    sizes = {**SIZES, "vocab_size": VOCAB_SIZE, "seq_len": SEQ_LEN, **special, **CASES[case]}
    model = architecture(architecture.config_class(**(sizes | settings)))
    if case.startswith("ebt"):
        with torch.no_grad():  # the energy head and some of the modulations start at 0
            for name, parameter in model.named_parameters():
                if "norm" not in name and "alpha" not in name:
                    parameter.normal_(std=0.15)
    return model.eval()


def assert_same_numbers(found: Tensor, expected: Tensor) -> None:
    """Compare what the same weights gave in other buffers.

    Kernels follow addresses, and thinking with random weights amplifies what they round: float32 is 2e-4 from float64.
    """
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)


def tokens(batch: int = 3, seq_len: int = 12) -> Tensor:
    """Return ids without the special ones."""
    return torch.randint(2, VOCAB_SIZE, (batch, seq_len))


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Return rows in one rectangle with its attention mask; what stands in the padding is arbitrary."""
    longest = max(map(len, rows))
    ids, mask = tokens(len(rows), longest), torch.zeros(len(rows), longest, dtype=torch.int64)
    for number, row in enumerate(rows):
        begin = {"left": longest - len(row), "right": 0, "both": (longest - len(row)) // 2}[side]
        ids[number, begin : begin + len(row)] = row
        mask[number, begin : begin + len(row)] = 1
    return ids, mask
