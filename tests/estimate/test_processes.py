"""Tasks side by side."""

import os
from functools import partial

import pytest

from perjoule.estimate import processes
from perjoule.estimate.processes import side_by_side


def test_tasks_are_done_in_order_by_other_processes_with_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setattr(processes, "num_cores", lambda: 2)
    found = side_by_side([partial(pow, 2, 5), partial(pow, 3, 2)])
    assert found == [32, 9]
    assert side_by_side([partial(os.getenv, "OMP_NUM_THREADS")] * 2) == ["1", "1"]
    assert os.getpid() not in side_by_side([os.getpid, os.getpid])
    assert os.environ["OMP_NUM_THREADS"] == "7" and "OPENBLAS_NUM_THREADS" not in os.environ


def test_one_process_is_this_one() -> None:
    assert side_by_side([os.getpid, os.getpid], most=1) == [os.getpid()] * 2
    assert side_by_side([os.getpid]) == [os.getpid()]


def test_a_mistake_in_another_process_is_told_here() -> None:
    with pytest.raises(ZeroDivisionError):
        side_by_side([partial(divmod, 1, 0), partial(divmod, 1, 1)])
