"""Linear layers and embeddings that tools may replace, hook or move.

Adapters (LoRA), offloading (accelerate), quantisation and hooks all act when a module is *called*; whoever reads its
weight instead gets the wrong numbers, or numbers that are not there. So modules are called. A weight is read only where
that is faster and :func:`is_plain` says that nothing stands between the weight and the call.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from perjoule.core.errors import ConfigError

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def is_plain(module: nn.Module, kind: type[nn.Linear | nn.Embedding]) -> bool:
    """Return whether to call a module is to use its weight: torch's own, without bias, hooks or another forward."""
    if type(module) is not kind or type(module.weight) is not nn.Parameter or getattr(module, "bias", None) is not None:
        return False
    return "forward" not in module.__dict__ and not any(getattr(module, hooks) for hooks in HOOKS)


def embedding_matrix(embedding: nn.Module, num_rows: int, device: torch.device | None) -> Float[Tensor, "num_rows dim"]:
    """Return every row that an embedding gives: its weight, or what calling it returns.

    Args:
        embedding: torch's, or what a tool put in its place.
        num_rows: of it.
        device: of its inputs; the weight itself may be elsewhere between two calls.
    """
    if is_plain(embedding, nn.Embedding):
        assert isinstance(embedding, nn.Embedding)
        return embedding.weight
    matrix: Tensor = embedding(torch.arange(num_rows, device=device))
    return matrix


def call_differentiably(linear: nn.Module, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
    """Call a linear layer whose input's gradient is needed, even where torch gives none.

    torch's dynamically quantised layers have no derivative. That of what they stand for is the product with the weight
    that they stored.

    Raises:
        ConfigError: if there is neither a derivative nor such a weight.
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        y: Tensor = linear(x)
        return y
    weight = getattr(linear, "weight", None)
    if isinstance(weight, MethodType):  # a quantised layer's, which returns what it stored
        y = _StoredWeight.apply(x, linear, weight())  # type: ignore[no-untyped-call]
        return y
    y = linear(x)
    if not y.requires_grad:
        raise ConfigError(
            f"an energy needs the gradient of its linear layers, and a {type(linear).__name__} gives none; accepted: "
            "torch.nn.Linear, dynamically quantised layers, or modules that torch can differentiate"
        )
    return y


class _StoredWeight(torch.autograd.Function):
    """A layer that torch cannot differentiate, with the gradient of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: nn.Module, stored: Tensor) -> Tensor:
        ctx.stored, ctx.dtype = stored, x.dtype
        y: Tensor = linear(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weight = ctx.stored.dequantize() if ctx.stored.is_quantized else ctx.stored
        return (grad @ weight.to(grad.dtype)).to(ctx.dtype), None, None
