"""What the training loop asks of a data set, whatever the modality.

A split is a pure function from a *global position* to a sample: position 0 is the first sample of the first epoch,
``num_samples`` the first of the second. A batch is a contiguous range of positions, so the stream does not depend on
the number of workers or ranks, and continuing at any position costs O(1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Batch:
    """Tensors for one forward pass, with the counts that rates are made of.

    Args:
        tensors: what ``model.forward`` takes; the first axis is the sample. Text has ``input_ids`` and ``labels``,
            both int64 of shape (samples, seq_len).
        num_samples: rows.
        num_tokens: label positions, ignored ones included; for other modalities the number of predictions.
        num_useful: label positions that are trained on.
    """

    tensors: dict[str, torch.Tensor]
    num_samples: int
    num_tokens: int
    num_useful: int


class Samples(Protocol):
    """One split of a data set."""

    @property
    def num_samples(self) -> int:
        """Return the samples of one epoch."""

    def batch(self, start: int, rows: int) -> Batch:
        """Return the samples at the global positions ``start`` to ``start + rows - 1``."""


class DataSet(Protocol):
    """A prepared data set."""

    @property
    def shape(self) -> Mapping[str, int]:
        """Return the sizes a model is built from; text has ``vocab_size`` and ``seq_len``."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return what the run's manifest says of the data (JSON)."""

    def split(self, name: str) -> Samples:
        """Return the split ``train``, ``validation`` or ``test``."""
