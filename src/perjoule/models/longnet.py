"""LongNet: a decoder-only Transformer with dilated attention, whose time is linear in the length of the sequence.

    h = Embedding(tokens)
    h = h + DilatedAttention(Norm(h));  h = h + FFN(Norm(h))          num_layers times
    loss = cross-entropy(Norm(h)·Woutᵀ, labels)

Dilated attention mixes patterns (segment length w, dilation r); layers/dilated.py has its formula, and
layers/language.py the rest: embedding, loss, decoding. Segments begin at the first token of a row, also where packed
documents are kept apart: other documents are hidden then, and segments are those of the row. So a document's logits are
those it has alone if it begins where a segment of every pattern does; otherwise its segments are cut at other places.

As configured by default, all but the attention is the Transformer's (RMSNorm, SwiGLU, RoPE, no biases), so that a
comparison compares attention. The paper's blocks are MAGNETO's, with xPos, and so are the reference code's, without:
``norm: layer``, ``bias: true``, ``sub_norm: true``, ``ffn: gelu`` and ``positions: xpos`` or ``none`` (a test
reproduces the logits and gradients of torchscale). What differs: initial weights are those of ``reset_parameters``;
there is no dropout and no DeepNorm; sequences are not split over devices. The default patterns suit hundreds of tokens,
``preset: paper`` has the published ones for tens of thousands.

Per sample: time O(num_layers·seq_len·dim·(dim + Σ w/r²)); memory for the backward pass
O(num_layers·seq_len·dim·patterns), and seq_len·vocab_size for the loss. A decoded token looks up Σ w/r keys per layer
and head, and the cache keeps all. To keep packed documents apart takes num_heads·seq_len·Σ w/r² numbers more, once for
all layers.

Ding et al., LongNet: Scaling Transformers to 1,000,000,000 Tokens, 2023; Wang et al., Foundation Transformers
(MAGNETO), 2022.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Int32
from pydantic import Field, PositiveInt, ValidationInfo, field_validator
from torch import Tensor, nn

from perjoule.models.contract import FlopsPerToken
from perjoule.models.layers.attention import SelfAttention
from perjoule.models.layers.cache import Past
from perjoule.models.layers.dilated import Pattern, dilated_attention, dilated_recall, document_biases
from perjoule.models.layers.dropout import dropout_layer
from perjoule.models.layers.glu import ACTIVATIONS, GLU
from perjoule.models.layers.language import AttentionModel, Block
from perjoule.models.layers.norm import RMSNorm
from perjoule.models.layers.sizes import MATCHED, AttentionConfig

MATCHED_PATTERNS: Mapping[str, dict[str, Any]] = {
    # Every dilation divides the number of heads, so that each place of a stride has heads of its own.
    "match-1m": {"segment_lengths": (32, 64, 128, 256), "dilations": (1, 2, 3, 6)},
    "match-10m": {"segment_lengths": (64, 128, 256, 512), "dilations": (1, 2, 3, 6)},
    "match-100m": {"segment_lengths": (64, 128, 256, 512, 1024), "dilations": (1, 2, 4, 6, 12)},
}


def _matched(size: str, **wider: int) -> dict[str, Any]:
    """Return a Transformer's size with patterns as long as the data it is stated for."""
    return {**MATCHED[size], **MATCHED_PATTERNS[size], **wider}


