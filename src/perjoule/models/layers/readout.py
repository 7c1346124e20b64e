"""From an energy's slope at the candidate's embedding to logits, and their cross-entropy.

A candidate is a distribution p over the vocabulary, seen by the network as the embedding c = p·W. The gradient of an
energy E(c) at p is δ·Wᵀ with δ = dE/dc, so that one step of gradient descent from p gives

    z = p - (α·δ)·Wᵀ

and only δ, dim numbers for each position, ever comes out of the network. The new logits are a read-out through the
transposed input matrix; there is no output matrix. The loss against soft targets, a share s of them spread evenly, is

    loss = (1 - s)·(-log softmax(z)[label]) + s·mean(-log softmax(z))
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from perjoule.core.labels import IGNORED
from perjoule.models.layers.loss import next_token_loss


def read_out(
    base: Float[Tensor, "*batch vocab"], move: Float[Tensor, "*batch dim"], weight: Float[Tensor, "vocab dim"]
) -> Float[Tensor, "*batch vocab"]:
    """Return ``base - move·Wᵀ``, without a second tensor of that size where all have one type.

    A base that is wider than the weights stays as wide: rounded to bfloat16, logits of 16 lie 0.125 apart.
    """
    if torch.promote_types(base.dtype, weight.dtype) != weight.dtype:
        return base - (move @ weight.t()).to(base.dtype)
    rows = base.flatten(0, -2).to(weight.dtype)
    return torch.addmm(rows, move.flatten(0, -2), weight.t(), alpha=-1).view(base.shape)


def soft_target_loss(
    logits: Float[Tensor, "rows vocab"], labels: Int64[Tensor, " rows"], smoothing: float
) -> Float[Tensor, ""]:
    """Return the mean loss over the rows whose label is not ``IGNORED``; 0 if there is none.

    Args:
        logits: of any float type; the loss is in float32 at least.
        labels: one for each row.
        smoothing: the share of the target that is spread over the whole vocabulary.
    """
    if smoothing == 0 and logits.dtype != torch.float64:  # which next_token_loss would narrow
        return next_token_loss(logits, labels)
    wide = logits.float() if logits.dtype in {torch.bfloat16, torch.float16} else logits
    total = F.cross_entropy(wide, labels, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)
    return total / (labels != IGNORED).sum().clamp(min=1)


def chunked_read_out_loss(
    base: Float[Tensor, "rows vocab"],
    move: Float[Tensor, "rows dim"],
    weight: Float[Tensor, "vocab dim"],
    labels: Int64[Tensor, " rows"],
    smoothing: float,
    chunk_rows: int,
) -> Float[Tensor, ""]:
    """Return :func:`soft_target_loss` of :func:`read_out`, while only some rows of the logits exist.

    Like :func:`~perjoule.models.layers.loss.chunked_next_token_loss` it takes the gradients while the logits are there.

    Args:
        base: what the step starts from; a constant: no gradient flows into it.
        move: the slope times the step size.
        weight: the candidates' embedding.
        labels: one for each row.
        smoothing: share of the target that is spread over the vocabulary.
        chunk_rows: rows of logits that exist at a time.
    """
    device = base.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # not on meta
    dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
    arguments = (base, move, weight, labels, smoothing, chunk_rows, dtype)
    loss: Tensor = _ChunkedReadOut.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedReadOut(torch.autograd.Function):
    """Forward computes the loss and both gradients; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor,
        move: Tensor,
        weight: Tensor,
        labels: Tensor,
        smoothing: float,
        chunk_rows: int,
        dtype: torch.dtype,
    ) -> Tensor:
        wide, narrow = torch.promote_types(base.dtype, torch.float32), weight.to(dtype)
        useful = (labels != IGNORED).to(wide)
        share = useful / useful.sum().clamp(min=1)
        losses, move_grads, weight_grad = [], [], torch.zeros_like(weight)
        columns = (torch.split(tensor, chunk_rows) for tensor in (base, move, labels.unsqueeze(1), share.unsqueeze(1)))
        for start, moves, targets, shares in zip(*columns, strict=True):
            rows, index = moves.to(dtype), targets.clamp(min=0)
            logits = start.to(wide) - (rows @ narrow.t()).to(wide)
            log_total = logits.logsumexp(-1, keepdim=True)
            hit, mean = logits.gather(1, index), logits.mean(-1, keepdim=True)
            losses.append(((log_total - (1 - smoothing) * hit - smoothing * mean) * shares).sum())
            grad = logits.sub_(log_total).exp_().mul_(shares)  # in place: the largest tensor of a step
            grad.sub_(shares * (smoothing / grad.shape[1])).scatter_add_(1, index, (smoothing - 1) * shares)
            narrowed = grad.to(dtype)
            move_grads.append(-(narrowed @ narrow))
            weight_grad -= (narrowed.t() @ rows).to(weight.dtype)
        ctx.save_for_backward(torch.cat(move_grads).to(move.dtype), weight_grad)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, None, None, None, None]:
        move_grad, weight_grad = ctx.saved_tensors
        return (
            None,
            move_grad * grad.to(move_grad.dtype),
            weight_grad * grad.to(weight_grad.dtype),
            None,
            None,
            None,
            None,
        )
