"""Dilated attention: every head sees all of a short segment, and less and less of longer ones.

A pattern (w, r) cuts the sequence into segments of w positions. Head h of num_heads has the offset
j = h // ceil(num_heads / r), and in every segment attends, densely, among the positions j, j + r, j + 2r, … only.
A query at position t of head h then has from pattern i an output O_i and a log-sum-exp L_i of its scores, or nothing
(O_i = 0, L_i = -∞) if t is not one of those positions. The patterns are mixed by

    out = Σ_i α_i·O_i,    α = softmax over i of L_i,  without a gradient

which, forward, is one softmax over the keys of all patterns, a key counted as often as patterns show it. A query that
no pattern has is 0. With one segment and r = 1 it is dense attention.

Differs from the reference code: segments and heads that r does not divide are padded, but the padding is never a key
(there, zero keys attract a share of bidirectional attention); what is left behind the last whole segment is a shorter
segment, not padded to a whole one; and a log-sum-exp that happens to be 0 does not count as nothing. Documents that
share a row may be hidden from one another: a key that a query would see is left out if it is another document's.

Time Σ_i 2·seq_len·w_i/r_i²·head_dim multiply-adds per head without a mask, linear in seq_len; memory for the backward
pass O(patterns·seq_len·head_dim) per head. All segments of a pattern are one call of a fused kernel.

Ding et al., LongNet: Scaling Transformers to 1,000,000,000 Tokens, 2023.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int32, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F

from perjoule.models.layers.cache import Past
from perjoule.models.layers.documents import hiding, visible_tokens
from perjoule.models.layers.fused import attend_with_total


@dataclass(frozen=True)
class Pattern:
    """A segment length and the distance of the positions in it that see each other.

    Args:
        segment_length: at least ``dilation``.
        dilation: 1 for all positions.
    """

    segment_length: int
    dilation: int

    def offsets(self, num_heads: int, device: torch.device | None = None) -> Int64[Tensor, " heads"]:
        """Return where in a segment each head begins."""
        return torch.arange(num_heads, device=device) // -(-num_heads // self.dilation)

    def num_pairs(self, seq_len: int) -> int:
        """Return how many scores a head forms: pairs of a query and a key, the masked half included."""
        whole, rest = divmod(seq_len, self.segment_length)
        return whole * (-(-self.segment_length // self.dilation)) ** 2 + (-(-rest // self.dilation)) ** 2

    def pieces(self, seq_len: int) -> list[tuple[int, int, int]]:
        """Return where segments of one size begin and end, and the size: whole segments, then a shorter last one."""
        whole = seq_len - seq_len % self.segment_length
        pieces = [(0, whole, self.segment_length), (whole, seq_len, seq_len - whole)]
        return [(begin, end, size) for begin, end, size in pieces if begin < end]


def dilated_attention(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch heads seq head_dim"],
    v: Float[Tensor, "batch heads seq head_dim"],
    patterns: Sequence[Pattern],
    causal: bool = True,
    biases: Sequence[Tensor] = (),
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Attend in every pattern and mix.

    Args:
        q: queries.
        k: keys.
        v: values.
        patterns: at least one.
        causal: whether a position sees earlier ones only.
        biases: from :func:`document_biases`, only where it does; without, there is one document a row.
        dropout: share of each pattern's probabilities that is dropped.
    """
    rest = iter(biases)
    parts = [_attend(q, k, v, pattern, causal, rest, dropout) for pattern in patterns]
    if len(parts) == 1:
        return parts[0][0]
    with torch.no_grad():
        totals = torch.stack([total for _, total in parts])
        # Where no pattern has the query, all are -inf and the softmax is NaN.
        weights = totals.softmax(0).nan_to_num(0.0).unsqueeze(-1).to(q.dtype)
    mixed = parts[0][0] * weights[0]
    for (output, _), weight in zip(parts[1:], weights[1:], strict=True):
        mixed = torch.addcmul(mixed, output, weight)
    return mixed


def document_biases(
    documents: Int32[Tensor, "batch seq"], patterns: Sequence[Pattern], num_heads: int
) -> list[Float[Tensor, "batch heads_and_segments length length"]]:
    """Return what hides other documents, and the future, in each piece of each pattern.

    Args:
        documents: of the tokens.
        patterns: at least one.
        num_heads: of the queries.
    """
    numbers = documents[:, None, :, None].expand(-1, num_heads, -1, -1)
    return [
        hiding(visible_tokens(_take(numbers[:, :, begin:end], size, pattern.dilation).squeeze(-1)))
        for pattern in patterns
        for begin, end, size in pattern.pieces(documents.shape[1])
    ]


