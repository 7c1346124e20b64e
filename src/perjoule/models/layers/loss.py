"""Next-token cross-entropy in float32: from logits, or fused with the output matrix.

    loss = -Σ log softmax(logits)[label] / max(1, number of labels that are not ignored)

The labels are already shifted: row i is judged by label i. The fused form knows that the loss is the end of the graph:
it takes the gradient of the logits while it has them, so that they are written once and read once, and with
``chunk_rows`` only that many rows of them exist at a time. It cannot be differentiated twice, and a recorder sees the
backward products of the output matrix in the *forward* phase: compare phases only between runs that both use it or not.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""The label of a position that is not trained on."""


def next_token_loss(logits: Float[Tensor, "rows vocab"], labels: Int64[Tensor, " rows"]) -> Float[Tensor, ""]:
    """Return the mean over the rows whose label is not ``IGNORED``; 0 if there is none."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def fused_next_token_loss(
    hidden: Float[Tensor, "rows dim"],
    weight: Float[Tensor, "vocab dim"],
    labels: Int64[Tensor, " rows"],
    chunk_rows: int | None,
) -> Float[Tensor, ""]:
    """Return :func:`next_token_loss` of ``hidden @ weight.T``, in the type that autocast gives to matrix products.

    Args:
        hidden: what the output matrix is applied to.
        weight: the output matrix.
        labels: one for each row.
        chunk_rows: rows of logits that exist at a time; None: all. Each chunk more adds the weight's gradient once.
    """
    device = hidden.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # not on meta
    dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
    rows = chunk_rows or hidden.shape[0]
    if torch.is_grad_enabled():
        loss: Tensor = _FusedLoss.apply(hidden, weight, labels, rows, dtype)  # type: ignore[no-untyped-call]
        return loss
    narrow = weight.to(dtype)
    useful = (labels != IGNORED).sum().clamp(min=1)
    total = torch.zeros((), device=hidden.device)
    for chunk, targets in zip(torch.split(hidden, rows), torch.split(labels, rows), strict=True):
        logits = chunk.to(dtype) @ narrow.t()
        total = total + F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    return total / useful


class _FusedLoss(torch.autograd.Function):
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
            grad = ((logits - log_total).exp() * shares).scatter_add(1, index, -shares).to(dtype)
            hidden_grads.append(grad @ narrow)
            part = (grad.t() @ rows).to(weight.dtype)
            weight_grad = part if weight_grad is None else weight_grad + part
        ctx.save_for_backward(torch.cat(hidden_grads).to(hidden.dtype), weight_grad)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * grad.to(hidden_grad.dtype), weight_grad * grad.to(weight_grad.dtype), None, None, None
