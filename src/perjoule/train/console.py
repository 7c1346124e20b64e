"""What a person sees while a run goes on: a progress bar on a terminal, plain lines elsewhere, and ``train.log``."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from perjoule.core.printable import printable
from perjoule.core.streams import Output, drawing
from perjoule.core.units import si
from perjoule.train.job import StepRecord

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

PLAIN_EVERY_S = 5.0
BAR_EVERY_S = 0.2


class Console:
    """Prints lines and progress for one process. Ranks other than the first are silent.

    Args:
        silent: print nothing (the log is still written).
        stream: where lines go; None: standard output.
    """

    def __init__(self, silent: bool = False, stream: TextIO | None = None) -> None:
        self._silent = silent
        out = stream or sys.stdout
        self._stream = out if isinstance(out, Output) else Output(out)  # training goes on without its terminal
        self._log: TextIO | None = None
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._next_s = 0.0
        self._since = (time.monotonic(), 0)
        self._tokens = 0
        self._rate = 0.0
        self._of = ""

    def log_to(self, path: Path) -> None:
        """Append every line to a file as well, with its time."""
        self._log = path.open("a", encoding="utf-8", buffering=1)

    def line(self, text: str) -> None:
        """Print and log one line."""
        self._write_log(text)
        if self._silent:
            return
        if self._stream.isatty():
            text = self._wrapped(text)
        if self._bar is not None:
            self._bar.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def _wrapped(self, text: str) -> str:
        """Break a line between words where the terminal would break it anywhere."""
        try:
            width = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):
            width = 0
        return textwrap.fill(
            text, width or 80, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )

    def begin(self, last_step: int | None = None) -> None:
        """Start the progress bar, if a terminal is there to draw it on.

        Args:
            last_step: of the run, if it is known.
        """
        self._of = "" if last_step is None else f"/{last_step}"
        self._since = (time.monotonic(), self._tokens)
        if self._silent or not self._stream.isatty():
            return
        from rich.console import Console as Screen
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
        from rich.table import Column

        bar, text = Column(min_width=16, no_wrap=True), Column(no_wrap=True, overflow="ellipsis")
        columns = (
            SpinnerColumn(),
            BarColumn(bar_width=16, table_column=bar),
            TextColumn("{task.description}", table_column=text),
        )
        self._bar = Progress(*columns, console=Screen(file=drawing(self._stream)), transient=True, expand=False)
        self._task = self._bar.add_task("first step …", total=1.0)
        self._bar.start()

    def step(self, record: StepRecord, fraction: float, left: Callable[[], str]) -> None:
        """Take note of a step; draw when it is time.

        Args:
            record: the step.
            fraction: how much of the run is done, 0 to 1.
            left: returns what is left of the run, for the end of a line; asked for when one is drawn.
        """
        self._tokens += record.tokens
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + (BAR_EVERY_S if self._bar is not None else PLAIN_EVERY_S)
        since, tokens = self._since
        if now > since:
            self._rate = (self._tokens - tokens) / (now - since)
        self._since = (now, self._tokens)
        text = f"step {record.step}{self._of}  loss {record.loss:.4f}  {si(self._rate, 'tok/s')}{left()}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=fraction, description=text)
        else:
            self.line(text)

    def _write_log(self, text: str) -> None:
        """Append to the log, and go on without it if that fails: it holds nothing that is not recorded elsewhere."""
        if self._log is None:
            return
        try:
            self._log.write(f"{datetime.now().astimezone().isoformat(timespec='milliseconds')} {text}\n")
        except OSError as error:
            log, self._log = self._log, None
            with contextlib.suppress(OSError):  # closing tries to write what is left
                log.close()
            self.line(f"{log.name}: {error.strerror}; lines are no longer logged")

    def close(self) -> None:
        """Take the bar away and close the log."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._log is not None:
            self._log.close()
            self._log = None
