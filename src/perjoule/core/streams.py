"""Standard output and standard error that cannot end what they report on.

A reader may go away (``| head``), a disk may be full, a stream may be closed, a terminal may not know a character. The
work goes on all the same: what cannot be shown is written as its escape, and what cannot be written is dropped and
remembered, so that the exit code can say so (docs/decisions/0006).
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import IO, TextIO, cast

from perjoule.core.printable import printable


class OutputLost(Exception):
    """Nobody can read what a command prints, and printing is all that it does.

    Args:
        error: of the write that failed.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Output(io.TextIOBase):
    """A text stream around another, for lines that people read.

    Args:
        stream: where the text goes; None: nowhere, as Python has it for a closed stream.
        required: raise :class:`OutputLost` when nobody can read any more, instead of going on without the output.
    """

    def __init__(self, stream: IO[str] | None, required: bool = False) -> None:
        self._stream = stream
        self.required = required
        self.lost: Exception | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return the encoding of the stream below."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write text, or drop it if it cannot be written."""
        self.put(printable(text))
        return len(text)

    def flush(self) -> None:
        """Write what is held back, or drop it."""
        self._try(None)

    def writable(self) -> bool:
        """Say that text may be written."""
        return True

    def isatty(self) -> bool:
        """Say whether a terminal is below."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # closed
            return False

    def fileno(self) -> int:
        """Return the descriptor below.

        Raises:
            OSError: if there is none.
        """
        if self._stream is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._stream.fileno()

    def put(self, text: str) -> None:
        """Write text whose control characters are our own, or drop it."""
        self._try(text)

    def _try(self, text: str | None) -> None:
        """Write text, or flush without one."""
        if self._stream is None or self.lost is not None:
            return
        try:
            if text is None:
                self._stream.flush()
            else:
                self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        except (OSError, ValueError) as error:  # ValueError: closed by somebody
            self.lost = error
            _drop(self._stream)
            if self.required:
                raise OutputLost(error) from error


class _Drawing(io.TextIOBase):
    """What an :class:`Output` lends to those that draw: the same losses, no replacements."""

    def __init__(self, output: Output) -> None:
        self._output = output

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._output.encoding

    def write(self, text: str) -> int:
        self._output.put(text)
        return len(text)

    def flush(self) -> None:
        self._output.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._output.isatty()

    def fileno(self) -> int:
        return self._output.fileno()


def drawing(stream: TextIO | Output) -> TextIO:
    """Return the stream for progress bars and tables in colour, whose control characters are our own."""
    return cast("TextIO", _Drawing(stream)) if isinstance(stream, Output) else stream


@contextlib.contextmanager
def survivable(required: bool = False) -> Iterator[Output]:
    """Put an :class:`Output` around standard output and standard error.

    Args:
        required: whether losing standard output ends the work; losing standard error never does.

    Yields:
        Standard output, whose ``lost`` says what went wrong with it.
    """
    reserve_descriptors()
    out, err = Output(sys.stdout, required=required), Output(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out
        err.flush()


def reserve_descriptors() -> None:
    """Open the null device where a standard stream is closed.

    Otherwise the next file that is opened takes its number, and what a library prints lands in a checkpoint.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            if null != number:
                os.dup2(null, number)
                os.close(null)


def _drop(stream: IO[str]) -> None:
    """Let what a broken stream still holds go nowhere, so that Python does not complain about it at its end."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)
