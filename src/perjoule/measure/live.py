"""What a run has used so far, read from its samples while they are being written.

Only what is new is read. The figure is a total over the outermost domains, as the ledger has it; how it divides into
phases, and how far it can be trusted, takes the whole ledger.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perjoule.core.errors import RunFolderError
from perjoule.measure.book import read_sensor
from perjoule.measure.contract import Form, Sensor, Unavailable
from perjoule.measure.readings import join
from perjoule.measure.scopes import outermost
from perjoule.measure.sensors import agrees
from perjoule.runs.folder import read_manifest
from perjoule.runs.samples import SampleReader, Samples, sample_files

Ints = NDArray[np.int64]


class LiveEnergy:
    """The energy of a run up to its newest readings, over all of its segments.

    Args:
        run: the run folder. The last segment that it has now is the one that is followed.

    Raises:
        RunFolderError: if it is no run folder.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._segment = max(len(read_manifest(run).get("segments") or ()) - 1, 0)
        self._before_j: tuple[float | Unavailable, ...] | None = None
        self._now = _SegmentEnergy(run, self._segment)

    def read(self) -> float | Unavailable:
        """Return the joules used so far, or why they are not known. Costs less than a millisecond if little is new."""
        before_j = sum(one for one in self.earlier_segments_j() if not isinstance(one, Unavailable))
        total_uj = self._now.total_uj()
        return total_uj if isinstance(total_uj, Unavailable) else before_j + total_uj / 1e6

    def earlier_segments_j(self) -> tuple[float | Unavailable, ...]:
        """Return the joules of each segment before the one that is followed, or why they are not known."""
        if self._before_j is None:
            totals_uj = [_SegmentEnergy(self._run, segment).total_uj() for segment in range(self._segment)]
            self._before_j = tuple(one if isinstance(one, Unavailable) else one / 1e6 for one in totals_uj)
        return self._before_j


class _SegmentEnergy:
    """The energy of one segment."""

    def __init__(self, run: Path, segment: int) -> None:
        self._run, self._segment = run, segment
        self._readers: dict[Path, SampleReader] = {}
        self._meters: dict[str, dict[tuple[str, Form, str], _Total]] = {}
        self._missing: dict[str, None] = {}

    def total_uj(self) -> int | Unavailable:
        """Read what is new and return the total."""
        for path in sample_files(self._run, self._segment):
            with contextlib.suppress(RunFolderError):  # its header is being written just now, or it was cut off
                if path not in self._readers:
                    self._readers[path] = SampleReader(path)
                    self._note_missing(self._readers[path].header)
                self._add(path, self._readers[path].new())
        totals_uj = [total_uj for meters in self._meters.values() for total_uj in _outermost_uj(meters.values())]
        if totals_uj:
            return sum(totals_uj)
        return Unavailable("; ".join(self._missing) or "there are no two readings of any meter yet")

    def _note_missing(self, header: Mapping[str, Any]) -> None:
        for one in header.get("unavailable") or ():
            self._missing[f"{one['kind']}: {one['reason']}"] = None

    def _add(self, path: Path, samples: Samples) -> None:
        """Add new readings to the totals of their meters."""
        if not len(samples.records):
            return
        meters = self._meters.setdefault(str(samples.header["node"]), {})
        rate_hz = float(samples.header["rate_hz"])
        for number, channel in enumerate(samples.channels):
            sensor = read_sensor(channel)
            if sensor.form != Form.LEVEL:
                key = (sensor.domain, sensor.form, sensor.method)
                meters.setdefault(key, _Total(sensor)).add(path, samples.of(number), rate_hz)


class _Total:
    """The energy of one meter, of all samplers that read it."""

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self.energy_uj = 0
        self.num_readings = 0
        self._last: tuple[Ints, Ints, Ints] | None = None
        self._file: Path | None = None

    def add(self, file: Path, readings: tuple[Ints, Ints, Ints], rate_hz: float) -> None:
        """Add readings that follow those before; another file is another sampler's."""
        before, after, raw = readings
        if not len(raw):
            return
        pieces = [readings]
        if self._last is not None and file == self._file:  # no seam: what came between two looks at a file counts
            before, after, raw = (np.concatenate(pair) for pair in zip(self._last, readings, strict=True))
            pieces = [(before, after, raw)]
        elif self._last is not None:
            pieces = [self._last, readings]
        self.energy_uj += int(join(self.sensor, pieces, rate_hz).energy_uj[-1])
        self.num_readings += len(readings[2])
        self._file = file
        self._last = before[-1:], after[-1:], raw[-1:]


def _outermost_uj(meters: Iterable[_Total]) -> list[int]:
    """Return the energies of one node that may be added up."""
    # A sensor that shows nothing is not one of something that uses nothing.
    read = [one for one in meters if one.num_readings >= 2 and (one.energy_uj or one.sensor.modelled)]
    powers_uj = {one.sensor.domain: one.energy_uj for one in read if one.sensor.form == Form.POWER}
    believed = {
        one.sensor: one.energy_uj
        for one in read
        if one.sensor.form == Form.POWER or agrees(one.energy_uj, powers_uj.get(one.sensor.domain, 0))
    }
    return [believed[sensor] for sensor in outermost(believed)]
