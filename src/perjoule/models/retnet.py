"""Retentive network (RetNet): retention in place of attention, so that decoding costs the same at any length.

    h = Embedding(tokens)
    h = h + Retention(RMSNorm(h));  h = h + GLU(RMSNorm(h))        num_layers times
    loss = cross-entropy(RMSNorm(h)·Woutᵀ, labels)

:mod:`perjoule.models.layers.retention` has the formula of retention, and says where the published forms of it
disagree and which of them this is. The function is torchscale's, in its parallel and recurrent forms (a test copies
weights and compares logits and gradients). What differs: one matrix makes queries, keys, values and gates, and one the
two halves of the GLU; the weights start as the Transformer's do, so that a comparison compares architectures, where the
reference has Xavier gains of 2^-2.5 (q, k, v, g) and 2^-1 (output of retention). The paper's feed-forward layer has
two matrices, its code's three.

Retention has no longest sequence: ``seq_len`` bounds neither a prompt nor what is generated. What is retained of a
packed document fades into the next, unless the batch says which is which.

Per sample: time O(num_layers·seq_len·dim·(dim + chunk_len)), memory for the backward pass O(num_layers·seq_len·(dim +
num_heads·chunk_len)), both linear in seq_len, and seq_len·vocab_size for the loss. Decoding: time and memory of a token
are O(num_layers·dim·(dim + value_dim/num_heads)), however many there were.

Sun et al., Retentive Network: A Successor to Transformer for Large Language Models, 2023.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int32, Int64
from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator
from torch import Tensor, nn

from perjoule.models.contract import FlopsPerToken
from perjoule.models.layers.cache import Tokens, align
from perjoule.models.layers.documents import places_within
from perjoule.models.layers.dropout import dropout_layer
from perjoule.models.layers.glu import GLU
from perjoule.models.layers.language import LanguageModel, embed
from perjoule.models.layers.norm import RMSNorm
from perjoule.models.layers.retention import Memory, Retention, Timeline, even_chunk, log_decays, timeline
from perjoule.models.layers.sizes import LanguageConfig


def _size(dim: int, width: int, num_layers: int, num_heads: int, ffn_dim: int | None = None) -> dict[str, Any]:
    """Return a size with values as wide as its feed-forward layers, unless those are given."""
    widths = {"dim": dim, "value_dim": width, "ffn_dim": ffn_dim or width}
    return {**widths, "num_layers": num_layers, "num_heads": num_heads}


class RetNetConfig(LanguageConfig):
    """Sizes of a retentive network."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # torchscale's: 19.1, 203.5, 1220.6, 2523, 6510, 12616 and 52078 million parameters besides the embedding and
        # the output matrix. Queries and keys have 256 numbers per head, in base 2 heads.
        "base": _size(512, 864, 6, 2),
        "medium": _size(1024, 1728, 16, 4),
        "xl": _size(2048, 3456, 24, 8),
        "3b": _size(2560, 4280, 32, 10),
        "7b": _size(4096, 6912, 32, 16),
        "13b": _size(5120, 8560, 40, 20),
        "65b": _size(8192, 13824, 64, 32),
        # As large as a Transformer of the same dim and depth: width is 5/3·dim, which torchscale's 27/16 rounds up.
        "match-1m": _size(144, 240, 4, 3),
        "match-10m": _size(384, 640, 6, 4),
        "match-100m": _size(768, 1280, 14, 4),
        "match-1m-flops": _size(144, 240, 4, 3, ffn_dim=224),
        "match-10m-flops": _size(384, 640, 6, 4),
        "match-100m-flops": _size(768, 1280, 14, 4, ffn_dim=1312),
    }

    kind: Literal["retnet"] = "retnet"
    positions: Literal["rotation", "none"] = "rotation"
    """Beside the decay, rotate queries and keys by their position, as published, or do not. There is no ``xpos``: a
    rotation with a decay is what xPos is, and retention has it by nature, a rate for each head."""
    value_dim: PositiveInt | None = Field(None, validate_default=True)
    """Width of the values and of their gate; divisible by ``num_heads``; null is 27/16·dim, as in the published sizes,
    rounded up to a multiple of 16 and of ``num_heads``."""
    ffn_dim: PositiveInt | None = None
    """Width of the feed-forward layers; null is ``value_dim``, which makes a block as large as a Transformer's."""
    activation: Literal["silu", "gelu"] = "silu"
    """Of the feed-forward layers; the published sizes have silu."""
    decay: Literal["halving", "geometric"] = "halving"
    """What heads forget per token: 2^-(5+h) as in the published code, or 1/32 to 1/512 in equal ratios as in the
    paper's experiments."""
    norm_eps: PositiveFloat = 1e-6
    """Added to the mean square in RMSNorm and in the norm of each head."""
    retention: Literal["auto", "parallel", "chunkwise", "recurrent"] = "auto"
    """Form; ``auto`` is chunkwise, which is the parallel form for a sequence that fits into one chunk."""
    chunk_len: PositiveInt = 256
    """The longest chunk of the chunkwise form, in tokens."""

    @field_validator("value_dim")
    @classmethod
    def _check_value_dim(cls, value_dim: int | None, info: ValidationInfo) -> int | None:
        num_heads = info.data.get("num_heads")
        if value_dim is not None and num_heads is not None and value_dim % num_heads:
            below = value_dim // num_heads * num_heads
            near = ", ".join(str(n) for n in (below, below + num_heads) if n)
            raise ValueError(f"{value_dim} is not divisible by num_heads {num_heads} (nearest: {near})")
        return value_dim

    @property
    def value_width(self) -> int:
        """Return the width of the values."""
        multiple = math.lcm(16, self.num_heads)
        return self.value_dim or multiple * math.ceil(27 * self.dim / 16 / multiple)

    @property
    def ffn_width(self) -> int:
        """Return the width of the feed-forward layers."""
        return self.ffn_dim or self.value_width

    @property
    def num_body_parameters(self) -> int:
        """Return the weights besides the embedding and the output matrix."""
        retention = self.dim * (2 * self.dim + 3 * self.value_width)
        norms = 2 * self.dim
        return self.num_layers * (retention + 3 * self.dim * self.ffn_width + norms) + self.dim

    def build(self, shape: Mapping[str, int]) -> RetNet:
        """Build the model for a data set; see :meth:`LanguageSizes.build`."""
        return RetNet(self, self.vocabulary(shape))


