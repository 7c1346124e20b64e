import json
from pathlib import Path
from typing import Any

import pytest
from tests.runs.synthetic import CHECKPOINT_MS, EVALUATE_MS, MODEL, SyntheticRun
from tests.system.tiny import Tiny, run_of

from perjoule.core.errors import DataError
from perjoule.estimate.own.remaining import Rest, estimate_rest, read_past
from perjoule.runs.tables import load_run

STEP_S = 0.1
SAVED_S = float(str(MODEL["parameters"])) * 12 / 1e9
"""The last checkpoint, as long as there was none: weights and moments are copied at 1 GB/s."""


def resolved(**values: Any) -> dict[str, Any]:
    return {key.replace("__", "."): {"value": value, "source": "default"} for key, value in values.items()}


def rest_of(path: Path, num_steps: int = 40, slow: dict[int, float] | None = None, **values: Any) -> Rest:
    """Return the rest of a run that was killed behind a step."""
    run = SyntheticRun(path, resolved(**values))
    run.segment()
    run.train(1, num_steps, slow)
    return estimate_rest(load_run(run.kill()))


def test_the_rest_of_the_steps_takes_as_long_as_they_took(tmp_path: Path) -> None:
    rest = rest_of(tmp_path / "run", stop__steps=100)
    assert (rest.num_done, rest.steps.mean, rest.ends_by) == (40, 60, "stop.steps")
    assert rest.seconds.mean == pytest.approx(60 * STEP_S + SAVED_S)
    assert rest.seconds.low < rest.seconds.mean < rest.seconds.high
    assert rest.step_s.mean == pytest.approx(STEP_S)


def test_compilation_is_not_projected(tmp_path: Path) -> None:
    rest = rest_of(tmp_path / "run", slow={1: 300.0, 2: 20.0}, stop__steps=100)
    assert rest.seconds.mean == pytest.approx(60 * STEP_S + SAVED_S)


def test_a_new_phase_is_projected_and_not_the_old_one(tmp_path: Path) -> None:
    rest = rest_of(tmp_path / "run", slow=dict.fromkeys(range(21, 41), 3.0), stop__steps=100)
    assert rest.seconds.mean == pytest.approx(60 * 3 * STEP_S + SAVED_S)


@pytest.mark.parametrize(
    ("end", "steps"),
    [
        ({"stop__tokens": 60 * 2048}, 20),
        ({"stop__seconds": 4 + 2.0}, 20),
        ({"stop__epochs": 2.0}, 160),
        ({"stop__steps": 100, "stop__tokens": 50 * 2048}, 10),
        ({"stop__steps": 30}, 0),
    ],
)
def test_the_run_ends_at_whichever_comes_first(tmp_path: Path, end: dict[str, Any], steps: int) -> None:
    run = SyntheticRun(tmp_path / "run", resolved(**end), data={"facts": {"splits": {"train": {"num_samples": 800}}}})
    run.segment()
    run.train(1, 40)
    assert estimate_rest(load_run(run.kill())).steps.mean == pytest.approx(steps)


def test_an_end_after_some_seconds_leaves_the_steps_uncertain_and_not_the_time(tmp_path: Path) -> None:
    rest = rest_of(tmp_path / "run", stop__seconds=14.0)
    assert rest.ends_by == "stop.seconds"
    assert rest.seconds.low == pytest.approx(10.0)
    assert rest.seconds.mean == pytest.approx(10.0 + SAVED_S)
    assert rest.steps.low < rest.steps.mean < rest.steps.high


def test_an_evaluation_that_never_was_is_guessed_from_the_steps(tmp_path: Path) -> None:
    """Four batches of forward passes, which are a third of a step, at step 100 and not again at the end."""
    rest = rest_of(tmp_path / "run", stop__steps=100, evaluate__every_steps=100, evaluate__batches=4)
    assert rest.seconds.mean == pytest.approx(60 * STEP_S + 4 * STEP_S / 3 + SAVED_S)


@pytest.mark.parametrize("every", [{"evaluate__every_steps": 10}, {"evaluate__every_epochs": 0.1}])
def test_evaluations_and_checkpoints_come_on_top_by_their_schedules(tmp_path: Path, every: dict[str, Any]) -> None:
    values = {"stop__steps": 100, **every, "checkpoint__every_steps": 10, "batch__size": 8}
    facts = {"facts": {"splits": {"train": {"num_samples": 800}}}}
    run = SyntheticRun(tmp_path / "run", resolved(**values), data=facts)
    run.segment()
    for first in (1, 11, 21, 31):
        run.train(first, first + 8)
        run.train_with_evaluation(first + 9, 4.0)
    rest = estimate_rest(load_run(run.kill()))
    assert rest.seconds.mean == pytest.approx(60 * STEP_S + 6 * (EVALUATE_MS + CHECKPOINT_MS) / 1e3)


