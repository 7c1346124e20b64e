"""Norm, gate and positions with the derivatives of their slopes written out.

An energy is differentiated at its candidate, and that slope again for learning. Left to autograd, the second time takes
34 passes over memory for a norm, 17 for a gate and 14 for a rotation; here 15, 12 and 8. The functions are those of
norm.py, glu.py and positions.py, and so are their first derivatives. As in own_key.py, a gradient that is to be
differentiated again is one of the input: none is formed for a norm's weight then. Small tensors, as in decoding, are
left to torch's own kernels: what they cost is the calls, not the passes.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from perjoule.models.layers.glu import ACTIVATIONS, Activation
from perjoule.models.layers.norm import RMSNorm
from perjoule.models.layers.rope import Table, rotate

SMALL = 1 << 14
"""Numbers of a tensor below which a call costs more than a pass over it."""


class EnergyRMSNorm(RMSNorm):
    """:class:`RMSNorm` with the derivative of its slope written out."""

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the normalised vectors in the dtype of ``x``."""
        if x.numel() <= SMALL and x.dtype == self.weight.dtype:
            return super().forward(x)
        y: Tensor = _Norm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return y


def gated(x: Float[Tensor, "*batch doubled"], activation: Activation = "silu") -> Float[Tensor, "*batch halved"]:
    """Return ``activation(gate)·up`` of the two halves of ``x``; that of silu is written out."""
    if x.numel() <= SMALL or activation != "silu":
        gate, up = x.chunk(2, dim=-1)
        return ACTIVATIONS[activation](gate) * up
    y: Tensor = _Gate.apply(x)  # type: ignore[no-untyped-call]
    return y


def placed(
    heads: Float[Tensor, "batch doubled seq head_dim"], table: Table | None
) -> tuple[Float[Tensor, "batch heads seq head_dim"], Float[Tensor, "batch heads seq head_dim"]]:
    """Return :func:`~perjoule.models.layers.positions.place` of queries and as many keys.

    Args:
        heads: queries, then keys.
        table: two parts that serve both, four of which the last two are the keys', or None.
    """
    if table is not None and len(table) == 2:  # one pass over memory for both
        heads = turned(heads, table)
    q, k = heads.chunk(2, dim=1)
    return (q, k) if table is None or len(table) == 2 else (turned(q, table[:2]), turned(k, table[2:]))


def turned(x: Float[Tensor, "*batch seq head_dim"], table: Table) -> Float[Tensor, "*batch seq head_dim"]:
    """Return ``rotate(x, table)``."""
    if x.numel() <= SMALL or torch.compiler.is_compiling():  # which fuses the passes by itself
        return rotate(x, table)
    y: Tensor = _Turn.apply(x, table, 1)  # type: ignore[no-untyped-call]
    return y


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


class _Norm(torch.autograd.Function):
    """y = n·weight with n = x·r and r = (mean(x²) + eps)^-1/2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = _wide(x)
        r = (_dot(wide, wide) / x.shape[-1] + eps).rsqrt()
        n = wide * r
        ctx.save_for_backward(x, weight, n, r)
        return (n * weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, n, r = ctx.saved_tensors
        if torch.is_grad_enabled():
            dx: Tensor = _NormSlope.apply(g, x, weight, n, r)  # type: ignore[no-untyped-call]
            return dx, None, None
        g = _wide(g)
        slope = _norm_slope(g * weight, n, r).to(x.dtype) if ctx.needs_input_grad[0] else None
        return slope, (g * n).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None, None


def _norm_slope(h: Tensor, n: Tensor, r: Tensor) -> Tensor:
    """Return r·(h - n·mean(h·n)); it overwrites nothing."""
    return torch.addcmul(h, n, _dot(h, n) / h.shape[-1], value=-1).mul_(r)


class _NormSlope(torch.autograd.Function):
    """The gradient of x as a function of that of y, g, of x and of the weight; linear in g·weight, and symmetric."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, n: Tensor, r: Tensor) -> Tensor:
        ctx.save_for_backward(g, x, weight, n, r)
        return _norm_slope(_wide(g) * weight, n, r).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        g, x, weight, n, r = ctx.saved_tensors
        u, h, size = _wide(u), _wide(g) * weight, x.shape[-1]
        back = _norm_slope(u, n, r)
        u_n, h_n, u_h = _dot(u, n), _dot(h, n), _dot(u, h)
        # -(r²/dim)·((u·h - 3·(u·n)(h·n)/dim)·n + (h·n)·u + (u·n)·h), from r and from n.
        dx = n * (u_h - 3 * u_n * h_n / size)
        dx = dx.addcmul_(u, h_n).addcmul_(h, u_n).mul_(r.square().div(-size)).to(x.dtype)
        d_weight = (back * g).flatten(0, -2).sum(0).to(weight.dtype)
        return back.mul_(weight).to(g.dtype), dx, d_weight, None, None


