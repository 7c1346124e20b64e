"""Which samples a rank reads: ranges of global positions for each micro-batch of each step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from perjoule.core.errors import ConfigError
from perjoule.data.contract import Batch, Samples
from perjoule.train.config import BatchConfig, DebugConfig
from perjoule.train.distributed import Ranks


@dataclass(frozen=True)
class Stream:
    """The order of a run's training samples, as a pure function of the global position.

    Step s reads the positions from s·size on. Micro-batch i of a step takes a contiguous part of them, and rank r a
    contiguous part of that; so the samples of a step are the same for any number of ranks and micro-batches.

    Args:
        batch: the batch section.
        debug: may repeat or limit batches.
        ranks: this process's place.
        samples_per_epoch: size of the split.
    """

    batch: BatchConfig
    debug: DebugConfig
    ranks: Ranks
    samples_per_epoch: int

    @property
    def rows(self) -> int:
        """Return the samples of one micro-batch on one rank.

        Raises:
            ConfigError: if the batch cannot be shared evenly.
        """
        parts = self.batch.accumulation * self.ranks.world_size
        if self.batch.size % parts:
            raise ConfigError(
                f"batch.size {self.batch.size} must be a multiple of batch.accumulation {self.batch.accumulation} "
                f"times the number of ranks {self.ranks.world_size}"
            )
        return self.batch.size // parts

    @property
    def epoch_samples(self) -> int:
        """Return the samples that count as one epoch, which debug settings may shorten."""
        limit = self.debug.overfit_batches or self.debug.limit_batches
        return min(self.samples_per_epoch, limit * self.batch.size) if limit else self.samples_per_epoch

    def ranges(self, position: int) -> Iterator[tuple[int, int]]:
        """Yield, without end, this rank's ranges ``(start, rows)`` from a global position on."""
        rows, world_size = self.rows, self.ranks.world_size
        while True:
            start = self._mapped(position)
            for part in range(self.batch.accumulation):
                yield start + (part * world_size + self.ranks.rank) * rows, rows
            position += self.batch.size

    def _mapped(self, position: int) -> int:
        """Return where a step that begins at ``position`` reads."""
        if self.debug.overfit_batches:
            return position % self.epoch_samples
        if self.debug.limit_batches:
            epoch, offset = divmod(position, self.epoch_samples)
            return epoch * self.samples_per_epoch + offset
        return position

    def num_held_out(self, samples: Samples | None, batches: int | None) -> int:
        """Return the batches of this rank that :meth:`held_out` yields; 0 without a split."""
        if samples is None:
            return 0
        total = min(samples.num_samples, batches * self.batch.size) if batches else samples.num_samples
        return math.ceil(total / (self.rows * self.ranks.world_size))

    def held_out(self, samples: Samples, batches: int | None) -> Iterator[Batch]:
        """Yield this rank's part of the first ``batches`` batches of a split, or of all of it."""
        total = min(samples.num_samples, batches * self.batch.size) if batches else samples.num_samples
        for start in range(self.ranks.rank * self.rows, total, self.ranks.world_size * self.rows):
            yield samples.batch(start, min(self.rows, total - start))
