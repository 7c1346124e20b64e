"""One fit and what it is asked: the pieces of a score, each of which another process can do.

A trial learns from some measurements, is asked about others, and returns every estimate beside the truth under the row
of the table to which it belongs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from perjoule.core.errors import ConfigError, DataError
from perjoule.estimate import SHELF
from perjoule.estimate.contract import Estimator, Hindsight, Measurement, Needs, Target
from perjoule.estimate.estimators.physical import PhysicalConfig
from perjoule.estimate.scores import Outcome, Score, ask, summarize
from perjoule.estimate.splits import Fold, Split, random_runs

OURS = "physical"
LEAKING = "leaks: replicates on both sides"
UNSEEN = "other file"
LEARNT_FROM = f"{UNSEEN}: learnt from"
_LEAKS = ("random runs", LEARNT_FROM)
"""Splits in which a configuration is on both sides."""
_DRAWS = 3
_MEASURED = (1, 3, 6)
_SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)


class Row(NamedTuple):
    """What tells rows of the table apart: what was left out, whose figures, the method, the quantity, a note."""

    split: str
    study: str
    method: str
    target: Target
    note: str


@dataclass
class Trial:
    """What came of it.

    Args:
        outcomes: by row of the table.
        remarks: lines for the reader.
    """

    outcomes: dict[Row, list[Outcome]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def ask(self, method: Estimator, tests: Iterable[Measurement], split: str, study: str, target: Target) -> None:
        """Ask a fitted method for one quantity."""
        self.add(ask(method, tests, target), split, study, method, target)

    def add(self, outcomes: Iterable[Outcome], split: str, study: str, method: Estimator, target: Target) -> None:
        """File outcomes under their row, with what the method presupposes."""
        notes = [LEAKING] * (split in _LEAKS) + [f"given {method.needs}"] * (method.needs is not Needs.NOTHING)
        self.outcomes.setdefault(Row(split, study, method.kind, target, "; ".join(notes)), []).extend(outcomes)


def merge(trials: Iterable[Trial]) -> list[Score]:
    """Return the rows of the table in the order in which they were first asked; those of one split together."""
    found: dict[Row, list[Outcome]] = {}
    for trial in trials:
        for row, outcomes in trial.outcomes.items():
            found.setdefault(row, []).extend(outcomes)
    splits = list(dict.fromkeys((row.study, row.split) for row in found))
    return [
        summarize(found[row], split=row.split, study=row.study, method=row.method, target=row.target, note=row.note)
        for row in sorted(found, key=lambda row: splits.index((row.study, row.split)))
        if found[row]
    ]


def leave_out(fold: Fold, split: Split, study: str) -> Trial:
    """Ask every method about what one fold leaves out; ours architecture by architecture as well."""
    trial = Trial()
    for method in _taught(fold.train, study, trial, f"without {fold.name}"):
        for target in _asked_targets(method):
            outcomes = ask(method, fold.test, target)
            trial.add(outcomes, split.value, study, method, target)
            if method.kind == OURS and target is Target.ENERGY_PER_EPOCH:
                for one in outcomes:  # so that a hard network is not hidden by many easy rows
                    trial.add([one], f"{split.value}: {one.architecture}", study, method, target)
    return trial


def unseen(
    known: Sequence[Measurement], asked: Sequence[Measurement], repeated: Sequence[Measurement], study: str
) -> Trial:
    """Ask every method about rows of another file: all of one study, then each device, then each architecture.

    Args:
        known: what may be learnt from.
        asked: rows whose configuration is not among them.
        repeated: rows whose configuration is; they stand apart.
        study: of both.
    """
    trial, groups = Trial(), {f"{UNSEEN}: all": list(asked)}
    for one in asked:
        for name in (one.job.device.name, one.job.workload.architecture.name):
            groups.setdefault(f"{UNSEEN}: {name}", []).append(one)
    groups[LEARNT_FROM] = list(repeated)
    for method in _taught(known, study, trial, f"on {study}"):
        for target in _asked_targets(method):
            for split, group in groups.items():
                trial.ask(method, group, split, study, target)
    return trial


def _taught(rows: Sequence[Measurement], study: str, trial: Trial, where: str) -> Iterable[Estimator]:
    """Yield every method that answers before the run and could learn from the rows.

    Ours learns from every study, the published ones from one, as they were published: kernel ridge on several at once
    is worse by orders of magnitude, as their energies span seven.
    """
    for method in (SHELF.load(kind)().build() for kind in SHELF.names()):
        if method.needs is Needs.FIRST_EPOCHS:
            continue
        try:
            method.fit([one for one in rows if method.kind == OURS or one.study == study])
        except DataError as error:
            trial.remarks.append(f"not scored: {method.kind} {where}: {error}")
            continue
        yield method


def _asked_targets(method: Estimator) -> list[Target]:
    """Return what a method is asked: the energy of an epoch, and where it knows them from the job alone, its parts."""
    wanted = [Target.ENERGY_PER_EPOCH, Target.SECONDS_PER_EPOCH, Target.WATTS]
    known = [target for target in wanted if target in method.targets]
    return known if method.needs is Needs.NOTHING else known[:1]


def calibrate(
    others: Sequence[Measurement], mine: Sequence[Measurement], study: str, config: PhysicalConfig | None = None
) -> Trial:
    """Ask ours about a device after 1, 3 and 6 measured configurations of it.

    They are chosen by what their measurement would tell (:meth:`Physical.choose`), not by what it told; three drawn at
    random stand beside them. Each gives one run, at its highest power limit; its other rows are not asked.

    Args:
        others: rows of other devices.
        mine: rows of this one.
        study: whose rows are asked.
        config: of ours; None: the defaults.
    """
    runs, trial, method = highest_limits(mine), Trial(), (config or PhysicalConfig()).build()
    try:
        method.fit(others)
    except DataError as error:
        return Trial(remarks=[f"not scored: {OURS} on a new device: {error}"])
    chosen = method.choose([one.job for one in runs], max(_MEASURED), [one.job for one in mine])
    chosen_keys = [job.configuration_key for job in chosen]
    sets = [(_measured(num), set(chosen_keys[:num])) for num in _MEASURED]
    for draw in range(_DRAWS):
        order = np.random.default_rng(draw).permutation(len(runs))[:3]
        sets.append((_measured(3) + " at random", {runs[index].job.configuration_key for index in order}))
    for label, keys in sets:
        method.fit([*others, *(one for one in runs if one.job.configuration_key in keys)])
        tests = [one for one in mine if one.job.configuration_key not in keys and one.study == study]
        trial.ask(method, tests, label, study, Target.ENERGY_PER_EPOCH)
    return trial


def _measured(num: int) -> str:
    """Return the label of a device of which some configurations were measured."""
    return f"device, {num} configuration{'s' * (num > 1)} measured"


def highest_limits(rows: Sequence[Measurement]) -> list[Measurement]:
    """Return one measured row of each configuration, that with the highest power limit."""
    best: dict[tuple[str, ...], Measurement] = {}
    for one in rows:
        key = one.job.configuration_key
        if one.scopes.device_j is not None and (key not in best or one.job.limit_w > best[key].job.limit_w):
            best[key] = one
    return list(best.values())


def learning_curve(runs: Sequence[Measurement], study: str) -> Trial:
    """Ask the methods that watch a run about runs whose epochs were recorded, after growing shares of them.

    A method that needs more epochs than it has been shown is not asked.
    """
    trial = Trial()
    for method in (SHELF.load(kind)().build() for kind in SHELF.names()):
        for share in _SHARES if method.needs is Needs.FIRST_EPOCHS else ():
            for one in runs:
                true_j = sum(epoch.joules for epoch in one.epochs)
                seen = one.epochs[: max(1, round(share * len(one.epochs)))]
                true_s = sum(epoch.seconds for epoch in one.epochs) / max(1, len(one.epochs))
                job = replace(one.job, epochs=len(one.epochs)).revealed(Hindsight(true_s), seen)
                with suppress(ConfigError):  # says how many epochs it needs
                    outcomes = [Outcome(true_j, method.predict(job, Target.TOTAL_ENERGY))] if seen else []
                    split = f"rest of a run, {100 * share:g} % seen"
                    trial.add(outcomes, split, study, method, Target.TOTAL_ENERGY)
    return trial


def published(runs: Sequence[Measurement], study: str) -> Trial:
    """Ask the published estimators as they were published: runs divided at random."""
    trial = Trial()
    if len({one.job.configuration_key for one in runs}) > len(runs) / 2:
        return trial  # without replicates there is nothing to reproduce
    fold = random_runs(runs)
    for method in _taught(fold.train, study, trial, f"on random runs of {study}"):
        targets = {Target.WATTS, Target.ENERGY_PER_EPOCH} & method.targets
        if method.needs is Needs.TRUE_DURATION:  # the others would have to be told the number of epochs
            targets |= {Target.TOTAL_ENERGY} & method.targets
        for target in sorted(targets):
            trial.ask(method, fold.test, "random runs", study, target)
    return trial


def by_device(rows: Sequence[Measurement]) -> Mapping[str, list[Measurement]]:
    """Return the rows of each device."""
    found: dict[str, list[Measurement]] = {}
    for one in rows:
        found.setdefault(one.job.device.name, []).append(one)
    return found