@dataclass
class RetNetCache:
    """What a RetNet remembers of what it has read; its size does not depend on how much that was.

    Args:
        states: of each layer, (batch, heads, head_dim, value_head_dim), float32 or wider.
        num_read: (batch,) real tokens of each row so far.
        num_steps: scalar; tokens so far with the padding, which is where the next one is.
    """

    states: list[Tensor]
    num_read: Tensor
    num_steps: Tensor

    def select(self, rows: Int64[Tensor, " batch"]) -> RetNetCache:
        """Return the cache of these rows, in this order."""
        return RetNetCache([state[rows] for state in self.states], self.num_read[rows], self.num_steps)


class Block(nn.Module):
    """One retention and one feed-forward layer, each normalised before and added to the residual stream.

    Args:
        config: the model's.
    """

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__()
        form = "chunkwise" if config.retention == "auto" else config.retention
        self.dropout = dropout_layer(config.dropout)
        self.retention_norm = RMSNorm(config.dim, config.norm_eps)
        self.retention = Retention(
            config.dim, config.value_width, config.num_heads, config.norm_eps, form, config.chunk_len
        )
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = GLU(config.dim, config.ffn_width, config.activation, config.activation_dropout)

    def forward(
        self, x: Float[Tensor, "batch seq dim"], times: Timeline, memory: Memory | None = None
    ) -> Float[Tensor, "batch seq dim"]:
        """Add both layers' outputs to the residual stream; see :meth:`Retention.forward`."""
        x = x + self.dropout(self.retention(self.retention_norm(x), times, memory))
        mixed: Tensor = x + self.dropout(self.ffn(self.ffn_norm(x)))
        return mixed