class _Gate(torch.autograd.Function):
    """y = a·up with s = sigmoid(gate) and a = gate·s."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gate, up = _wide(x).chunk(2, dim=-1)
        return (gate.sigmoid().mul_(gate).mul_(up)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            slope: Tensor = _GateSlope.apply(g, x)  # type: ignore[no-untyped-call]
            return slope
        return _gate_slope(g, x)


def _gate_slope(g: Tensor, x: Tensor) -> Tensor:
    """Return g·up·a' beside g·a, where a' = s + a·(1 - s)."""
    wide, (gate, up) = _wide(g), _wide(x).chunk(2, dim=-1)
    slope = torch.empty(x.shape, dtype=wide.dtype, device=x.device)
    to_gate, to_up = slope.chunk(2, dim=-1)
    s = gate.sigmoid()
    a = gate * s
    torch.mul(wide, a, out=to_up)
    torch.mul(wide, up, out=to_gate)
    to_gate.mul_(s.add_(a.mul_(1 - s)))
    return slope.to(x.dtype)


class _GateSlope(torch.autograd.Function):
    """The gradient of x as a function of that of y, g, and of x."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return _gate_slope(g, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        g, x = ctx.saved_tensors
        (u_gate, u_up), (gate, up), wide = _wide(u).chunk(2, dim=-1), _wide(x).chunk(2, dim=-1), _wide(g)
        s = gate.sigmoid()
        a, rest = gate * s, 1 - s
        first = torch.addcmul(s, a, rest)  # a'
        second = rest.mul_(s).mul_(torch.sub(gate, a, alpha=2).add_(2))  # a''
        dg = torch.addcmul(u_up * a, u_gate * up, first)
        dx = torch.empty(x.shape, dtype=wide.dtype, device=x.device)
        d_gate, d_up = dx.chunk(2, dim=-1)
        both = u_gate * wide
        torch.mul(both, first, out=d_up)
        torch.mul(both.mul_(up), second, out=d_gate)
        d_gate.addcmul_(u_up * wide, first)
        return dg.to(g.dtype), dx.to(x.dtype)


class _Turn(torch.autograd.Function):
    """Turn by the table's angles, or back, and scale if the table does; a turn's gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, sign: int) -> Tensor:
        ctx.save_for_backward(table)
        ctx.sign = sign
        wide = _wide(x)
        cos, sin = table.to(wide.dtype)
        (a, b), out = wide.chunk(2, dim=-1), torch.empty(x.shape, dtype=wide.dtype, device=x.device)
        to_a, to_b = out.chunk(2, dim=-1)
        torch.mul(a, cos, out=to_a).addcmul_(b, sin, value=-sign)
        torch.mul(b, cos, out=to_b).addcmul_(a, sin, value=sign)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (table,) = ctx.saved_tensors
        back: Tensor = _Turn.apply(g, table, -ctx.sign)  # type: ignore[no-untyped-call]
        return back, None, None
