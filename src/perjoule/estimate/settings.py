"""The best batch size and power limit of a workload, when a third of its grid has been measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perjoule.estimate import SHELF
from perjoule.estimate.contract import Estimator, Measurement, Target

_REVEALED = 1 / 3
_DRAWS = 3
_LEAST_GRID = 12


@dataclass(frozen=True)
class Choice:
    """What was chosen for one workload on one device.

    Args:
        device: its name.
        workload: architecture, data set, optimizer.
        num_settings: settings of the grid.
        excess: energy per epoch of the chosen setting over that of the best one, minus 1; mean over draws.
        measured_excess: the same for the best of the settings that were measured, without any estimate.
    """

    device: str
    workload: str
    num_settings: int
    excess: float
    measured_excess: float


def best_settings(rows: Sequence[Measurement], only: set[str] | None = None) -> list[Choice]:
    """Choose, for every workload on every device with a grid of power limits, the setting of least energy.

    A third of each grid, drawn at random, is what the estimator learns from, with all rows of other devices.

    Args:
        rows: one per configuration and setting.
        only: names of the devices; None: all.
    """
    grids: dict[tuple[str, tuple[str, str, str]], list[Measurement]] = {}
    for one in rows:
        if one.scopes.device_j is not None and one.trusted and (only is None or one.job.device.name in only):
            grids.setdefault((one.job.device.name, one.job.workload_key), []).append(one)
    grids = {key: grid for key, grid in grids.items() if _is_grid(grid)}
    if not grids:
        return []
    gridded = {id(one) for grid in grids.values() for one in grid}
    others = [one for one in rows if id(one) not in gridded]
    excess: dict[tuple[str, tuple[str, str, str]], list[tuple[float, float]]] = {}
    for draw in range(_DRAWS):
        generator = np.random.default_rng(draw)
        drawn = {key: _third(grid, generator) for key, grid in grids.items()}
        estimator: Estimator = SHELF.load("physical")().build()
        estimator.fit([*others, *(one for some in drawn.values() for one in some)])
        for key, grid in grids.items():
            excess.setdefault(key, []).append(_excess(estimator, grid, drawn[key]))
    return [
        Choice(
            device,
            "/".join(part for part in workload if part),
            len(grids[device, workload]),
            float(np.mean([chosen for chosen, _ in found])),
            float(np.mean([measured for _, measured in found])),
        )
        for (device, workload), found in excess.items()
    ]


def _is_grid(grid: Sequence[Measurement]) -> bool:
    """Return whether several power limits and enough settings were measured."""
    return len(grid) >= _LEAST_GRID and len({one.job.limit_w for one in grid}) > 1


def _third(grid: Sequence[Measurement], generator: np.random.Generator) -> list[Measurement]:
    """Return a third of a grid."""
    return [grid[index] for index in generator.permutation(len(grid))[: round(_REVEALED * len(grid))]]


def _excess(estimator: Estimator, grid: Sequence[Measurement], drawn: Sequence[Measurement]) -> tuple[float, float]:
    """Return by how much the chosen setting and the best measured one exceed the best of all."""
    true = np.array([one.scopes.device_j for one in grid], dtype=np.float64)
    estimates = estimator.predict_all([one.job for one in grid], Target.ENERGY_PER_EPOCH)
    chosen = int(np.argmin([one.mean for one in estimates]))
    measured = min(one.scopes.device_j for one in drawn if one.scopes.device_j is not None)
    return float(true[chosen] / true.min() - 1), float(measured / true.min() - 1)


def describe(choices: Sequence[Choice]) -> list[str]:
    """Return lines for the terminal: one per workload, and the medians."""
    if not choices:
        return []
    lines = ["", "best batch size and power limit from a third of the grid: energy above the true optimum"]
    width = max(len(one.workload) for one in choices)
    lines += [
        f"  {one.device:<12} {one.workload:<{width}}  {one.num_settings:>3} settings  {100 * one.excess:5.1f} %   "
        f"best measured {100 * one.measured_excess:5.1f} %"
        for one in choices
    ]
    chosen, measured = (
        float(np.median([getattr(one, name) for one in choices])) for name in ("excess", "measured_excess")
    )
    lines.append(f"  median {100 * chosen:.1f} %, of the best measured ones {100 * measured:.1f} %")
    return lines
