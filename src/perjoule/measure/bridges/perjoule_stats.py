"""Our ledger for the course toolkit's own trainer: a ``TrainerStats`` that records a perjoule run.

::

    stats = PerjouleStats("runs/mine")
    trainer = SimpleTrainer(model, loader, device, stats=stats)

A step begins behind the fetch of its data, for which the toolkit has no hook, and ends with its log; the fetch is in
``outside``. What lies between the hooks of a step (the move of the batch to the device) is in ``other``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from perjoule.core.phases import BACKWARD, CHECKPOINT, FORWARD, OPTIMIZER
from perjoule.measure.bridges.codecarbon_stats import CodeCarbonStats
from perjoule.measure.bridges.trainer_stats import NoOpStats
from perjoule.measure.session import Measurement, Phase, Step


class PerjouleStats(NoOpStats):
    """Records steps, phases, losses and energy; at the end writes and prints what :class:`CodeCarbonStats` does.

    Args:
        measurement: the run folder to make, or a measurement that has not begun, with meters and place as wanted.
        samples: in a step, for energy per sample.
        output_dir: where the toolkit's files go; a folder in the run folder if left out.
        device: of this process, for the names of these files.
        say: takes a line of text.
    """

    def __init__(
        self,
        measurement: str | Path | Measurement,
        samples: int = 0,
        output_dir: Path | None = None,
        device: object = "cpu",
        say: Callable[[str], None] = print,
    ) -> None:
        self.measurement = measurement if isinstance(measurement, Measurement) else Measurement(measurement)
        self._samples = samples
        self._files = CodeCarbonStats(self.measurement.run, output_dir, device=device, say=say)
        self._step: Step | None = None
        self._phases: dict[str, Phase] = {
            name: self.measurement.phase(name) for name in (FORWARD, BACKWARD, OPTIMIZER, CHECKPOINT)
        }

    def start_train(self) -> None:
        """Make the run folder and start the sampler.

        Raises:
            RunFolderError: if the folder exists or cannot be written.
        """
        self.measurement.__enter__()

    def stop_train(self) -> None:
        """Stop the sampler and complete the run folder."""
        self._end_step()
        self.measurement.__exit__(None, None, None)

    def start_step(self) -> None:
        """Begin a step. One whose log never came ends here."""
        self._end_step()
        self._step = self.measurement.step(samples=self._samples)
        self._step.__enter__()

    def start_forward(self) -> None:
        """Begin a forward pass."""
        self._phases[FORWARD].__enter__()

    def stop_forward(self) -> None:
        """End a forward pass."""
        self._phases[FORWARD].__exit__(None, None, None)

    def start_backward(self) -> None:
        """Begin a backward pass."""
        self._phases[BACKWARD].__enter__()

    def stop_backward(self) -> None:
        """End a backward pass."""
        self._phases[BACKWARD].__exit__(None, None, None)

    def start_optimizer_step(self) -> None:
        """Begin the update of the weights."""
        self._phases[OPTIMIZER].__enter__()

    def stop_optimizer_step(self) -> None:
        """End the update of the weights."""
        self._phases[OPTIMIZER].__exit__(None, None, None)

    def start_save_checkpoint(self) -> None:
        """Begin to save."""
        self._phases[CHECKPOINT].__enter__()

    def stop_save_checkpoint(self) -> None:
        """End saving."""
        self._phases[CHECKPOINT].__exit__(None, None, None)

    def log_loss(self, loss: Any) -> None:
        """Keep the loss; it is read from the device when the step ends."""
        if self._step is not None:
            self._step.loss = loss

    def log_step(self) -> None:
        """End the step and write its line."""
        self._end_step()

    def log_stats(self) -> None:
        """Write the toolkit's files and print the mean time and energy of each task.

        Raises:
            RunFolderError: if a file cannot be written.
        """
        self._files.log_stats()

    def _end_step(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None
