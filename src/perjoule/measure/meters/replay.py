"""A recorded series, played as if it were measured now: for tests, demonstrations and comparisons without a device."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import Field

from perjoule.config import Config
from perjoule.core.csv_rows import csv_rows
from perjoule.core.errors import DataError
from perjoule.core.files import read_text
from perjoule.measure.contract import Form, Meter, Sensor, Site, Unavailable

_MOST_BYTES = 2**28


class ReplayConfig(Config):
    """A CSV file with a column of seconds and one of watts or joules."""

    kind: Literal["replay"] = "replay"
    path: Path
    """The file; its first line names the columns."""
    time_column: str = "time_s"
    """Column of the moments in seconds, ascending."""
    value_column: str = Field(
        default="power_w",
        pattern="_[wj]$",
        json_schema_extra={"accepted": "the name of a column that ends in _w or _j"},
    )
    """Column of the readings: watts if its name ends with ``_w``, joules of a counter if with ``_j``."""
    domain: str = "replay"
    """What the series is about; the same domain in several meters is the same thing."""
    scope: str = "gpu"
    """Part of the machine that it covers."""
    speed: float = Field(default=1.0, gt=0)
    """Recorded seconds that pass in a second; a counter keeps its energy, a power its watts."""
    at_end: Literal["repeat", "end"] = "repeat"
    """Whether the series starts again behind its last row, or there is no reading any more."""
    resolution_s: float | None = Field(default=None, gt=0)
    """Refresh of the recorded sensor; the median distance of the rows if not given."""
    window_s: float | None = Field(default=None, ge=0)
    """Averaging window of the recorded sensor."""
    accuracy: tuple[float, float] = (0.90, 1.08)
    """95 % of true values lie between a reading times the first and times the second; by default as for GPUs."""
    idle_w: float | None = Field(default=None, ge=0)
    """Power that the recorded device never falls below."""
    limit_w: float | None = Field(default=None, gt=0)
    """Power that it cannot exceed."""

    def build(self, site: Site) -> tuple[Meter | Unavailable, ...]:
        """Read the file and start playing, or say what is wrong with it."""
        try:
            moments_s, values = self._rows()
        except DataError as error:
            return (Unavailable(str(error)),)
        except ValueError as error:
            return (Unavailable(f"{self.path}: {error}"),)
        is_power = self.value_column.endswith("_w")
        spacing_s = median(later - earlier for earlier, later in pairwise(moments_s))
        sensor = Sensor(
            domain=self.domain,
            form=Form.POWER if is_power else Form.COUNTER,
            scope=self.scope,
            method=f"replay of {self.path.name}, {self.value_column}"
            + f", {self.speed:g}× as fast" * (self.speed != 1),
            unit="µW" if is_power else "µJ",
            resolution_s=(self.resolution_s or spacing_s) / self.speed,
            window_s=None if self.window_s is None else self.window_s / self.speed,
            accuracy=self.accuracy,
            idle_w=self.idle_w,
            limit_w=self.limit_w,
        )
        return (Replay(sensor, moments_s, values, self.speed, self.at_end == "repeat"),)

    def _rows(self) -> tuple[list[float], list[int]]:
        """Return the moments from 0 and the readings in µW or µJ.

        Raises:
            DataError: if the file cannot be read.
            ValueError: if a column is missing, a cell is no number, or the moments do not ascend.
        """
        text = read_text(self.path, "the recorded series", DataError, _MOST_BYTES)
        pairs = []
        for line, row in csv_rows(text, self.time_column, self.value_column):
            try:
                pairs.append((float(row[self.time_column]), round(1e6 * float(row[self.value_column]))))
            except (ValueError, OverflowError) as error:
                raise ValueError(f"line {line} does not have two numbers") from error
        if len(pairs) < 2:
            raise ValueError("needs two rows or more")
        if any(later[0] <= earlier[0] for earlier, later in pairwise(pairs)):
            raise ValueError(f"{self.time_column} must ascend from row to row")
        return [moment - pairs[0][0] for moment, _ in pairs], [value for _, value in pairs]


class Replay:
    """Gives the row that is in force at the present moment, counted from when it was made.

    Args:
        sensor: what is said of the series.
        moments_s: (num_rows,) seconds from 0, ascending.
        values: (num_rows,) readings.
        speed: recorded seconds that pass in a second.
        repeats: whether the series starts again at its end; the last row then lasts as long as the one before it, and
            a counter goes on from where it was.
    """

    def __init__(
        self, sensor: Sensor, moments_s: Sequence[float], values: Sequence[int], speed: float, repeats: bool
    ) -> None:
        self.sensor = sensor
        self._moments_s = moments_s
        self._values = values
        self._speed = speed
        self._repeats = repeats
        self._period_s = 2 * moments_s[-1] - moments_s[-2]
        rise = 2 * values[-1] - values[-2] - values[0]
        self._rise = rise if sensor.form == Form.COUNTER else 0
        self._started_ns = time.monotonic_ns()

    def read(self) -> int | Unavailable:
        """Return the reading in force now."""
        played_s = (time.monotonic_ns() - self._started_ns) * 1e-9 * self._speed
        rounds, into_s = divmod(played_s, self._period_s)
        if rounds and not self._repeats:
            return Unavailable(f"{self.sensor.domain}: the recorded series has ended")
        return self._values[bisect_right(self._moments_s, into_s) - 1] + int(rounds) * self._rise

    def close(self) -> None:
        """Nothing was opened."""
