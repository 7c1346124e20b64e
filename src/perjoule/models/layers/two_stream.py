"""Attention of candidates to a context, and of each candidate to itself: one extra key, merged exactly.

A context of tokens reads itself causally, as in any decoder. Beside it stand candidates for the next tokens. Candidate
i sees the context up to token i and itself (own_key.py), and neither the other candidates nor anything later. So there
is neither the (seq, seq+1) score matrix with an overwritten diagonal of the released code, nor one mask over both
streams. The context never sees a candidate, so that its keys and values may be kept.

Queries are taken in blocks, and a block forms scores only up to its own end. Memory for the backward pass is quadratic
in the length for candidates and, with the fused kernel, linear for the context, unless documents are kept apart.

Gladstone et al., Energy-Based Transformers are Scalable Learners and Thinkers, 2025.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from perjoule.models.layers.linear import call_differentiably, is_plain
from perjoule.models.layers.own_key import attend_with_own_key
from perjoule.models.layers.rope import Table
from perjoule.models.layers.twice import placed, turned

Stream = Literal["context", "candidates", "keys"]
"""What goes through a layer: tokens, candidates, or tokens of which only keys and values are wanted."""

NUM_BLOCKS, SMALLEST_BLOCK = 4, 256
"""Blocks of queries; four of them form 62.5 % of the full score matrix."""


def _causally(
    q: Tensor, k: Tensor, v: Tensor, own_k: Tensor, own_v: Tensor, visible: Bool[Tensor, "batch 1 rows columns"] | None
) -> Tensor:
    """Attend where row i sees no column behind its own token, or fewer; there may be more columns than rows."""
    num_rows, columns = q.shape[2], k.shape[2]
    block = max(-(-num_rows // NUM_BLOCKS), SMALLEST_BLOCK)
    parts = []
    for start in range(0, num_rows, block):
        end = min(start + block, num_rows)
        reach = end + columns - num_rows
        if visible is None:
            earlier = torch.ones(end - start, reach, dtype=torch.bool, device=q.device)
            seen = earlier.tril(start + columns - num_rows)[None, None]
        else:
            seen = visible[:, :, start:end, :reach]
        rows_q, rows_k, rows_v = (x[:, :, start:end] for x in (q, own_k, own_v))
        parts.append(attend_with_own_key(rows_q, k[:, :, :reach], v[:, :, :reach], rows_k, rows_v, seen))
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


class TwoStreamAttention(nn.Module):
    """Self-attention of a context, and attention of candidates to it and to themselves, with the same weights.

    Args:
        dim: width of the residual stream.
        num_heads: heads; divides ``dim``.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.dim, self.head_dim = dim, dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Float[Tensor, "batch seq dim"], stream: Stream, table: Table | None, kept: Tensor | None, visible: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        """Mix one stream; return what is added to it, and its keys and values, where there is such.

        Args:
            x: the normalised residual stream.
            stream: which one it is.
            table: of its positions.
            kept: keys and values of earlier tokens; for candidates, of the context.
            visible: see :meth:`context` and :meth:`candidates`.
        """
        if stream == "candidates":
            assert kept is not None
            return self.candidates(x, table, kept, visible), None
        return (None, self.keys_and_values(x, table)) if stream == "keys" else self.context(x, table, kept, visible)

    def keys_and_values(
        self, x: Float[Tensor, "batch seq dim"], table: Table | None
    ) -> Float[Tensor, "2 batch heads seq head_dim"]:
        """Return what candidates see of a context: keys that know their positions, and values."""
        if is_plain(self.qkv, nn.Linear):  # its queries, a twelfth of a block's work, are not needed
            keys_and_values = F.linear(x, self.qkv.weight[self.dim :])
        else:
            keys_and_values = self.qkv(x).split([self.dim, 2 * self.dim], dim=-1)[1]
        k, v = self._heads(keys_and_values).chunk(2, dim=1)
        return torch.stack((k if table is None else turned(k, table[-2:]), v))

    def context(
        self,
        x: Float[Tensor, "batch seq dim"],
        table: Table | None,
        past: Float[Tensor, "2 batch heads past head_dim"] | None,
        visible: Bool[Tensor, "#batch 1 seq columns"] | None,
    ) -> tuple[Float[Tensor, "batch seq dim"], Float[Tensor, "2 batch heads columns head_dim"]]:
        """Mix the context's tokens.

        Args:
            x: its normalised residual stream.
            table: of the tokens' positions.
            past: keys and values of earlier tokens.
            visible: which columns, past ones first, each token may see; None is the earlier ones and itself.

        Returns:
            The mixed tokens, and the keys and values of past and present ones.
        """
        q, k, v = self._placed(x, table)
        kept = torch.stack((k, v))
        if past is not None:
            kept = torch.cat((past, kept), dim=3)
            k, v = kept.unbind()
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None)
        return call_differentiably(self.output, mixed.transpose(1, 2).flatten(2)), kept

    def candidates(
        self,
        x: Float[Tensor, "batch rows dim"],
        table: Table | None,
        kept: Float[Tensor, "2 batch heads columns head_dim"],
        visible: Bool[Tensor, "#batch 1 #rows columns"] | None,
    ) -> Float[Tensor, "batch rows dim"]:
        """Let every candidate read the context and itself.

        Args:
            x: the candidates' normalised residual stream.
            table: of the positions that they are candidates for.
            kept: the context's keys and values.
            visible: which columns each may see, none of them behind its own token; None is all of those. The last
                row's token is the last column, unless all rows see the same.
        """
        q, k, v = self._placed(x, table)
        q, (seen_k, seen_v) = q * self.head_dim**-0.5, kept.unbind()
        if visible is None or visible.shape[2] > 1:
            mixed = _causally(q, seen_k, seen_v, k, v, visible)
        else:
            mixed = attend_with_own_key(q, seen_k, seen_v, k, v, visible)
        return call_differentiably(self.output, mixed.transpose(1, 2).flatten(2))

    def _placed(self, x: Tensor, table: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys that know their positions, and values."""
        num_heads = self.dim // self.head_dim
        # Split, not sliced: the gradient of a slice is a tensor of zeros with something in it.
        queries_and_keys, v = torch.split(
            self._heads(call_differentiably(self.qkv, x)), [2 * num_heads, num_heads], dim=1
        )
        return *placed(queries_and_keys, table), v

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
