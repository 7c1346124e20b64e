"""What the training loop asks of a model, whatever the modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

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
    """The interface of a model. ``forward`` takes ``Batch.tensors`` moved to the model's device.

    Text may come with ``documents``, int32 (samples, seq_len), which number the documents within a row; no token may
    see another document's then. A model that heeds them says so by a class attribute ``masks_documents = True``.
    """

    def forward(self, tensors: Mapping[str, torch.Tensor]) -> Output:
        """Compute the loss of one batch."""

    def flops_per_token(self, seq_len: int) -> FlopsPerToken:
        """Return the training FLOPs per token at this sequence length."""


@runtime_checkable
class Decoder(Protocol):
    """A language model that writes one token after another, reading what it has written from a cache.

    A cache is the model's own: keys and values, a recurrent state, both. ``decode`` may change it in place; the cache
    to go on with is the one that is returned, and ``cache.select(rows)`` that of other rows. Rows of a batch may begin
    at different places: shorter prompts are padded on the left, and ``mask`` is False there. What is padded changes
    nothing for the others, and positions count from the first real token of each row.
    """

    def prefill(self, input_ids: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, Any]:
        """Read prompts.

        Args:
            input_ids: (batch, seq) tokens, padded on the left.
            mask: (batch, seq) True for real tokens; None if all are.

        Returns:
            (batch, vocab_size) logits of the next token of each row, in at least float32; and the cache.

        Raises:
            ConfigError: if the prompt is longer than the model's positions allow.
        """

    def decode(self, token: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """Read one more token of each row.

        Args:
            token: (batch,) tokens.
            cache: as returned before.

        Returns:
            (batch, vocab_size) logits of the token behind it, in at least float32; and the cache.
        """


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable and frozen weights, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
