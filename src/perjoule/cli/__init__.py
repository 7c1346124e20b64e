"""The command line: ``arguments`` says what it accepts, ``verbs`` has a short function for each verb.

What holds for all verbs is here: exit codes, signals, output that nobody can read (docs/decisions/0006-exit-codes.md).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Self

from perjoule.cli import arguments, verbs
from perjoule.core.errors import PerjouleError
from perjoule.core.streams import Output, OutputLost, survivable

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERNAL_ERROR = 70
"""The exit code of what is a fault of ours; EX_SOFTWARE of sysexits.h."""


class Stopped(KeyboardInterrupt):
    """A signal that asks a verb to end."""


class Signals:
    """Ends a verb on a signal as on Ctrl-C, so that it puts away what it has begun. ``train`` has handlers of its own.

    A signal that is ignored, as SIGHUP is under ``nohup``, stays ignored.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[signal.Signals, signal.Handlers] = {}

    def __enter__(self) -> Self:
        try:
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._stop)  # type: ignore[assignment]
        except ValueError:  # not in the main thread
            pass
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        raise Stopped(signal.Signals(number).name)


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        words: without the program's name; None: those of the process.

    Returns:
        0 if it did what was asked; the error's code (core.errors) after a mistake; 128 plus the signal's number if a
        signal stopped it, or if nobody read what it printed (SIGPIPE); 70 after a fault of ours.
    """
    try:
        with Signals() as signals, survivable() as out:
            options = _parse(words)
            out.required = verbs.only_prints(options)
            code = _run(options, signals)
            code = code or _lost(out, options)
    except Stopped as stopped:  # before the verb began, or while the end of another one was told
        print(f"perjoule: stopped by {stopped}", file=sys.stderr)
        return 128 + signal.Signals[str(stopped)]
    if words is None:
        for number in SIGNALS:  # nothing is left to be put away
            signal.signal(number, signal.SIG_DFL)
        if options.verb is verbs.train and os.environ.get("WORLD_SIZE", "1") != "1":
            # DistributedDataParallel keeps its group's native threads alive. One that wants the interpreter for its
            # last tensor while the interpreter is being taken down aborts the process, whose work is done.
            os._exit(code)
    return code


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = arguments.build_parser()
    words, command = arguments.split_command(sys.argv[1:] if words is None else words)
    options, rest = parser.parse_known_args(words)
    options.command = command
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"not understood: {' '.join(rest)}")
    if rest:  # argparse takes positional words from one place only: `train r.yaml --dry-run stop.steps=3`
        options.overrides = [*options.overrides, *rest]
    return options


def _run(options: argparse.Namespace, signals: Signals) -> int:
    """Run the verb and return the exit code."""
    try:
        code = int(options.verb(options))
        sys.stdout.flush()
    except BaseException as error:
        if signals.received is None and options.debug:
            raise
        code, said = _failure(error, signals)
        if said:
            print(f"perjoule: {said}", file=sys.stderr)
    return 128 + signals.received if signals.received is not None else code


def _failure(error: BaseException, signals: Signals) -> tuple[int, str]:
    """Return the exit code of an error, and the line that says what happened.

    Raises:
        BaseException: the error, if it is not for us.
    """
    if signals.received is not None:  # which a library may have turned into an error of its own
        return 128 + signals.received, f"stopped by {signal.Signals(signals.received).name}"
    match error:
        case PerjouleError():
            return error.exit_code, str(error)
        case OutputLost():
            return _code_of(error.error), _words_of(error.error)
        case KeyboardInterrupt():
            return 128 + signal.SIGINT, "stopped by SIGINT"
        case MemoryError():
            return 1, f"out of memory: {error}".rstrip(": ")
        case OSError():
            place = f"{error.filename}: " if error.filename is not None else ""
            return 1, f"{place}{error.strerror or error}"
        case Exception():
            at = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            said = f"a fault of perjoule's, please report it: {what} ({at.filename}:{at.lineno}); --debug shows more"
            return INTERNAL_ERROR, said
    raise error


def _lost(out: Output, options: argparse.Namespace) -> int:
    """Return the exit code for output that was lost while the work went on.

    What a step of training or of the data pipeline prints is progress, and its files hold more than that.
    """
    if out.lost is None:
        return 0
    if said := _words_of(out.lost):
        print(f"perjoule: {said}", file=sys.stderr)
    return 0 if options.verb in {verbs.train, verbs.data} else _code_of(out.lost)


def _code_of(error: Exception) -> int:
    """Return the exit code for output that could not be written: that of SIGPIPE if the reader went away."""
    return 128 + signal.SIGPIPE if isinstance(error, BrokenPipeError) else 1


def _words_of(error: Exception) -> str:
    """Say why output could not be written; nothing if the reader went away, as ``head`` does."""
    if isinstance(error, BrokenPipeError):
        return ""
    return f"standard output: {getattr(error, 'strerror', None) or error}; what was printed there is incomplete"
