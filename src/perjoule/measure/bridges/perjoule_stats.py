"""Our ledger for the course toolkit's own trainer: a ``TrainerStats`` that records a perjoule run folder.

::

    stats = PerjouleStats("runs/mine")
    trainer = SimpleTrainer(model, loader, device, stats=stats)

A step begins behind the fetch of its data, for which the toolkit has no hook, and ends with its log; the fetch is in
``outside``. What lies between the hooks of a step (the move of the batch to the device) is in ``other``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perjoule.core.phases import BACKWARD, CHECKPOINT, FORWARD, OPTIMIZER
from perjoule.measure.bridges.codecarbon_stats import CodeCarbonStats
from perjoule.measure.bridges.trainer_stats import NoOpStats
from perjoule.measure.session import Measurement

if TYPE_CHECKING:
    from perjoule.measure.config import EnergyConfig


class PerjouleStats(NoOpStats):
    """Records steps, phases, losses and energy; prints the mean time and energy of each task at the end.

    Args:
        folder: the run folder to make.
        energy: meters and sampler; the defaults if left out.
        fence: waits until the device is idle; called at every edge if given.
        samples: in a step, for energy per sample.
        output_dir: where the files of the toolkit's codecarbon stats go; a folder in the run folder if left out.
        device: of this process, for the names of these files.
        say: takes a line of text.
    """

    def __init__(
        self,
        folder: str | Path,
        energy: EnergyConfig | None = None,
        fence: Callable[[], None] | None = None,
        samples: int = 0,
        output_dir: Path | None = None,
        device: object = "cpu",
        say: Callable[[str], None] = print,
    ) -> None:
        self._measurement = Measurement(folder, energy=energy, fence=fence)
        self._samples = samples
        self._step: AbstractContextManager[Any] | None = None
        self._phase: AbstractContextManager[Any] | None = None
        self._finish = lambda run: CodeCarbonStats(run, output_dir, device=device, say=say).log_stats()
