"""Calls into libraries that take minutes and look at no signal: in a thread, while this one shows that time passes.

Python handles a signal in its main thread, between two lines of Python. While that thread is inside a library it is
deaf: Ctrl-C works only when the library returns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SAY_EVERY_S = 5.0
_LOOK_EVERY_S = 0.1


def in_background(work: Callable[[], T], waiting: Callable[[float], None]) -> T:
    """Do work in a thread and wait for it; a signal's exception leaves the thread behind, which ends with the process.

    Args:
        work: lets other threads run while it is inside a library.
        waiting: is called now and then with the seconds so far.

    Raises:
        BaseException: whatever the work raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again where it is waited for
            errors.append(error)

    thread = threading.Thread(target=run, name="perjoule-background", daemon=True)
    begun = said = time.monotonic()
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_EVERY_S)
        now = time.monotonic()
        if now - said >= SAY_EVERY_S and thread.is_alive():
            said = now
            waiting(now - begun)
    if errors:
        raise errors[0]
    return results[0]
