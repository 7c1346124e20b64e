"""Grouped-query causal self-attention with a choice of kernel.

    q, k, v = x·Wq, x·Wk, x·Wv        heads of size head_dim; several query heads share one key and value head
    out     = softmax(place(q)·place(k)ᵀ / sqrt(head_dim) + causal mask)·v·Wo

Wq, Wk and Wv are the rows of :attr:`SelfAttention.qkv` in this order, so that x is read (and, under autocast, cast)
once. Wo is :attr:`SelfAttention.output`; ``place`` gives positions (layers/positions.py). Forward time is
4·dim·seq_len² multiply-adds per sample without a mask; with a cache, 4·dim·slots per token.

Vaswani et al., Attention Is All You Need, 2017; Ainslie et al., GQA, 2023.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perjoule.models.layers.cache import LayerCache, Past, recall
from perjoule.models.layers.fused import attend_with_total
from perjoule.models.layers.positions import place
from perjoule.models.layers.rope import Table

Kernel = Literal["sdpa", "blocked"]

NUM_BLOCKS, SMALLEST_BLOCK = 4, 128
"""Of the blocked kernel; n blocks form (n+1)/2n of the full score matrix: 62.5 % for 4, 75 % for 2."""


@dataclass(frozen=True)
class Places:
    """Where the tokens of a sequence stand; the same for all layers.

    Args:
        table: of the positions, from :func:`~perjoule.models.layers.positions.position_table`.
        biases: what is added to the scores to hide other documents, one for each matrix of scores that a layer forms;
            empty if there is nothing to hide.
    """

    table: Table | None
    biases: Sequence[Tensor] = ()


def sdpa(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv_heads seq head_dim"],
    v: Float[Tensor, "batch kv_heads seq head_dim"],
    bias: Float[Tensor, "batch 1 seq seq"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Attend with torch's fused kernel: memory linear in ``seq_len``, the best choice on GPUs.

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: is added to the scores; -∞ for the future, at least.
        dropout: share of the probabilities that is dropped.
    """
    if bias is None:
        shared = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=shared)
    if q.device.type == "cpu" and dropout == 0:
        # With a bias, the public function forms the masked half as well: 1.4 to 1.7 times slower at 1024 and 2048.
        return attend_with_total(q, *_shared(q, k, v), causal=True, bias=bias)[0]
    return F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype), dropout, enable_gqa=q.shape[1] != k.shape[1])


def blocked(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv_heads seq head_dim"],
    v: Float[Tensor, "batch kv_heads seq head_dim"],
    bias: Float[Tensor, "batch 1 seq seq"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Attend with plain matrix products, one block of queries after the other.

    On CPUs torch's fused kernel multiplies in float32 pieces and leaves bfloat16 units idle; matrix products do not.
    A block attends to the keys up to its own end only, so most of the masked half is never formed. The softmax is in
    float32. Keeps the formed scores for the backward pass: memory quadratic in ``seq_len``.

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: is added to the scores; -∞ for the future, at least.
        dropout: share of the probabilities that is dropped.
    """
    head_dim, seq_len = q.shape[-1], q.shape[2]
    k, v = _shared(q, k, v)
    block = max(-(-seq_len // NUM_BLOCKS), SMALLEST_BLOCK)
    mixed = []
    for start in range(0, seq_len, block):
        end = min(start + block, seq_len)
        scores = (q[:, :, start:end] @ k[:, :, :end].transpose(-1, -2)).float() * head_dim**-0.5
        if bias is None:
            hidden = torch.full((end - start, end), float("-inf"), device=q.device).triu(start + 1)
        else:
            hidden = bias[:, :, start:end, :end]
        probabilities = (scores + hidden).softmax(-1)
        if dropout > 0:
            probabilities = F.dropout(probabilities, dropout)
        mixed.append(probabilities.to(v.dtype) @ v[:, :, :end])
    return torch.cat(mixed, dim=2)


def _shared(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values once for each query head."""
    group = q.shape[1] // k.shape[1]
    return (k, v) if group == 1 else (k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1))


KERNELS: Mapping[Kernel, Callable[..., Tensor]] = {"sdpa": sdpa, "blocked": blocked}


class SelfAttention(nn.Module, ABC):
    """Causal self-attention over one sequence per sample, but for what looks at what.

    Args:
        dim: width of the residual stream.
        num_heads: query heads; divides ``dim``.
        num_kv_heads: key and value heads; divides ``num_heads``.
        bias: whether both matrices have one.
        dropout: share of the probabilities that is dropped while training.
    """

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, bias: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.head_dim, self.rate = dim // num_heads, dropout
        self.splits = [num_heads, num_kv_heads, num_kv_heads]
        self.qkv = nn.Linear(dim, sum(self.splits) * self.head_dim, bias=bias)
        self.sub_norm: nn.Module = nn.Identity()
        self.output = nn.Linear(dim, dim, bias=bias)

    def forward(
        self, x: Float[Tensor, "batch seq dim"], places: Places, cache: LayerCache | None = None
    ) -> Float[Tensor, "batch seq dim"]:
        """Mix every position with the earlier ones.

        Args:
            x: the normalised residual stream.
            places: of its positions.
            cache: takes the keys and values; if it holds some already, x is one more token of each row.
        """
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = heads.split(self.splits, dim=1)
        q, k = place(q, k, places.table)
        past = None if cache is None else cache.extend(k, v)
        mixed = self.attend(q, k, v, places.biases) if past is None else self.look_back(q, past)
        output: Tensor = self.output(self.sub_norm(mixed.transpose(1, 2).flatten(2)))
        return output

    @property
    def dropped(self) -> float:
        """Return the share of the probabilities that is dropped now."""
        return self.rate if self.training else 0.0

    @abstractmethod
    def attend(
        self,
        q: Float[Tensor, "batch heads seq head_dim"],
        k: Float[Tensor, "batch kv_heads seq head_dim"],
        v: Float[Tensor, "batch kv_heads seq head_dim"],
        biases: Sequence[Tensor],
    ) -> Float[Tensor, "batch heads seq head_dim"]:
        """Mix whole sequences, with these :attr:`Places.biases`."""

    @abstractmethod
    def look_back(
        self, q: Float[Tensor, "batch heads 1 head_dim"], past: Past
    ) -> Float[Tensor, "batch heads 1 head_dim"]:
        """Mix one more token of each row with what came before."""


class Attention(SelfAttention):
    """Causal self-attention to everything before.

    Args:
        dim: width of the residual stream.
        num_heads: query heads; divides ``dim``.
        num_kv_heads: key and value heads; divides ``num_heads``.
        kernel: what computes it; may be changed at any time.
        dropout: share of the probabilities that is dropped while training.
    """

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, kernel: Kernel, dropout: float = 0.0) -> None:
        super().__init__(dim, num_heads, num_kv_heads, dropout=dropout)
        self.kernel = kernel

    def attend(self, q: Tensor, k: Tensor, v: Tensor, biases: Sequence[Tensor]) -> Tensor:
        """Mix whole sequences with the kernel."""
        return KERNELS[self.kernel](q, k, v, *biases, dropout=self.dropped)

    def look_back(self, q: Tensor, past: Past) -> Tensor:
        """Mix one more token of each row with all before it."""
        return recall(q, past)
