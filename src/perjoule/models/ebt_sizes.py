"""Sizes of an Energy-Based Transformer."""

from __future__ import annotations

import math
from abc import ABC
from typing import Any, ClassVar, Literal

from perjoule.models.layers.glu import Activation
from perjoule.models.layers.positions import Positions
from perjoule.models.layers.sizes import EBT_PAPER, MATCHED, LanguageSizes
from perjoule.models.thinking import ThinkingConfig

Variant = Literal["default", "time_embed", "adaln", "adaln_zero"]
"""How an energy knows the thinking step; see ebt_body.py."""


class EBTSizes(LanguageSizes, ABC):
    """Sizes of an Energy-Based Transformer, and how it thinks while training."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        **EBT_PAPER,
        **MATCHED,
        # Two thinking steps cost 4.3 to 4.7 times the Transformer of the same blocks. For its cost a model is a seventh
        # of its size, and the vocabulary, read out at every step, is up to half of the cost.
        "match-1m-flops": {"num_layers": 3, "num_heads": 4, "dim": 64, "ffn_dim": 144},
        "match-10m-flops": {"num_layers": 4, "num_heads": 6, "dim": 192, "ffn_dim": 448},
        "match-100m-flops": {"num_layers": 9, "num_heads": 6, "dim": 384, "ffn_dim": 992},
    }

    kind: Literal["ebt"] = "ebt"
    positions: Positions = "rope"
    """How attention learns where a token stands; with ``none``, sequences may be longer than the data's."""
    variant: Variant = "default"
    """How an energy knows the thinking step: not, by a vector before the context, or by adaptive norms."""
    tie_candidates: bool = False
    """Embed candidates with the tokens' embedding."""
    norm: Literal["rms", "layer", "dyt", "none"] = "rms"
    """Norms: RMSNorm, LayerNorm, dynamic tanh in their place, or none."""
    activation: Activation = "silu"
    """Of the feed-forward layers' gate."""
    thinking: ThinkingConfig = ThinkingConfig()
    """How it thinks while training."""

    @property
    def num_landscapes(self) -> int:
        """Return the number of trained landscapes."""
        return 1 if self.variant == "default" else self.thinking.landscapes_or_steps

    @property
    def num_body_parameters(self) -> int:
        """Return the weights besides the two embeddings and the step size."""
        last = {"rms": self.dim, "layer": self.dim, "dyt": self.dim + 1, "none": 0}[self.norm]
        norm = last + self.dim * (self.norm in {"layer", "dyt"})  # a bias; the last norm has none
        block = 4 * self.dim**2 + 3 * self.dim * self.ffn_width + 2 * norm
        body = self.num_layers * block + last + self.dim
        if self.variant != "default":
            body += self.num_landscapes * self.dim
        if self.variant.startswith("adaln"):
            body += (6 * self.num_layers + 2) * (self.dim**2 + self.dim)
        return body

    def initial_step_size(self, vocab_size: int) -> float:
        """Return α at the beginning.

        Unless given, it is ``step_size_scale`` times the one with which, if the energy head had the other weights'
        spread, the first step's logits would have a standard deviation of about 1, and the loss would be near
        ln(vocab_size). Counting the direct way from the candidate to the head alone: a first guess
        c = softmax(N(0, s²))·W has mean square init_std²·exp(s²)/vocab_size, RMSNorm divides by its root, and so the
        slope is as much larger than the head.
        """
        if self.thinking.step_size is not None:
            return self.thinking.step_size
        drawn = math.exp(self.thinking.start_std**2)
        spread = {"noise": drawn, "learned": drawn, "zeros": 1.0, "recent": float(vocab_size)}[self.thinking.start]
        root_mean_square = math.sqrt(self.init_std**2 * spread / vocab_size + self.norm_eps)
        return self.thinking.step_size_scale * root_mean_square / (self.init_std**2 * math.sqrt(self.dim))
