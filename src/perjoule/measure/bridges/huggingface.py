"""A callback for Hugging Face's ``Trainer`` that records its training as a perjoule run.

::

    Trainer(model, args, train_dataset=…, callbacks=[perjoule_callback("runs/mine")]).train()

What is recorded of a step:

============== ====================================================================================================
``forward``    ``compute_loss`` of every micro-batch: the model and the loss
``backward``   ``accelerator.backward`` of every micro-batch
``optimizer``  the update of the weights
``evaluate``   an evaluation at the end of a step
``checkpoint`` saving at the end of a step; with ``save_strategy="best"`` it is in ``outside``
``other``      the rest: the batch's move to the device, clipping, learning-rate schedule, logging
``outside``    between the steps: the fetch of the data, which the ``Trainer`` does before a step begins, what it does
               at the end of an epoch, start and end
samples        rows of the batches that the step really saw, times the ranks that see other ones
loss           where the ``Trainer`` logs one, at the end of a step: the mean since the log before, as there; so is the
               learning rate. ``logging_steps=1`` logs every step, ``logging_strategy="epoch"`` none.
============== ====================================================================================================

A trainer whose class has a ``train`` of its own and does not call ``Trainer.train`` has ``compute`` in place of
``forward`` and ``backward``, and no samples, because no hook sees a batch. Nothing waits for the device unless a fence
is given. One process records, the first one; energy of other nodes is not in the run.

Measuring never ends a training: what fails here is reported once by ``logging``, and the training goes on without. A
training that ends by an error is a failed run with the error's text. Every further training of the callback
(``train()`` again, a trial of ``hyperparameter_search``, the next try of ``auto_find_batch_size``, a start of the
script where the folder exists) is a run of its own, ``runs/mine-2`` and so on; or a segment of the same run, with
``perjoule_callback(perjoule.measure("runs/mine", append=True))``.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from perjoule.core.errors import MissingExtra
from perjoule.core.phases import BACKWARD, CHECKPOINT, EVALUATE, FORWARD, OPTIMIZER
from perjoule.measure.bridges.foreign_loop import ForeignLoop, never_raises, num_rows
from perjoule.measure.session import Measurement, describe_end
from perjoule.runs.folder import FAILED

COMPUTE = "compute"


def perjoule_callback(measurement: str | Path | Measurement) -> Any:
    """Return a ``transformers.TrainerCallback`` for ``Trainer(callbacks=[…])``.

    It may be entered with ``with``, around a loop that calls a trainer's hooks by itself: an error then ends the run.

    Args:
        measurement: the run folder to make, or a measurement that has not begun, with meters and place as wanted.

    Raises:
        MissingExtra: if transformers is not installed.
    """
    try:
        from transformers import Trainer, TrainerCallback
    except ImportError as error:
        raise MissingExtra("perjoule_callback needs transformers: pip install 'perjoule[huggingface]'") from error
    _notice_trainings(Trainer)
    # The base answers the events that are of no interest here, those of later versions among them.
    made = type("PerjouleCallback", (TrainerHooks, TrainerCallback), {})
    return made(measurement if isinstance(measurement, Measurement) else Measurement(measurement))


def _notice_trainings(trainer_class: Any) -> None:
    """Let ``train`` of the class tell our callbacks of the trainer, and when and how it is left.

    There is no hook for either: an error in training calls none, and no hook is given a batch.
    """
    train = trainer_class.train
    if hasattr(train, "notices_perjoule"):
        return

    @functools.wraps(train)
    def noticed(trainer: Any, *arguments: Any, **options: Any) -> Any:
        with contextlib.ExitStack() as around:
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, TrainerHooks):
                    around.enter_context(callback.training_of(trainer))
            return train(trainer, *arguments, **options)

    noticed.notices_perjoule = True  # type: ignore[attr-defined]
    trainer_class.train = noticed


class TrainerHooks(ForeignLoop):
    """The events of a ``Trainer`` as steps and phases of a measurement.

    Args:
        measurement: as for :class:`ForeignLoop`.
    """

    def __init__(self, measurement: Measurement) -> None:
        super().__init__(measurement)
        self._num_data_ranks: int | None = None
        """Ranks that see different rows; None where the trainer is not known, and with it no batch."""
        self._interrupted_by = ""

    @contextlib.contextmanager
    def training_of(self, trainer: Any) -> Iterator[None]:
        """Take the rows, forward and backward of a trainer's training, and an error that ends it.

        Args:
            trainer: a ``transformers.Trainer`` whose ``train`` is about to run.
        """
        self._learn_ranks(trainer)
        accelerator = getattr(trainer, "accelerator", None)
        try:
            with contextlib.ExitStack() as wrapped:
                wrapped.enter_context(_wrapped(trainer, "training_step", self._around_training_step))
                wrapped.enter_context(_wrapped(trainer, "compute_loss", self._within(FORWARD)))
                wrapped.enter_context(_wrapped(accelerator, "backward", self._within(BACKWARD)))
                yield
        except BaseException as error:
            self.end_training(error)
            raise
        else:
            self.end_training(None)
        finally:
            self._num_data_ranks = None

    @never_raises
    def _learn_ranks(self, trainer: Any) -> None:
        sharing = (getattr(trainer, f"get_{kind}_size", lambda: 1)() for kind in ("tp", "cp", "sp"))
        self._num_data_ranks = max(trainer.args.world_size // math.prod(sharing), 1)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Make the run folder and start the sampler, in the first process only."""
        if not state.is_world_process_zero:
            return
        if self._records and self._interrupted_by:  # the training is tried again with smaller batches
            self._end(FAILED, self._interrupted_by)
        self._interrupted_by = ""
        self.begin_training(watched=self._num_data_ranks is None)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin a step."""
        self._begin_step()
        if self._num_data_ranks is None:
            self._begin(COMPUTE)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin the update."""
        self._begin(OPTIMIZER)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the update."""
        self._end_phase()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the step unless it is logged, evaluated or saved now. Its own callback has set the flags before."""
        self._end_phase()
        self._completed = True
        if not getattr(control, "should_log", False):
            self._after_log(control)

    @never_raises
    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Take the loss of a step that has ended; logs of an evaluation have none."""
        if self._step is not None and self._phase is None and "loss" in (logs or {}):
            self._step.loss, self._step.lr = logs["loss"], logs.get("learning_rate")
            self._after_log(control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Notice an evaluation that nothing announced."""
        if self._step is not None and self._phase is None:
            self._begin(EVALUATE)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave what is done at the end of an epoch to ``outside``: the step before it has ended."""
        self._end_step()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End an evaluation; begin to save if that follows."""
        if self._step is not None:
            self._go_on(CHECKPOINT if control.should_save else None)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End saving, and with it the step."""
        self._end_step()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop the sampler and complete the run folder."""
        self.end_training(None)

    def _around_training_step(self, training_step: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``training_step`` with its rows counted."""

        def counted(model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            self._count(inputs)
            try:
                return training_step(model, inputs, *arguments, **options)
            except BaseException as error:
                self._interrupted_by = describe_end(error)[1]  # only its text: its frames hold memory
                raise

        return counted

    @never_raises
    def _count(self, inputs: Any) -> None:
        if self._step is not None and self._num_data_ranks is not None:
            self._step.samples += (num_rows(inputs) or 0) * self._num_data_ranks

    def _within(self, phase: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return what makes of a function one that is timed as ``phase``, where it is called in a step."""

        def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
            def timed(*arguments: Any, **options: Any) -> Any:
                if self._phase is not None:  # of an evaluation, or called by itself
                    return function(*arguments, **options)
                self._begin(phase)
                try:
                    return function(*arguments, **options)
                finally:
                    self._end_phase()

            return timed

        return wrap

    def _after_log(self, control: Any) -> None:
        self._go_on(EVALUATE if control.should_evaluate else CHECKPOINT if control.should_save else None)

    def _go_on(self, phase: str | None) -> None:
        """End the phase that is open and begin the next one, or end the step."""
        if phase is None:
            self._end_step()
        else:
            self._begin(phase)


@contextlib.contextmanager
def _wrapped(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Replace a method of one object for a while; nothing if there is none."""
    method = getattr(owner, name, None)
    if method is None:
        yield
        return
    own = vars(owner).get(name)
    setattr(owner, name, functools.wraps(method)(wrap(method)))
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
