"""``perjoule estimate --score``: every method on measurements that it has not seen, in one table.

Each kind of group is left out in turn: configurations, architectures, data sets, devices. Behind that stand, for ours,
what three measured configurations of a new device are worth, the best batch size and power limit from a third of the
grid, and the published division of runs, which leaks and is labelled so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from perjoule.core.errors import ConfigError, DataError
from perjoule.estimate import SHELF
from perjoule.estimate.contract import Estimator, Hindsight, Measurement, Needs, Target
from perjoule.estimate.devices import Device
from perjoule.estimate.estimators.physical import PhysicalConfig
from perjoule.estimate.imports import read_measurements
from perjoule.estimate.scores import Outcome, Score, ask, summarize, table
from perjoule.estimate.settings import Choice, best_settings, describe
from perjoule.estimate.splits import Split, folds, random_runs, typical

Say = Callable[[str], None]
_OURS = "physical"
_DRAWS = 3
_MEASURED = (1, 3, 6)
_SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
LEAKING = "leaks: replicates on both sides"


def score(paths: Sequence[Path], say: Say, devices: Mapping[str, Device] | None = None) -> list[Score]:
    """Score every method by leaving groups out, and print the table.

    Args:
        paths: files and run folders, as :func:`perjoule.estimate.imports.read_measurements`.
        say: is given each line.
        devices: data sheets of your own, by name.

    Returns:
        The rows of the table.

    Raises:
        ConfigError: if there is no data sheet of a device.
        DataError: if a file cannot be used or there is nothing to compare.
    """
    runs = _with_work(read_measurements(paths, devices))
    rows = typical(runs)
    scores: list[Score] = []
    for study in dict.fromkeys(one.study for one in rows):
        for split in Split:
            scores += _left_out(rows, split, study, say)
        scores += calibrated(rows, study)
        scores += learning_curve([one for one in runs if one.study == study], study)
        scores += _published(runs, study)
    _say_all(scores, best_settings(rows), say)
    return scores


def score_unseen(
    fit: Sequence[Path], test: Sequence[Path], say: Say, devices: Mapping[str, Device] | None = None
) -> list[Score]:
    """Fit every method on some files and score it on others, by device and by architecture, and print the table.

    Rows of ``test`` whose configuration is also in ``fit`` are left out: they would measure memory.

    Args:
        fit: what may be learnt from.
        test: what is asked.
        say: is given each line.
        devices: data sheets of your own, by name.

    Raises:
        ConfigError: if there is no data sheet of a device.
        DataError: if a file cannot be used or nothing in ``test`` is new.
    """
    known, asked = (typical(_with_work(read_measurements(paths, devices))) for paths in (fit, test))
    seen = {one.job.configuration_key for one in known}
    new = [one for one in asked if one.job.configuration_key not in seen]
    if len(new) < len(asked):
        say(f"{len(asked) - len(new)} of {len(asked)} rows have a configuration that was learnt from: not asked")
    if not new:
        raise DataError("nothing to score: every configuration in --test is in --fit as well")
    scores: list[Score] = []
    studies = dict.fromkeys(one.study for one in new)
    for study in studies:
        mine = [one for one in new if one.study == study]
        for method in _offline():
            try:
                method.fit(_lesson(method, known, study))
            except DataError as error:
                say(f"not scored: {method.kind} on {study}: {error}")
                continue
            scores += _on_groups(method, mine, study)
    new_devices = {one.job.device.name for one in new} - {one.job.device.name for one in known}
    for study in studies:
        scores += calibrated([*known, *new], study, new_devices)
    _say_all(scores, best_settings([*known, *new], new_devices or None), say)
    return scores


def _on_groups(method: Estimator, rows: Sequence[Measurement], study: str) -> list[Score]:
    """Score a fitted method on all rows of a study, then on those of each device and architecture."""
    groups: dict[str, list[Measurement]] = {"all": list(rows)}
    for one in rows:
        for name in (one.job.device.name, one.job.workload.architecture.name):
            groups.setdefault(name, []).append(one)
    scores = []
    for target in _asked_targets(method):
        for name, group in groups.items():
            outcomes = ask(method, group, target)
            if outcomes:
                scores.append(_row(outcomes, f"other file: {name}", study, method, target))
    return scores


def _with_work(runs: Sequence[Measurement]) -> list[Measurement]:
    """Return the measurements whose network is known.

    Raises:
        DataError: if there are none.
    """
    known = [one for one in runs if one.job.workload.forward_flops > 0]
    if not known:
        raise DataError("nothing to score: no measurement says which network was trained (emissions.csv never does)")
    return known


def _offline() -> list[Estimator]:
    """Return every estimator on the shelf that answers before the run."""
    built = [SHELF.load(kind)().build() for kind in SHELF.names()]
    return [one for one in built if one.needs is not Needs.FIRST_EPOCHS]


def _asked_targets(method: Estimator) -> list[Target]:
    """Return what a method is asked: the energy of an epoch, and where it knows them from the job alone, its parts."""
    wanted = [Target.ENERGY_PER_EPOCH, Target.SECONDS_PER_EPOCH, Target.WATTS]
    known = [target for target in wanted if target in method.targets]
    return known if method.needs is Needs.NOTHING else known[:1]


def _left_out(rows: Sequence[Measurement], split: Split, study: str, say: Say) -> list[Score]:
    """Score every method on one kind of group."""
    methods = _offline()
    outcomes: dict[tuple[int, Target], list[Outcome]] = {}
    try:
        divided = list(folds(rows, split, study))
    except DataError as error:
        say(f"not scored: {error}")
        return []
    for fold in divided:
        for number, method in enumerate(methods):
            try:
                method.fit(_lesson(method, fold.train, study))
            except DataError as error:
                say(f"not scored: {method.kind} without {fold.name}: {error}")
                continue
            for target in _asked_targets(method):
                outcomes.setdefault((number, target), []).extend(ask(method, fold.test, target))
    scores = []
    for (number, target), found in outcomes.items():
        if found:
            scores.append(_row(found, split.value, study, methods[number], target))
        if methods[number].kind == _OURS and target is Target.ENERGY_PER_EPOCH:
            scores += _by_architecture(found, split, study, methods[number])
    return scores


def _lesson(method: Estimator, rows: Sequence[Measurement], study: str) -> list[Measurement]:
    """Return what a method learns from: ours from every study, the published ones from one, as they were published.

    Kernel ridge on several studies at once is worse by orders of magnitude: their energies span seven.
    """
    return [one for one in rows if method.kind == _OURS or one.study == study]


def _by_architecture(outcomes: Sequence[Outcome], split: Split, study: str, method: Estimator) -> list[Score]:
    """Return a row for each architecture, so that a hard one is not hidden by many easy rows."""
    groups: dict[str, list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault(one.architecture, []).append(one)
    rows = [
        _row(found, f"{split.value}: {name}", study, method, Target.ENERGY_PER_EPOCH) for name, found in groups.items()
    ]
    return rows if len(rows) > 1 else []


def _row(outcomes: Sequence[Outcome], split: str, study: str, method: Estimator, target: Target) -> Score:
    """Return the row of a method, with what it presupposes."""
    note = f"given {method.needs.value}" if method.needs is not Needs.NOTHING else ""
    return summarize(outcomes, split=split, study=study, method=method.kind, target=target, note=note)


def calibrated(rows: Sequence[Measurement], study: str, only: set[str] | None = None) -> list[Score]:
    """Score ours on each device of a study after 1, 3 and 6 measured configurations of it.

    They are chosen by what their measurement would tell (:meth:`Physical.choose`), not by what it told; three drawn at
    random stand beside them. Each gives one run, at its highest power limit; its other rows are not asked.

    Args:
        rows: of all studies (:func:`perjoule.estimate.splits.typical`).
        study: whose devices are taken as new in turn.
        only: names of the devices; None: all that have a sensor to be believed.
    """
    names = dict.fromkeys(one.job.device.name for one in rows if one.study == study and one.trusted)
    if len({one.job.device.name for one in rows}) < 2:
        return []
    outcomes: dict[str, list[Outcome]] = {}
    for name in names if only is None else [name for name in names if name in only]:
        mine = [one for one in rows if one.job.device.name == name]
        others = [one for one in rows if one.job.device.name != name]
        runs = _highest_limits(mine)
        method = PhysicalConfig().build()
        method.fit(others)
        chosen = method.choose([one.job for one in runs], max(_MEASURED), [one.job for one in mine])
        chosen_keys = [job.configuration_key for job in chosen]
        sets = [(_measured(num), set(chosen_keys[:num])) for num in _MEASURED]
        for draw in range(_DRAWS):
            order = np.random.default_rng(draw).permutation(len(runs))[:3]
            sets.append((_measured(3) + " at random", {runs[index].job.configuration_key for index in order}))
        for label, keys in sets:
            method.fit([*others, *(one for one in runs if one.job.configuration_key in keys)])
            tests = [one for one in mine if one.job.configuration_key not in keys and one.study == study]
            outcomes.setdefault(label, []).extend(ask(method, tests, Target.ENERGY_PER_EPOCH))
    return [_row(found, label, study, method, Target.ENERGY_PER_EPOCH) for label, found in outcomes.items() if found]


def _measured(num: int) -> str:
    """Return the label of a device of which some configurations were measured."""
    return f"device, {num} configuration{'s' * (num > 1)} measured"


def _highest_limits(rows: Sequence[Measurement]) -> list[Measurement]:
    """Return one measured row of each configuration, that with the highest power limit."""
    best: dict[tuple[str, ...], Measurement] = {}
    for one in rows:
        key = one.job.configuration_key
        if one.scopes.device_j is not None and (key not in best or one.job.limit_w > best[key].job.limit_w):
            best[key] = one
    return list(best.values())


def learning_curve(runs: Sequence[Measurement], study: str) -> list[Score]:
    """Score the methods that watch a run, on runs whose epochs were recorded, after growing shares of them.

    A method that needs more epochs than it has been shown is not asked.
    """
    scores = []
    for method in (SHELF.load(kind)().build() for kind in SHELF.names()):
        for share in _SHARES if method.needs is Needs.FIRST_EPOCHS else ():
            outcomes = []
            for one in runs:
                true_j = sum(epoch.joules for epoch in one.epochs)
                seen = one.epochs[: max(1, round(share * len(one.epochs)))]
                true_s = sum(epoch.seconds for epoch in one.epochs) / max(1, len(one.epochs))
                job = replace(one.job, epochs=len(one.epochs)).revealed(Hindsight(true_s), seen)
                with suppress(ConfigError):  # says how many epochs it needs
                    outcomes += [Outcome(true_j, method.predict(job, Target.TOTAL_ENERGY))] if seen else []
            if outcomes:
                scores.append(
                    _row(outcomes, f"rest of a run, {100 * share:g} % seen", study, method, Target.TOTAL_ENERGY)
                )
    return scores


def _published(runs: Sequence[Measurement], study: str) -> list[Score]:
    """Score the published estimators as they were published: runs divided at random."""
    mine = [one for one in runs if one.study == study]
    if len({one.job.configuration_key for one in mine}) > len(mine) / 2:
        return []  # without replicates there is nothing to reproduce
    fold, scores = random_runs(mine), []
    for method in _offline():
        method.fit(fold.train)
        targets = {Target.WATTS, Target.ENERGY_PER_EPOCH} & method.targets
        if method.needs is Needs.TRUE_DURATION:  # the others would have to be told the number of epochs
            targets |= {Target.TOTAL_ENERGY} & method.targets
        for target in sorted(targets):
            outcomes = ask(method, fold.test, target)
            if outcomes:
                row = _row(outcomes, "random runs", study, method, target)
                scores.append(replace(row, note=f"{LEAKING}; {row.note}".rstrip("; ")))
    return scores


def _say_all(scores: Sequence[Score], settings: Sequence[Choice], say: Say) -> None:
    """Print the table and what stands below it."""
    for line in (*table(scores), *describe(settings)):
        say(line)
