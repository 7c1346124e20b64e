"""Budgets: when they are used up, how often they are read, and how they end a run."""

import random
from collections.abc import Iterator

import pytest

from perjoule.measure.contract import Unavailable
from perjoule.train.budget import READ_EVERY_S, Budget, Emitted
from perjoule.train.calendar import Calendar
from perjoule.train.config import CheckpointConfig, EvaluateConfig, StopConfig
from perjoule.train.costs import Costs
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
    budget = Budget(50e3, "J", Meter(20e3, 20e3, 50e3), "measured: gpu-0a1b, modelled: cpu")
    answers = []
    for clock.now in (0.0, 1.0, 2.0):
        answers.append((budget.used_up(), budget.fraction))
    why = "reached 50 kJ (measured: gpu-0a1b, modelled: cpu)"
    assert answers == [(None, 0.4), (None, 0.4), (why, 1.0)]


def test_a_budget_keeps_back_what_is_still_to_be_done(clock: Clock) -> None:
    budget = Budget(100.0, "J", Meter(0.0, 10.0, 20.0), "cpu", lag_s=0.5)
    assert budget.remaining_s() is None, "no power is known from one reading"
    clock.now = 1.0
    assert budget.remaining_s() == pytest.approx((100 - 10 - 5) / 10)
    assert budget.used_up(8.4) is None
    assert budget.used_up(8.6) == "100 J leave no room for another step (cpu)"
    clock.now = 1.1  # not read again, but time has passed
    assert budget.used_up(8.4) is not None


def test_the_power_of_the_last_second_counts_if_it_is_above_the_mean(clock: Clock) -> None:
    budget = Budget(1000.0, "J", Meter(0.0, 1.0, 2.0, 52.0), "cpu")
    for clock.now in (0.0, 1.0, 2.0, 3.0):
        budget.used_up()
    assert budget.remaining_s() == pytest.approx((1000 - 52) / 50)


def test_a_budget_is_read_about_five_times_a_second_however_often_it_is_asked(clock: Clock) -> None:
    meter = Meter(*[1.0] * 100)
    budget = Budget(10.0, "J", meter, "")
    for step in range(1000):
        clock.now = step * 0.002
        budget.used_up()
    assert READ_EVERY_S == 0.2
    assert meter.num_reads == 10


def test_a_failing_meter_neither_ends_a_run_nor_takes_back_what_was_used(clock: Clock) -> None:
    meter = Meter(6.0, Unavailable("the sampler has died"), 5.0, 120.0, Unavailable("again"))
    budget = Budget(100.0, "J", meter, "cpu")
    used = []
    for clock.now in range(5):
        used.append((budget.used_up(), budget.used))
    why = "reached 100 J (cpu)"
    assert used == [(None, 6.0), (None, 6.0), (None, 6.0), (why, 120.0), (why, 120.0)]


def test_carbon_counts_every_increment_with_the_intensity_of_its_moment() -> None:
    intensity = iter([400.0, 400.0, 100.0])
    emitted = Emitted(Meter(3.6e6, 5.4e6, Unavailable("no reading"), 9e6), lambda: next(intensity))
    assert emitted.read() == pytest.approx(400.0)
    assert emitted.read() == pytest.approx(600.0)
    assert emitted.read() == Unavailable("no reading")
    assert emitted.read() == pytest.approx(700.0)


def test_carbon_of_earlier_segments_is_not_charged_again() -> None:
    emitted = Emitted(Meter(3.6e6, 7.2e6), lambda: 100.0, before_j=3.6e6, before_g=900.0)
    assert emitted.read() == pytest.approx(900.0)
    assert emitted.read() == pytest.approx(1000.0)


def test_a_goal_ends_at_whichever_budget_is_used_up_first(clock: Clock) -> None:
    energy = Budget(100.0, "J", Meter(10.0, 20.0), "cpu")
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


class Simulated:
    """A run that uses energy as a real one does: compiling, steps, evaluations on schedule, a checkpoint at its end.

    Its clock is the budget's. Power varies by a tenth, steps by a fifth.
    """

    def __init__(self, clock: Clock, limit_j: float, seed: int) -> None:
        self.clock, self.limit_j, self.random = clock, limit_j, random.Random(seed)
        self.step_s = self.random.choice([0.005, 0.05, 0.4])
        self.compile_s = self.random.choice([0.0, 2.0])
        self.evaluation_s, self.checkpoint_s = 4 * self.step_s, self.random.choice([0.01, 0.1])
        self.used_j, self.progress = 0.0, Progress()
        evaluate = EvaluateConfig(every_steps=self.random.choice([None, 10]), batches=20)
        calendar = Calendar(evaluate, CheckpointConfig(), 8, 800)
        costs = Costs(self.progress, calendar, 20, 1000, evaluation_batch_s=self.evaluation_s / 20)
        costs.eager_step_s = self.step_s if self.compile_s else None
        budget = Budget(limit_j, "J", lambda: self.used_j, "cpu", lag_s=0.1)
        self.costs, self.calendar = costs, calendar
        self.goal = Goal(StopConfig(energy=limit_j), 8, 800, 80, (budget,), costs)

    def work(self, seconds: float) -> None:
        """Spend time, in pieces so short that the watch could look in between."""
        self.clock.now += seconds
        self.used_j += 12.0 * seconds * self.random.uniform(0.9, 1.1)

    def train(self) -> None:
        """Do what :class:`perjoule.train.loop.Loop` and the session do."""
        for _ in range(5):  # it starts
            self.work(0.1)
            self.goal.budgets[0].used_up()
        stop = self.goal.used_up(self.progress, 1) is not None
        while not stop:
            begun = self.clock.now
            stop = self.goal.used_up(self.progress, 2) is not None
            for _ in range(10 if self.progress.step == 0 else 0):
                self.work(self.compile_s / 10)
                if self.goal.first_step_used_up(self.progress, 0.0):
                    return
            self.work(self.step_s * self.random.uniform(0.8, 1.2))
            self.progress.step += 1
            if self.calendar.evaluates(self.progress.step):
                self.evaluate()
            self.progress.seconds += self.clock.now - begun
        if self.goal.has_room(self.progress, self.costs.evaluation_s + self.costs.checkpoint_s):
            self.evaluate()
        self.work(self.checkpoint_s)

    def evaluate(self) -> None:
        """Evaluate."""
        seconds = self.evaluation_s * self.random.uniform(0.9, 1.1)
        self.work(seconds)
        self.costs.evaluated(seconds)


@pytest.mark.parametrize("limit_j", [50.0, 100.0, 200.0, 400.0, 800.0])
def test_a_run_ends_within_its_budget_whatever_its_parts_cost(clock: Clock, limit_j: float) -> None:
    shares = []
    for seed in range(20):
        clock.now = 0.0
        run = Simulated(clock, limit_j, seed)
        run.train()
        shares.append(run.used_j / limit_j)
    assert max(shares) < 1.02
    assert sorted(shares)[10] > 0.7, "and does not leave much of it"
