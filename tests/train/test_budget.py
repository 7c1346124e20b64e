"""Budgets: when they are used up, how often they are read, and how they end a run."""

from collections.abc import Iterator

import pytest

from perjoule.measure.contract import Unavailable
from perjoule.train.budget import READ_EVERY_S, Budget, Emitted
from perjoule.train.config import StopConfig
from perjoule.train.stopping import Goal, Progress


class Clock:
    """Stands in for time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("perjoule.train.budget.time", clock)
    return clock


class Meter:
    """Gives the readings it was given, and counts them."""

    def __init__(self, *readings: float | Unavailable) -> None:
        self._readings: Iterator[float | Unavailable] = iter(readings)
        self.num_reads = 0

    def __call__(self) -> float | Unavailable:
        self.num_reads += 1
        return next(self._readings)


def test_a_budget_is_used_up_when_the_reading_reaches_it(clock: Clock) -> None:
    budget = Budget(50e3, "J", Meter(20e3, 49_999.0, 50e3), "measured: gpu-0a1b, modelled: cpu")
    answers = []
    for clock.now in (0.0, 1.0, 2.0):
        answers.append((budget.used_up(), budget.fraction))
    why = "reached 50 kJ (measured: gpu-0a1b, modelled: cpu)"
    assert answers == [(None, 0.4), (None, 0.99998), (why, 1.0)]


def test_a_budget_is_read_about_five_times_a_second_however_often_it_is_asked(clock: Clock) -> None:
    meter = Meter(*[1.0] * 100)
    budget = Budget(10.0, "J", meter, "")
    for step in range(1000):
        clock.now = step * 0.002
        budget.used_up()
    assert READ_EVERY_S == 0.2
    assert meter.num_reads == 10


def test_a_failing_meter_neither_ends_a_run_nor_takes_back_what_was_used(clock: Clock) -> None:
    budget = Budget(10.0, "J", Meter(6.0, Unavailable("the sampler has died"), 5.0, 12.0, Unavailable("again")), "cpu")
    used = []
    for clock.now in range(5):
        used.append((budget.used_up(), budget.used))
    assert used == [(None, 6.0), (None, 6.0), (None, 6.0), ("reached 10 J (cpu)", 12.0), ("reached 10 J (cpu)", 12.0)]


def test_carbon_counts_every_increment_with_the_intensity_of_its_moment() -> None:
    intensity = iter([400.0, 400.0, 100.0])
    emitted = Emitted(Meter(3.6e6, 5.4e6, Unavailable("no reading"), 9e6), lambda: next(intensity))
    assert emitted.read() == pytest.approx(400.0)
    assert emitted.read() == pytest.approx(600.0)
    assert emitted.read() == Unavailable("no reading")
    assert emitted.read() == pytest.approx(700.0)


def test_a_goal_ends_at_whichever_budget_is_used_up_first(clock: Clock) -> None:
    energy = Budget(100.0, "J", Meter(10.0, 60.0), "cpu")
    carbon = Budget(2.0, "gCO2e", Meter(1.5, 2.5), "cpu; a table")
    goal = Goal(StopConfig(energy=100.0, seconds=1000), 8, 100, 80, (energy, carbon))
    assert goal.last_step is None
    assert goal.used_up(Progress(seconds=1)) is None
    assert goal.fraction(Progress(seconds=1)) == 0.75
    clock.now = 1.0
    assert goal.used_up(Progress(seconds=2)) == "reached 2 gCO2e (cpu; a table)"
    assert goal.fraction(Progress(seconds=2)) == 1.0
    assert goal.used_up(Progress(seconds=1000)) == "reached 1000 s"
    assert goal.reached(Progress(step=10**6)) is None
