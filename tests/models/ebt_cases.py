"""Tiny Energy-Based Transformers with weights far from their start, where every term counts."""

from typing import Any, get_args

import torch
from torch import Tensor

from perjoule.models.ebt import EBT, EBTConfig
from perjoule.models.ebt_sizes import Variant

VARIANTS: tuple[Variant, ...] = get_args(Variant)
VOCAB_SIZE, SEQ_LEN = 20, 12


def tiny_ebt(thinking: dict[str, Any] | None = None, scale: float = 0.3, seq_len: int = 12, **settings: Any) -> EBT:
    """Return a model; ``scale`` is the spread of all weights but the norms', 0 leaves them as initialised."""
    sizes: dict[str, Any] = {"dim": 16, "num_layers": 2, "num_heads": 2, "ffn_dim": 24}
    given = {"step_size": 2.0} if scale else {}
    config = EBTConfig(**(sizes | settings), thinking={**given, **(thinking or {})})
    model = config.build({"vocab_size": VOCAB_SIZE, "seq_len": seq_len})
    if scale:
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name != "alpha.factor":
                    parameter.copy_(torch.randn(parameter.shape) * scale + ("norm" in name))
    return model


def tokens(batch: int = 2, seq_len: int = SEQ_LEN) -> dict[str, Tensor]:
    """Return a batch; some labels are ignored."""
    input_ids, labels = torch.randint(VOCAB_SIZE, (2, batch, seq_len))
    labels[:, ::5] = -100
    return {"input_ids": input_ids, "labels": labels}


def guesses(batch: int = 2, seq_len: int = SEQ_LEN) -> Tensor:
    return torch.randn(batch, seq_len, VOCAB_SIZE)
