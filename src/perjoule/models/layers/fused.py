"""torch's fused attention below its public name, for what the public one does not give.

That is the log-sum-exp of the scores, and a causal mask together with a bias, so that the masked half is not formed.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

FUSED_HEAD_DIM = 8
"""Head sizes that CUDA's fused kernel accepts are multiples of this."""


def attend_with_total(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch heads seq head_dim"],
    v: Float[Tensor, "batch heads seq head_dim"],
    causal: bool,
    bias: Float[Tensor, "#batch #heads seq seq"] | None = None,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "batch heads seq head_dim"], Float[Tensor, "batch heads seq"]]:
    """Return dense attention, and the log-sum-exp of each query's scores, which has no gradient.

    torch has the log-sum-exp in its fused kernels and does not return it; so they are called below their public name,
    where the device has one. Elsewhere the scores are formed: memory quadratic in ``seq``.

    Args:
        q: queries.
        k: keys.
        v: values.
        causal: whether a position sees earlier ones only.
        bias: is added to the scores; on CUDA they are formed then.
        dropout: share of the probabilities that is dropped; the scores are formed then.
    """
    if bias is not None:
        # The CPU's kernel takes a bias of float32 beside float64 without complaint, and reads numbers that are not
        # there. Beside narrower types it reads float32.
        bias = bias.to(torch.promote_types(q.dtype, torch.float32))
    if dropout > 0:
        output, total = _in_the_open(q, k, v, causal, bias, dropout)
    elif q.device.type == "cpu":
        output, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=bias, scale=None
        )
    elif q.device.type == "cuda" and q.shape[-1] % FUSED_HEAD_DIM == 0 and bias is None:
        output, total = _fused_on_cuda(q, k, v, causal)
    else:
        output, total = _in_the_open(q, k, v, causal, bias)
    return output, total.detach()


def _fused_on_cuda(
    q: Tensor, k: Tensor, v: Tensor, causal: bool
) -> tuple[Float[Tensor, "batch heads seq head_dim"], Float[Tensor, "batch heads seq"]]:
    """Compute :func:`attend_with_total` with the kernel of GPUs; tested for shapes only, for want of one."""
    output, total, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal)
    return output, total[..., : q.shape[2]]  # it is padded to a multiple of 32 queries


def _in_the_open(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None, dropout: float = 0.0
) -> tuple[Float[Tensor, "batch heads seq head_dim"], Float[Tensor, "batch heads seq"]]:
    """Compute :func:`attend_with_total` with matrix products."""
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    if causal:
        scores = scores + torch.full(scores.shape[-2:], float("-inf"), device=q.device).triu(1)
    probabilities = scores.softmax(-1)
    if dropout > 0:
        probabilities = F.dropout(probabilities, dropout)
    return probabilities.to(v.dtype) @ v, scores.detach().logsumexp(-1)
