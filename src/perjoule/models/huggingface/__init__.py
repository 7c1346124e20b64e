"""perjoule's language models as Hugging Face models: ``from_pretrained``, ``generate``, ``Trainer``, ``AutoModel…``.

Importing this package registers the four architectures with ``AutoConfig`` and ``AutoModelForCausalLM``: transformers
finds a model type that is not its own in no other way. In perjoule only the export imports it.
"""

from __future__ import annotations

from perjoule.core.errors import MissingExtra

try:
    from transformers import AutoConfig, AutoModelForCausalLM
except ImportError as error:
    raise MissingExtra("perjoule.models.huggingface needs transformers: pip install 'perjoule[huggingface]'") from error

from perjoule.models.huggingface.architectures import ARCHITECTURES
from perjoule.models.huggingface.cache import DecoderCache
from perjoule.models.huggingface.causal_lm import PerjouleForCausalLM
from perjoule.models.huggingface.config import PerjouleConfig
from perjoule.models.huggingface.ebt import EBTForCausalLM, PerjouleEBTConfig
from perjoule.models.huggingface.longnet import LongNetForCausalLM, PerjouleLongNetConfig
from perjoule.models.huggingface.retnet import PerjouleRetNetConfig, RetNetForCausalLM
from perjoule.models.huggingface.transformer import PerjouleTransformerConfig, PerjouleTransformerForCausalLM

__all__ = [
    "ARCHITECTURES",
    "DecoderCache",
    "EBTForCausalLM",
    "LongNetForCausalLM",
    "PerjouleConfig",
    "PerjouleEBTConfig",
    "PerjouleForCausalLM",
    "PerjouleLongNetConfig",
    "PerjouleRetNetConfig",
    "PerjouleTransformerConfig",
    "PerjouleTransformerForCausalLM",
    "RetNetForCausalLM",
]

for _architecture in ARCHITECTURES.values():
    AutoConfig.register(_architecture.config_class.model_type, _architecture.config_class, exist_ok=True)
    AutoModelForCausalLM.register(_architecture.config_class, _architecture, exist_ok=True)
