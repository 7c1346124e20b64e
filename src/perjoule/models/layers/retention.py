"""Multi-scale retention: attention without softmax, whose memory of the past fades at a fixed rate per head.

    q, k, v, g = x·Wq, x·Wk, x·Wv, x·Wg            q and k are rotated by their position
    o_n        = Σ_{m≤n} γ^(n-m)·(q_n·k_m)·v_m / sqrt(head_dim·s_n),    s_n = Σ_{m≤n} γ^(n-m)
    out        = (silu(g) ⊙ o / sqrt(mean(o²) + eps))·Wo                the mean is over one head

Wq, Wk, Wv and Wg are the rows of :attr:`Retention.qkvg` in this order; Wo is :attr:`Retention.output`. One function,
three forms, equal up to rounding at any length:

    parallel     O = (Q·Kᵀ ⊙ D)·V, where D holds the powers of γ           time and memory O(n²)
    recurrent    S_n = γ·S_{n-1} + k_nᵀ·v_n;  o_n = q_n·S_n                 O(n) steps; the state does not grow
    chunkwise    parallel within chunks, recurrent from chunk to chunk     time O(n·(chunk + head_dim)), memory O(n)

The recurrent form reads γ·(q_n·S_{n-1}) + (q_n·k_n)·v_n. The chunkwise form is, with i the place in a chunk and c its
middle, and with γ^(i-c) in Q' and γ^(c-i) in K', which is never more than γ^(-chunk/2), 58 for the fastest head at 256,

    O = (Q·Kᵀ ⊙ D)·V + Q'·U,    U ← γ^chunk·(U + K'ᵀ·V)

Where documents that share a row are kept apart, the sums over m are over a token's own document: D is 0 between two
documents, and S is 0 where one begins. In the chunkwise form U is of the document that the last chunk ended in: only
its tokens read it in the next, and only those of the document that this one ends in are added to it.

What is kept of the reference code (torchscale) and what is not. Its three forms scale the rows of o differently, and
the norm over a head takes every positive scale of a row out again, but for ``eps``. Division by sqrt(head_dim·s_n) is
common to its parallel and its recurrent form, and exact here in all three: instead of o, ``eps`` is multiplied, by
head_dim·s_n, which costs nothing and rounds nothing. Its parallel form divides by clamp(Σ_m|…|, 1, 5e4) as well, which
no linear-time form can know (absolute values do not factor); it guards float16 against overflow, and where the sum
exceeds 1 it only makes eps larger by its square. It is not kept, so that ours is the reference's recurrent form
everywhere. Its chunkwise form follows the running maximum of the state, and differs from its own other two by as much
as 1e-2 in the logits; that is not kept either. Rotation pairs element i with element i + head_dim/2 as elsewhere in
this library (the reference: with its neighbour), a permutation of the rows of Wq and Wk.

Where q_n·k_m nearly vanishes for all m, as it may at the first token of a sequence, the norm makes little into much:
rounding is amplified there, in every form alike. The first token's head is ±v/|v| by the sign of q·k, which rounding
the weights to bfloat16 may turn, however exactly one computes with them.

Sun et al., Retentive Network: A Successor to Transformer for Large Language Models, 2023.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from perjoule.models.layers.documents import visible_tokens
from perjoule.models.layers.twice import turned

Schedule = Literal["halving", "geometric"]
Form = Literal["parallel", "recurrent", "chunkwise"]


def log_decays(num_heads: int, schedule: Schedule) -> list[float]:
    """Return ln γ of every head.

    Args:
        num_heads: how many.
        schedule: ``halving`` is γ = 1 - 2^-(5+h), of the paper's text and of its code; ``geometric`` spreads 1 - γ
            evenly in logarithm from 1/32 to 1/512, as in the paper's experiments, whatever the number of heads.
    """
    if schedule == "halving":
        forgotten = [2.0 ** -(5 + head) for head in range(num_heads)]
    else:
        step = math.log(16) / max(num_heads - 1, 1)
        forgotten = [math.exp(-step * head) / 32 for head in range(num_heads)]
    return [math.log1p(-share) for share in forgotten]


@dataclass(frozen=True)
class Timeline:
    """What the positions of a sequence mean to retention; the same for all layers.

    Only differences of positions matter to rotation and decay, so that rows which begin at different places share
    them. ``weight`` counts from the first real token of each row.

    Args:
        log_decay: (heads,) ln γ.
        rotation: (2, seq, head_dim/2) cosines and sines; None if nothing is rotated.
        weight: (rows, heads, seq) head_dim·s_n; one row if all are alike.
        mask: (batch, seq) False where the input is padded; None if it is nowhere.
        documents: (batch, seq) whose tokens shall not see each other's; None is one document a row.
    """

    log_decay: Tensor
    rotation: Tensor | None
    weight: Tensor
    mask: Tensor | None = None
    documents: Tensor | None = None


def timeline(
    log_decay: Float[Tensor, " heads"],
    positions: Int64[Tensor, " seq"],
    count: Int64[Tensor, "rows seq"],
    head_dim: int,
    theta: float | None,
    mask: Bool[Tensor, "batch seq"] | None = None,
    documents: Int32[Tensor, "batch seq"] | None = None,
) -> Timeline:
    """Return what retention needs to know of the positions, in the dtype of ``log_decay``.

    Args:
        log_decay: ln γ of every head.
        positions: of the tokens, for the rotation.
        count: real tokens of its document up to and with each; one row if all are alike. Where there is none yet, it
            counts as one.
        head_dim: of queries and keys; even if ``theta`` is given.
        theta: base of the wavelengths, which run from 2π to 2π·theta positions; None rotates nothing.
        mask: False where the input is padded.
        documents: of the tokens, where they shall not see each other's.
    """
    ages = log_decay[:, None] * count.clamp(min=1)[:, None, :]
    total = torch.expm1(ages) / torch.expm1(log_decay)[:, None]  # exact even for a head that hardly forgets
    rotation = None
    if theta is not None:
        exponents = torch.linspace(0, 1, head_dim // 2, device=log_decay.device, dtype=log_decay.dtype)
        angles = torch.outer(positions.to(log_decay.dtype), theta**-exponents)
        rotation = torch.stack((angles.cos(), angles.sin()))
    return Timeline(log_decay, rotation, head_dim * total, mask, documents)


def parallel(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch heads seq head_dim"],
    v: Float[Tensor, "batch heads seq value_dim"],
    log_decay: Float[Tensor, " heads"],
    documents: Int32[Tensor, "batch seq"] | None = None,
) -> Float[Tensor, "batch heads seq value_dim"]:
    """Retain by one masked matrix product: the definition, and memory quadratic in ``seq``.

    Like the other forms, return o·sqrt(head_dim·s_n).

    Args:
        q: rotated queries.
        k: rotated keys, zero where the input is padded.
        v: values.
        log_decay: ln γ.
        documents: of the tokens, where they shall not see each other's.
    """
    scores = q @ k.transpose(-1, -2) * _decay_mask(log_decay, q.shape[2]).to(v.dtype)
    if documents is not None:
        scores = scores * visible_tokens(documents).unsqueeze(1)
    return scores @ v


def recurrent(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch heads seq head_dim"],
    v: Float[Tensor, "batch heads seq value_dim"],
    log_decay: Float[Tensor, " heads"],
    documents: Int32[Tensor, "batch seq"] | None = None,
) -> Float[Tensor, "batch heads seq value_dim"]:
    """Retain one token after the other, as decoding does."""
    state = log_decay.new_zeros(*k.shape[:2], k.shape[3], v.shape[3])
    gamma = log_decay.exp()[:, None, None]
    mixed = []
    for n in range(q.shape[2]):
        if documents is not None and n > 0:
            state = state * (documents[:, n] == documents[:, n - 1])[:, None, None, None]
        now_q, now_k, now_v = (x[:, :, n : n + 1].to(state.dtype) for x in (q, k, v))
        mixed.append(read(state, now_q, now_k, now_v, gamma))
        state = state * gamma + k[:, :, n, :, None] * v[:, :, n, None, :]
    return torch.cat(mixed, dim=2).to(v.dtype)


def read(
    state: Float[Tensor, "batch heads head_dim value_dim"],
    q: Float[Tensor, "batch heads 1 head_dim"],
    k: Float[Tensor, "batch heads 1 head_dim"],
    v: Float[Tensor, "batch heads 1 value_dim"],
    gamma: Float[Tensor, "heads 1 1"],
) -> Float[Tensor, "batch heads 1 value_dim"]:
    """Return what a token's query finds in the state before it and in itself."""
    return q @ state * gamma + (q * k).sum(-1, keepdim=True) * v


