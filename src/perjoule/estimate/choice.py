"""How wide the priors should be: what would have been predicted best of devices that were left out.

Each device is left out with its host and predicted twice: from the others alone, and after three runs of it that were
chosen without looking at their result. The score of a prediction is the width of its 90 % interval, and twenty times
how far the truth lies outside (Gneiting and Raftery, Strictly Proper Scoring Rules, 2007), in logarithms of joules: it
is least where an interval is as narrow as it can be and still holds nine of ten. Devices count alike, and so do the two
stages (sum of the logarithms of their means). One width after the other is varied, from the defaults; the search is
deterministic.

A choice that is to be judged may not have seen what it is judged on: the table of ``docs/estimate.md`` chooses for the
devices of one study on the other study alone (``benchmarks/estimate_nested.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from perjoule.core.errors import DataError
from perjoule.estimate.contract import Measurement, Target
from perjoule.estimate.estimators.physical import Physical, PhysicalConfig
from perjoule.estimate.processes import side_by_side
from perjoule.estimate.scores import ask
from perjoule.estimate.step_model import Widths
from perjoule.estimate.trials import by_device, highest_limits

CANDIDATES: Mapping[str, tuple[float, ...]] = {
    "host": (0.25, 0.35, 0.5, 0.7),
    "device": (0.5, 0.75, 1.0, 1.4),
    "pair": (0.03, 0.06, 0.12),
}
_MEASURED = 3
_OUTSIDE = 20.0  # 2 / (1 - 0.9)
Stages = tuple[float, ...]


def choose_widths(
    rows: Sequence[Measurement], say: Callable[[str], None] = lambda line: None, processes: int = 2
) -> Widths:
    """Return the widths at which devices that were left out are predicted best.

    Args:
        rows: one per configuration and setting; of two devices at least.
        say: is given a line per candidate.
        processes: that fit side by side; from a script without ``if __name__ == "__main__"`` only 1 can.

    Raises:
        DataError: if there are fewer than two devices with energy that can be believed.
    """
    if len(_devices(rows)) < 2:
        raise DataError("widths are chosen by leaving devices out: at least two must have been measured")
    best, scores = Widths(), dict[Widths, float]()
    for name, values in CANDIDATES.items():
        tried = [replace(best, **{name: value}) for value in values]
        new = [widths for widths in tried if widths not in scores]
        scores |= zip(
            new, side_by_side([partial(score_widths, rows, widths) for widths in new], processes), strict=True
        )
        for widths in new:
            say(f"{widths}: {scores[widths]:.3f}")
        best = min(tried, key=lambda widths: scores[widths])
    return best


def score_widths(rows: Sequence[Measurement], widths: Widths) -> float:
    """Return the score of widths on devices that are left out; see the module."""
    stages = [_score_device(rows, device, widths) for device in _devices(rows)]
    return float(np.log(np.mean(stages, axis=0)).sum())


def _devices(rows: Sequence[Measurement]) -> list[str]:
    """Return the devices of which energy was measured that can be believed."""
    return [name for name, mine in by_device(rows).items() if any(_usable(one) for one in mine)]


def _usable(one: Measurement) -> bool:
    return one.trusted and one.scopes.device_j is not None


def _score_device(rows: Sequence[Measurement], device: str, widths: Widths) -> Stages:
    """Return the mean scores of a device before and after some runs of it."""
    mine = [one for one in rows if one.job.device.name == device and _usable(one)]
    others = [one for one in rows if one.job.device.name != device]
    method = PhysicalConfig.of(widths).build()
    method.fit(others)
    runs = highest_limits(mine)
    chosen = {
        job.configuration_key for job in method.choose([one.job for one in runs], _MEASURED, [one.job for one in mine])
    }
    stages = []
    for known in (set[tuple[str, ...]](), chosen):
        if known:
            method.fit([*others, *(one for one in runs if one.job.configuration_key in known)])
        asked = [one for one in mine if one.job.configuration_key not in known]
        stages.append(float(np.mean([_interval_score(one) for one in _logs(method, asked)])))
    return tuple(stages)


def _logs(method: Physical, asked: Sequence[Measurement]) -> list[tuple[float, float, float]]:
    """Return the logarithms of the ends of the intervals and of the truths."""
    outcomes = ask(method, asked, Target.ENERGY_PER_EPOCH)
    return [(np.log(one.estimate.low), np.log(one.estimate.high), np.log(one.truth)) for one in outcomes]


def _interval_score(one: tuple[float, float, float]) -> float:
    low, high, truth = one
    return high - low + _OUTSIDE * (max(low - truth, 0.0) + max(truth - high, 0.0))
