import math

import numpy as np

from perjoule.outlook.early_stopping import evaluations_left


def falling(num: int, noise: float = 0.0, floor: float = 2.0) -> list[float]:
    random = np.random.default_rng(4)
    return [floor + 3 / math.sqrt(n) + noise * random.standard_normal() for n in range(1, num + 1)]


def test_a_loss_that_falls_without_noise_goes_on_to_the_end_or_nobody_knows_how_long() -> None:
    left = evaluations_left(falling(10), patience=3, most=20)
    assert left.mean == left.high == 20
    assert 3 <= left.low < 10


def test_a_straight_fall_is_no_reason_to_stop() -> None:
    """A law that flattens out would have it end where the loss still falls as it did."""
    random = np.random.default_rng(2)
    left = evaluations_left(list(4 - 0.1 * np.arange(15) + 0.02 * random.standard_normal(15)), patience=3, most=20)
    assert left.mean > 15


def test_a_loss_in_its_noise_ends_soon() -> None:
    left = evaluations_left([2.0, 2.1, 2.05, 2.12, 2.08, 2.11], patience=6, most=100)
    assert left.low == 1  # five evaluations without a better one are behind it
    assert left.mean < 30


def test_what_already_came_counts_against_the_patience() -> None:
    fresh = evaluations_left([2.1, 2.08, 2.12, 2.0], patience=3, most=50)
    stale = evaluations_left([2.0, 2.12, 2.08, 2.1], patience=4, most=50)
    assert fresh.low == 3
    assert stale.low == 1


def test_too_few_losses_leave_everything_open() -> None:
    left = evaluations_left([2.0], patience=4, most=10)
    assert (left.low, left.high) == (4, 10)


def test_nothing_lasts_longer_than_the_run() -> None:
    left = evaluations_left([2.0, 2.0, 2.0, 2.0], patience=50, most=5)
    assert left.high == 5


def test_a_loss_that_was_not_finite_is_no_improvement() -> None:
    left = evaluations_left([2.0, math.inf, math.inf, 2.2], patience=4, most=50)
    assert left.low == 1


def test_the_interval_covers_where_training_would_have_stopped() -> None:
    """Futures of the same law as the past, walked to their end."""
    random = np.random.default_rng(5)
    covered = []
    for _ in range(60):
        losses = [2 + 1 / math.sqrt(n) + 0.05 * random.standard_normal() for n in range(1, 61)]
        best, stale, end = math.inf, 0, len(losses)
        for number, loss in enumerate(losses, 1):
            best, stale = (loss, 0) if loss < best else (best, stale + 1)
            if stale == 8:
                end = number
                break
        seen = 10
        if end <= seen:
            continue
        left = evaluations_left(losses[:seen], patience=8, most=60 - seen)
        covered.append(left.low <= end - seen <= left.high)
    assert np.mean(covered) > 0.8
