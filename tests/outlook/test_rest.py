"""Each condition carried to its end: what is certain by it is certain, and the first end counts."""

from typing import Any

import numpy as np
import pytest

from perjoule.outlook.rest import Past, Patience, Recurrent, guess_recurrent, look_ahead
from perjoule.outlook.series import Span

STEP_S, STEP_J = 0.1, 2.0
NOISE = 1 + 0.05 * np.random.default_rng(0).standard_normal(200)
NOTHING = Span(0.0, 0.0, 0.0)


def past(**changed: Any) -> Past:
    """Return a run of 200 noisy steps."""
    facts: dict[str, Any] = {
        "num_done": 200,
        "step_s": STEP_S * NOISE,
        "step_j": STEP_J * NOISE,
        "mean_w": STEP_J / STEP_S,
    }
    return Past(**(facts | changed))


def test_a_number_of_steps_is_certain_and_its_cost_is_not() -> None:
    found = look_ahead(past(steps_left={"stop.steps": 300}))
    assert found is not None
    assert {*found.steps} == {300}
    assert found.seconds.mean == pytest.approx(30, rel=0.02)
    assert found.seconds.low < 30 < found.seconds.high
    assert found.joules is not None
    assert found.joules.low < 600 < found.joules.high


def test_an_amount_of_time_is_certain_and_its_steps_are_not() -> None:
    found = look_ahead(past(seconds_left={"stop.seconds": 30}))
    assert found is not None
    assert found.seconds.mean == found.seconds.low == 30
    assert found.seconds.high == pytest.approx(30 + STEP_S, rel=0.01)
    assert found.steps.low < 300 < found.steps.high
    assert found.joules is not None
    assert found.joules.low < 600 < found.joules.high


def test_an_amount_of_energy_is_certain_and_its_time_is_not() -> None:
    found = look_ahead(past(joules_left={"stop.energy": 600}))
    assert found is not None
    assert found.joules is not None
    assert 600 == found.joules.low < found.joules.high < 620
    assert found.steps.low < 300 < found.steps.high
    assert found.seconds.low < 30 < found.seconds.high


def test_a_budget_without_a_meter_is_no_end() -> None:
    assert look_ahead(past(joules_left={"stop.energy": 600}, step_j=None)) is None


def test_the_condition_that_is_met_first_counts() -> None:
    found = look_ahead(past(steps_left={"stop.steps": 300}, seconds_left={"stop.seconds": 10}, joules_left={"x": 5000}))
    assert found is not None
    assert found.ends_by == "stop.seconds"
    assert found.seconds.mean == 10
    assert found.steps.mean == pytest.approx(100, rel=0.02)


def test_where_two_ends_are_near_the_soonest_is_that_of_either() -> None:
    found = look_ahead(past(steps_left={"stop.steps": 300}, joules_left={"stop.energy": 601}))
    alone = look_ahead(past(steps_left={"stop.steps": 300}))
    assert found is not None
    assert alone is not None
    assert found.steps.low < alone.steps.low == 300


def test_a_condition_that_is_exceeded_leaves_nothing() -> None:
    for left in ({"steps_left": {"a": -5}}, {"seconds_left": {"a": -5}}, {"joules_left": {"a": -5}}):
        found = look_ahead(past(**left))
        assert found is not None
        assert found.steps.mean == 0


def test_what_comes_on_schedule_is_counted_where_it_comes() -> None:
    evaluation = Recurrent(50, [2.0, 2.0, 2.0, 2.0], NOTHING)
    assert [evaluation.ahead(200, left) for left in (49, 50, 100, 120)] == [1, 1, 2, 3]  # once more at the end
    assert Recurrent(None, [], NOTHING).ahead(200, 100) == 1
    found = look_ahead(past(steps_left={"stop.steps": 100}, recurrent=(evaluation,)))
    assert found is not None
    assert found.seconds.mean == pytest.approx(10 + 2 * 2, rel=0.02)
    assert found.joules is not None
    assert found.joules.mean == pytest.approx(200 + 2 * 2 * STEP_J / STEP_S, rel=0.02)


def test_an_evaluation_that_was_seen_often_has_a_narrower_interval() -> None:
    widths = []
    for num in (1, 4, 16):
        each = Recurrent(50, [2.0] * num, NOTHING).each_s()
        assert each.mean == 2.0
        widths.append(each.high - each.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0] / 4


def test_an_evaluation_is_guessed_by_the_batches_that_it_has() -> None:
    few, _ = guess_recurrent(0.3, batches=20, held_out_batches=2.5, parameters=0)
    many, saved = guess_recurrent(0.3, batches=20, held_out_batches=None, parameters=1e8)
    assert few.mean == pytest.approx(3 * 0.1)
    assert many.mean == pytest.approx(20 * 0.1)
    assert many.low < many.mean < many.high
    assert saved.low < 1.2 < saved.high
    assert guess_recurrent(0.3, None, None, 0)[0] == NOTHING


def test_patience_may_end_it_before_all_else() -> None:
    losses = [2.0, 2.1, 2.05, 2.12, 2.08]
    found = look_ahead(past(steps_left={"stop.steps": 5000}, patience=Patience(5, 40, losses)))
    assert found is not None
    assert found.ends_by == "stop.patience"
    assert found.steps.low == 40
    assert found.seconds.low < 40 * STEP_S
    assert found.steps.high <= 5000


def test_blocks_of_steps_tell_the_same_as_steps() -> None:
    single = look_ahead(past(steps_left={"stop.steps": 800}))
    blocks = NOISE.reshape(-1, 4).mean(axis=1)
    thinned = look_ahead(past(steps_left={"stop.steps": 800}, step_s=STEP_S * blocks, block=4.0))
    assert single is not None
    assert thinned is not None
    assert thinned.seconds.mean == pytest.approx(single.seconds.mean, rel=1e-6)
    assert thinned.seconds.high - thinned.seconds.low < 2 * (single.seconds.high - single.seconds.low)
