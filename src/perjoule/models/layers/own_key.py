"""Attention to shared keys and one key of one's own, with the derivatives of its slope written out.

    s_j = q·k_j, s_o = q·k';   (p, w) = softmax(s, s_o);   out = Σ_j p_j·v_j + w·v'

where k' and v' are the row's own. The same number is o + sigmoid(s_o - log Σ_j exp(s_j))·(v' - o), o being attention to
the shared keys alone: the log-sum-exp merge of one more key, without a score matrix that has room for it.

With g the gradient of the output, M the mean under (p, w), G_j = g·v_j and G_o = g·v', the slope is

    T = p·(G - M[G]);   dq = Σ_j T_j·k_j + T_o·k';   dk' = T_o·q;   dv' = w·g

and learning differentiates it once more. Left to autograd, that takes three times as many passes over memory. With a,
b, e the gradients of dq, dk' and dv', A_j = a·k_j and A_o = a·k' + b·q, what is differentiated is the covariance of A
and G under (p, w), plus w·e·g; _Slope.backward is its gradient.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def attend_with_own_key(
    q: Float[Tensor, "batch heads rows head_dim"],
    k: Float[Tensor, "batch heads columns head_dim"],
    v: Float[Tensor, "batch heads columns head_dim"],
    own_k: Float[Tensor, "batch heads rows head_dim"],
    own_v: Float[Tensor, "batch heads rows head_dim"],
    visible: Bool[Tensor, "#batch 1 #rows columns"] | None,
) -> Float[Tensor, "batch heads rows head_dim"]:
    """Attend to shared keys and to one's own.

    Gradients of a loss flow to all tensors. A gradient that shall be differentiated again (``create_graph``) is one of
    q, own_k and own_v: it is the slope of an energy at its candidate, and none is formed for k and v then.

    Args:
        q: queries, scaled.
        k: shared keys.
        v: shared values.
        own_k: the rows' own keys.
        own_v: the rows' own values.
        visible: which columns a row may see; None is all.
    """
    out: Tensor = _Attend.apply(q, k, v, own_k, own_v, visible)  # type: ignore[no-untyped-call]
    return out


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


class _Attend(torch.autograd.Function):
    """Probabilities are in float32 at least; matrix products are in the type of the values."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, own_k: Tensor, own_v: Tensor, visible: Tensor | None
    ) -> Tensor:
        wide = torch.promote_types(v.dtype, torch.float32)
        p, w = (q @ k.transpose(-1, -2)).to(wide), _dot(q, own_k).to(wide)
        if visible is not None:
            p.masked_fill_(~visible, float("-inf"))
        top = torch.maximum(p.amax(-1, keepdim=True), w)
        p, w = p.sub_(top).exp_(), w.sub_(top).exp_()
        share = 1 / (p.sum(-1, keepdim=True) + w)
        p, w = p.mul_(share), w.mul_(share).to(v.dtype)
        out = torch.addcmul(p.to(v.dtype) @ v, w, own_v)
        ctx.save_for_backward(q, k, v, own_k, own_v, p, w, out)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, own_k, own_v, p, w, out = ctx.saved_tensors
        if torch.is_grad_enabled():
            dq, d_own_k, d_own_v = _Slope.apply(g, q, k, v, own_k, own_v, p, w, out)  # type: ignore[no-untyped-call]
            return dq, None, None, d_own_k, d_own_v, None
        mean = _dot(g, out)
        t, t_own = _centred(g, v, mean, p.dtype).mul_(p).to(k.dtype), w * (_dot(g, own_v) - mean)
        dq = torch.addcmul(t @ k, t_own, own_k)
        dk = t.transpose(-1, -2) @ q if ctx.needs_input_grad[1] else None
        dv = p.to(g.dtype).transpose(-1, -2) @ g if ctx.needs_input_grad[2] else None
        return dq, dk, dv, t_own * q, w * g, None


def _centred(g: Tensor, v: Tensor, mean: Tensor, dtype: torch.dtype) -> Tensor:
    """Return G - M[G] of the shared keys."""
    return (g @ v.transpose(-1, -2)).to(dtype).sub_(mean)


class _Slope(torch.autograd.Function):
    """The gradient of q, own_k and own_v, as a function of everything; names as in the module."""

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        own_k: Tensor,
        own_v: Tensor,
        p: Tensor,
        w: Tensor,
        out: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean = _dot(g, out)
        centred, own = _centred(g, v, mean, p.dtype), _dot(g, own_v) - mean
        t_own = w * own
        ctx.save_for_backward(g, q, k, v, own_k, own_v, p, w, centred, own)
        return torch.addcmul((p * centred).to(k.dtype) @ k, t_own, own_k), t_own * q, w * g

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor, b: Tensor, e: Tensor) -> tuple[Tensor | None, ...]:
        g, q, k, v, own_k, own_v, p, w, centred, own = ctx.saved_tensors
        dtype, t_own = k.dtype, w * own
        big, big_own = (a @ k.transpose(-1, -2)).to(p.dtype), _dot(a, own_k) + _dot(b, q)
        mean = (p * big).sum(-1, keepdim=True) + w * big_own
        u, u_own = big.sub_(mean).mul_(p), (w * (big_own - mean)).to(dtype)  # p·(A - M[A])
        narrow = u.to(dtype)
        dg = torch.addcmul(torch.addcmul(narrow @ v, u_own, own_v), w, e)
        dv, d_own_v = narrow.transpose(-1, -2) @ g, u_own * g
        # The probabilities: p·(x - M[x]) with x = (A - M[A])·(G - M[G]), and e·g where the row's own value counts.
        x, x_own = u.mul_(centred), (big_own - mean) * own + _dot(e, g)
        mean = x.sum(-1, keepdim=True) + w * x_own
        s, s_own = torch.addcmul(x, p, mean, value=-1).to(dtype), (w * (x_own - mean)).to(dtype)
        t = (p * centred).to(dtype)
        dq = torch.addcmul(torch.addcmul(s @ k, s_own, own_k), t_own, b)
        dk = torch.baddbmm(
            (t.transpose(-1, -2) @ a).flatten(0, 1), s.transpose(-1, -2).flatten(0, 1), q.flatten(0, 1)
        ).view(k.shape)
        d_own_k = torch.addcmul(t_own * a, s_own, q)
        return dg, dq, dk, dv, d_own_k, d_own_v, None, None, None
