"""How far a long step over documents is: one line, drawn again, on a terminal; a new line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from perjoule.core.streams import drawing
from perjoule.core.units import byte_size, duration, si
from perjoule.data.engine import Amount

LINE_EVERY_S = 5.0
TERMINAL_EVERY_S = 0.2
_BAR_CHARACTERS = 24


@contextmanager
def telling(say: Callable[[str], None]) -> Iterator[None]:
    """Say what is logged about preparing data, which takes minutes when a large corpus is first used."""
    handler = _Lines(say)
    logger = logging.getLogger("perjoule.data")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Lines(logging.Handler):
    """Says each record as a line."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        self._say(record.getMessage())


class Progress:
    """Shows how far a step is, how fast it goes, and how long it will take.

    Args:
        total_bytes: of all units, as units count them.
        done_bytes: of those, what was there before.
        say: is told a line now and then, unless standard error is a terminal, where a bar is drawn.
        clock: seconds.
    """

    def __init__(
        self,
        total_bytes: int,
        done_bytes: int,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._before, self._say, self._clock = total_bytes, done_bytes, say, clock
        self._terminal = sys.stderr.isatty()
        self._done = Amount()
        self._begun_s = self._shown_s = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=drawing(sys.stderr), flush=True)
        if self._done.documents:
            seconds = max(self._clock() - self._begun_s, 1e-9)
            self._say(f"{self._done.documents:,} documents in {duration(seconds)}: {self._speed(seconds)}")

    def add(self, amount: Amount) -> None:
        """Take note of what has been done; show it when it is time."""
        self._done += amount
        now_s = self._clock()
        if now_s - self._shown_s < (TERMINAL_EVERY_S if self._terminal else LINE_EVERY_S):
            return
        self._shown_s = now_s
        line = self.line(now_s - self._begun_s)
        if self._terminal:
            print(f"\r\x1b[K{line}", end="", file=drawing(sys.stderr), flush=True)
        else:
            self._say(line)

    def line(self, seconds: float) -> str:
        """Return the line, ``seconds`` after the beginning."""
        fraction = min(1.0, (self._before + self._done.unit_bytes) / max(self._total, 1))
        bar = "━" * round(fraction * _BAR_CHARACTERS)
        left = ""
        if self._done.unit_bytes:
            rest_s = seconds * (self._total - self._before - self._done.unit_bytes) / self._done.unit_bytes
            left = f"  {duration(max(rest_s, 0.0))} left"
        bar = f"{bar:{_BAR_CHARACTERS}}  " if self._terminal else ""
        return f"{bar}{fraction:4.0%}  {si(self._done.documents)} documents  {self._speed(seconds)}{left}"

    def _speed(self, seconds: float) -> str:
        """Return the throughput."""
        text, tokens = self._done.text_bytes / seconds, self._done.tokens / seconds
        return f"{byte_size(text)}/s  {si(tokens, 'tok/s')}"
