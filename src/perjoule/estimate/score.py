"""``perjoule estimate --score``: every method on measurements that it has not seen, in one table.

Each kind of group is left out in turn: configurations, architectures, data sets, devices. Behind that stand, for ours,
what three measured configurations of a new device are worth, the best batch size and power limit from a third of the
grid, and the published division of runs, which leaks and is labelled so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from perjoule.core.errors import DataError
from perjoule.estimate.contract import Measurement
from perjoule.estimate.devices import Device
from perjoule.estimate.imports import read_measurements
from perjoule.estimate.processes import side_by_side
from perjoule.estimate.scores import Score, table
from perjoule.estimate.settings import Choice, best_settings, describe
from perjoule.estimate.splits import Split, folds, typical
from perjoule.estimate.trials import Trial, by_device, calibrate, learning_curve, leave_out, merge, published, unseen

Say = Callable[[str], None]
_Task = Callable[[], Trial]
_Settings = Callable[[], list[Choice]]


def score(
    paths: Sequence[Path], say: Say, devices: Mapping[str, Device] | None = None, processes: int = 2
) -> list[Score]:
    """Score every method by leaving groups out, and print the table.

    Args:
        paths: files and run folders, as :func:`perjoule.estimate.imports.read_measurements`.
        say: is given each line.
        devices: data sheets of your own, by name.
        processes: that fit side by side; from a script without ``if __name__ == "__main__"`` only 1 can.

    Returns:
        The rows of the table.

    Raises:
        ConfigError: if there is no data sheet of a device.
        DataError: if a file cannot be used or there is nothing to compare.
    """
    runs = _with_work(read_measurements(paths, devices, say))
    rows, tasks = typical(runs), list[_Task]()
    for study in dict.fromkeys(one.study for one in rows):
        for split in Split:
            try:
                tasks += [partial(leave_out, fold, split, study) for fold in folds(rows, split, study)]
            except DataError as error:
                say(f"not scored: {error}")
        tasks += _calibrations(rows, rows, study)
        mine = _of(runs, study)
        tasks += [partial(learning_curve, mine, study), partial(published, mine, study)]
    return _run(tasks, partial(best_settings, rows), say, processes)


def score_unseen(
    fit: Sequence[Path],
    test: Sequence[Path],
    say: Say,
    devices: Mapping[str, Device] | None = None,
    processes: int = 2,
) -> list[Score]:
    """Fit every method on some files and score it on others, by device and by architecture, and print the table.

    Rows of ``test`` whose configuration is also in ``fit`` stand apart: they measure memory. Of devices that are
    new, some configurations are measured and the others asked, and the best setting is sought, as in :func:`score`.

    Args:
        fit: what may be learnt from.
        test: what is asked.
        say: is given each line.
        devices: data sheets of your own, by name.
        processes: as in :func:`score`.

    Raises:
        ConfigError: if there is no data sheet of a device.
        DataError: if a file cannot be used or no measurement says which network was trained.
    """
    known, asked = (typical(_with_work(read_measurements(paths, devices, say))) for paths in (fit, test))
    seen = {one.job.configuration_key for one in known}
    new = [one for one in asked if one.job.configuration_key not in seen]
    repeated = [one for one in asked if one.job.configuration_key in seen]
    if repeated:
        say(f"{len(repeated)} of {len(asked)} rows have a configuration that was learnt from: they stand apart")
    studies = dict.fromkeys(one.study for one in asked)
    tasks: list[_Task] = [partial(unseen, known, _of(new, study), _of(repeated, study), study) for study in studies]
    measured = {one.job.device.name for one in known}
    elsewhere = [one for one in new if one.job.device.name not in measured]
    for study in studies:
        tasks += _calibrations(known, elsewhere, study)
    of_new = {one.job.device.name for one in elsewhere}
    return _run(tasks, partial(best_settings, [*known, *new], of_new or None), say, processes)


def _of(rows: Sequence[Measurement], study: str) -> list[Measurement]:
    return [one for one in rows if one.study == study]


def _calibrations(known: Sequence[Measurement], asked: Sequence[Measurement], study: str) -> list[_Task]:
    """Return the trials that take each device of a study as new; those whose sensor cannot be believed are not."""
    tasks: list[_Task] = []
    for name, mine in by_device(asked).items():
        others = [one for one in known if one.job.device.name != name]
        if others and any(one.study == study and one.trusted for one in mine):
            tasks.append(partial(calibrate, others, mine, study))
    return tasks


def _with_work(runs: Sequence[Measurement]) -> list[Measurement]:
    """Return the measurements whose network is known.

    Raises:
        DataError: if there are none.
    """
    known = [one for one in runs if one.job.workload.forward_flops > 0]
    if not known:
        raise DataError("nothing to score: no measurement says which network was trained (emissions.csv never does)")
    return known


def _run(tasks: Sequence[_Task], settings: _Settings, say: Say, processes: int) -> list[Score]:
    """Do the trials and say what came of them."""
    found: list[Trial | list[Choice]] = side_by_side([settings, *tasks], processes)
    trials = [one for one in found if isinstance(one, Trial)]
    choices = [choice for one in found if not isinstance(one, Trial) for choice in one]
    for remark in dict.fromkeys(remark for trial in trials for remark in trial.remarks):
        say(remark)
    scores = merge(trials)
    for line in (*table(scores), *describe(choices)):
        say(line)
    return scores