class RetNet(LanguageModel):
    """Retentive network; see the module for the formula.

    Args:
        config: sizes.
        vocab_size: rows of the embedding.
    """

    config: RetNetConfig

    def __init__(self, config: RetNetConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size, lambda: Block(config), lambda: RMSNorm(config.dim, config.norm_eps))
        self.log_decays = log_decays(config.num_heads, config.decay)

    def places(
        self, x: Float[Tensor, "batch seq dim"], documents: Int32[Tensor, "batch seq"] | None = None
    ) -> Timeline:
        """Return what retention needs to know of whole sequences of any length."""
        positions = torch.arange(x.shape[1], device=x.device)
        within = positions[None] if documents is None else places_within(documents)
        return self._times(x.dtype, positions, within + 1, documents=documents)

    @torch.no_grad()
    def prefill(
        self, input_ids: Tokens, mask: Bool[Tensor, "batch seq"] | None = None
    ) -> tuple[Float[Tensor, "batch vocab"], RetNetCache]:
        """Read prompts in the form that training uses, and return what to decode from.

        Args:
            input_ids: tokens, padded on the left.
            mask: True for real tokens; None if all are.

        Raises:
            ConfigError: if a prompt is empty, or padded elsewhere.
        """
        align(input_ids, mask)  # refuses such prompts; these stay where they are, so that all end together
        batch_size, seq_len = input_ids.shape[:2]
        positions = torch.arange(seq_len, device=input_ids.device)
        count = positions[None] + 1 if mask is None else mask.cumsum(1)
        x = embed(self.embedding, input_ids)
        times, memories = self._times(x.dtype, positions, count, mask), [Memory() for _ in self.blocks]
        for block, memory in zip(self.blocks, memories, strict=True):
            x = block(x, times, memory)
        states = [memory.read for memory in memories]
        num_read = count[:, -1].expand(batch_size)
        return self.next_logits(self.norm(x[:, -1])), RetNetCache(states, num_read, positions[-1] + 1)

    @torch.no_grad()
    def decode(
        self, token: Int64[Tensor, " batch"], cache: RetNetCache
    ) -> tuple[Float[Tensor, "batch vocab"], RetNetCache]:
        """Read one more token of each row, in time that does not depend on how many there were.

        Args:
            token: one of each row.
            cache: as returned before; its states are changed in place.
        """
        num_read = cache.num_read + 1
        x = self.embedding(token[:, None])
        times = self._times(x.dtype, cache.num_steps[None], num_read[:, None])
        for block, state in zip(self.blocks, cache.states, strict=True):
            x = block(x, times, Memory(state))
        return self.next_logits(self.norm(x[:, -1])), RetNetCache(cache.states, num_read, cache.num_steps + 1)

    def flops_per_token(self, seq_len: int) -> FlopsPerToken:
        """Return the training FLOPs per token, from the sizes: compiled, wrapped or sharded models give the same.

        ``full`` is 6·(parameters - embedding), and 6·(dim + value_dim) per layer and token of the chunk (of the
        sequence in the parallel form), of which ``causal`` counts half. Where there are several chunks, the state costs
        12·dim·value_dim/num_heads more per layer; it is all there is in the recurrent form. Padding of the last chunk
        and decays do not count.
        """
        config = self.config
        chunks = {"parallel": seq_len, "recurrent": 0}
        chunk = chunks.get(config.retention, even_chunk(seq_len, config.chunk_len))
        within = 6 * config.num_layers * (config.dim + config.value_width) * chunk
        through = 0 if chunk == seq_len else 12 * config.num_layers * config.head_dim * config.value_width
        matrices = self.matrix_flops + through
        return FlopsPerToken(matrices + within, matrices + within // 2)

    def _times(
        self,
        narrow: torch.dtype,
        positions: Tensor,
        count: Tensor,
        mask: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Timeline:
        config, device = self.config, positions.device
        dtype = torch.promote_types(narrow, torch.float32)
        theta = config.rope_theta if config.positions == "rotation" else None
        log_decay = torch.tensor(self.log_decays, device=device, dtype=dtype)
        return timeline(log_decay, positions, count, config.head_dim, theta, mask, documents)
