"""The recorder: what a phase writes, and when the device is waited for."""

from pathlib import Path

import pytest

from perjoule.core import phases
from perjoule.measure.recorder import FencePolicy, NoPhase, Recorder
from perjoule.runs.journal import BEGIN, END, JournalWriter, read_journal

NAMES = (*phases.RECORDED, "forward/think")


class Fence:
    """Counts how often it is called, and how many records the journal held each time."""

    def __init__(self, journal: JournalWriter | None = None) -> None:
        self.journal = journal
        self.records_before: list[int] = []

    def __call__(self) -> None:
        self.records_before.append(self.journal.num_records if self.journal else 0)


def _run_steps(recorder: Recorder, num_steps: int) -> None:
    """Go through steps with one nested phase, as the training loop does."""
    step, forward = recorder.phase(phases.STEP), recorder.phase(phases.FORWARD)
    think, optimizer = recorder.phase("forward/think"), recorder.phase(phases.OPTIMIZER)
    for number in range(1, num_steps + 1):
        recorder.step = number
        with step:
            with forward, think:
                pass
            with optimizer:
                pass


def _events(path: Path) -> list[tuple[int, str, int]]:
    journal = read_journal(path)
    return [(int(row["step"]), journal.phases[row["phase"]], int(row["kind"])) for row in journal.records]


def test_records_are_in_the_order_of_the_edges(tmp_path: Path) -> None:
    recorder = Recorder(JournalWriter(tmp_path / "events", NAMES), Fence(), FencePolicy.NONE)
    _run_steps(recorder, 2)
    recorder.close()
    one_step = [
        ("step", BEGIN),
        ("forward", BEGIN),
        ("forward/think", BEGIN),
        ("forward/think", END),
        ("forward", END),
        ("optimizer", BEGIN),
        ("optimizer", END),
        ("step", END),
    ]
    assert _events(tmp_path / "events") == [(step, *event) for step in (1, 2) for event in one_step]
    times = read_journal(tmp_path / "events").records["t_ns"]
    assert (times[1:] >= times[:-1]).all()
    assert times[0] > 0


def test_exception_inside_a_phase_ends_it_and_goes_on(tmp_path: Path) -> None:
    recorder = Recorder(JournalWriter(tmp_path / "events", NAMES), Fence(), FencePolicy.NONE)
    with pytest.raises(ZeroDivisionError), recorder.phase(phases.STEP), recorder.phase(phases.FORWARD):
        raise ZeroDivisionError
    recorder.close()
    expected = [(0, "step", BEGIN), (0, "forward", BEGIN), (0, "forward", END), (0, "step", END)]
    assert _events(tmp_path / "events") == expected


@pytest.mark.parametrize(
    ("policy", "per_step"), [(FencePolicy.NONE, []), (FencePolicy.STEP, [0, 7]), (FencePolicy.EDGE, list(range(8)))]
)
def test_fence_is_called_before_the_edges_that_the_policy_names(
    policy: FencePolicy, per_step: list[int], tmp_path: Path
) -> None:
    journal = JournalWriter(tmp_path / "events", NAMES)
    fence = Fence(journal)
    recorder = Recorder(journal, fence, policy)
    _run_steps(recorder, 3)
    recorder.close()
    assert fence.records_before == [8 * step + edge for step in range(3) for edge in per_step]


def test_disabled_recorder_writes_nothing_and_waits_for_nothing(tmp_path: Path) -> None:
    fence = Fence()
    recorder = Recorder(None, fence, FencePolicy.EDGE)
    _run_steps(recorder, 2)
    with pytest.raises(ZeroDivisionError), recorder.phase(phases.DATA):
        raise ZeroDivisionError
    recorder.close()
    assert isinstance(recorder.phase(phases.STEP), NoPhase)
    assert fence.records_before == []
    assert list(tmp_path.iterdir()) == []


def test_step_number_is_that_of_the_recorder_at_each_edge(tmp_path: Path) -> None:
    recorder = Recorder(JournalWriter(tmp_path / "events", NAMES), Fence(), FencePolicy.NONE)
    evaluate = recorder.phase(phases.EVALUATE)
    for recorder.step in (0, 5, 2**32 - 1):
        with evaluate:
            pass
    recorder.close()
    assert [step for step, _, kind in _events(tmp_path / "events") if kind == END] == [0, 5, 2**32 - 1]


def test_recorder_may_be_closed_twice(tmp_path: Path) -> None:
    recorder = Recorder(JournalWriter(tmp_path / "events", NAMES), Fence(), FencePolicy.NONE)
    recorder.close()
    recorder.close()
    assert _events(tmp_path / "events") == []