def test_patience_gives_the_steps_an_interval(tmp_path: Path) -> None:
    values = {"stop__steps": 1000, "stop__patience": 4, "evaluate__every_epochs": 0.1, "batch__size": 8}
    facts = {"facts": {"splits": {"train": {"num_samples": 800}}}}
    run = SyntheticRun(tmp_path / "run", resolved(**values), data=facts)
    run.segment()
    for number, loss in enumerate((4.0, 4.02, 3.99, 4.03, 4.01)):
        run.train(10 * number + 1, 10 * number + 9)
        run.train_with_evaluation(10 * number + 10, loss)
    rest = estimate_rest(load_run(run.kill()))
    assert rest.ends_by == "stop.patience"
    assert rest.steps.low == 20  # two evaluations without a better one are behind it
    assert rest.steps.low < rest.steps.high < 950
    assert rest.seconds.low < rest.steps.low * 2 * STEP_S


def test_a_finished_run_needs_nothing(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run", resolved(stop__steps=20))
    run.segment()
    run.train(1, 20)
    rest = estimate_rest(load_run(run.end()))
    assert (rest.steps.mean, rest.seconds.mean, rest.seconds.high) == (0, 0, 0)
    assert rest.notes[0] == "the run is finished"


def test_energy_that_was_not_metered_is_unknown_and_not_zero(tmp_path: Path) -> None:
    rest = rest_of(tmp_path / "run", stop__steps=100)
    assert rest.joules is rest.gco2e is rest.cost is None
    assert "energy: unknown, no meter was read while it trained" in rest.notes


def test_a_run_without_a_step_or_an_end_is_refused(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "early", resolved(stop__steps=10))
    run.segment()
    with pytest.raises(DataError, match=r"early has no timed step yet: wait for the first, or estimate its recipe"):
        estimate_rest(load_run(run.kill()))
    with pytest.raises(DataError, match=r"endless does not say when it ends in steps, epochs, tokens, seconds or"):
        rest_of(tmp_path / "endless")


def test_energy_carbon_and_cost_of_a_real_run_that_was_stopped(tiny: Tiny) -> None:
    path = run_of(
        tiny.train(
            "stop.steps=60",
            "energy={sampler: thread, meters: cpu_time, rate_hz: 20}",
            "carbon={intensity_g_per_kwh: 360, pue: 2, price_per_kwh: 0.5, currency: EUR}",
        )
    )
    stopped = path / "manifest.json"
    stopped.write_text(stopped.read_text().replace('"finished"', '"stopped"'))
    goal = path / "resolved.json"
    goal.write_text(goal.read_text().replace('"value": 60', '"value": 120'))
    rest = estimate_rest(load_run(path))
    assert rest.steps.mean == 60
    assert rest.joules is not None
    # Between two idle cores for the whole time and a few busy ones.
    assert 0 < rest.joules.mean < 200 * rest.seconds.high
    assert rest.gco2e is not None
    assert rest.gco2e.mean == pytest.approx(rest.joules.mean / 3.6e6 * 360 * 2)
    assert rest.cost is not None
    assert rest.cost.mean == pytest.approx(rest.joules.mean / 3.6e6 * 0.5 * 2)
    assert rest.cost.unit == "EUR"
    assert "energy: cpu is modelled, not measured" in rest.notes

    used_j = read_past(load_run(path), []).step_j
    assert used_j is not None
    for key, limit in (("stop.energy", 1000.0), ("stop.carbon", 1000.0 / 3.6e6 * 360 * 2)):
        settings = json.loads(goal.read_text())
        settings["stop.steps"]["value"], settings[key] = 10**9, {"value": limit, "source": "test"}
        goal.write_text(json.dumps(settings))
        budgeted = estimate_rest(load_run(path))
        assert budgeted.ends_by == key
        assert budgeted.joules is not None
        # The joules are those of the budget; the steps that they buy are not certain.
        assert budgeted.joules.low == pytest.approx(1000, rel=0.2)
        assert budgeted.steps.low < budgeted.steps.mean < budgeted.steps.high
        del settings[key]
        goal.write_text(json.dumps(settings))
