"""Runs units of work, here or in a pool of processes; what they make is the same wherever they run.

A worker is a fresh interpreter that imports what its work needs and nothing else: the caller's ``__main__`` is not run
again, so that a script needs no guard, and no torch is loaded. It is given one unit at a time, so that nothing piles
up. It ends with its parent, however that ends: the parent holds the writing end of the worker's standard input and
nobody writes to it, so that reading it returns only when the parent is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from perjoule.core.errors import DataError, PerjouleError

_END_S = 5.0


class CannotWrite(DataError):
    """The disk is full, or a folder is not ours to write."""


@dataclass(frozen=True)
class Amount:
    """How much has been done.

    Args:
        documents: kept.
        text_bytes: of them, in UTF-8.
        tokens: of them, BOS included.
        unit_bytes: of the source, as units count them.
    """

    documents: int = 0
    text_bytes: int = 0
    tokens: int = 0
    unit_bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.documents + other.documents,
            self.text_bytes + other.text_bytes,
            self.tokens + other.tokens,
            self.unit_bytes + other.unit_bytes,
        )


Report = Callable[[Amount], None]


class Job(Protocol):
    """A unit of work; it can be pickled."""

    @property
    def name(self) -> str:
        """Return what an error message calls it."""


class Work(Protocol):
    """What is done with each unit; it can be pickled. What it makes is on the disk when it returns."""

    def __call__(self, job: Any, threads: int, report: Report) -> None:
        """Do one unit.

        Args:
            job: the unit.
            threads: that may be busy at a time.
            report: is told what has been done since it was last told.
        """


def give_back_memory() -> None:
    """Return to the system what was freed; glibc keeps it for each thread, and of every GB of text it keeps more."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def run_here(work: Work, jobs: Sequence[Job], report: Report, threads: int = 1) -> None:
    """Do all units in this process, one after another.

    Raises:
        PerjouleError: from the work.
        DataError: for any other error, naming the unit.
    """
    for job in jobs:
        try:
            work(job, threads, report)
        except PerjouleError:
            raise
        except Exception as error:
            raise as_one_line(job.name, error) from error


def run_pool(work: Work, jobs: Sequence[Job], report: Report, workers: int, threads: int = 1) -> None:
    """Do all units in worker processes.

    Args:
        work: what is done.
        jobs: the units, in any order of completion.
        report: is told what has been done, in this process.
        workers: processes, at least 1; no more are started than there are units.
        threads: of each.

    Raises:
        PerjouleError: from the work; the other workers are ended.
        DataError: for any other error, or if a worker was killed, naming the unit.
    """
    left = iter(jobs)
    with _started(min(workers, len(jobs)), work, threads) as pool:
        busy: dict[Connection, tuple[_Worker, Job]] = {}
        for worker in pool:
            _give(worker, left, busy)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker, job = busy[connection]
                try:
                    kind, content = connection.recv()
                except (EOFError, ConnectionResetError):
                    raise DataError(f"{worker.end()} while it worked on {job.name}; {KEPT}") from None
                if kind == _DID:
                    report(content)
                elif kind == _FAILED:
                    raise _rebuilt(*content)
                else:
                    del busy[connection]
                    _give(worker, left, busy)


KEPT = "finished work is kept; run the same command again to continue"

_DID, _DONE, _FAILED = "did", "done", "failed"


class _Worker:
    """A process that does units of work, seen from its parent."""

    def __init__(self, work: Work, threads: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            handle = theirs.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from perjoule.data.engine import serve; serve({handle}, {threads})"],
                stdin=subprocess.PIPE,
                pass_fds=(handle,),
                env={**_MODEST, **os.environ, **_ONE_THREAD, "PYTHONPATH": _search_path()},
            )
        self.connection = Connection(ours.detach())
        self.connection.send_bytes(pickle.dumps(work))

    def end(self) -> str:
        """Return how the process ended, which it has or is about to."""
        code = self.process.wait(_END_S)
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        hint = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        return f"a worker process ended with {how}{hint}"


def _search_path() -> str:
    """Return where this process finds its modules, so that a worker finds the same."""
    return os.pathsep.join(path or str(Path.cwd()) for path in sys.path)


_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


_MODEST = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 20),
}
"""Gives memory back when a row group has been read, instead of keeping it: 60 MB less per worker at 15 MB groups."""


@contextlib.contextmanager
def _started(number: int, work: Work, threads: int) -> Iterator[list[_Worker]]:
    """Start workers; end them, however the block is left."""
    pool: list[_Worker] = []
    try:
        for _ in range(number):
            pool.append(_Worker(work, threads))
        yield pool
    finally:
        for worker in pool:
            worker.process.terminate()  # an unfinished unit is done again by whoever goes on
        for worker in pool:
            worker.connection.close()
            assert worker.process.stdin is not None
            worker.process.stdin.close()
            try:
                worker.process.wait(_END_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


def _give(worker: _Worker, left: Iterator[Job], busy: dict[Connection, tuple[_Worker, Job]]) -> None:
    """Give the worker its next unit, if there is one."""
    job = next(left, None)
    if job is not None:
        busy[worker.connection] = worker, job
        with contextlib.suppress(BrokenPipeError):  # it has ended; reading says so
            worker.connection.send(job)


def serve(handle: int, threads: int) -> None:
    """Do units of work until the parent has no more: the main function of a worker.

    Args:
        handle: of the socket to the parent.
        threads: that the work may use.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection = Connection(handle)
    work: Work = pickle.loads(connection.recv_bytes())
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            work(job, threads, lambda amount: connection.send((_DID, amount)))
        except Exception as error:
            connection.send((_FAILED, _sent(job.name, error)))
        else:
            connection.send((_DONE, None))


def _end_with_parent() -> None:
    """Wait for the end of standard input, which comes when the parent is gone."""
    os.read(0, 1)
    os._exit(1)


def as_one_line(name: str, error: Exception) -> PerjouleError:
    """Return the error as one that people can read."""
    if isinstance(error, PerjouleError):
        return error
    if isinstance(error, OSError):  # what cannot be read is a DataError already
        return CannotWrite(f"cannot write {error.filename or name}: {error.strerror or error}")
    return DataError(f"{type(error).__name__} while working on {name}: {error}")


def _sent(name: str, error: Exception) -> tuple[PerjouleError, str]:
    """Return what crosses to the parent: the error, which must survive pickling, and its traceback."""
    return as_one_line(name, error), "".join(traceback.format_exception(error))


def _rebuilt(error: PerjouleError, trace: str) -> PerjouleError:
    """Return a worker's error with the traceback that it had there, for ``--debug``."""
    error.add_note(f"in a worker process:\n{trace}")
    return error
