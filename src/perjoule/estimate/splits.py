"""Who may learn from what: splits that never have a replicate on both sides, and the published one that does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import median

import numpy as np

from perjoule.core.errors import DataError
from perjoule.estimate.contract import Measurement, Scopes


class Split(StrEnum):
    """What is left out together."""

    CONFIGURATION = "configuration"
    ARCHITECTURE = "architecture"
    DATASET = "dataset"
    DEVICE = "device"


KEYS: Mapping[Split, Callable[[Measurement], str]] = {
    Split.CONFIGURATION: lambda one: "/".join(one.job.configuration_key),
    Split.ARCHITECTURE: lambda one: one.job.workload.architecture.name,
    Split.DATASET: lambda one: one.job.workload.dataset,
    Split.DEVICE: lambda one: one.job.device.name,
}
_MAX_FOLDS = 40
"""With more groups, several are left out together: no group is ever split, and the score does not take an hour."""


@dataclass(frozen=True)
class Fold:
    """One division.

    Args:
        name: what is left out.
        train: what may be learnt from.
        test: what is asked.
    """

    name: str
    train: tuple[Measurement, ...]
    test: tuple[Measurement, ...]


def folds(measurements: Sequence[Measurement], split: Split, study: str) -> Iterator[Fold]:
    """Leave out each group of one study in turn; the other studies' rows of the same group are left out with it.

    Args:
        measurements: of all studies, one per configuration and setting (:func:`typical`).
        split: the kind of group.
        study: whose rows are asked.

    Raises:
        DataError: if there is only one group.
    """
    key = KEYS[split]
    names = list(dict.fromkeys(key(one) for one in measurements if one.study == study))
    if len(names) < 2:
        raise DataError(f"{study}: one {split} only ({names[0] if names else 'none'}): nothing is left to learn from")
    order = np.random.default_rng(0).permutation(len(names))
    num = len(names) if len(names) <= _MAX_FOLDS else _MAX_FOLDS // 4
    for fold in range(num):
        out = {names[index] for place, index in enumerate(order) if place % num == fold}
        yield Fold(
            ", ".join(sorted(out)),
            tuple(one for one in measurements if key(one) not in out),
            tuple(one for one in measurements if key(one) in out and one.study == study),
        )


def random_runs(measurements: Sequence[Measurement], seed: int = 2022) -> Fold:
    """Divide *runs* at random, 70 to 30, as published: replicates of one configuration lie on both sides."""
    order = np.random.default_rng(seed).permutation(len(measurements))
    cut = round(0.7 * len(order))
    train, test = (tuple(measurements[index] for index in part) for part in (order[:cut], order[cut:]))
    return Fold("random runs", train, test)


def typical(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Return one measurement per study, configuration, power limit and host memory: medians over its replicates."""
    groups: dict[object, list[Measurement]] = {}
    for one in measurements:
        known_ram = one.job.ram_gb if one.scopes.device_j is not None else None
        groups.setdefault((one.study, one.job.configuration_key, one.job.limit_w, known_ram), []).append(one)
    return [_median(group) for group in groups.values()]


def _median(group: Sequence[Measurement]) -> Measurement:
    """Return the medians of a group."""

    def middle(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return median(known) if known else None

    return replace(
        group[0],
        scopes=Scopes(
            middle([one.scopes.gpu_j for one in group]),
            middle([one.scopes.cpu_j for one in group]),
            middle([one.scopes.ram_j for one in group]),
            middle([one.scopes.pue for one in group]),
        ),
        seconds_per_epoch=middle([one.seconds_per_epoch for one in group]),
        watts=middle([one.watts for one in group]),
        total_s=middle([one.total_s for one in group]),
        total_j=middle([one.total_j for one in group]),
        utilization=middle([one.utilization for one in group]),
        replicate="",
    )
