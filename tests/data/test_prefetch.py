"""Threads change when and where a batch is built, never which."""

import itertools
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from perjoule.data import prefetch
from perjoule.data.contract import Batch
from perjoule.data.prefetch import Prefetcher, Range, ranges


@pytest.fixture
def threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have threads build every batch, however little it takes."""
    monkeypatch.setattr(prefetch, "PATIENCE_S", -1.0)


class Positions:
    """A split whose samples are their positions; slower at even ones, so that threads overtake each other."""

    num_samples = 1000

    def __init__(self, broken: int = -1) -> None:
        self.broken = broken
        self.built: list[int] = []
        self.threads: set[str] = set()

    def batch(self, start: int, rows: int) -> Batch:
        if start == self.broken:
            raise RuntimeError(f"sample {start} is broken")
        time.sleep(0.002 if start % 2 == 0 else 0)
        self.built.append(start)
        self.threads.add(threading.current_thread().name)
        return Batch({"x": torch.arange(start, start + rows)}, rows, rows, rows)


def first(batches: Prefetcher, number: int) -> list[int]:
    return [value for batch in itertools.islice(batches, number) for value in batch.tensors["x"].tolist()]


@pytest.mark.usefixtures("threads_at_once")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_stream_is_the_same_for_any_number_of_workers(workers: int) -> None:
    samples = Positions()
    with Prefetcher(samples, ranges(5, 3), workers) as batches:
        assert first(batches, 30) == list(range(5, 95))
    assert all(name.startswith("perjoule-data") for name in samples.threads) == (workers > 0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_read_every_position_once_and_in_order(world_size: int) -> None:
    rows = 12 // world_size
    parts = [itertools.islice(ranges(40, rows, rank, world_size), 4) for rank in range(world_size)]
    steps = zip(*parts, strict=True)
    read = [start + row for step in steps for start, count in step for row in range(count)]
    assert read == list(range(40, 40 + 4 * 12))


@pytest.mark.usefixtures("threads_at_once")
def test_resuming_at_any_position_continues_the_stream() -> None:
    with Prefetcher(Positions(), ranges(0, 4), workers=2) as batches:
        whole = first(batches, 20)
    for done in (1, 7, 19):
        with Prefetcher(Positions(), ranges(4 * done, 4), workers=1) as batches:
            assert first(batches, 20 - done) == whole[4 * done :]


@pytest.mark.usefixtures("threads_at_once")
def test_finite_ranges_end_the_stream() -> None:
    for workers in (0, 2):
        with Prefetcher(Positions(), [(0, 2), (7, 1)], workers) as batches:
            assert first(batches, 99) == [0, 1, 7]
            assert next(batches, None) is None


@pytest.mark.usefixtures("threads_at_once")
def test_look_ahead_is_bounded() -> None:
    taken: list[int] = []

    def recorded() -> Iterator[Range]:
        for position in itertools.count():
            taken.append(position)
            yield position, 1

    with Prefetcher(Positions(), recorded(), workers=2, ahead=5) as batches:
        assert not taken, "nothing is read before the first batch is asked for"
        for number in range(20):
            next(batches)
            assert len(taken) <= number + 5


@pytest.mark.usefixtures("threads_at_once")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_exception_of_a_worker_surfaces_at_its_batch(workers: int) -> None:
    with Prefetcher(Positions(broken=4), ranges(0, 2), workers) as batches:
        assert first(batches, 2) == [0, 1, 2, 3]
        with pytest.raises(RuntimeError, match="sample 4 is broken"):
            next(batches)


@pytest.mark.usefixtures("threads_at_once")
def test_closing_ends_stream_and_threads() -> None:
    batches = Prefetcher(Positions(), ranges(0, 1), workers=3)
    next(batches)
    batches.close()
    batches.close()
    assert next(batches, None) is None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("perjoule-data")]


def on_a_clock(monkeypatch: pytest.MonkeyPatch, seconds: Iterator[float]) -> Positions:
    """Return samples of which each batch takes the next of these times."""
    now = 0.0

    class Clocked(Positions):
        def batch(self, start: int, rows: int) -> Batch:
            nonlocal now
            now += next(seconds)
            return super().batch(start, rows)

    monkeypatch.setattr(prefetch, "perf_counter", lambda: now)
    return Clocked()


def test_cheap_batches_and_a_single_stall_are_left_to_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = on_a_clock(monkeypatch, itertools.cycle([0.04, *[20e-6] * 300]))
    with Prefetcher(samples, ranges(1, 2), workers=2) as batches:
        assert first(batches, 700) == list(range(1, 1401))
    assert samples.threads == {threading.current_thread().name}


@pytest.mark.parametrize("seconds", [[1e-3], [0.0, 2e-3], [0.1]])
def test_threads_take_over_where_batches_take_long(monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> None:
    samples = on_a_clock(monkeypatch, itertools.cycle(seconds))
    with Prefetcher(samples, ranges(1, 2), workers=1) as batches:
        assert first(batches, 100) == list(range(1, 201))
    assert any(name.startswith("perjoule-data") for name in samples.threads)


def test_loop_takes_over_again_where_batches_have_become_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = on_a_clock(monkeypatch, itertools.chain([0.02] * 20, itertools.repeat(0.0)))
    with Prefetcher(samples, ranges(1, 2), workers=1) as batches:
        assert first(batches, 500) == list(range(1, 1001))
        assert len(samples.threads) == 2
        samples.threads.clear()
        assert first(batches, 10) == list(range(1001, 1021))
    assert samples.threads == {threading.current_thread().name}
