"""Which samples a rank reads."""

from itertools import islice

import pytest
import torch

from perjoule.core.errors import ConfigError
from perjoule.data.contract import Batch
from perjoule.train.config import BatchConfig, DebugConfig
from perjoule.train.distributed import Ranks
from perjoule.train.stream import Stream


class Numbers:
    """A split whose samples are their own positions."""

    num_samples = 21

    def batch(self, start: int, rows: int) -> Batch:
        return Batch({"position": torch.arange(start, start + rows)}, rows, rows, rows)


def stream(size: int = 12, accumulation: int = 1, rank: int = 0, world_size: int = 1, **debug: int) -> Stream:
    ranks = Ranks(rank, world_size, rank, world_size)
    return Stream(BatchConfig(size=size, accumulation=accumulation), DebugConfig(**debug), ranks, 100)


def positions(one: Stream, num_ranges: int, start: int = 0) -> list[int]:
    return [at for first, rows in islice(one.ranges(start), num_ranges) for at in range(first, first + rows)]


@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_step_reads_the_same_positions_however_it_is_shared(accumulation: int, world_size: int) -> None:
    read = [
        position
        for rank in range(world_size)
        for position in positions(stream(24, accumulation, rank, world_size), accumulation, start=48)
    ]
    assert sorted(read) == list(range(48, 72))


def test_each_micro_batch_is_contiguous_over_the_ranks() -> None:
    first, second = (list(islice(stream(12, 2, rank, 2).ranges(0), 3)) for rank in (0, 1))
    assert first == [(0, 3), (6, 3), (12, 3)]
    assert second == [(3, 3), (9, 3), (15, 3)]


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        _ = stream(12, 3, world_size=8).rows
    assert str(refused.value) == "batch.size 12 must be a multiple of batch.accumulation 3 times the number of ranks 8"


def test_overfitting_repeats_the_first_batches() -> None:
    one = stream(4, overfit_batches=2)
    assert one.epoch_samples == 8
    assert positions(one, 5) == [*range(8), *range(8), *range(4)]


def test_limited_epochs_begin_where_whole_ones_do() -> None:
    one = stream(4, limit_batches=2)
    assert one.epoch_samples == 8
    assert positions(one, 4) == [*range(8), *range(100, 108)]
    assert positions(one, 1, start=8) == [*range(100, 104)], "resuming finds the same place"


def test_limits_beyond_the_split_change_nothing() -> None:
    assert stream(4, limit_batches=50).epoch_samples == 100


@pytest.mark.parametrize(("batches", "expected"), [(1, 12), (2, 21), (None, 21)])
def test_ranks_together_evaluate_each_sample_once(batches: int | None, expected: int) -> None:
    read = [
        int(position)
        for rank in (0, 1)
        for batch in stream(12, 2, rank, 2).held_out(Numbers(), batches)
        for position in batch.tensors["position"]
    ]
    assert sorted(read) == list(range(expected))
