"""Signals that are held back, to be passed on to the program that is measured. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

FORWARDED = frozenset(
    (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
)


@contextlib.contextmanager
def blocked_signals() -> Iterator[None]:
    """Hold back signals, to be asked for with ``sigtimedwait``. To be entered before any thread is started."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    try:
        yield
    finally:
        while signal.sigtimedwait({*FORWARDED, signal.SIGCHLD}, 0) is not None:
            pass  # what came while the run folder was completed: everything is done
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
