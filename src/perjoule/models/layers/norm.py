"""RMSNorm: scale every vector to unit root mean square, then by a learned weight.

    y = x / sqrt(mean(x²) + eps) · g

``g`` is :attr:`RMSNorm.weight`. The mean is over the last axis and is formed in float32 whatever the dtype of x.

Zhang and Sennrich, Root Mean Square Layer Normalization, 2019. :class:`DynamicTanh` stands in a norm's place and
normalises nothing: y = tanh(a·x)·g + b with a learned a (Zhu et al., Transformers without Normalization, 2025).
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """Normalise the last axis.

    Args:
        dim: its size.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the normalised vectors in the dtype of ``x``."""
        # torch upcasts inside: one fused kernel on GPUs, and no float32 copy of x under our own name.
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class DynamicTanh(nn.Module):
    """Squash every number by itself.

    Args:
        dim: size of the last axis.
        bias: whether b is there.
    """

    INITIAL_SLOPE = 0.5

    def __init__(self, dim: int, bias: bool = True) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.empty(()))
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: a slope of 0.5, weights of 1, biases of 0."""
        nn.init.constant_(self.slope, self.INITIAL_SLOPE)
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the squashed vectors."""
        y = torch.tanh(self.slope * x) * self.weight
        return y if self.bias is None else y + self.bias