class LongNetConfig(AttentionConfig):
    """Sizes and patterns of a LongNet."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # Section 4 of the paper: 12 layers of 768, 12 heads, as long as 32,768 tokens; MAGNETO and xPos.
        "paper": {
            "dim": 768,
            "num_layers": 12,
            "num_heads": 12,
            "positions": "xpos",
            "segment_lengths": (2048, 4096, 8192, 16384, 32768),
            "dilations": (1, 2, 4, 6, 12),
            "norm": "layer",
            "bias": True,
            "sub_norm": True,
            "ffn": "gelu",
        },
        **{size: _matched(size) for size in MATCHED},
        # Wider feed-forward layers for what dilated attention saves.
        "match-1m-flops": _matched("match-1m", ffn_dim=464),
        "match-10m-flops": _matched("match-10m", ffn_dim=1184),
        "match-100m-flops": _matched("match-100m", ffn_dim=2432),
    }

    kind: Literal["longnet"] = "longnet"
    segment_lengths: tuple[PositiveInt, ...] = Field((64, 128, 256), min_length=1)
    """Positions per segment of each pattern."""
    dilations: tuple[PositiveInt, ...] = Field((1, 2, 4), validate_default=True)
    """Distance of the positions in a segment that see each other, for each pattern; at most the segment's length."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm, or LayerNorm with biases."""
    sub_norm: bool = False
    """Normalise again before the output matrix of the attention and the last one of the feed-forward layer."""
    bias: bool = False
    """Whether attention and feed-forward layers with two matrices have biases."""
    ffn: Literal["swiglu", "gelu", "relu", "silu"] = Field("swiglu", validate_default=True)
    """Feed-forward layer: gated with three matrices, or two with this function between; null width is then 4·dim."""

    @field_validator("dilations")
    @classmethod
    def _check_dilations(cls, dilations: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        lengths = info.data.get("segment_lengths")  # absent if it was refused itself
        if lengths is None:
            return dilations
        if len(dilations) != len(lengths):
            raise ValueError(
                f"{len(dilations)} dilations do not fit {len(lengths)} segment_lengths; give one for each of them"
            )
        for length, dilation in zip(lengths, dilations, strict=True):
            if dilation > length:
                raise ValueError(f"{dilation} is more than its segment length {length}; accepted: 1 to {length}")
        return dilations

    @field_validator("ffn")
    @classmethod
    def _check_ffn(cls, ffn: str, info: ValidationInfo) -> str:
        for name in ("bias", "sub_norm"):
            if ffn == "swiglu" and info.data.get(name):
                raise ValueError(f"swiglu has no {name}; accepted with {name}: true: gelu, relu, silu")
        return ffn

    @property
    def patterns(self) -> list[Pattern]:
        """Return segment lengths with their dilations."""
        return [Pattern(*pair) for pair in zip(self.segment_lengths, self.dilations, strict=True)]

    @property
    def ffn_width(self) -> int:
        """Return the width of the feed-forward layers."""
        return super().ffn_width if self.ffn == "swiglu" else self.ffn_dim or 4 * self.dim

    @property
    def num_body_parameters(self) -> int:
        """Return the weights besides the embedding and the output matrix."""
        dim, width = self.dim, self.ffn_width
        matrices = 4 * dim**2 + (3 if self.ffn == "swiglu" else 2) * dim * width
        biases = (5 * dim + width) * self.bias
        norms = (1 if self.norm == "rms" else 2) * (2 * dim + (dim + width) * self.sub_norm)
        return self.num_layers * (matrices + biases + norms) + (dim if self.norm == "rms" else 2 * dim)

    def new_norm(self, dim: int) -> nn.Module:
        """Return a norm of this kind."""
        return RMSNorm(dim, self.norm_eps) if self.norm == "rms" else nn.LayerNorm(dim, self.norm_eps)

    def build(self, shape: Mapping[str, int]) -> LongNet:
        """Build the model for a data set; see :meth:`LanguageSizes.build`."""
        return LongNet(self, self.vocabulary(shape), shape["seq_len"])


class DilatedAttention(SelfAttention):
    """Dilated self-attention; see layers/dilated.py.

    Args:
        config: the model's.
    """

    def __init__(self, config: LongNetConfig) -> None:
        super().__init__(config.dim, config.num_heads, config.num_heads, config.bias, config.attention_dropout)
        self.patterns = config.patterns
        if config.sub_norm:
            self.sub_norm = config.new_norm(config.dim)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, biases: Sequence[Tensor]) -> Tensor:
        """Mix every position of whole sequences with the earlier ones that its patterns show."""
        return dilated_attention(q, k, v, self.patterns, biases=biases, dropout=self.dropped)

    def look_back(self, q: Tensor, past: Past) -> Tensor:
        """Mix one more token of each row with what its patterns show."""
        return dilated_recall(q, past, self.patterns)


class FeedForward(nn.Module):
    """Feed-forward layer of two matrices: ``y = SubNorm(activation(x·W1 + b1))·W2 + b2``.

    Args:
        config: the model's.
    """

    def __init__(self, config: LongNetConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.ffn]
        self.up = nn.Linear(config.dim, config.ffn_width, bias=config.bias)
        self.dropout = dropout_layer(config.activation_dropout)
        self.sub_norm = config.new_norm(config.ffn_width) if config.sub_norm else nn.Identity()
        self.down = nn.Linear(config.ffn_width, config.dim, bias=config.bias)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Transform every position by itself."""
        output: Tensor = self.down(self.sub_norm(self.dropout(self.activation(self.up(x)))))
        return output


class LongNet(AttentionModel):
    """Decoder-only Transformer with dilated attention; see the module for the formula.

    Args:
        config: sizes.
        vocab_size: rows of the embedding.
        seq_len: the longest sequence, in tokens, unless there are no positions.
    """

    config: LongNetConfig

    def __init__(self, config: LongNetConfig, vocab_size: int, seq_len: int) -> None:
        def norm() -> nn.Module:
            return config.new_norm(config.dim)

        def block() -> Block:
            if config.ffn == "swiglu":
                ffn: nn.Module = GLU(config.dim, config.ffn_width, dropout=config.activation_dropout)
            else:
                ffn = FeedForward(config)
            return Block(DilatedAttention(config), ffn, norm, config.dropout)

        super().__init__(config, vocab_size, seq_len, block, norm)

    def biases(self, documents: Int32[Tensor, "batch seq"]) -> Sequence[Tensor]:
        """Return what hides other documents in the segments of every pattern."""
        return document_biases(documents, self.config.patterns, self.config.num_heads)

    def flops_per_token(self, seq_len: int) -> FlopsPerToken:
        """Return the training FLOPs per token, from the sizes: compiled, wrapped or sharded models give the same.

        As for a Transformer, with the pairs of a query and a key that the patterns form, on average over positions, in
        place of seq_len. Positions that a head's offset skips are not formed and not counted.
        """
        pairs = sum(pattern.num_pairs(seq_len) for pattern in self.config.patterns)
        attention = 12 * self.config.num_layers * self.config.dim * pairs // seq_len
        return FlopsPerToken(self.matrix_flops + attention, self.matrix_flops + attention // 2)
