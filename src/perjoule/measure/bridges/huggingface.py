"""A callback for Hugging Face's ``Trainer`` that records its training as a perjoule run.

What its hooks tell apart, and what they do not:

============== ====================================================================================================
``compute``    forward and backward of all micro-batches, with the move of the batch to the device and the clipping
               of the gradients: no hook lies between them
``optimizer``  the update of the weights
``evaluate``   an evaluation at the end of a step, with the log line before it
``checkpoint`` saving at the end of a step; with ``save_strategy="best"`` it is in ``outside``
``other``      the rest of a step: learning-rate schedule, clearing the gradients
``outside``    the fetch of the data, which the ``Trainer`` does before a step begins, epochs' ends, start and end
============== ====================================================================================================

Nothing waits for the device unless a fence is given. One process records, the first one; energy of other nodes is not
in the run. The loss is in the ``Trainer``'s own logs, which know it for some steps only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perjoule.core.errors import MissingExtra
from perjoule.core.phases import CHECKPOINT, EVALUATE, OPTIMIZER
from perjoule.measure.session import Measurement, Phase, Step

COMPUTE = "compute"


def perjoule_callback(measurement: str | Path | Measurement) -> Any:
    """Return a ``transformers.TrainerCallback`` for ``Trainer(callbacks=[…])``.

    Args:
        measurement: the run folder to make, or a measurement that has not begun, with meters and place as wanted.

    Raises:
        MissingExtra: if transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise MissingExtra("perjoule_callback needs transformers: pip install 'perjoule[huggingface]'") from error
    # The base answers the events that are of no interest here, those of later versions among them.
    made = type("PerjouleCallback", (TrainerHooks, TrainerCallback), {})
    return made(measurement if isinstance(measurement, Measurement) else Measurement(measurement))


class TrainerHooks:
    """The events of a ``Trainer`` as steps and phases of a measurement.

    Args:
        measurement: begins and ends with the training.
    """

    def __init__(self, measurement: Measurement) -> None:
        self.measurement = measurement
        self._records = False
        self._step: Step | None = None
        self._phase: Phase | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Make the run folder and start the sampler, in the first process only."""
        if state.is_world_process_zero:
            self._records = True
            self.measurement.__enter__()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin a step and its computation."""
        self._end_step()
        if self._records:
            self._step = self.measurement.step(samples=args.train_batch_size * args.gradient_accumulation_steps)
            self._step.__enter__()
            self._begin(COMPUTE)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the computation; begin the update."""
        self._begin(OPTIMIZER)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the update."""
        self._end_phase()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin what the ``Trainer`` does behind this step, or end it. Its own callback has set the flags before."""
        self._go_on(EVALUATE if control.should_evaluate else CHECKPOINT if control.should_save else None)

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
        self._end_step()
        if self._records:
            self._records = False
            self.measurement.__exit__(None, None, None)

    def _go_on(self, phase: str | None) -> None:
        """End the phase that is open and begin the next one, or end the step."""
        if phase is None:
            self._end_step()
        else:
            self._begin(phase)

    def _begin(self, phase: str) -> None:
        self._end_phase()
        if self._step is not None:
            self._phase = self.measurement.phase(phase)
            self._phase.__enter__()

    def _end_phase(self) -> None:
        if self._phase is not None:
            self._phase.__exit__(None, None, None)
            self._phase = None

    def _end_step(self) -> None:
        self._end_phase()
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None
