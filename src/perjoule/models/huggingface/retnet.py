"""RetNet for Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from transformers import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer

from perjoule.config import Config
from perjoule.models.huggingface.causal_lm import PerjouleForCausalLM
from perjoule.models.huggingface.config import PerjouleConfig
from perjoule.models.retnet import Block, RetNetConfig


class PerjouleRetNetConfig(PerjouleConfig):  # type: ignore[no-untyped-call]
    """Configuration of a :class:`~perjoule.models.retnet.RetNet`."""

    model_type = "perjoule_retnet"
    kind: ClassVar[str] = "retnet"
    own_class: ClassVar[type[Config]] = RetNetConfig

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)

    @property
    def num_positions(self) -> None:
        """Return None: retention has no last position."""


class CheckpointedRetNetBlock(GradientCheckpointingLayer, Block):  # type: ignore[no-untyped-call]
    """A block whose activations transformers may compute again in the backward pass, as ``Trainer`` can ask for."""


class RetNetForCausalLM(PerjouleForCausalLM, GenerationMixin):
    """Retentive network, which generates from its recurrent state; see :mod:`perjoule.models.retnet`."""

    config_class = PerjouleRetNetConfig
    checkpointed: ClassVar[Mapping[type[nn.Module], type[nn.Module]]] = {Block: CheckpointedRetNetBlock}
    _no_split_modules = [CheckpointedRetNetBlock.__name__]  # noqa: RUF012
