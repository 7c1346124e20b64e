"""Next-token cross-entropy in float32: from logits, or in chunks together with the output matrix.

    loss = -Σ log softmax(logits)[label] / max(1, number of labels that are not ignored)

The labels are already shifted: row i is judged by label i. Logits are the largest tensor of a training step, so what
the backward pass keeps of them are the logits themselves, in the type they came in, and one number per row; torch's own
cross-entropy keeps a second copy in float32. Neither form can be differentiated twice.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from perjoule.core.labels import IGNORED


def next_token_loss(logits: Float[Tensor, "rows vocab"], labels: Int64[Tensor, " rows"]) -> Float[Tensor, ""]:
    """Return the mean over the rows whose label is not ``IGNORED``; 0 if there is none."""
    loss: Tensor = _CrossEntropy.apply(logits, labels)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    """Forward keeps each row's log-sum-exp; backward makes the softmax from it, a few rows at a time."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        useful = labels != IGNORED
        num_useful = useful.sum().clamp(min=1)
        index = labels.clamp(min=0).unsqueeze(1)
        rows = _rows_at_a_time(logits)
        log_total = torch.cat([part.float().logsumexp(-1, keepdim=True) for part in torch.split(logits, rows)])
        losses = (log_total - logits.gather(1, index).float()).squeeze(1)
        ctx.save_for_backward(logits, log_total, index, useful, num_useful)
        return torch.where(useful, losses, 0.0).sum() / num_useful

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, log_total, index, useful, num_useful = ctx.saved_tensors
        rows = _rows_at_a_time(logits)
        shares = (useful * (grad / num_useful)).unsqueeze(1)
        slopes = torch.empty_like(logits)
        columns = (torch.split(tensor, rows) for tensor in (slopes, logits, log_total, index, shares))
        for out, part, total, label, share in zip(*columns, strict=True):
            out.copy_((part.float() - total).exp_().mul_(share).scatter_add_(1, label, -share))
        return slopes, None


def _rows_at_a_time(logits: Tensor) -> int:
    """Return how many rows a CPU's caches hold through all passes; elsewhere, and for the compiler, it is all."""
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        return max(1, len(logits))
    return max(8, (1 << 17) // logits.shape[1])


def chunked_next_token_loss(
    hidden: Float[Tensor, "rows dim"],
    weight: Float[Tensor, "vocab dim"],
    labels: Int64[Tensor, " rows"],
    chunk_rows: int,
) -> Float[Tensor, ""]:
    """Return :func:`next_token_loss` of ``hidden @ weight.T``, while only some rows of the logits exist.

    The gradient of a chunk's logits is taken while they are there, so that they are never formed again: the output
    matrix's part of the backward pass happens, and is timed, in the forward phase. The products run in the type that
    autocast gives to matrix products.

    Args:
        hidden: what the output matrix is applied to.
        weight: the output matrix.
        labels: one for each row.
        chunk_rows: rows of logits that exist at a time. Each chunk more adds the weight's gradient once.
    """
    device = hidden.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # not on meta
    dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
    if torch.is_grad_enabled():
        loss: Tensor = _ChunkedLoss.apply(hidden, weight, labels, chunk_rows, dtype)  # type: ignore[no-untyped-call]
        return loss
    narrow = weight.to(dtype)
    return called_next_token_loss(lambda rows: rows.to(dtype) @ narrow.t(), hidden, labels, chunk_rows)


def called_next_token_loss(
    head: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "rows dim"],
    labels: Int64[Tensor, " rows"],
    chunk_rows: int,
) -> Float[Tensor, ""]:
    """Return :func:`chunked_next_token_loss` of any output layer; a chunk's logits are formed again to learn from.

    Args:
        head: what gives the logits of rows.
        hidden: what it is applied to.
        labels: one for each row.
        chunk_rows: rows of logits that exist at a time.
    """

    def summed(rows: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(rows).float(), targets, ignore_index=IGNORED, reduction="sum")

    total = torch.zeros((), device=hidden.device)
    for chunk in zip(torch.split(hidden, chunk_rows), torch.split(labels, chunk_rows), strict=True):
        part = checkpoint(summed, *chunk, use_reentrant=False) if torch.is_grad_enabled() else summed(*chunk)
        total = total + part
    return total / (labels != IGNORED).sum().clamp(min=1)


class _ChunkedLoss(torch.autograd.Function):
    """Forward computes the loss and both gradients; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk_rows: int, dtype: torch.dtype
    ) -> Tensor:
        narrow = weight.to(dtype)
        useful = labels != IGNORED
        share = useful / useful.sum().clamp(min=1)
        losses, hidden_grads, weight_grad = [], [], None
        columns = (torch.split(tensor, chunk_rows) for tensor in (hidden, labels, share.unsqueeze(1)))
        for chunk, targets, shares in zip(*columns, strict=True):
            rows = chunk.to(dtype)
            logits = (rows @ narrow.t()).float()
            index = targets.clamp(min=0).unsqueeze(1)
            log_total = logits.logsumexp(-1, keepdim=True)
            losses.append(((log_total - logits.gather(1, index)) * shares).sum())
            # In place: the logits are the largest tensor of a step, and nothing else refers to them.
            grad = logits.sub_(log_total).exp_().mul_(shares).scatter_add_(1, index, -shares).to(dtype)
            hidden_grads.append(grad @ narrow)
            part = (grad.t() @ rows).to(weight.dtype)
            weight_grad = part if weight_grad is None else weight_grad + part
        ctx.save_for_backward(torch.cat(hidden_grads).to(hidden.dtype), weight_grad)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * grad.to(hidden_grad.dtype), weight_grad * grad.to(weight_grad.dtype), None, None, None
