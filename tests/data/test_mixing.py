"""A mixture keeps its proportions, reads every component in its own order, and is found at any position."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perjoule.data.contract import Batch
from perjoule.data.mixing import PERIOD, JoinedSamples, Mix, MixedSamples, shares

weights_strategy = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


class Numbers:
    """Rows that are their own component and global position; one label of each useful."""

    def __init__(self, component: int, num_samples: int) -> None:
        self.component, self.num_samples = component, num_samples

    def batch(self, start: int, rows: int) -> Batch:
        numbers = torch.arange(start, start + rows)
        return Batch({"row": torch.stack([torch.full_like(numbers, self.component), numbers], 1)}, rows, 2 * rows, rows)


def read(samples: MixedSamples | JoinedSamples, start: int, rows: int) -> list[tuple[int, int]]:
    batch = samples.batch(start, rows)
    assert (batch.num_samples, batch.num_tokens, batch.num_useful) == (rows, 2 * rows, rows)
    return [(component, number) for component, number in batch.tensors["row"].tolist()]


@given(weights_strategy)
def test_shares_add_up_and_are_within_one_row_of_the_weights(weights: list[float]) -> None:
    counts = shares(weights)
    assert sum(counts) == PERIOD
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - weight / sum(weights) * PERIOD) < 1
    assert shares([8 * weight for weight in weights]) == counts


def test_the_largest_remainder_gets_the_row_that_is_left() -> None:
    assert shares([1, 1, 1]) == (1366, 1365, 1365)
    assert shares([0.5 / PERIOD, 1 - 0.5 / PERIOD - 1e-9]) == (1, 4095)


@settings(deadline=None, max_examples=30)
@given(weights_strategy, st.integers(0, 2**62), st.integers(0, 10**9))
def test_every_period_has_exactly_its_shares(weights: list[float], seed: int, period: int) -> None:
    counts = shares(weights)
    places = Mix(counts, seed).places(period * PERIOD, PERIOD)
    assert np.bincount(places.components, minlength=len(counts)).tolist() == list(counts)
    for component, count in enumerate(counts):
        own = places.indices[places.components == component]
        assert own.tolist() == list(range(period * count, (period + 1) * count)), "each index once, in order"


@settings(deadline=None, max_examples=30)
@given(weights_strategy, st.integers(0, 100))
def test_sixty_four_neighbours_have_every_component_near_its_share(weights: list[float], seed: int) -> None:
    counts = shares(weights)
    components = Mix(counts, seed).places(0, PERIOD).components
    spread = 1 + len(counts) / 2
    for window in components.reshape(-1, 64):
        for found, count in zip(np.bincount(window, minlength=len(counts)), counts, strict=True):
            assert abs(found - 64 * count / PERIOD) <= spread


def test_no_component_falls_into_step_with_the_ranks() -> None:
    components = Mix(shares([1, 1]), seed=3).places(0, 8 * PERIOD).components
    for ranks in (2, 4, 8, 16):
        share = components.reshape(-1, ranks).mean(axis=0)
        assert np.abs(share - 0.5).max() < 0.03


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 3 * PERIOD), st.integers(1, 300))
def test_any_range_equals_its_positions_one_by_one(start: int, rows: int) -> None:
    mixed = MixedSamples([Numbers(0, 7), Numbers(1, 1000)], Mix(shares([1, 3]), 5))
    assert read(mixed, start, rows) == [read(mixed, position, 1)[0] for position in range(start, start + rows)]


def test_components_have_epochs_of_their_own() -> None:
    small, large = Numbers(0, 64), Numbers(1, 8000)
    mixed = MixedSamples([small, large], Mix(shares([1, 3]), 5))
    assert mixed.num_samples == 8064
    rows = read(mixed, 0, mixed.num_samples)
    for component, part in enumerate((small, large)):
        own = [number for of, number in rows if of == component]
        assert own == list(range(len(own))), "the component's own positions, which count its epochs"
        assert len(own) / part.num_samples == pytest.approx(mixed.epochs[component], rel=0.01)
    assert mixed.epochs == (31.5, 0.756)


def test_order_is_the_same_on_every_machine() -> None:
    places = Mix(shares([3, 2, 1]), seed=7).places(PERIOD - 4, 8)
    assert places.components.tolist() == [1, 0, 0, 1, 1, 0, 2, 1]
    assert places.indices.tolist() == [1363, 2046, 2047, 1364, 1365, 2048, 683, 1366]


def test_another_seed_is_another_order_of_the_same_proportions() -> None:
    one, other = (Mix(shares([1, 2]), seed).places(0, PERIOD).components for seed in (1, 2))
    assert one.tolist() != other.tolist()
    assert one.sum() == other.sum()


def test_seeking_costs_the_same_anywhere() -> None:
    mixed = MixedSamples([Numbers(0, 7), Numbers(1, 10**9)], Mix(shares([1, 3]), 5))
    started = time.perf_counter()
    for position in range(0, 10**12, 10**11):
        mixed.batch(position, 4)
    assert time.perf_counter() - started < 1


def test_held_out_rows_come_once_an_epoch_and_well_mixed() -> None:
    joined = JoinedSamples([Numbers(0, 300), Numbers(1, 1), Numbers(2, 600)])
    assert joined.num_samples == 901
    first = read(joined, 0, 901)
    assert sorted(first) == [(0, number) for number in range(300)] + [(1, 0)] + [(2, number) for number in range(600)]
    assert 20 < sum(component == 0 for component, _ in first[:100]) < 47
    assert sorted(read(joined, 901, 901)) == [
        (c, n + size) for c, size in ((0, 300), (1, 1), (2, 600)) for n in range(size)
    ]
    assert read(joined, 895, 12) == [read(joined, position, 1)[0] for position in range(895, 907)]
