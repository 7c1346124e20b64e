"""Energy against time, times intensity against time: grams of CO2 equivalent.

::

    gCO2e = PUE · Σ energy(t) / 3.6 MJ · intensity(t)

The interval of the result is that of the energy, by the same factors; what the intensity itself may be off by is kept
apart, as nobody knows how the two errors go together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perjoule.core.units import J_PER_KWH
from perjoule.measure.carbon.intensity import Intensity
from perjoule.measure.contract import Unavailable
from perjoule.runs.carbon_series import CarbonSeries, read_carbon_series

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Emissions:
    """What an amount of energy emitted.

    Args:
        gco2e: grams of CO2 equivalent.
        low_gco2e: lower end, from the interval of the energy.
        high_gco2e: upper end.
        mean_g_per_kwh: intensity, weighted by the energy, without PUE; None if there was no energy.
    """

    gco2e: float
    low_gco2e: float
    high_gco2e: float
    mean_g_per_kwh: float | None


def emissions(
    t_wall_s: Floats,
    energy_j: Floats,
    series: CarbonSeries,
    pue: float = 1.0,
    interval: tuple[float, float] = (1.0, 1.0),
) -> Emissions | Unavailable:
    """Return the emissions of energy that was used over time.

    Args:
        t_wall_s: (num_increments,) moments, seconds since 1970.
        energy_j: (num_increments,) joules used about that moment.
        series: intensities; each is in force until the next, the first one also before.
        pue: energy of the data centre over energy of its computers.
        interval: lower and upper end of the true energy over ``energy_j``.
    """
    if not len(series.t_wall_s):
        return Unavailable("; ".join(dict.fromkeys(series.failures)) or "no carbon intensity was fetched")
    in_force = np.searchsorted(series.t_wall_s, t_wall_s, side="right").clip(min=1) - 1
    used_j = float(energy_j.sum())
    grams = float((energy_j * series.g_per_kwh[in_force]).sum()) / J_PER_KWH
    mean = grams / used_j * J_PER_KWH if used_j > 0 else None
    return Emissions(grams * pue, grams * pue * interval[0], grams * pue * interval[1], mean)


def live_intensity(run: Path, begin_wall_s: float, edges_s: Floats, power_w: Floats) -> Intensity | Unavailable:
    """Return the intensity of a segment from the series in its folder, weighted by the segment's energy.

    Args:
        run: the run folder.
        begin_wall_s: seconds since 1970 of the segment's first reading.
        edges_s: (num_bins + 1,) seconds since then, as in :class:`perjoule.measure.ledger.Timeline`.
        power_w: (num_bins,) mean power; NaN, where there is no reading, counts as none.

    Raises:
        RunFolderError: if the series cannot be read.
    """
    series = read_carbon_series(run)
    centres_s = begin_wall_s + (edges_s[:-1] + edges_s[1:]) / 2
    found = emissions(centres_s, np.nan_to_num(power_w) * np.diff(edges_s), series)
    if isinstance(found, Unavailable):
        return found
    if found.mean_g_per_kwh is None:
        return Unavailable("no energy was read while the carbon intensity was fetched")
    inside = (series.t_wall_s >= begin_wall_s) & (series.t_wall_s <= begin_wall_s + edges_s[-1])
    values = series.g_per_kwh[inside] if inside.any() else series.g_per_kwh
    estimated = f", {series.num_estimated} of them estimated" if series.num_estimated else ""
    return Intensity(
        g_per_kwh=found.mean_g_per_kwh,
        low=min(float(values.min()), found.mean_g_per_kwh),
        high=max(float(values.max()), found.mean_g_per_kwh),
        location=series.zone,
        year=None,
        source=f"Electricity Maps, {len(values)} values{estimated}, weighted by energy",
        kind=series.kind,
        why="smallest and largest value while the run trained",
    )
