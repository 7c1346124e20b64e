"""What the progress line says is left: of time and energy, whatever ends the run, and never at the cost of the run."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import perjoule
from perjoule.core.errors import RunFolderError
from perjoule.measure.contract import Unavailable
from perjoule.train.budget import Budget
from perjoule.train.calendar import Calendar
from perjoule.train.left import Left
from perjoule.train.stopping import Goal, Progress

STEP_S, EVALUATE_S, WATTS = 0.1, 0.5, 20.0


class Meter:
    """Energy in proportion to the time in steps."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def read(self) -> float | Unavailable:
        return WATTS * self.progress.seconds


class Run:
    """Trains nothing, in steps of a tenth of a second, which vary by one part in a hundred."""

    def __init__(self, *overrides: str, metered: bool = False, budgets: tuple[Budget, ...] = ()) -> None:
        config = perjoule.load(None, *overrides).config
        self.config, self.progress = config, Progress()
        self.goal = Goal(config.stop, 8, 800, 1000, budgets)
        meter = Meter(self.progress) if metered else None
        calendar = Calendar(config.evaluate, config.checkpoint, 8, 800)
        self.left = Left(config, calendar, self.goal, self.progress, 1000, 160, meter)  # type: ignore[arg-type]
        self.random = np.random.default_rng(0)

    def train(self, num: int) -> None:
        every = self.config.evaluate.every_steps
        for _ in range(num):
            self.left.step()
            self.progress.step += 1
            self.progress.seconds += STEP_S * (1 + 0.01 * self.random.standard_normal())
            if every and self.progress.step % every == 0:
                self.left.evaluated(EVALUATE_S, 1.0)
                self.progress.seconds += EVALUATE_S
                self.left.saved(0.01)
                self.progress.seconds += 0.01
        self.left.step()

    def seconds(self) -> tuple[float, float, float]:
        found = self.left._look_ahead()
        assert found is not None
        return found.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    now = [0.0]
    monkeypatch.setattr("perjoule.train.left.time.monotonic", lambda: now[0])

    def turn(seconds: float) -> None:
        now[0] += seconds

    yield turn


def test_steps_are_projected_with_the_evaluations_that_are_still_to_come() -> None:
    run = Run("stop.steps=1000", "evaluate={every_steps: 100, batches: 4}")
    run.train(250)
    mean, low, high = run.seconds()
    assert mean == pytest.approx(750 * STEP_S + 8 * EVALUATE_S, rel=0.02)
    assert low < mean < high < 1.15 * mean


def test_an_end_after_some_seconds_is_certain() -> None:
    run = Run("stop={seconds: 60}", "schedule.kind=constant")
    run.train(100)
    mean, low, high = run.seconds()
    assert low == pytest.approx(60 - run.progress.seconds)
    assert high < mean + 1


def test_energy_is_projected_where_it_is_metered(clock: Callable[[float], None]) -> None:
    run = Run("stop.steps=1000", metered=True)
    run.train(10)
    assert "J" not in run.left.text()  # nothing was watched yet
    run.train(90)
    clock(1.0)
    found = run.left._look_ahead()
    assert found is not None
    assert found.joules is not None
    assert found.joules.mean == pytest.approx(900 * STEP_S * WATTS, rel=0.05)
    assert "and 1.8 kJ (" in run.left.text()


def test_a_budget_of_energy_or_carbon_ends_the_projection() -> None:
    for unit, limit in (("J", 400.0), ("gCO2e", 0.4)):
        budget = Budget(limit, unit, lambda: 0.0, "a meter")
        run = Run("stop.steps=100000", "schedule.kind=constant", metered=True, budgets=(budget,))
        run.train(1)
        run.left.text()
        run.train(100)
        budget.used = WATTS * run.progress.seconds * limit / 400
        found = run.left._look_ahead()
        assert found is not None
        assert found.ends_by == {"J": "stop.energy", "gCO2e": "stop.carbon"}[unit]
        assert found.seconds.mean == pytest.approx(400 / WATTS - run.progress.seconds, rel=0.1)


def test_patience_makes_the_soonest_end_sooner() -> None:
    run = Run("stop={steps: 1000, patience: 3}", "evaluate={every_steps: 20, batches: 4}")
    run.train(100)
    found = run.left._look_ahead()
    assert found is not None
    assert found.steps.low <= 60


def test_the_line_has_the_time_with_its_interval(clock: Callable[[float], None]) -> None:
    run = Run("stop.steps=1000")
    assert run.left.text() == ""  # no step yet
    run.train(500)
    assert run.left.text() == ""  # looked at once a second at most
    clock(1.0)
    # The last evaluation, of which there was none yet, is taken to need two thirds of a second.
    assert run.left.text() == ", 51 s (49 s to 52 s) left"


def test_a_run_without_a_known_end_says_nothing(clock: Callable[[float], None]) -> None:
    run = Run("stop={energy: 50J}", "schedule.kind=constant")
    run.train(100)
    assert run.left.text() == ""


def test_a_meter_that_fails_takes_the_figure_away_and_not_the_run(clock: Callable[[float], None]) -> None:
    run = Run("stop.steps=1000", metered=True)
    run.train(100)

    def broken() -> float:
        raise RunFolderError("cannot read the samples")

    run.left._energy.read = broken  # type: ignore[union-attr, method-assign]
    assert run.left.text() == ""


def test_a_million_steps_are_kept_in_some_hundred_numbers() -> None:
    run = Run("stop.steps=2000000")
    run.train(20_000)
    assert len(run.left._steps.means) <= 512
    assert run.left._steps.block == 64
    assert run.seconds()[0] == pytest.approx(1_980_000 * STEP_S, rel=0.01)
