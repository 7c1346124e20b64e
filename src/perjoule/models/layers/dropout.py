"""Dropout: zero a random share of the numbers while training, and scale the others so that the mean stays.

    y = x·m/(1 - rate),    m ~ Bernoulli(1 - rate)

Masks come from torch's default generator, whose state is in every checkpoint, so that a resumed run draws what an
uninterrupted one does. At rate 0 nothing is drawn and nothing is computed.

Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting, 2014.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

Rate = Annotated[float, Field(ge=0, lt=1)]
"""A share of numbers."""


def dropout_layer(rate: float) -> Callable[[Tensor], Tensor]:
    """Return a layer that drops this share while training; at 0 a function, called faster than one."""
    return nn.Dropout(rate) if rate > 0 else _unchanged


def _unchanged(x: Tensor) -> Tensor:
    return x


@contextmanager
def same_masks(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw the same numbers in every block under the same seed, and leave the generators as they were.

    Args:
        seed: None draws as usual.
        device: that draws.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
