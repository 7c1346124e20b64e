"""What the training loop asks of a model, whatever the modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import nn


@dataclass(frozen=True)
class Output:
    """What ``forward`` returns.

    Args:
        loss: scalar, the mean over the batch's useful positions; 0 if there is none.
        logits: (samples, seq_len, vocab_size) or None where the model did not have to form them.
        metrics: more scalars worth recording, by name.
    """

    loss: torch.Tensor
    logits: torch.Tensor | None = None
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class FlopsPerToken:
    """Floating-point operations of one training step (forward and backward) per token.

    Args:
        full: the published convention: 6 per non-embedding weight plus 12·layers·dim·seq_len, i.e. causal attention
            counted as if it were not masked. Model FLOP utilisation (MFU) is usually given against this.
        causal: the same with causal attention counted at half, which is what must at least be computed.
    """

    full: int
    causal: int


@runtime_checkable
class Trainable(Protocol):
    """The interface of a model. ``forward`` takes ``Batch.tensors`` moved to the model's device."""

    def forward(self, tensors: Mapping[str, torch.Tensor]) -> Output:
        """Compute the loss of one batch."""

    def flops_per_token(self, seq_len: int) -> FlopsPerToken:
        """Return the training FLOPs per token at this sequence length."""


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable and frozen weights, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
