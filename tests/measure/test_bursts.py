"""Bursts: what is repeated, how long, in which order, and what the journal says of it."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perjoule.measure.bursts import CHUNK_S, MAX_BREAK_S, Burst, Repeated, phase_names, run_bursts
from perjoule.measure.recorder import FencePolicy, Recorder
from perjoule.runs.journal import BEGIN, END, JournalWriter, read_journal
from perjoule.runs.phase_table import build_phase_table

NAMES = ("step", *phase_names(("forward", "backward")))


class Clock:
    """Stands in for time: it only advances by what is done."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def work(self, seconds: float) -> Callable[[], None]:
        def work() -> None:
            self.now += seconds

        return work


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("perjoule.measure.bursts.time", clock)
    return clock


def _recorder(path: Path) -> Recorder:
    return Recorder(JournalWriter(path, NAMES), lambda: None, FencePolicy.NONE)


def _silent() -> Recorder:
    return Recorder(None, lambda: None, FencePolicy.NONE)


def test_a_burst_lasts_as_long_as_asked_and_goes_one_repetition_beyond_at_most(clock: Clock) -> None:
    burst = Burst((("forward", clock.work(0.03)), ("backward", clock.work(0.05))))
    (repeated,) = run_bursts([burst], _silent(), 3.0)
    assert repeated.name == "forward+backward"
    assert 3.0 <= repeated.lasted_s < 3.0 + 0.08 + MAX_BREAK_S
    breaks = clock.slept[1:]
    assert repeated.lasted_s == pytest.approx(repeated.num_repeats * 0.08 + sum(breaks))
    assert clock.slept[0] == 0.5


def test_short_breaks_come_about_every_fifth_of_a_second_and_differ(clock: Clock) -> None:
    (repeated,) = run_bursts([Burst((("forward", clock.work(0.001)),))], _silent(), 10.0)
    breaks = clock.slept[1:]
    assert len(breaks) == pytest.approx(10.0 / (CHUNK_S + MAX_BREAK_S / 2), rel=0.1)
    assert len(set(breaks)) == len(breaks)
    assert all(0 <= pause <= MAX_BREAK_S for pause in breaks)
    assert repeated.num_repeats > 9000


def test_work_longer_than_the_burst_runs_once(clock: Clock) -> None:
    (repeated,) = run_bursts([Burst((("forward", clock.work(9.0)),))], _silent(), 3.0)
    assert repeated == Repeated("forward", 1, 9.0)


def test_all_ranks_repeat_what_the_leader_says(clock: Clock) -> None:
    answers, asked, done = iter([1, 4, 2, 0]), [], []

    def agree(count: int) -> int:
        asked.append(count)
        return next(answers)

    burst = Burst((("forward", lambda: done.append(clock.now)),))
    (repeated,) = run_bursts([burst], _silent(), 1.0, agree=agree)
    assert (repeated.num_repeats, len(done), len(asked)) == (7, 7, 4)
    assert asked[0] == 1


def test_the_device_is_waited_for_before_a_burst_ends(clock: Clock) -> None:
    trace: list[str] = []
    burst = Burst((("forward", lambda: trace.append("work")),))
    answers = iter([1, 2, 0])
    run_bursts([burst], _silent(), 1.0, fence=lambda: trace.append("fence"), agree=lambda _: next(answers))
    assert trace == ["work", "fence", "work", "work", "fence"]


def test_the_journal_has_one_phase_for_each_burst_and_one_for_each_part(tmp_path: Path) -> None:
    recorder = _recorder(tmp_path / "events")
    forward = ("forward", lambda: time.sleep(0.001))
    backward = ("backward", lambda: time.sleep(0.002))
    answers = iter([1, 5, 0, 1, 2, 0])
    bursts = [Burst((forward,)), Burst((forward, backward))]
    repeated = run_bursts(bursts, recorder, 1.0, pause_s=0.01, agree=lambda _: next(answers))
    recorder.close()
    assert [(one.name, one.num_repeats) for one in repeated] == [("forward", 6), ("forward+backward", 3)]
    journal = read_journal(tmp_path / "events")
    assert (journal.records["step"] == 0).all()
    events = [(journal.phases[row["phase"]], int(row["kind"])) for row in journal.records]
    one, two = [("calibrate/forward", BEGIN), ("calibrate/forward", END)], ["calibrate/forward", "calibrate/backward"]
    both = [(name, kind) for name in two for kind in (BEGIN, END)]
    whole = ("calibrate", BEGIN), ("calibrate", END)
    # Alone, the repetitions between two pauses are one phase.
    assert events == [whole[0], *one, *one, whole[1], whole[0], *both * 3, whole[1]]
    spent_ns = build_phase_table(journal).before_ns
    assert spent_ns["calibrate/forward"] >= 9e6
    assert spent_ns["calibrate/backward"] >= 6e6
    assert spent_ns["calibrate"] >= spent_ns["calibrate/forward"] + spent_ns["calibrate/backward"]


def test_a_burst_that_fails_leaves_no_phase_open(tmp_path: Path) -> None:
    recorder = _recorder(tmp_path / "events")

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_bursts([Burst((("backward", fail),))], recorder, 1.0, pause_s=0)
    recorder.close()
    table = build_phase_table(read_journal(tmp_path / "events"))
    assert table.num_unclosed == 0
    assert table.before_ns.keys() == {"calibrate", "calibrate/backward"}


def test_a_burst_is_named_by_its_parts_each_once() -> None:
    def nothing() -> None:
        return None

    parts = ("data", "transfer", "forward", "backward", "transfer", "forward", "backward", "optimizer")
    burst = Burst(tuple((part, nothing) for part in parts))
    assert burst.name == "data+transfer+forward+backward+optimizer"
