"""Gated feed-forward layer; with silu it is SwiGLU, that of Llama.

    y = (act(x·Wg) ⊙ x·Wu)·Wd

Wg and Wu are the upper and the lower half of the rows of :attr:`GLU.gate_up`, so that x is read once; Wd is
:attr:`GLU.down`. Named w1, w3 and w2 in Llama's first release, fc1, gate and fc2 in torchscale. No biases.
3·dim·ffn_dim multiply-adds per token.

Shazeer, GLU Variants Improve Transformer, 2020.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perjoule.models.layers.dropout import dropout_layer

Activation = Literal["silu", "gelu", "relu"]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}
"""``gelu`` is the exact one, with the error function."""


class GLU(nn.Module):
    """Gated feed-forward layer.

    Args:
        dim: width of the residual stream.
        ffn_dim: width in between.
        activation: of the gate.
        dropout: share of the activations that is dropped while training.
    """

    def __init__(self, dim: int, ffn_dim: int, activation: Activation = "silu", dropout: float = 0.0) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.gate_up = nn.Linear(dim, 2 * ffn_dim, bias=False)
        self.dropout = dropout_layer(dropout)
        self.down = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Transform every position by itself."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        output: Tensor = self.down(self.dropout(ACTIVATIONS[self.activation](gate) * up))
        return output