def chunkwise(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch heads seq head_dim"],
    v: Float[Tensor, "batch heads seq value_dim"],
    log_decay: Float[Tensor, " heads"],
    chunk_len: int,
    documents: Int32[Tensor, "batch seq"] | None = None,
) -> Float[Tensor, "batch heads seq value_dim"]:
    """Retain within chunks by matrix products, and from chunk to chunk by a state; one chunk is the parallel form.

    Args:
        q: rotated queries.
        k: rotated keys, zero where the input is padded.
        v: values.
        log_decay: ln γ.
        chunk_len: the longest chunk; all are made equally long, so that next to nothing is padded.
        documents: of the tokens, where they shall not see each other's.
    """
    seq_len = q.shape[2]
    chunk = even_chunk(seq_len, chunk_len)
    num_chunks = -(-seq_len // chunk)
    if num_chunks == 1:
        return parallel(q, k, v, log_decay, documents)
    if missing := num_chunks * chunk - seq_len:
        q, k, v = (F.pad(x, (0, 0, 0, missing)) for x in (q, k, v))
    # Copied once, or each product below would; over batch, heads and chunks they are single batched ones.
    q, k, v = (x.contiguous().view(*x.shape[:2], num_chunks, chunk, x.shape[3]) for x in (q, k, v))
    fade = (log_decay[:, None] * (torch.arange(chunk, device=q.device) - chunk // 2))[:, None, :, None]
    scores = q @ k.transpose(-1, -2) * _decay_mask(log_decay, chunk)[:, None].to(v.dtype)
    to_state, from_state, kept = k * (-fade).exp().to(v.dtype), q * fade.exp().to(v.dtype), None
    if documents is not None:
        borders = _Borders.of(F.pad(documents, (0, missing)).view(-1, 1, num_chunks, chunk))
        scores, kept = scores * borders.within, borders.kept
        to_state, from_state = to_state * borders.written, from_state * borders.read
    states = _carry(to_state.transpose(-1, -2) @ v, torch.exp(log_decay * chunk), kept)
    within, across = scores @ v, from_state @ states.to(v.dtype)
    return (within + across).flatten(2, 3)[:, :, :seq_len]


@dataclass(frozen=True)
class _Borders:
    """What borders between documents let through, in the chunkwise form; all are True or False.

    Args:
        within: (batch, 1, chunks, chunk, chunk) from token to token.
        read: (batch, 1, chunks, chunk, 1) from the state that a chunk begins with to a token.
        written: (batch, 1, chunks, chunk, 1) from a token to the state that the next chunk begins with.
        kept: (batch, 1, chunks, 1, 1) from the former to the latter.
    """

    within: Tensor
    read: Tensor
    written: Tensor
    kept: Tensor

    @staticmethod
    def of(documents: Int32[Tensor, "batch 1 chunks chunk"]) -> _Borders:
        """Return those of the documents in each chunk."""
        last = documents[..., -1:]
        before = torch.cat((documents[:, :, :1, :1], last[:, :, :-1]), dim=2)  # the first chunk's state is empty
        read, written = (documents == before).unsqueeze(-1), (documents == last).unsqueeze(-1)
        return _Borders(visible_tokens(documents), read, written, (last == before).unsqueeze(-1))


def _decay_mask(log_decay: Float[Tensor, " heads"], seq_len: int) -> Float[Tensor, "heads seq seq"]:
    """Return D: γ^(n-m) for row n and column m, and 0 above the diagonal."""
    place = torch.arange(seq_len, device=log_decay.device)
    return torch.exp(log_decay[:, None, None] * (place[:, None] - place).clamp(min=0)).tril()


def even_chunk(seq_len: int, chunk_len: int) -> int:
    """Return the length of the fewest equally long chunks of at most ``chunk_len`` that hold ``seq_len`` tokens."""
    return -(-seq_len // -(-seq_len // chunk_len))


def _carry(
    added: Float[Tensor, "batch heads chunks head_dim value_dim"],
    gamma: Float[Tensor, " heads"],
    kept: Bool[Tensor, "batch 1 chunks 1 1"] | None,
) -> Float[Tensor, "batch heads chunks head_dim value_dim"]:
    """Return the state that each chunk begins with, in at least float32: rounding would add up over the chunks."""
    state = gamma.new_zeros(()).expand_as(added[:, :, 0])
    states = []
    for number, part in enumerate(added.unbind(2)):
        states.append(state)
        if kept is not None:
            state = state * kept[:, :, number]
        state = (state + part) * gamma[:, None, None]
    return torch.stack(states, dim=2)


def final_state(
    k: Float[Tensor, "batch heads seq head_dim"],
    v: Float[Tensor, "batch heads seq value_dim"],
    log_decay: Float[Tensor, " heads"],
) -> Float[Tensor, "batch heads head_dim value_dim"]:
    """Return the recurrent form's state after the last token, in one product."""
    ages = torch.arange(k.shape[2] - 1, -1, -1, device=k.device)
    faded = k * torch.exp(log_decay[:, None] * ages)[..., None]
    return (faded.transpose(-1, -2) @ v.to(faded.dtype)).to(faded.dtype)


@dataclass
class Memory:
    """What one layer remembers between two calls.

    Args:
        state: (batch, heads, head_dim, value_dim) after the last token; None before the first.
    """

    state: Tensor | None = None

    @property
    def read(self) -> Tensor:
        """Return the state after what was read."""
        assert self.state is not None
        return self.state


class Retention(nn.Module):
    """Gated multi-scale retention over one sequence per sample.

    Args:
        dim: width of the residual stream, of the queries and of the keys.
        value_dim: width of the values and of the gate.
        num_heads: divides both into heads.
        eps: added to the mean square of a head's output.
        form: how it is computed.
        chunk_len: the longest chunk of the chunkwise form.
    """

    def __init__(self, dim: int, value_dim: int, num_heads: int, eps: float, form: Form, chunk_len: int) -> None:
        super().__init__()
        self.num_heads, self.eps = num_heads, eps
        self.form: Form = form
        self.chunk_len = chunk_len
        self.splits = [2 * dim, value_dim, value_dim]
        self.qkvg = nn.Linear(dim, sum(self.splits), bias=False)
        self.output = nn.Linear(value_dim, dim, bias=False)

    def forward(
        self, x: Float[Tensor, "batch seq dim"], times: Timeline, memory: Memory | None = None
    ) -> Float[Tensor, "batch seq dim"]:
        """Mix every position with the earlier ones.

        Args:
            x: the normalised residual stream.
            times: of its positions.
            memory: takes the state to decode from, if there is one document a row; where it has one already, x is one
                more token of each row, and that state is changed in place.
        """
        q, k, v, gate = self._project(x, times)
        if memory is None or memory.state is None:
            mixed = self._mix(q, k, v, times)
            if memory is not None:
                memory.state = final_state(k, v, times.log_decay)
        else:
            q, k, v = (part.to(memory.state.dtype) for part in (q, k, v))
            gamma = times.log_decay.exp()[:, None, None]
            mixed = read(memory.state, q, k, v, gamma)
            memory.state.mul_(gamma).addcmul_(k.transpose(-1, -2), v)
        return self._finish(mixed, gate, times)

    def _project(self, x: Tensor, times: Timeline) -> tuple[Tensor, ...]:
        """Return rotated queries and keys and the values, heads first, and the gate, heads behind the positions."""
        qk, v, gate = self.qkvg(x).split(self.splits, dim=-1)
        qk = qk.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        v, gate = (part.unflatten(-1, (self.num_heads, -1)) for part in (v, gate))
        q, k = (qk if times.rotation is None else turned(qk, times.rotation)).unbind(0)
        if times.mask is not None:
            k = k * times.mask[:, None, :, None]
        return q, k, v.transpose(1, 2), gate

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, times: Timeline) -> Tensor:
        if self.form == "parallel":
            return parallel(q, k, v, times.log_decay, times.documents)
        if self.form == "recurrent":
            return recurrent(q, k, v, times.log_decay, times.documents)
        return chunkwise(q, k, v, times.log_decay, self.chunk_len, times.documents)

    def _finish(self, mixed: Tensor, gate: Tensor, times: Timeline) -> Tensor:
        """Normalise each head, gate, and project."""
        norm = torch.linalg.vector_norm(mixed, dim=-1, keepdim=True, dtype=times.weight.dtype)
        spread = torch.rsqrt(norm.square() / mixed.shape[-1] + self.eps * times.weight.unsqueeze(-1))
        normalised = (mixed * spread).to(gate.dtype).transpose(1, 2)
        output: Tensor = self.output((F.silu(gate) * normalised).flatten(2))
        return output