def dilated_recall(
    q: Float[Tensor, "batch heads 1 head_dim"], past: Past, patterns: Sequence[Pattern]
) -> Float[Tensor, "batch heads 1 head_dim"]:
    """Attend, causally, with one more query of each row: Σ_i w_i/r_i keys are looked up, however long the past.

    Args:
        q: queries.
        past: keys and values up to their own, and their positions.
        patterns: at least one.
    """
    num_heads, num_slots = q.shape[1], past.keys.shape[2]
    position = past.positions[:, None, None]
    slots, seen = [], []
    for pattern in patterns:
        size = min(pattern.segment_length, num_slots)
        offset = pattern.offsets(num_heads, q.device)[:, None]
        step = torch.arange(0, size, pattern.dilation, device=q.device)
        begin = position // pattern.segment_length * pattern.segment_length
        slot = begin + offset + step  # (batch, heads, size / dilation)
        slots.append(slot)
        seen.append((slot <= position) & ((position - begin) % pattern.dilation == offset))
    slot, visible = torch.cat(slots, -1).clamp(max=num_slots - 1), torch.cat(seen, -1)
    index = slot.unsqueeze(-1).expand(-1, -1, -1, q.shape[-1])
    scores = (q @ past.keys.gather(2, index).transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    shares = scores.masked_fill(~visible.unsqueeze(2), float("-inf")).softmax(-1).nan_to_num(0.0)
    mixed: Tensor = shares.to(q.dtype) @ past.values.gather(2, index)
    return mixed


def _attend(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, causal: bool, biases: Iterator[Tensor], dropout: float
) -> tuple[Float[Tensor, "batch heads seq head_dim"], Float[Tensor, "batch heads seq"]]:
    """Return a pattern's output and log-sum-exp at every position."""
    num_heads, seq_len = q.shape[1:3]
    outputs, totals = [], []
    for begin, end, size in pattern.pieces(seq_len):
        own_q, own_k, own_v = (_take(x[:, :, begin:end], size, pattern.dilation) for x in (q, k, v))
        bias = next(biases, None) if causal else _without_padding(pattern, size, num_heads, own_q)
        output, total = attend_with_total(own_q, own_k, own_v, causal, bias, dropout)
        outputs.append(_put(output, num_heads, size, pattern.dilation))
        dense = _put(total.unsqueeze(-1), num_heads, size, pattern.dilation).squeeze(-1)
        has_query = _has_query(pattern, size, num_heads, q.device).repeat(1, (end - begin) // size)
        totals.append(dense.masked_fill(~has_query, float("-inf")))
    if len(outputs) == 1:
        return outputs[0], totals[0]
    return torch.cat(outputs, 2), torch.cat(totals, 2)


def _has_query(
    pattern: Pattern, size: int, num_heads: int, device: torch.device
) -> Bool[Tensor, "heads segment_length"]:
    """Return which positions of a segment each head has."""
    return torch.arange(size, device=device) % pattern.dilation == pattern.offsets(num_heads, device)[:, None]


def _without_padding(
    pattern: Pattern, size: int, num_heads: int, taken: Tensor
) -> Float[Tensor, "batch heads seq seq"] | None:
    """Return a bias that hides the keys beyond a segment's end, which only bidirectional attention would see."""
    if size % pattern.dilation == 0:
        return None
    steps = torch.arange(0, size, pattern.dilation, device=taken.device)
    beyond = steps + pattern.offsets(num_heads, taken.device)[:, None] >= size
    # Finite, because a head may have no key at all, and 0/0 would spread from there in the backward pass.
    hidden = torch.zeros(beyond.shape, dtype=taken.dtype, device=taken.device)
    hidden = hidden.masked_fill(beyond, torch.finfo(taken.dtype).min / 2)
    batch, heads, length, _ = taken.shape
    return hidden.repeat_interleave(heads // num_heads, 0)[None, :, None].expand(batch, heads, length, length)


def _take(
    x: Shaped[Tensor, "batch heads seq dim"], size: int, dilation: int
) -> Shaped[Tensor, "batch heads_and_segments length dim"]:
    """Cut into segments of ``size`` and keep each head's positions, padded with zeros to the same number for all."""
    batch, num_heads, _, dim = x.shape
    x = x.reshape(batch, num_heads, -1, size, dim)
    if dilation == 1:
        return x.flatten(1, 2)
    groups, group, length = _grouped(num_heads, size, dilation)
    if (length * dilation, groups * group) != (size, num_heads):  # F.pad copies, even to add nothing
        x = F.pad(x, (0, 0, 0, length * dilation - size, 0, 0, 0, groups * group - num_heads))
    # Of the positions in a stride keep the one that is the group's number.
    x = x.reshape(batch, groups, group, -1, length, dilation, dim).diagonal(dim1=1, dim2=5)
    return x.permute(0, 5, 1, 2, 3, 4).flatten(1, 2)[:, :num_heads].flatten(1, 2)


def _put(
    x: Float[Tensor, "batch heads_and_segments length dim"], num_heads: int, size: int, dilation: int
) -> Float[Tensor, "batch heads seq dim"]:
    """Undo :func:`_take`, with zeros where a head has no position."""
    batch, _, length, dim = x.shape
    x = x.reshape(batch, num_heads, -1, length, dim)
    if dilation == 1:
        return x.flatten(2, 3)
    groups, group, length = _grouped(num_heads, size, dilation)
    if groups * group != num_heads:
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, groups * group - num_heads))
    x = x.reshape(batch, groups, group, -1, length, dim)
    dense = x.new_zeros(batch, groups, group, x.shape[3], length, dilation, dim)
    dense.diagonal(dim1=1, dim2=5).copy_(x.permute(0, 2, 3, 4, 5, 1))
    return dense.flatten(4, 5)[..., :size, :].flatten(1, 2)[:, :num_heads].flatten(2, 3)


def _grouped(num_heads: int, size: int, dilation: int) -> tuple[int, int, int]:
    """Return the number of offsets in use, the heads of each, and the positions that a head has in a segment."""
    group = -(-num_heads // dilation)
    return -(-num_heads // group), group, -(-size // dilation)
