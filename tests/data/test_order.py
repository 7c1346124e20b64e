"""The shuffle visits every sample once an epoch, at O(1) per position."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perjoule.data.order import Order, permute


@pytest.mark.parametrize("num_samples", [*range(1, 70), 127, 128, 129, 1000, 1023, 1024, 1025, 4097, 65_536, 100_003])
def test_permutation_is_a_bijection(num_samples: int) -> None:
    for key in (0, 7, 2**63 - 1):
        image = permute(np.arange(num_samples), num_samples, key)
        assert np.array_equal(np.sort(image), np.arange(num_samples))


def test_permutation_of_a_huge_range_needs_no_array_of_its_size() -> None:
    num_samples = 10**13 + 7
    indices = np.concatenate([np.arange(1000), num_samples - 1 - np.arange(1000)])
    image = permute(indices, num_samples, 3)
    assert len(np.unique(image)) == 2000
    assert image.min() >= 0
    assert image.max() < num_samples
    assert image.mean() / num_samples == pytest.approx(0.5, abs=0.05)


def test_permutation_looks_random() -> None:
    image = permute(np.arange(20_000), 20_000, 5)
    assert abs(np.corrcoef(image, np.arange(20_000))[0, 1]) < 0.03
    assert abs(np.corrcoef(image[1:], image[:-1])[0, 1]) < 0.03
    assert np.mean(np.abs(np.diff(image))) == pytest.approx(20_000 / 3, rel=0.03)
    halves = np.bincount(image[:10_000] // 1000, minlength=20)  # where the first half lands, in twenty bins
    assert halves.min() > 400
    assert halves.max() < 600


def test_every_order_of_three_samples_occurs_about_equally_often() -> None:
    orders = [tuple(permute(np.arange(3), 3, key).tolist()) for key in range(1200)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert min(counts) > 120
    assert max(counts) < 290


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    order = Order(500, seed=1)
    epochs = [order.samples(500 * epoch, 500).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(500)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert Order(500, seed=2).samples(0, 500).tolist() != epochs[0]
    assert Order(500, seed=1).samples(0, 500).tolist() == epochs[0]


def test_order_is_the_same_on_every_machine() -> None:
    assert Order(1000, seed=0).samples(998, 4).tolist() == [500, 204, 529, 109]


@settings(deadline=None)
@given(st.integers(1, 3000), st.sampled_from([None, 0, 9]), st.integers(0, 9000), st.integers(1, 300))
def test_any_range_equals_its_positions_one_by_one(n: int, seed: int | None, start: int, rows: int) -> None:
    order = Order(n, seed)
    assert order.samples(start, rows).tolist() == [int(order.samples(start + k, 1)[0]) for k in range(rows)]


def test_stream_order_repeats_the_stream() -> None:
    assert Order(3, seed=None).samples(2, 6).tolist() == [2, 0, 1, 2, 0, 1]


def test_seeking_far_ahead_costs_nothing() -> None:
    order = Order(10**9, seed=3)
    assert len({int(order.samples(10**15 + offset, 1)[0]) for offset in (0, 10**12, 10**14)}) == 3
