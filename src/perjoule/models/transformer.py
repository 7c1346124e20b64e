"""Decoder-only Transformer in the style of Llama: the baseline that every other architecture is compared with.

    h = Embedding(tokens)
    h = h + Attention(RMSNorm(h));  h = h + SwiGLU(RMSNorm(h))        num_layers times
    loss = cross-entropy(RMSNorm(h)·Woutᵀ, labels)

The function is that of Hugging Face's ``LlamaForCausalLM`` (a test copies the weights and compares logits and
gradients). What differs: the query, key and value projections are one matrix, and so are gate and up; the cross-entropy
is always in float32, over labels that the data has already shifted; weights are initialised as written at
``reset_parameters``; positions need not be rotary. With ``ffn_dim = dim`` it is the *Transformer++* of Energy-Based
Transformers. Packed documents attend across their boundaries, unless the batch says which is which.

Here are the sizes and the layers of a block; layers/language.py has the rest: embedding, loss, decoding.

Per sample: time O(num_layers·seq_len·dim·(dim + seq_len)); memory for the backward pass
O(num_layers·seq_len·dim) plus, with the blocked kernel, O(num_layers·num_heads·seq_len²), and seq_len·vocab_size
for the loss. To keep packed documents apart takes seq_len² numbers more, once for all layers.

Touvron et al., LLaMA: Open and Efficient Foundation Language Models, 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, PositiveInt, ValidationInfo, field_validator
from torch import Tensor

from perjoule.core.errors import ConfigError, suggestion
from perjoule.models.contract import FlopsPerToken
from perjoule.models.layers.attention import KERNELS, Attention, Kernel
from perjoule.models.layers.glu import GLU
from perjoule.models.layers.language import AttentionModel, Block
from perjoule.models.layers.norm import RMSNorm
from perjoule.models.layers.sizes import EBT_PAPER, MATCHED, AttentionConfig, divisors_near


class TransformerConfig(AttentionConfig):
    """Sizes of a decoder-only Transformer."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        **EBT_PAPER,
        **MATCHED,
        **{f"{name}-flops": size for name, size in MATCHED.items()},
        # Llama 3 8B with the vocabulary of Mistral NeMo: 8,053,329,920 parameters. The width of the feed-forward layers
        # is Llama's 1.3 · 2/3 · 4·dim, rounded up to a multiple of 1024.
        "8b": {
            "vocab_size": 131072,
            "dim": 4096,
            "num_layers": 32,
            "num_heads": 32,
            "num_kv_heads": 8,
            "ffn_dim": 14336,
        },
    }

    kind: Literal["transformer"] = "transformer"
    num_kv_heads: PositiveInt | None = Field(None, validate_default=True)
    """Key and value heads; divides ``num_heads``; null is ``num_heads``."""
    attention: Literal["auto", "sdpa", "blocked"] = "auto"
    """Kernel; ``auto`` is sdpa unless the training backend knows a faster one for the machine."""

    @field_validator("num_kv_heads")
    @classmethod
    def _check_kv_heads(cls, num_kv_heads: int | None, info: ValidationInfo) -> int | None:
        num_heads = info.data.get("num_heads")
        if num_kv_heads is not None and num_heads is not None and num_heads % num_kv_heads:
            near = divisors_near(num_heads, num_kv_heads)
            raise ValueError(f"{num_kv_heads} does not divide num_heads {num_heads} (nearest: {near})")
        return num_kv_heads

    @property
    def kv_heads(self) -> int:
        """Return the number of key and value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def num_body_parameters(self) -> int:
        """Return the weights besides the embedding and the output matrix."""
        attention = 2 * self.dim * (self.num_heads + self.kv_heads) * self.head_dim
        norms = 2 * self.dim
        return self.num_layers * (attention + 3 * self.dim * self.ffn_width + norms) + self.dim

    def build(self, shape: Mapping[str, int]) -> Transformer:
        """Build the model for a data set; see :meth:`LanguageSizes.build`."""
        return Transformer(self, self.vocabulary(shape), shape["seq_len"])


class Transformer(AttentionModel):
    """Decoder-only Transformer; see the module for the formula.

    Args:
        config: sizes.
        vocab_size: rows of the embedding.
        seq_len: the longest sequence, in tokens, unless there are no positions.
    """

    config: TransformerConfig

    def __init__(self, config: TransformerConfig, vocab_size: int, seq_len: int) -> None:
        def norm() -> RMSNorm:
            return RMSNorm(config.dim, config.norm_eps)

        def block() -> Block:
            kernel: Kernel = "sdpa" if config.attention == "auto" else config.attention
            attention = Attention(config.dim, config.num_heads, config.kv_heads, kernel, config.attention_dropout)
            ffn = GLU(config.dim, config.ffn_width, dropout=config.activation_dropout)
            return Block(attention, ffn, norm, config.dropout)

        super().__init__(config, vocab_size, seq_len, block, norm)

    def set_attention(self, kernel: str) -> None:
        """Compute attention with another kernel from now on; the function stays the same.

        Args:
            kernel: ``sdpa`` or ``blocked``.

        Raises:
            ConfigError: if there is no such kernel.
        """
        accepted = {name: name for name in get_args(Kernel)}
        if kernel not in accepted:
            raise ConfigError(f"unknown attention kernel {kernel!r}: {suggestion(kernel, accepted)}")
        for module in self.modules():
            if isinstance(module, Attention):
                module.kernel = accepted[kernel]

    def attention_probe(self, rows: int) -> tuple[Mapping[Kernel, Callable[..., Tensor]], tuple[int, int, int, int]]:
        """Return the kernels and the (batch, heads, seq, head_dim) they would see, so that they can be timed."""
        return KERNELS, (rows, self.config.num_heads, self.seq_len, self.config.head_dim)

    def flops_per_token(self, seq_len: int) -> FlopsPerToken:
        """Return the training FLOPs per token, from the sizes: compiled, wrapped or sharded models give the same.

        ``full`` is 6·(parameters - embedding) + 12·num_layers·dim·seq_len.
        """
        attention = 12 * self.config.num_layers * self.config.dim * seq_len
        return FlopsPerToken(self.matrix_flops + attention, self.matrix_flops + attention // 2)
