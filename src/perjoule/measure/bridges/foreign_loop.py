"""What the hooks of somebody else's loop lack: a folder for each training, notice of its end, the rows of a batch."""

from __future__ import annotations

import atexit
import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from perjoule.core.errors import RunFolderError
from perjoule.measure.blocks import Phase, Step
from perjoule.measure.session import Measurement, describe_end
from perjoule.runs.folder import FAILED

LOG = logging.getLogger("perjoule")
_Hook = TypeVar("_Hook", bound=Callable[..., Any])
_LOOK_EVERY_S = 0.2
_MAIN_FIELDS = ("input_ids", "inputs_embeds", "pixel_values", "labels")
"""Fields of a batch whose first axis is the rows, looked for before any other."""
_SUSPENDED_KINDS = 0x20 | 0x80 | 0x200
"""Flags of the code of generators and coroutines, whose frames may rest without being over."""


def begin_in_new_folder(measurement: Measurement) -> Measurement:
    """Begin a measurement in the folder that was asked for, or in ``name-2`` and so on if that exists.

    Args:
        measurement: that has not begun. One that adds to a folder does so; else, if its folder is taken, one of the
            same kind begins in its place.

    Returns:
        the measurement that has begun.

    Raises:
        RunFolderError: if no folder can be made.
        ConfigError: if the place of its carbon is not known.
    """
    asked = measurement.run
    for number in count(2):
        taken = measurement.run.exists()
        try:
            measurement.__enter__()
        except RunFolderError as error:
            if not taken and not isinstance(error.__cause__, FileExistsError):
                raise
        else:
            break
        measurement = measurement.again(asked.with_name(f"{asked.name}-{number}"))
    if measurement.run != asked:
        LOG.warning("perjoule: %s exists already: this training is recorded in %s", asked, measurement.run)
    return measurement


def never_raises(hook: _Hook) -> _Hook:
    """Let a hook that fails end the measurement and not the training."""

    @functools.wraps(hook)
    def guarded(self: ForeignLoop, *arguments: Any, **options: Any) -> None:
        try:
            hook(self, *arguments, **options)
        except Exception as error:
            self.give_up(error)

    return guarded  # type: ignore[return-value]


class ForeignLoop:
    """Steps and phases of a loop that only calls hooks, in whatever order, as those of a measurement.

    A phase or step that begins ends the one before, and one that is ended twice ends once. Measuring never ends a
    training: what fails here is reported once by ``logging``, and the training goes on without. Every further training
    is a run of its own, or a segment of the same run if the measurement appends. A ``with`` block around the loop ends
    the run with the block's error.

    Args:
        measurement: of the first training; it begins and ends with it. Those of later ones are made after its pattern.
    """

    def __init__(self, measurement: Measurement) -> None:
        self.measurement = measurement
        """That of the training that goes on, or of the last one."""
        self._next = measurement
        self._records = False
        self._completed = False
        """Whether the step that is open has done its update, and so counts even if nothing follows."""
        self._reported: set[str] = set()
        self._watch: FrameWatch | None = None
        self._step: Step | None = None
        self._phase: Phase | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_training(error)

    @never_raises
    def begin_training(self, watched: bool = True) -> None:
        """Make a run folder and start the sampler.

        Args:
            watched: whether to look out for an end of the training that calls no hook.
        """
        if self._records:
            self._end(FAILED, "the training began again before it had ended")
        first, self._next = self._next, self._next.again(self._next.run)
        self.measurement = begin_in_new_folder(first)
        self._records = True
        if watched:
            self._watch = FrameWatch(self._end)

    def end_training(self, error: BaseException | None = None) -> None:
        """End the run, if it has not ended yet, with the error that ended the training."""
        if self._records:
            self._end(*describe_end(error))

    def give_up(self, error: Exception) -> None:
        """Report what failed here, once, and end the measurement: the training matters more."""
        text = f"perjoule: this training is not measured any further: {describe_end(error)[1]}"
        if text not in self._reported:
            self._reported.add(text)
            LOG.warning("%s", text)
        self._step = self._phase = None
        self.end_training(error)

    @never_raises
    def _begin_step(self, samples: int = 0) -> None:
        self._end_step()
        if self._watch is not None:
            self._watch.later_hook()
        if self._records:
            self._step, self._completed = self.measurement.step(samples=samples), False
            self._step.__enter__()

    @never_raises
    def _end_step(self) -> None:
        self._end_phase()
        step, self._step = self._step, None
        if step is not None:
            step.end(step, self._completed)

    @never_raises
    def _begin(self, phase: str) -> None:
        self._end_phase()
        if self._step is not None:
            self._phase = self.measurement.phase(phase)
            self._phase.__enter__()

    @never_raises
    def _end_phase(self) -> None:
        phase, self._phase = self._phase, None
        if phase is not None:
            phase.__exit__(None, None, None)

    @never_raises
    def _end(self, status: str, reason: str) -> None:
        self._records = False
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()
        self._end_step()
        self.measurement.end(status, reason)


