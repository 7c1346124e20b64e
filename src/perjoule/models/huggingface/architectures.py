"""The four architectures, by the kind of our own model; what they share is causal_lm.py."""

from __future__ import annotations

from collections.abc import Mapping

from perjoule.models.huggingface.causal_lm import PerjouleForCausalLM
from perjoule.models.huggingface.ebt import EBTForCausalLM
from perjoule.models.huggingface.longnet import LongNetForCausalLM
from perjoule.models.huggingface.retnet import RetNetForCausalLM
from perjoule.models.huggingface.transformer import PerjouleTransformerForCausalLM

ARCHITECTURES: Mapping[str, type[PerjouleForCausalLM]] = {
    architecture.config_class.kind: architecture
    for architecture in (RetNetForCausalLM, LongNetForCausalLM, EBTForCausalLM, PerjouleTransformerForCausalLM)
}
