"""The four architectures; what they share is causal_lm.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perjoule.core.labels import IGNORED
from perjoule.models.contract import Output
from perjoule.models.ebt_decode import Decoding
from perjoule.models.ebt_simplex import StepSize
from perjoule.models.huggingface.causal_lm import PerjouleForCausalLM
from perjoule.models.huggingface.config import (
    PerjouleEBTConfig,
    PerjouleLongNetConfig,
    PerjouleRetNetConfig,
    PerjouleTransformerConfig,
)
from perjoule.models.layers.loss import next_token_loss


class RetNetForCausalLM(PerjouleForCausalLM):  # type: ignore[no-untyped-call]
    """Retentive network, which generates from its recurrent state; see :mod:`perjoule.models.retnet`."""

    config_class = PerjouleRetNetConfig


class LongNetForCausalLM(PerjouleForCausalLM):  # type: ignore[no-untyped-call]
    """Transformer with dilated attention; see :mod:`perjoule.models.longnet`."""

    config_class = PerjouleLongNetConfig


class PerjouleTransformerForCausalLM(PerjouleForCausalLM):  # type: ignore[no-untyped-call]
    """Decoder-only Transformer, the baseline; see :mod:`perjoule.models.transformer`."""

    config_class = PerjouleTransformerConfig


class EBTForCausalLM(PerjouleForCausalLM):  # type: ignore[no-untyped-call]
    """Energy-Based Transformer; see :mod:`perjoule.models.ebt`.

    Every forward pass takes a gradient of its own: it works under ``torch.no_grad()``, and not under
    ``torch.inference_mode()``. Replay, a part of our training loop's state, is left out, and nothing of it is saved.
    """

    config_class = PerjouleEBTConfig
    takes_gradients = True

    def _build(self) -> Any:
        own: Any = self.config.own
        thinking = own.thinking.model_copy(update={"replay_fraction": 0.0})
        shape = {"vocab_size": self.config.vocab_size, "seq_len": self.config.seq_len}
        return own.model_copy(update={"thinking": thinking}).build(shape)

    @property
    def decoding(self) -> Decoding:
        """How to think in evaluation: steps, candidates, what to accept, when to stop. Gradients need the default."""
        decoding: Decoding = self.model.decoding
        return decoding

    @decoding.setter
    def decoding(self, decoding: Decoding) -> None:
        self.model.decoding = decoding

    def _run(self, input_ids: Tensor, targets: Tensor | None) -> Output:
        if targets is None or self._thinks_as_trained:
            return super()._run(input_ids, targets)
        logits = self._logits(input_ids)
        return Output(next_token_loss(logits.flatten(0, 1), targets.flatten()), logits)

    def _logits(self, input_ids: Tensor) -> Tensor:
        if not self._thinks_as_trained:
            thought: Tensor = self.model.deliberate(input_ids).logits
            return thought
        ignored = torch.full_like(input_ids, IGNORED)
        logits: Tensor = self.model({"input_ids": input_ids, "labels": ignored}, with_logits=True).logits
        return logits

    @property
    def _thinks_as_trained(self) -> bool:
        return self.training or self.decoding == Decoding()

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the candidates' embedding, through which logits are read out; None if it is the tokens'."""
        embedding: nn.Module | None = self.model.candidate_embedding
        return embedding

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the candidates' embedding."""
        self.model.candidate_embedding = new_embeddings

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Add rows to the embeddings or take some away; the step size stays what it was.

        Args:
            new_num_tokens: rows; None is as many as there are.
            pad_to_multiple_of: round that up to a multiple.
            mean_resizing: draw new rows about the mean of the old ones.
        """
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        # Left alone, a model built from the saved configuration would scale it to the new vocabulary.
        self.config.thinking = {**self.config.thinking, "step_size": self.model.initial_step_size}
        return embedding

    def _init_weights(self, module: nn.Module) -> None:
        """As the others; a step size that no checkpoint has is the first one."""
        if isinstance(module, StepSize):
            nn.init.ones_(module.factor)
        else:
            super()._init_weights(module)


ARCHITECTURES: Mapping[str, type[PerjouleForCausalLM]] = {
    architecture.config_class.kind: architecture
    for architecture in (RetNetForCausalLM, LongNetForCausalLM, EBTForCausalLM, PerjouleTransformerForCausalLM)
}
"""By the kind of our own model."""
