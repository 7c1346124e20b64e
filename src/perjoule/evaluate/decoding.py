"""What the decoders of some architectures can be told besides tokens: an EBT how to think, a RetNet to be compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from perjoule.config import Config
from perjoule.core.errors import ConfigError
from perjoule.models.contract import Decoder
from perjoule.models.ebt import EBT
from perjoule.models.ebt_decode import Choice, Decoding, Landscape, NoiseOn
from perjoule.models.retnet import RetNet, RetNetCache


class DecodingConfig(Config):
    """How a model that thinks (ebt) thinks about each token that it writes."""

    steps: PositiveInt | None = None
    """Steps at most; null is the most of training. Steps beyond the trained landscapes repeat the last one."""
    candidates: PositiveInt = 1
    """First guesses, of which the one that ``choose`` prefers counts."""
    accept_lower: bool = False
    """Take a step only where it lowers the energy."""
    stop_below: PositiveFloat | None = None
    """A token is done when a step changes its energy by less; null is never."""
    step_size: PositiveFloat | None = None
    """α; null is the trained one."""
    step_size_scale: PositiveFloat = 1.0
    """Multiplies α."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of the noise on the logits before a step (Langevin dynamics)."""
    noise_on: NoiseOn = "all"
    """The steps that have it."""
    landscape: Landscape = "own"
    """Energy of a step: its own, or for all of them the last that was trained."""
    choose: Choice = "least"
    """The first guess that counts: of the least energy at its end, of the most, or of the largest fall."""

    def build(self) -> Decoding:
        """Return what the model takes."""
        return Decoding(**self.model_dump())


def thinking_prefill(decoder: Decoder, thinking: DecodingConfig) -> Callable[..., tuple[Tensor, Any]]:
    """Return the model's ``prefill``, told how to think.

    Raises:
        ConfigError: if the model cannot think and was told how to.
    """
    if thinking == DecodingConfig():
        return decoder.prefill
    if not isinstance(decoder, EBT):
        raise ConfigError(
            f"thinking is for models that think (ebt), and {type(decoder).__name__} does not: leave it out"
        )
    return partial(decoder.prefill, decoding=thinking.build())


def compiled_decode(decoder: Decoder) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    """Return the model's ``decode``, compiled when it is first called with a batch size.

    Raises:
        ConfigError: if the shapes of what it computes change from token to token.
    """
    if not isinstance(decoder, RetNet):
        raise ConfigError(
            f"compile is for models whose cache does not grow (retnet), and that of {type(decoder).__name__} does: it "
            "would be compiled again and again; leave it out"
        )
    compiled: Callable[[Tensor, RetNetCache], tuple[Tensor, RetNetCache]] = torch.compile(decoder.decode, dynamic=False)

    def advance(token: Tensor, cache: RetNetCache) -> tuple[Tensor, RetNetCache]:
        # What prefill leaves has strides that depend on the prompts' length, and each would be compiled by itself.
        states = [state.contiguous() for state in cache.states]
        num_read = cache.num_read.clone(memory_format=torch.contiguous_format)
        return compiled(token, RetNetCache(states, num_read, cache.num_steps))

    return advance
