"""Independent fits side by side, each process with one thread of linear algebra.

The matrices are small: threads within one of them wait for each other more than they work, and on a machine that is
busy a fit with two threads took fifteen times as long as with one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

from perjoule.core.limits import num_cores

T = TypeVar("T")
_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
_MOST = 2


def side_by_side(tasks: Sequence[Callable[[], T]], most: int = _MOST) -> list[T]:
    """Return what each task returns, in their order.

    Args:
        tasks: partials of functions of a module, so that another process can be given them.
        most: number of processes; 1 runs the tasks in this one.
    """
    num = min(most, len(tasks), num_cores())
    if num <= 1:
        return [task() for task in tasks]
    # A library reads its number of threads once: the processes have to be new ones.
    with _one_thread(), ProcessPoolExecutor(num, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_call, tasks))


def _call(task: Callable[[], T]) -> T:
    return task()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Set the environment that new processes inherit."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
