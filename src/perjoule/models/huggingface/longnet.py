"""LongNet for Hugging Face."""

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
from perjoule.models.longnet import LongNetConfig


class PerjouleLongNetConfig(PerjouleConfig):  # type: ignore[no-untyped-call]
    """Configuration of a :class:`~perjoule.models.longnet.LongNet`."""

    model_type = "perjoule_longnet"
    kind: ClassVar[str] = "longnet"
    own_class: ClassVar[type[Config]] = LongNetConfig

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)


class CheckpointedLongNetBlock(GradientCheckpointingLayer, Block):  # type: ignore[no-untyped-call]
    """A block whose activations transformers may compute again in the backward pass, as ``Trainer`` can ask for."""


class LongNetForCausalLM(PerjouleForCausalLM, GenerationMixin):
    """Transformer with dilated attention; see :mod:`perjoule.models.longnet`."""

    config_class = PerjouleLongNetConfig
    checkpointed: ClassVar[Mapping[type[nn.Module], type[nn.Module]]] = {Block: CheckpointedLongNetBlock}
    _no_split_modules = [CheckpointedLongNetBlock.__name__]  # noqa: RUF012
