"""What an Energy-Based Transformer's thinking moves, where it starts, and how large its steps are.

A state is a vector of logits over the vocabulary; a step starts from its distribution, and the energy sees that
distribution's embedding.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perjoule.core.errors import ConfigError
from perjoule.models.layers.cache import Tokens
from perjoule.models.layers.readout import read_out
from perjoule.models.thinking import ThinkingConfig

SMALLEST_STEP_SIZE = 1e-4
"""Floor of the learned step size."""

CERTAIN = 30.0
"""Logit above all others of a guess that is one token: the others have 1e-13 of its probability."""


@dataclass(frozen=True)
class Simplex:
    """The space of next-token distributions; see :class:`~perjoule.models.thinking.Space`.

    Args:
        weight: (vocab, dim), the candidates' embedding.
        thinking: how a step begins and ends.
    """

    weight: Tensor
    thinking: ThinkingConfig = field(default_factory=ThinkingConfig)

    def enter(self, state: Float[Tensor, "*batch vocab"], step: int) -> tuple[Tensor, Tensor]:
        """Return the distribution of the logits, or the logits where that is how to think, and its embedding."""
        softmax_on = self.thinking.softmax_on
        base = state.softmax(-1) if softmax_on == "all" or (softmax_on == "first" and step == 0) else state
        # As wide as the weights under autocast, too: a residual stream is not narrowed.
        return base, (base.to(self.weight.dtype) @ self.weight).to(self.weight.dtype)

    def leave(self, base: Float[Tensor, "*batch vocab"], move: Float[Tensor, "*batch dim"]) -> Tensor:
        """Return the new logits."""
        thinking = self.thinking
        if not thinking.shapes_logits:
            return read_out(base, move, self.weight)
        change = (move @ self.weight.t()).to(base.dtype)
        if thinking.max_change is not None:
            change = change.clamp(-thinking.max_change, thinking.max_change)
        logits = base - change
        if thinking.max_logit is not None:
            logits = logits.clamp(-thinking.max_logit, thinking.max_logit)
        return logits / thinking.sharpen


class LearnedScale(nn.Module):
    """A positive number, learned in units of what it is at first, so that a learning rate fits whatever that is.

    Args:
        initial: at the beginning.
        learned: whether to learn it.
        least: its floor.
    """

    def __init__(self, initial: float, learned: bool, least: float) -> None:
        super().__init__()
        self.initial, self.least = initial, least
        self.factor = nn.Parameter(torch.ones(()), requires_grad=learned)

    def forward(self) -> Float[Tensor, ""]:
        """Return it."""
        return (self.initial * self.factor).clamp(min=self.least)


def state_dtype(weight: Tensor) -> torch.dtype:
    """Return the type of a state: float32 for narrower weights."""
    return torch.promote_types(weight.dtype, torch.float32)


class FirstGuess(nn.Module):
    """Where thinking starts.

    Args:
        thinking: which guesses.
        vocab_size: of the states.
    """

    def __init__(self, thinking: ThinkingConfig, vocab_size: int) -> None:
        super().__init__()
        self.thinking = thinking
        self.learned = nn.Embedding(1, vocab_size) if thinking.start == "learned" else None

    def reset_parameters(self) -> None:
        """Draw a learned guess as others are drawn."""
        if self.learned is not None:
            nn.init.normal_(self.learned.weight, std=self.thinking.start_std)

    def forward(self, input_ids: Tokens, weight: Float[Tensor, "vocab dim"]) -> Float[Tensor, "batch seq vocab"]:
        """Return a guess for each position, drawn anew at every call if guesses are drawn: for training.

        Args:
            input_ids: the tokens that positions follow.
            weight: the candidates' embedding, whose device and, widened, type guesses have.
        """
        shape = (*input_ids.shape[:2], len(weight))
        if self.thinking.start == "noise":
            drawn = torch.randn(shape, device=weight.device, dtype=state_dtype(weight))
            return drawn * self.thinking.start_std
        return self._certain(input_ids, weight).expand(shape)

    def fixed(
        self, input_ids: Tokens, num: int, weight: Float[Tensor, "vocab dim"]
    ) -> list[Float[Tensor, "batch seq vocab"]]:
        """Return guesses that are the same at every call: for evaluation, and for the best of several.

        The first is what training starts from, or a drawn one if that draws; the others are drawn, the same for all
        positions.

        Args:
            input_ids: the tokens that positions follow.
            num: how many.
            weight: as for :meth:`forward`.
        """
        shape, dtype = (*input_ids.shape[:2], len(weight)), state_dtype(weight)
        if weight.is_meta:
            return [torch.zeros(shape, device="meta", dtype=dtype)] * num
        draws = [
            torch.randn(len(weight), generator=torch.Generator().manual_seed(seed), device="cpu") for seed in range(num)
        ]
        guesses = [(draw * self.thinking.start_std).to(weight.device, dtype).expand(shape) for draw in draws]
        if self.thinking.start != "noise":
            guesses[0] = self._certain(input_ids, weight).expand(shape)
        return guesses

    def _certain(self, input_ids: Tensor, weight: Tensor) -> Tensor:
        """Return the guess in which there is no chance."""
        if self.learned is not None:
            learned: Tensor = self.learned(torch.zeros(1, dtype=torch.int64, device=weight.device))
            if learned.shape[1] != len(weight):
                raise ConfigError(f"the learned start is of {learned.shape[1]} tokens, and there are {len(weight)}")
            return learned.to(state_dtype(weight))
        if self.thinking.start == "zeros":
            return torch.zeros(1, device=weight.device, dtype=state_dtype(weight))
        if input_ids.is_floating_point():
            raise ConfigError("thinking.start recent begins with the token before, and embedded inputs have none")
        return F.one_hot(input_ids, len(weight)).to(state_dtype(weight)) * CERTAIN
