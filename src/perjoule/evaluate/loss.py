"""Held-out loss: the mean over useful positions of a fixed, unshuffled part of a split."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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


@torch.no_grad()
def held_out_loss(
    model: nn.Module,
    batches: Iterator[Batch],
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
    was_training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        output = model(to_device(batch.tensors))
        sums += torch.tensor([output.loss.item() * batch.num_useful, batch.num_useful], dtype=torch.float64)
    model.train(was_training)
    weighted, useful = total(sums).tolist()
    if useful == 0:
        raise DataError("the held-out batches have no label that is not ignored; raise evaluate.batches")
    return HeldOutLoss(weighted / useful, int(useful), time.monotonic() - started)
