"""Sizes of an Energy-Based Transformer."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from perjoule.config import Config
from perjoule.models.thinking import ThinkingConfig

Variant = Literal["default", "time_embed", "adaln", "adaln_zero"]
"""How an energy knows the thinking step; see ebt_body.py."""


def _size(num_layers: int, num_heads: int, dim: int) -> dict[str, Any]:
    """Return a published size: feed-forward layers are as wide as the residual stream."""
    return {"num_layers": num_layers, "num_heads": num_heads, "dim": dim, "ffn_dim": dim}


class EBTSizes(Config):
    """Sizes of an Energy-Based Transformer, and how it thinks while training."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # Gladstone et al., 2025: 7·num_layers·dim² weights in the matrices of the blocks.
        "4xs": _size(2, 2, 128),
        "3xs": _size(4, 4, 256),
        "2xs": _size(6, 6, 384),
        "xxs": _size(6, 6, 384),
        "xs": _size(12, 6, 384),
        "small": _size(12, 12, 768),
        "medium": _size(24, 16, 1024),
        "large": _size(24, 16, 1536),
        "xl": _size(24, 32, 2048),
    }

    kind: Literal["ebt"] = "ebt"
    preset: str | None = None
    """A size by name; keys that are given beside it win."""
    vocab_size: PositiveInt | None = None
    """Rows of the embeddings; null is the tokenizer's, and more than that is allowed."""
    dim: PositiveInt = 256
    """Width of the residual stream."""
    num_layers: PositiveInt = 4
    """Blocks, each of one attention and one feed-forward layer."""
    num_heads: PositiveInt = Field(4, validate_default=True)
    """Attention heads; divides ``dim``."""
    ffn_dim: PositiveInt | None = None
    """Width of the feed-forward layers; null is 8/3·dim rounded up to a multiple of 16."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the mean square in RMSNorm."""
    rope_theta: PositiveFloat = 1e4
    """Base of the wavelengths of the rotary position embedding."""
    variant: Variant = "default"
    """How an energy knows the thinking step: not, by a vector before the context, or by adaptive norms."""
    tie_candidates: bool = False
    """Embed candidates with the tokens' embedding."""
    thinking: ThinkingConfig = ThinkingConfig()
    """How it thinks while training."""
    loss_chunk_rows: PositiveInt | None = None
    """Tokens whose last logits exist at a time; null is all of the batch."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of the initial weights."""

    @field_validator("num_heads")
    @classmethod
    def _check_heads(cls, num_heads: int, info: ValidationInfo) -> int:
        dim = info.data.get("dim")  # absent if it was refused itself
        if dim is None or dim % (2 * num_heads) == 0:
            return num_heads
        fitting = [n for n in range(1, dim // 2 + 1) if dim % (2 * n) == 0]
        near = ", ".join(map(str, sorted(sorted(fitting, key=lambda n: abs(n - num_heads))[:4])))
        raise ValueError(
            f"{num_heads} heads do not divide dim {dim} into an even size, as RoPE needs "
            f"({f'nearest: {near}' if near else 'none does; make dim even'})"
        )

    @property
    def ffn_width(self) -> int:
        """Return the width of the feed-forward layers."""
        return self.ffn_dim or 16 * math.ceil(8 * self.dim / 3 / 16)

    @property
    def num_landscapes(self) -> int:
        """Return the number of trained landscapes."""
        return 1 if self.variant == "default" else self.thinking.landscapes_or_steps

    @property
    def num_body_parameters(self) -> int:
        """Return the weights besides the two embeddings and the step size."""
        block = 4 * self.dim**2 + 3 * self.dim * self.ffn_width + 2 * self.dim
        body = self.num_layers * block + 2 * self.dim
        if self.variant != "default":
            body += self.num_landscapes * self.dim
        if self.variant.startswith("adaln"):
            body += (6 * self.num_layers + 2) * (self.dim**2 + self.dim)
        return body

    def initial_step_size(self, vocab_size: int) -> float:
        """Return α at the beginning.

        Unless given, it is scaled so that with an energy head of the other weights' spread the first step's logits
        would have a standard deviation of about 1, and the loss would be near ln(vocab_size). Counting the direct way
        from the candidate to the head alone: a first guess c = softmax(N(0, s²))·W has mean square
        init_std²·exp(s²)/vocab_size, RMSNorm divides by its root, and so the slope is as much larger than the head.
        """
        if self.thinking.step_size is not None:
            return self.thinking.step_size
        spread = math.exp(self.thinking.start_std**2) if self.thinking.start == "noise" else 1.0
        root_mean_square = math.sqrt(self.init_std**2 * spread / vocab_size + self.norm_eps)
        return root_mean_square / (self.init_std**2 * math.sqrt(self.dim))
