"""EBT for Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from perjoule.config import Config
from perjoule.core.errors import ConfigError
from perjoule.core.labels import IGNORED
from perjoule.models.contract import Output
from perjoule.models.ebt import EBTConfig
from perjoule.models.ebt_decode import Decoding
from perjoule.models.ebt_simplex import LearnedScale
from perjoule.models.huggingface.causal_lm import PerjouleForCausalLM
from perjoule.models.huggingface.config import PerjouleConfig
from perjoule.models.layers.loss import next_token_loss


class PerjouleEBTConfig(PerjouleConfig):  # type: ignore[no-untyped-call]
    """Configuration of an :class:`~perjoule.models.ebt.EBT`."""

    model_type = "perjoule_ebt"
    kind: ClassVar[str] = "ebt"
    own_class: ClassVar[type[Config]] = EBTConfig

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)


class EBTForCausalLM(PerjouleForCausalLM, GenerationMixin):
    """Energy-Based Transformer; see :mod:`perjoule.models.ebt`.

    Every forward pass takes a gradient of its own: it works under ``torch.no_grad()``, and not under
    ``torch.inference_mode()``. Replay, a part of our training loop's state, is left out, and nothing of it is saved.
    """

    config_class = PerjouleEBTConfig
    takes_gradients = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    supports_gradient_checkpointing = False  # nothing can be computed again under a second derivative

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

    def _run(self, tokens: Tensor, targets: Tensor | None, documents: Tensor | None) -> Output:
        if targets is None or self._thinks_as_trained:
            return super()._run(tokens, targets, documents)
        logits = self._logits(tokens, documents)
        return Output(next_token_loss(logits.flatten(0, 1), targets.flatten()), logits)

    def _logits(self, tokens: Tensor, documents: Tensor | None) -> Tensor:
        if not self._thinks_as_trained:
            thought: Tensor = self.model.deliberate(tokens, documents=documents).logits
            return thought
        ignored = torch.full(tokens.shape[:2], IGNORED, device=tokens.device)
        tensors = {"input_ids": tokens, "labels": ignored}
        if documents is not None:
            tensors["documents"] = documents
        logits: Tensor = self.model(tensors, with_logits=True).logits
        return logits

    def blocks_and_norm(self) -> tuple[Sequence[nn.Module], nn.Module, str | None]:
        """Return the blocks, the norm behind them, and the stream of candidates: that of tokens has no end."""
        return self.model.body.blocks, self.model.body.norm, "candidates"

    @property
    def _thinks_as_trained(self) -> bool:
        return self.training or self.decoding == Decoding()

    def get_output_embeddings(self) -> None:
        """Return nothing: an EBT has no output matrix, and reads its logits out through the candidates' embedding."""

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Refuse: there is nothing to replace.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("an EBT has no output matrix; accepted: set_input_embeddings")

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
        candidates: nn.Embedding | None = self.model.candidate_embedding
        if candidates is not None and len(candidates.weight) != self.config.vocab_size:
            resized = self._get_resized_embeddings(candidates, self.config.vocab_size, mean_resizing=mean_resizing)
            self.model.candidate_embedding = resized.requires_grad_(candidates.weight.requires_grad)
        # Left alone, a model built from the saved configuration would scale it to the new vocabulary.
        self.config.thinking = {**self.config.thinking, "step_size": self.model.initial_step_size}
        return embedding

    def _init_weights(self, module: nn.Module) -> None:
        """As the others; a step size that no checkpoint has is the first one."""
        if isinstance(module, LearnedScale):
            nn.init.ones_(module.factor)
        else:
            super()._init_weights(module)
