"""Our ledger for the course toolkit's own trainer: a ``TrainerStats`` that records a perjoule run.

::

    stats = PerjouleStats("runs/mine")
    trainer = SimpleTrainer(stats.counted(loader), model, …, stats=stats)

or, with ``from perjoule.measure.bridges.perjoule_stats import *`` in ``src/trainer/stats/perjoule.py`` of the toolkit,
``launch.py --trainer_stats perjoule``.

A step begins behind the fetch of its data, for which the toolkit has no hook, and ends with its log; the fetch is in
``outside``. What lies between the hooks of a step (the move of the batch to the device) is in ``other``. The toolkit
calls no hook when an error ends its training. In a ``with`` block the run ends with that error; without one the end is
noticed within a second, with the error's text if nobody caught it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from perjoule.core.phases import BACKWARD, CHECKPOINT, FORWARD, OPTIMIZER
from perjoule.measure.bridges.codecarbon_stats import CodeCarbonStats
from perjoule.measure.bridges.foreign_loop import ForeignLoop, never_raises, num_rows
from perjoule.measure.bridges.trainer_stats import NoOpStats
from perjoule.measure.session import Measurement

__all__ = ["construct_trainer_stats", "trainer_stats_name"]

trainer_stats_name = "perjoule"
"""The name by which the toolkit finds these stats, with the function below."""


def construct_trainer_stats(conf: object, device: object = "cpu", **_: object) -> PerjouleStats:
    """Return stats that record into a new folder in ``runs``; called by the toolkit."""
    return PerjouleStats(Measurement(), device=device)


class PerjouleStats(ForeignLoop, NoOpStats):
    """Records steps, phases, losses and energy; at the end writes and prints what :class:`CodeCarbonStats` does.

    Args:
        measurement: as for :class:`ForeignLoop`, or the run folder to make.
        samples: in every step, as you state it, where the loader is not :meth:`counted`.
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
        super().__init__(measurement if isinstance(measurement, Measurement) else Measurement(measurement))
        self._samples, self._output_dir, self._device, self._say = samples, output_dir, device, say

    def counted(self, loader: Any) -> CountedLoader:
        """Return a loader whose batches' rows are the samples of the steps that follow them."""
        return CountedLoader(loader, self._next_batch)

    def start_train(self) -> None:
        """Make the run folder and start the sampler."""
        self.begin_training()

    def stop_train(self) -> None:
        """Stop the sampler and complete the run folder."""
        self.end_training()

    def start_step(self) -> None:
        """Begin a step. One whose log never came ends here."""
        self._begin_step(self._samples)

    def stop_step(self) -> None:
        """Note that the step was completed; it ends with its log."""
        self._completed = True

    def start_forward(self) -> None:
        """Begin a forward pass."""
        self._begin(FORWARD)

    def stop_forward(self) -> None:
        """End a forward pass."""
        self._end_phase()

    def start_backward(self) -> None:
        """Begin a backward pass."""
        self._begin(BACKWARD)

    def stop_backward(self) -> None:
        """End a backward pass."""
        self._end_phase()

    def start_optimizer_step(self) -> None:
        """Begin the update of the weights."""
        self._begin(OPTIMIZER)

    def stop_optimizer_step(self) -> None:
        """End the update of the weights."""
        self._end_phase()

    def start_save_checkpoint(self) -> None:
        """Begin to save."""
        self._begin(CHECKPOINT)

    def stop_save_checkpoint(self) -> None:
        """End saving."""
        self._end_phase()

    def log_loss(self, loss: Any) -> None:
        """Keep the loss; it is read from the device when the step ends."""
        if self._step is not None:
            self._step.loss = loss.detach() if hasattr(loss, "detach") else loss  # not the graph behind it

    def log_step(self) -> None:
        """End the step and write its line."""
        self._end_step()

    @never_raises
    def log_stats(self) -> None:
        """Write the toolkit's files and print the mean time and energy of each task."""
        run = self.measurement.run
        if run.is_dir():
            CodeCarbonStats(run, self._output_dir, device=self._device, say=self._say).log_stats()

    def _next_batch(self, batch: Any) -> None:
        self._samples = num_rows(batch) or 0


class CountedLoader:
    """A loader that tells the rows of every batch it hands out.

    Args:
        loader: anything to iterate over; its length and attributes are those of this object.
        tell: is given every batch.
    """

    def __init__(self, loader: Any, tell: Callable[[Any], None]) -> None:
        self._loader, self._tell = loader, tell

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            self._tell(batch)
            yield batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
