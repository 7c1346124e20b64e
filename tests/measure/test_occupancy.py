from pathlib import Path

import numpy as np
import pytest

from perjoule.core.phases import OTHER, STEP
from perjoule.measure import occupancy
from perjoule.measure.occupancy import OUTSIDE, Whereabouts, together
from perjoule.runs.journal import BEGIN, END, RECORD_DTYPE, Journal

PHASES = [STEP, "data", "forward", "forward/think", "evaluate"]
Edge = tuple[int, str, int, int]


def whereabouts(edges: list[Edge], cpu_per_ns: float = 2.0) -> Whereabouts:
    """Return where a process was that recorded (moment, phase, kind, step)."""
    rows = np.zeros(len(edges), RECORD_DTYPE)
    for row, (t_ns, phase, kind, step) in zip(rows, edges, strict=True):
        row["t_ns"], row["cpu_ns"] = t_ns, cpu_per_ns * t_ns
        row["phase"], row["kind"], row["step"] = PHASES.index(phase), kind, step
    return Whereabouts(Journal({"phases": PHASES}, rows))


def step(at: int, number: int) -> list[Edge]:
    """Return a step of 100 ns: 10 data, 5 other, 60 forward with 20 of thinking, 25 other."""
    return [
        (at, STEP, BEGIN, number),
        (at, "data", BEGIN, number),
        (at + 10, "data", END, number),
        (at + 15, "forward", BEGIN, number),
        (at + 30, "forward/think", BEGIN, number),
        (at + 50, "forward/think", END, number),
        (at + 75, "forward", END, number),
        (at + 100, STEP, END, number),
    ]


EDGES = [*step(1000, 1), *step(1100, 2), (1250, "evaluate", BEGIN, 2), (1300, "evaluate", END, 2)]


def test_time_of_every_state_up_to_a_moment_is_exclusive_and_adds_up_to_the_time_that_passed() -> None:
    rank = whereabouts(EDGES)
    times = np.array([1000, 1012, 1040, 1100, 1200, 1260, 1300, 1400])
    spent = rank.spent(times)
    at = {state: spent.wall_ns[row].tolist() for row, state in enumerate(spent.states)}
    assert at["data"] == [0, 10, 10, 10, 20, 20, 20, 20]
    assert at["forward"] == [0, 0, 15, 40, 80, 80, 80, 80]
    assert at["forward/think"] == [0, 0, 10, 20, 40, 40, 40, 40]
    assert at[OTHER] == [0, 2, 5, 30, 60, 60, 60, 60]
    assert at["evaluate"] == [0, 0, 0, 0, 0, 10, 50, 50]
    assert at[OUTSIDE] == [0, 0, 0, 0, 0, 50, 50, 150]
    assert (np.diff(spent.wall_ns.sum(axis=0)) == np.diff(times)).all()


def test_processor_time_goes_to_the_state_that_used_it() -> None:
    spent = whereabouts(EDGES).spent(np.array([1000, 1100]))
    assert (spent.cpu_ns[:, 1] == 2 * spent.wall_ns[:, 1]).all()


def test_chunks_of_the_journal_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = [edge for number in range(40) for edge in step(1000 + 103 * number, number + 1)]
    times = np.sort(np.random.default_rng(0).integers(900, 1000 + 103 * 41, 200))
    whole = whereabouts(edges).spent(times)
    steps = whereabouts(edges).steps()
    for size in (2, 3, 7, 64):
        monkeypatch.setattr(occupancy, "CHUNK_RECORDS", size)
        parts = whereabouts(edges).spent(times)
        assert (parts.wall_ns == whole.wall_ns).all(), size
        assert (parts.cpu_ns == whole.cpu_ns).all(), size
        assert all((a == b).all() for a, b in zip(whereabouts(edges).steps(), steps, strict=True))


def test_a_process_that_was_killed_is_outside_behind_its_last_record() -> None:
    rank = whereabouts(EDGES[:5])
    spent = rank.spent(np.array([1030, 1050]))
    assert rank.end_ns == 1030
    assert spent.wall_ns[spent.states.index(OUTSIDE)].tolist() == [0, 20]


def test_counts_occurrences_and_steps_are_what_was_recorded() -> None:
    rank = whereabouts(EDGES)
    assert rank.count() == {OUTSIDE: 0, OTHER: 2, "data": 2, "forward": 2, "forward/think": 2, "evaluate": 1}
    assert rank.occurrences("evaluate").tolist() == [[1250, 1300]]
    assert rank.occurrences("no such phase").shape == (0, 2)
    assert [part.tolist() for part in rank.steps()] == [[1, 2], [1000, 1100], [1100, 1200]]


def test_two_ranks_share_the_wall_clock_and_add_up_their_processor_time() -> None:
    first, second = whereabouts(step(1000, 1)), whereabouts(step(1020, 1))
    both = together([rank.spent(np.array([1000, 1120])) for rank in (first, second)])
    assert both.wall_ns[both.states.index("data"), 1] == 10
    assert both.cpu_ns[both.states.index("data"), 1] == 40
    assert both.wall_ns[:, 1].sum() - both.wall_ns[:, 0].sum() == 120


def test_an_empty_journal_is_outside_all_the_time(tmp_path: Path) -> None:
    rank = whereabouts([])
    assert rank.spent(np.array([5, 9])).wall_ns[0].tolist() == [5, 9]
    assert rank.steps()[0].tolist() == []
