"""What an Energy-Based Transformer's thinking moves, where it starts, and how large its steps are.

A state is a vector of logits over the vocabulary; a step starts from its distribution, and the energy sees that
distribution's embedding.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perjoule.models.layers.readout import read_out
from perjoule.models.thinking import ThinkingConfig

SMALLEST_STEP_SIZE = 1e-4
"""Floor of the learned step size."""


@dataclass(frozen=True)
class Simplex:
    """The space of next-token distributions; see :class:`~perjoule.models.thinking.Space`.

    Args:
        weight: (vocab, dim), the candidates' embedding.
    """

    weight: Tensor

    def enter(self, state: Float[Tensor, "*batch vocab"]) -> tuple[Tensor, Tensor]:
        """Return the distribution of the logits, and its embedding."""
        base = state.softmax(-1)
        # As wide as the weights under autocast, too: a residual stream is not narrowed.
        return base, (base.to(self.weight.dtype) @ self.weight).to(self.weight.dtype)

    def leave(self, base: Float[Tensor, "*batch vocab"], move: Float[Tensor, "*batch dim"]) -> Tensor:
        """Return the new logits."""
        return read_out(base, move, self.weight)


class StepSize(nn.Module):
    """α, learned in units of what it is at first, so that a learning rate fits whatever that is.

    Args:
        initial: α at the beginning.
        learned: whether to learn it.
    """

    def __init__(self, initial: float, learned: bool) -> None:
        super().__init__()
        self.initial = initial
        self.factor = nn.Parameter(torch.ones(()), requires_grad=learned)

    def forward(self) -> Float[Tensor, ""]:
        """Return α."""
        return (self.initial * self.factor).clamp(min=SMALLEST_STEP_SIZE)


def state_dtype(weight: Tensor) -> torch.dtype:
    """Return the type of a state: float32 for narrower weights."""
    return torch.promote_types(weight.dtype, torch.float32)


def drawn_starts(
    thinking: ThinkingConfig, shape: tuple[int, ...], weight: Float[Tensor, "vocab dim"]
) -> Float[Tensor, "batch seq vocab"]:
    """Return a first guess for each position, drawn anew at every call: for training.

    Args:
        thinking: which guesses.
        shape: (batch, seq, vocab).
        weight: the candidates' embedding, whose device and, widened, type they have.
    """
    if thinking.start == "zeros":
        return torch.zeros(shape, device=weight.device, dtype=state_dtype(weight))
    return torch.randn(shape, device=weight.device, dtype=state_dtype(weight)) * thinking.start_std


def fixed_starts(thinking: ThinkingConfig, num: int, weight: Float[Tensor, "vocab dim"]) -> Float[Tensor, "num vocab"]:
    """Return first guesses that are the same at every call: for evaluation, and for the best of several.

    Args:
        thinking: which guesses.
        num: how many.
        weight: as for :func:`drawn_starts`.
    """
    vocab_size, device = len(weight), weight.device
    if device.type == "meta":
        return torch.zeros(num, vocab_size, device=device)
    draws = [
        torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed), device="cpu") for seed in range(num)
    ]
    starts = torch.stack(draws) * thinking.start_std
    if thinking.start == "zeros":
        starts[0] = 0.0
    return starts.to(device, state_dtype(weight))
