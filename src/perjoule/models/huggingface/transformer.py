"""The Transformer for Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from transformers import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer

from perjoule.config import Config
from perjoule.models.huggingface.causal_lm import PerjouleForCausalLM
from perjoule.models.huggingface.config import PerjouleConfig
from perjoule.models.layers.language import Block
from perjoule.models.transformer import TransformerConfig


class PerjouleTransformerConfig(PerjouleConfig):  # type: ignore[no-untyped-call]
    """Configuration of a :class:`~perjoule.models.transformer.Transformer`."""

    model_type = "perjoule_transformer"
    kind: ClassVar[str] = "transformer"
    own_class: ClassVar[type[Config]] = TransformerConfig

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)


class CheckpointedTransformerBlock(GradientCheckpointingLayer, Block):  # type: ignore[no-untyped-call]
    """A block whose activations transformers may compute again in the backward pass, as ``Trainer`` can ask for."""


class PerjouleTransformerForCausalLM(PerjouleForCausalLM, GenerationMixin):
    """Decoder-only Transformer, the baseline; see :mod:`perjoule.models.transformer`."""

    config_class = PerjouleTransformerConfig
    checkpointed: ClassVar[Mapping[type[nn.Module], type[nn.Module]]] = {Block: CheckpointedTransformerBlock}
    _no_split_modules = [CheckpointedTransformerBlock.__name__]  # noqa: RUF012
