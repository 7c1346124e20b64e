"""The toolkit's *codecarbon* stats for our loop: its files and a printed table, from the ledger of the run.

CodeCarbon itself is not run: three trackers with a task per phase cost 1.2 to 2 times the step and read 0 J for most
phases. The hooks do nothing, because the recorder has already noted what they would.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from perjoule.measure.bridges.course_files import course_table, write_course_files
from perjoule.measure.bridges.trainer_stats import NoOpStats

COURSE_FOLDER = "codecarbon"


class CodeCarbonStats(NoOpStats):
    """Writes the toolkit's files when the run folder is complete.

    Args:
        run: the run folder.
        output_dir: where to; a folder in the run folder if left out.
        number: of the run, for the names of the files.
        device: of the rank, such as ``cuda:1``; its index stands in the names of the files.
        say: takes a line of text.
    """

    def __init__(
        self,
        run: Path,
        output_dir: Path | None = None,
        number: int = 1,
        device: object = "cpu",
        say: Callable[[str], None] = print,
    ) -> None:
        self._run, self._number, self._say = run, number, say
        self._output_dir = output_dir or run / COURSE_FOLDER
        self._device = device_label(device)

    def log_stats(self) -> None:
        """Read the run, write the files, and print the mean time and energy of each task.

        Raises:
            RunFolderError: if a file cannot be written.
        """
        from perjoule.measure.book import build_ledger
        from perjoule.runs.tables import load_run

        run = load_run(self._run)
        ledger = build_ledger(run)
        write_course_files(run, ledger, self._output_dir, self._number, self._device)
        for line in course_table(run, ledger):
            self._say(line)


def device_label(device: object) -> str:
    """Return what stands for a device in a file's name: ``1`` for ``cuda:1``, ``0`` for ``cuda``, ``cpu``."""
    kind, _, index = str(device).partition(":")
    return kind if kind == "cpu" else index or "0"