class FrameWatch:
    """Notices that a loop was left, however that happens: for hooks whose closing hook an error skips.

    The loop is the innermost function from which both the first hook and a later one were called, whatever lies
    between it and them. A thread looks five times a second whether it still runs; the end of the program is noticed
    as well.

    Args:
        left: is given status and reason of the run; called at most once, by another thread.
    """

    def __init__(self, left: Callable[[str, str], None]) -> None:
        self._thread_id, self._left = threading.get_ident(), left
        self._began_in = list(_stack(self._thread_id))[1:]
        self._loop: FrameType | None = None
        self._stopped = threading.Event()
        atexit.register(self._leave)

    def later_hook(self) -> None:
        """Learn from a hook of the same loop, such as that of a step, which function it is."""
        if not self._began_in:
            return
        now = set(_stack(self._thread_id))
        self._loop = next((frame for frame in self._began_in if frame in now), None)
        self._began_in = []
        if self._loop is not None and not self._loop.f_code.co_flags & _SUSPENDED_KINDS:
            threading.Thread(target=self._look, name="perjoule-frame-watch", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer. May be called twice."""
        self._stopped.set()
        self._loop, self._began_in = None, []  # frames hold whatever their functions did
        atexit.unregister(self._leave)

    def _look(self) -> None:
        while not self._stopped.wait(_LOOK_EVERY_S):
            # Two looks: the stack may change while it is walked down.
            if self._loop not in {*_stack(self._thread_id), *_stack(self._thread_id)}:
                self._leave()

    def _leave(self) -> None:
        loop = self._loop
        if self._stopped.is_set():
            return
        self.stop()
        error = getattr(sys, "last_value", None)  # that nobody caught: in a notebook, or at the end of the program
        if isinstance(error, BaseException) and (loop is None or loop in _frames_of(error)):
            self._left(*describe_end(error))
        else:
            name = "the program" if loop is None else loop.f_code.co_qualname
            self._left(FAILED, f"{name} was left before the training had ended")


def _stack(thread_id: int) -> Iterator[FrameType]:
    frame = sys._current_frames().get(thread_id)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _frames_of(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def num_rows(batch: Any) -> int | None:
    """Return how many rows a batch has: the length of the first axis of its first array; None if it has none.

    Args:
        batch: an array or tensor, or a mapping, list or tuple of such; of a mapping ``input_ids`` and its like first.
    """
    if shape := getattr(batch, "shape", None):
        return int(shape[0])
    parts: Iterable[Any] = ()
    if isinstance(batch, Mapping):
        parts = [batch[name] for name in _MAIN_FIELDS if name in batch] + list(batch.values())
    elif isinstance(batch, list | tuple):
        parts = batch
    return next((rows for part in parts if (rows := num_rows(part)) is not None), None)
