"""When a run ends: goals, patience, signals."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from perjoule.core.errors import ConfigError
from perjoule.train.config import StopConfig
from perjoule.train.stopping import (
    SIGNALS,
    FirstStepWatch,
    GivenUp,
    Goal,
    Interrupted,
    Progress,
    SignalFlag,
    ending_of,
    until,
)


def _goal(**stop: Any) -> Goal:
    """Return a goal for steps of 8 samples and 80 tokens, and epochs of 100 samples."""
    return Goal(StopConfig.model_validate(stop), samples_per_step=8, samples_per_epoch=100, tokens_per_step=80)


@pytest.fixture
def handlers() -> Iterator[dict[signal.Signals, Any]]:
    """Return the handlers before the test, and set them again after it."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("stop", "last"),
    [
        ({"steps": 7}, 7),
        ({"epochs": 2}, 25),
        ({"epochs": 1}, 13),
        ({"epochs": 0.5}, 7),
        ({"tokens": 800}, 10),
        ({"tokens": 801}, 11),
        ({"steps": 20, "epochs": 1, "tokens": 80_000}, 13),
        ({"steps": 5, "seconds": 1}, 5),
        ({"seconds": 60}, None),
    ],
)
def test_last_step_is_the_earliest_bound(stop: dict[str, Any], last: int | None) -> None:
    assert _goal(**stop).last_step == last


@pytest.mark.parametrize(
    ("stop", "why"),
    [
        ({"steps": 7}, "reached 7 steps"),
        ({"epochs": 0.5}, "reached 0.5 epochs"),
        ({"epochs": 2}, "reached 2 epochs"),
        ({"tokens": 801}, "reached 801 tokens"),
    ],
)
def test_goal_is_reached_at_the_last_step_and_not_before(stop: dict[str, Any], why: str) -> None:
    goal = _goal(**stop)
    assert goal.last_step is not None
    for step in range(goal.last_step):
        assert goal.reached(Progress(step=step, samples=8 * step, tokens=80 * step)) is None
    last = goal.last_step
    assert goal.reached(Progress(step=last, samples=8 * last, tokens=80 * last)) == why


def test_patience_ends_after_so_many_evaluations_without_a_better_loss() -> None:
    goal, progress = _goal(steps=1000, patience=2), Progress()
    for progress.step, loss in enumerate([5.0, 4.0, 4.5, 3.0, 3.0, 3.5], 1):
        assert goal.reached(progress) is None
        progress.saw_held_out_loss(loss)
    assert goal.reached(progress) == "no better held-out loss in 2 evaluations since step 4"


def test_best_loss_is_the_lowest_and_only_a_lower_one_is_better() -> None:
    progress = Progress()
    verdicts = []
    for progress.step, loss in enumerate([5.0, 4.0, 4.0, 6.0], 1):
        verdicts.append(progress.saw_held_out_loss(loss))
    assert verdicts == [True, True, False, False]
    assert (progress.best_loss, progress.best_step, progress.stale_evaluations) == (4.0, 2, 2)


def test_the_lowest_losses_are_remembered_and_come_back_from_a_checkpoint() -> None:
    progress = Progress()
    among = []
    for progress.step, loss in enumerate([5.0, 4.0, 4.5, 6.0], 1):
        progress.saw_held_out_loss(loss)
        progress.rank(loss, keep=2)
        among.append(progress.is_among_the_best)
    assert among == [True, True, True, False]
    assert progress.top == ((4.0, 2), (4.5, 3))
    plain = json.loads(json.dumps(asdict(progress)))
    assert Progress.revive(plain) == progress
    del plain["top"]  # as an older version wrote it
    assert Progress.revive(plain).top == ((4.0, 2),)


def test_loss_that_is_not_finite_is_never_the_best() -> None:
    progress = Progress(step=1)
    assert not progress.saw_held_out_loss(float("nan"))
    assert not progress.saw_held_out_loss(float("-inf"))
    assert progress.best_loss is None
    assert progress.saw_held_out_loss(9.0)
    assert progress.stale_evaluations == 0


def test_time_is_up_at_the_configured_seconds() -> None:
    goal = _goal(seconds=2.5)
    assert goal.used_up(Progress(seconds=2.4)) is None
    assert goal.used_up(Progress(seconds=2.5)) == "reached 2.5 s"
    assert _goal(steps=3).used_up(Progress(seconds=1e9)) is None


def test_fraction_is_that_of_the_nearest_condition() -> None:
    goal = _goal(steps=10, seconds=100)
    assert goal.fraction(Progress()) == 0
    assert goal.fraction(Progress(step=2, seconds=50)) == 0.5
    assert goal.fraction(Progress(step=9, seconds=50)) == 0.9
    assert goal.fraction(Progress(step=11)) == 1


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_is_a_wish_to_stop(number: signal.Signals, handlers: dict[signal.Signals, Any]) -> None:
    with SignalFlag() as flag:
        received = [flag.received]
        os.kill(os.getpid(), number)
        received.append(flag.received)
    assert received == [None, number]
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_second_interrupt_raises(first: signal.Signals, handlers: dict[signal.Signals, Any]) -> None:
    with pytest.raises(KeyboardInterrupt), SignalFlag():
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGINT)
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_second_termination_is_still_only_a_wish(handlers: dict[signal.Signals, Any]) -> None:
    with SignalFlag() as flag:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert flag.received is signal.SIGUSR1
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_signals_stay_with_the_caller_outside_the_main_thread(handlers: dict[signal.Signals, Any]) -> None:
    seen: list[dict[signal.Signals, Any]] = []

    def run() -> None:
        with SignalFlag():
            seen.append({number: signal.getsignal(number) for number in SIGNALS})

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [handlers]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_segment_with_nothing_to_lose_ends_at_once(
    number: signal.Signals, handlers: dict[signal.Signals, Any]
) -> None:
    with pytest.raises(Interrupted) as caught, SignalFlag() as flag:
        flag.nothing_to_lose = lambda: True
        os.kill(os.getpid(), number)
    assert (caught.value.signal, ending_of(caught.value)[0]) == (number, "stopped")
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_a_hangup_that_is_ignored_stays_ignored(handlers: dict[signal.Signals, Any]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with SignalFlag() as flag:
        os.kill(os.getpid(), signal.SIGHUP)
    assert flag.received is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("to_lose", [False, True])
def test_the_first_step_is_given_up_when_it_alone_uses_up_the_budget(to_lose: bool) -> None:
    goal, progress = _goal(seconds=0.5), Progress()
    with contextlib.ExitStack() as stack:
        flag = stack.enter_context(SignalFlag())
        flag.nothing_to_lose = lambda: not to_lose
        if not to_lose:
            caught = stack.enter_context(pytest.raises(Interrupted, match=r"reached 0\.5 s"))
        stack.enter_context(FirstStepWatch(goal, progress, flag))
        time.sleep(1.0)
    assert flag.received is None
    if not to_lose:
        assert ending_of(caught.value) == ("finished", "reached 0.5 s")


def test_data_without_tokens_cannot_end_after_tokens() -> None:
    goal = Goal(StopConfig(tokens=100), samples_per_step=8, samples_per_epoch=100, tokens_per_step=0)
    with pytest.raises(ConfigError, match=r"stop\.tokens: the samples of this data have no tokens"):
        _ = goal.last_step


def test_items_are_given_up_when_somebody_asks_to_stop() -> None:
    asked = iter([False, False, True])
    seen = []
    with pytest.raises(GivenUp):
        for item in until(lambda: next(asked), iter("abc")):
            seen.append(item)
    assert seen == ["a", "b"]
