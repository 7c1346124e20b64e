"""Data sets that are drawn, not stored: each sample is a pure function of its split and its number.

Nothing depends on the run's seed but the order of the training split, so that runs are compared on the same samples,
held-out ones included. A row is ``seq_len + 1`` tokens, of which the first ``seq_len`` are the inputs and the last the
labels; a label is ignored unless the tokens before it determine it, so that the best possible loss is 0 and accuracy 1.
Beside ``train``, ``validation`` and ``test``, which are drawn alike, the split ``ood`` is drawn from outside that
distribution, in a way that the set defines.

A subclass of :class:`GeneratedConfig` draws one row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import PositiveInt

from perjoule.config import Config
from perjoule.core.errors import DataError, suggestion
from perjoule.core.labels import IGNORED
from perjoule.core.seeding import derive
from perjoule.data.contract import Batch, Samples
from perjoule.data.order import Order
from perjoule.data.split import SPLITS, TRAIN

OOD = "ood"
ALL_SPLITS = (*SPLITS, OOD)


@dataclass(frozen=True)
class Row:
    """One sample.

    Args:
        tokens: (seq_len + 1,) int64.
        determined: (seq_len + 1,) which tokens follow from those before them; never the first.
    """

    tokens: npt.NDArray[np.int64]
    determined: npt.NDArray[np.bool_]


class GeneratedConfig(Config, ABC):
    """What every drawn data set has."""

    kind: str
    seq_len: PositiveInt = 128
    """Inputs per row."""
    num_train: PositiveInt = 100_000
    """Rows of the training split."""
    num_held_out: PositiveInt = 1000
    """Rows of each other split."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Return the number of tokens."""

    @property
    @abstractmethod
    def task(self) -> Mapping[str, Any]:
        """Return what the rows depend on, and what is different in ``ood`` (JSON)."""

    @abstractmethod
    def draw(self, chance: np.random.Generator, ood: bool) -> Row:
        """Draw a row.

        Args:
            chance: its own generator.
            ood: whether from outside the distribution of the training rows.
        """

    def build(self, seed: int) -> Generated:
        """Return the data set; there is nothing to prepare.

        Args:
            seed: of the training split's order.
        """
        return Generated(self, seed)


class Generated:
    """A drawn data set.

    Args:
        config: draws the rows.
        seed: of the training split's order.
    """

    def __init__(self, config: GeneratedConfig, seed: int) -> None:
        self._config, self._seed = config, seed

    @property
    def shape(self) -> Mapping[str, int]:
        """Return ``vocab_size`` and ``seq_len``."""
        return {"vocab_size": self._config.vocab_size, "seq_len": self._config.seq_len}

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return what the rows are drawn from, for the run's manifest (JSON)."""
        config = self._config
        sizes = {name: config.num_train if name == TRAIN else config.num_held_out for name in ALL_SPLITS}
        splits = {name: {"num_samples": size, "num_labels": size * config.seq_len} for name, size in sizes.items()}
        task = {"seq_len": config.seq_len, "vocab_size": config.vocab_size, **config.task}
        return {
            "kind": config.kind,
            "identity": f"{derive(0, config.kind, str(sorted(task.items())), config.num_train):016x}",
            "task": task,
            "splits": splits,
        }

    def split(self, name: str) -> Samples:
        """Return the split ``train``, ``validation``, ``test`` or ``ood``.

        Raises:
            DataError: if there is no such split.
        """
        if name not in ALL_SPLITS:
            raise DataError(f"no split {name!r}: {suggestion(name, ALL_SPLITS)}")
        if name == TRAIN:
            return DrawnSamples(self._config, name, Order(self._config.num_train, self._seed))
        return DrawnSamples(self._config, name, Order(self._config.num_held_out, None))


class DrawnSamples:
    """One split.

    Args:
        config: draws the rows.
        split: its name.
        order: of the rows.
    """

    def __init__(self, config: GeneratedConfig, split: str, order: Order) -> None:
        self._config, self._split, self._order = config, split, order
        self.num_samples = order.num_samples

    def batch(self, start: int, rows: int) -> Batch:
        """Return the samples at the global positions ``start … start + rows - 1``."""
        drawn = [self._draw(int(index)) for index in self._order.samples(start, rows)]
        tokens = np.stack([row.tokens for row in drawn])
        useful = np.stack([row.determined for row in drawn])[:, 1:]
        labels = np.where(useful, tokens[:, 1:], IGNORED)
        tensors = {"input_ids": torch.from_numpy(tokens[:, :-1].copy()), "labels": torch.from_numpy(labels)}
        return Batch(tensors, num_samples=rows, num_tokens=labels.size, num_useful=int(np.count_nonzero(useful)))

    def _draw(self, index: int) -> Row:
        chance = np.random.default_rng(derive(0, self._config.kind, self._split, index))
        return self._config.draw(chance, ood=self._split == OOD)
