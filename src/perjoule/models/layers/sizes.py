"""Sizes that language models have in common, and what they refuse.

    LanguageSizes              every one: vocabulary, width, depth, heads
      LanguageConfig           with an output matrix
        AttentionConfig        whose blocks attend, so that positions may be chosen

An architecture's config adds its own fields to the one that fits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator
from torch import nn

from perjoule.config import Config
from perjoule.core.errors import ConfigError
from perjoule.models.layers.dropout import Rate
from perjoule.models.layers.positions import Positions


def _square(num_layers: int, num_heads: int, dim: int) -> dict[str, Any]:
    """Return a size whose feed-forward layers are as wide as the residual stream."""
    return {"num_layers": num_layers, "num_heads": num_heads, "dim": dim, "ffn_dim": dim}


Initialisation = Literal["normal", "xavier", "he"]
"""How matrices start; see :func:`~perjoule.models.layers.language.initialise`."""

EBT_PAPER: Mapping[str, dict[str, Any]] = {
    "4xs": _square(2, 2, 128),
    "3xs": _square(4, 4, 256),
    "2xs": _square(6, 6, 384),
    "xxs": _square(6, 6, 384),
    "xs": _square(12, 6, 384),
    "small": _square(12, 12, 768),
    "medium": _square(24, 16, 1024),
    "large": _square(24, 16, 1536),
    "xl": _square(24, 32, 2048),
}
"""Of the models and of the Transformers in Gladstone et al., Energy-Based Transformers, 2025: 7·num_layers·dim² weights
in the matrices of the blocks, or 0.23, 1.8, 6.2, 6.2, 12.4, 49.5, 176, 396 and 705 million."""


MATCHED: Mapping[str, dict[str, Any]] = {
    "match-1m": {"num_layers": 4, "num_heads": 6, "dim": 144, "ffn_dim": 384},
    "match-10m": {"num_layers": 6, "num_heads": 6, "dim": 384, "ffn_dim": 1024},
    "match-100m": {"num_layers": 14, "num_heads": 12, "dim": 768, "ffn_dim": 2048},
}
"""Of Transformers, 12·num_layers·dim² weights in the blocks; every other architecture has presets of the same number
(``match-…``) and of the same training FLOPs per token (``match-…-flops``). See :mod:`perjoule.models.matched`."""


_MOST_TRIED = 1_000_000


def divisors_near(number: int, wanted: int) -> str:
    """Return the four divisors of a number that are nearest to ``wanted``."""
    small = [n for n in range(1, min(math.isqrt(number), _MOST_TRIED) + 1) if number % n == 0]
    divisors = {*small, *(number // n for n in small)}
    return ", ".join(str(n) for n in sorted(sorted(divisors, key=lambda n: abs(n - wanted))[:4]))


class LanguageSizes(Config, ABC):
    """Sizes of a language model."""

    kind: str
    preset: str | None = None
    """A size by name; keys that are given beside it win."""
    vocab_size: PositiveInt | None = None
    """Rows of the embedding; null is the tokenizer's, and more than that is allowed."""
    positions: str
    """How the model learns where a token stands."""
    dim: PositiveInt = 256
    """Width of the residual stream."""
    num_layers: PositiveInt = 4
    """Blocks, each of one layer that mixes positions and one feed-forward layer."""
    num_heads: PositiveInt = Field(4, validate_default=True)
    """Heads of queries; divides ``dim``."""
    ffn_dim: PositiveInt | None = None
    """Width of the feed-forward layers; null is 8/3·dim rounded up to a multiple of 16."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the mean square (or variance) in norms."""
    rope_theta: PositiveFloat = 1e4
    """Base of the wavelengths of rotary positions."""
    loss_chunk_rows: PositiveInt | None = None
    """Tokens whose last logits exist at a time; null is all of the batch."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of the initial weights; with another ``init``, of the embeddings'."""
    init: Initialisation = "normal"
    """Initial matrices: of one standard deviation, or of one that their sizes give."""
    init_gain: PositiveFloat = 1.0
    """Multiplies the standard deviation of ``xavier`` and ``he``."""
    embedding_lr: PositiveFloat = 1.0
    """Learning rate of the embeddings, as a multiple of the other weights'."""
    dropout: Rate = 0.0
    """Share of the numbers that is dropped while training, of embedded tokens and of what every layer adds to the
    residual stream."""
    activation_dropout: Rate = 0.0
    """Share of the feed-forward layers' activations that is dropped while training."""

    @field_validator("num_heads")
    @classmethod
    def _check_heads(cls, num_heads: int, info: ValidationInfo) -> int:
        dim, positions = info.data.get("dim"), info.data.get("positions")  # absent if it was refused itself
        if dim is None or positions is None:
            return num_heads
        rotated = positions != "none"  # pairs of a head's numbers are turned: there is an even number of them
        if rotated and dim % 2:
            raise ValueError(
                f"no number of heads divides dim {dim} into heads of even size, as positions {positions} needs; "
                "make dim even"
            )
        near = divisors_near(dim // 2 if rotated else dim, num_heads)
        if dim % num_heads:
            raise ValueError(f"{num_heads} does not divide dim {dim} (nearest: {near})")
        if rotated and dim // num_heads % 2:
            raise ValueError(
                f"{num_heads} leaves heads of size {dim // num_heads}, and positions {positions} needs an even size "
                f"(nearest: {near})"
            )
        return num_heads

    @property
    def head_dim(self) -> int:
        """Return the size of a head of queries and keys."""
        return self.dim // self.num_heads

    @property
    def ffn_width(self) -> int:
        """Return the width of the feed-forward layers."""
        return self.ffn_dim or 16 * math.ceil(8 * self.dim / 3 / 16)

    @property
    @abstractmethod
    def num_body_parameters(self) -> int:
        """Return the weights besides the embedding and what logits are read out with."""

    @abstractmethod
    def build(self, shape: Mapping[str, int]) -> nn.Module:
        """Build the model for a data set.

        Args:
            shape: the data's ``vocab_size`` and ``seq_len``.

        Raises:
            ConfigError: if the data is not text, or has tokens that the model's vocabulary has not; if positions
                cannot reach so far.
        """

    def vocabulary(self, shape: Mapping[str, int]) -> int:
        """Return the rows of the embedding for a data set.

        Args:
            shape: the data's ``vocab_size`` and ``seq_len``.

        Raises:
            ConfigError: if the data is not text, or has tokens that the model's vocabulary has not.
        """
        missing = [name for name in ("vocab_size", "seq_len") if name not in shape]
        if missing:
            raise ConfigError(
                f"model.kind {self.kind} needs data with vocab_size and seq_len, such as text; "
                f"this data has {', '.join(shape) or 'neither'}"
            )
        rows = self.vocab_size or shape["vocab_size"]
        if rows < shape["vocab_size"]:
            raise ConfigError(
                f"model.vocab_size {rows} is smaller than the data's {shape['vocab_size']}; "
                f"accepted: null (the data's own) or at least {shape['vocab_size']}"
            )
        return rows


class LanguageConfig(LanguageSizes, ABC):
    """Sizes of a language model with an output matrix."""

    tie_embeddings: bool = False
    """Use the embedding as the output matrix."""
    activation_checkpointing: bool = False
    """Keep only the input of each block and compute the block again in the backward pass."""


class AttentionConfig(LanguageConfig, ABC):
    """Sizes of a language model whose blocks attend."""

    positions: Positions = "rope"
    """How attention learns where a token stands; with ``none``, sequences may be longer than the data's."""
    attention_dropout: Rate = 0.0
    """Share of the attention's probabilities that is dropped while training; on CPUs the scores are formed then."""
