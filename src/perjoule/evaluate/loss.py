"""Held-out loss: the mean over useful positions of a fixed, unshuffled part of a split."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from perjoule.core.errors import DataError
from perjoule.data.contract import Batch


@dataclass(frozen=True)
class HeldOutLoss:
    """The result of one evaluation.

    Args:
        loss: nats per useful position, the mean over the whole part (not a mean of batch means).
        useful: positions that count.
        seconds: wall time.
    """

    loss: float
    useful: int
    seconds: float


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every module of it back into its own mode, whatever happens.

    Args:
        model: some of its modules may be in evaluation mode already, as frozen ones are.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def held_out_loss(
    model: nn.Module,
    batches: Iterable[Batch],
    to_device: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    total: Callable[[torch.Tensor], torch.Tensor],
) -> HeldOutLoss:
    """Evaluate a model on batches, leaving its mode as it was.

    Args:
        model: ``forward(tensors) -> Output``.
        batches: this rank's batches.
        to_device: moves a batch's tensors.
        total: sums a tensor over ranks.

    Raises:
        DataError: if no position counts.
    """
    started = time.monotonic()
    sums = torch.zeros(2, dtype=torch.float64)
    with evaluating(model):
        for batch in batches:
            if not batch.num_useful:  # a mean over nothing is not a number
                continue
            output = model(to_device(batch.tensors))
            sums += torch.tensor([output.loss.item() * batch.num_useful, batch.num_useful], dtype=torch.float64)
    weighted, useful = total(sums).tolist()
    if useful == 0:
        raise DataError("the held-out batches have no label that is not ignored; raise evaluate.batches")
    return HeldOutLoss(weighted / useful, int(useful), time.monotonic() - started)
