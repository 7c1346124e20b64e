"""The next token from its logits: the most likely one, or a draw from what temperature, top-k and top-p leave.

    l ← l / temperature
    l ← -∞ where l is below the k-th largest                               top_k
    l ← -∞ in the tail whose probabilities add up to at most 1 - top_p     top_p
    token ~ softmax(l)

In this order and with these bounds it is what Hugging Face's warpers leave: ties with the k-th largest stay, the token
that crosses top_p stays, and so does at least one. A draw turns one uniform number of the row's own generator, drawn on
the processor in float64, into a token, so that it depends neither on the other rows nor on the device.

Time O(batch·vocab_size·log(vocab_size)) with top_p, O(batch·vocab_size) without.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationInfo, field_validator
from torch import Tensor

from perjoule.config import Config
from perjoule.core.errors import TrainingDiverged

SMALLEST_TEMPERATURE = 1e-6


class SamplingConfig(Config):
    """How the next token is chosen."""

    temperature: NonNegativeFloat = 0.0
    """Divides the logits before a draw; 0 takes the most likely token and draws nothing. At least 1e-6 otherwise."""
    top_k: PositiveInt | None = None
    """Draw among the k most likely tokens only; null is all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw among the fewest tokens that have at least this probability together."""
    seed: NonNegativeInt = 0
    """Of the draws; each prompt has its own, which depends on its number."""

    @field_validator("temperature")
    @classmethod
    def _stays_finite(cls, value: float) -> float:
        if 0 < value < SMALLEST_TEMPERATURE:
            raise ValueError(
                f"would divide logits beyond what float32 holds; accepted: 0, or {SMALLEST_TEMPERATURE:g} up"
            )
        return value

    @field_validator("top_k", "top_p")
    @classmethod
    def _needs_draws(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and value != 1.0 and info.data.get("temperature") == 0:
            raise ValueError("chooses among draws, and temperature 0 draws nothing; accepted: with temperature=1, say")
        return value


def truncate(logits: Float[Tensor, "batch vocab"], config: SamplingConfig) -> Float[Tensor, "batch vocab"]:
    """Return the logits that are drawn from, -∞ where nothing is to be drawn.

    Args:
        logits: of the next token of each row.
        config: with a temperature above 0.
    """
    logits = logits / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        least = logits.topk(config.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if config.top_p < 1:
        ascending, order = logits.sort(dim=-1)
        tail = ascending.softmax(-1).cumsum(-1) <= 1 - config.top_p
        tail[:, -1] = False
        logits = logits.masked_fill(tail.scatter(-1, order, tail), float("-inf"))
    return logits


def choose(
    logits: Float[Tensor, "batch vocab"], config: SamplingConfig, generators: Sequence[torch.Generator]
) -> Int64[Tensor, " batch"]:
    """Choose the next token of each row.

    Args:
        logits: of the next token, as the model gave them.
        config: how.
        generators: one for each row, on the processor; not used at temperature 0.

    Raises:
        TrainingDiverged: if a logit is not finite.
    """
    finite = logits.isfinite().all(-1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise TrainingDiverged(
            f"the logits of row {row} of {len(logits)} are not finite, so that no token can be chosen: training has "
            "diverged; take an earlier checkpoint (checkpoint=STEP)"
        )
    if config.temperature == 0:
        return logits.argmax(-1)
    cumulative = truncate(logits, config).softmax(-1, dtype=torch.float64).cumsum(-1)
    draws = torch.stack([torch.rand((), generator=one, dtype=torch.float64) for one in generators])
    # A draw is below 1, so that what is sought lies below the last sum, and the first sum above it is that of a token
    # with a probability. What rounding makes of the last sum does not matter: draws are shares of it.
    sought = draws.to(logits.device).unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, sought, right=True).squeeze(-1)
