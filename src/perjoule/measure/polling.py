"""Reading all meters at a steady rate: what the sampler does, in a process of its own or in a thread.

Every reading is noted with the moments before and after it, so that what the reading itself took is part of the error
and not hidden in it. The moments follow a schedule that does not drift, and lie at random within each period, so that
the readings never keep step with the refresh of a sensor: that is what makes its moments of change known to
milliseconds, however seldom it is read (:mod:`perjoule.measure.publications`). Nothing that a meter does ends the loop.
"""

from __future__ import annotations

import contextlib
import math
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perjoule.config import Config
from perjoule.core.errors import PerjouleError
from perjoule.measure import SHELF
from perjoule.measure.contract import Form, Meter, Sensor, Site, Unavailable
from perjoule.measure.locks import DeviceLocks
from perjoule.runs.sample_writer import SampleWriter

MONITOR = "monitor"
"""Domain of the last channel: the sampler's own processor time."""
SYNC_S = 30.0
"""A loss of power loses at most so much."""
_MIX = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Job:
    """What to read, and where to write it.

    Args:
        path: of the sample file.
        meters: configurations, or their kind and why there is none.
        site: whose energy is metered.
        rate_hz: readings per second.
        facts: JSON for the header: node, mode, rate and so on.
    """

    path: Path
    meters: Sequence[Config | tuple[str, Unavailable]]
    site: Site
    rate_hz: float
    facts: Mapping[str, Any]


def revive(facts: Mapping[str, Any]) -> Config | tuple[str, Unavailable]:
    """Return the configuration that a dump of it describes, or its kind and what is wrong with it."""
    kind = str(facts.get("kind"))
    try:
        config: Config = SHELF.load(kind).model_validate(facts)  # type: ignore[attr-defined]
    except Exception as error:  # a third party's module may raise anything when it is imported
        return kind, Unavailable(in_words(error))
    return config


def sample(
    job: Job, wait: Callable[[float], bool], started: Callable[[], None], cpu_clock_ns: Callable[[], int]
) -> None:
    """Open the meters and read them until told to stop.

    Args:
        job: what to do.
        wait: waits for some seconds; returns whether to stop.
        started: called when the first readings are written.
        cpu_clock_ns: processor time that the sampling takes.

    Raises:
        RunFolderError: if the file cannot be created, or the disk is full.
    """
    locks = DeviceLocks(str(job.path.parent.parent))
    meters: list[tuple[str, Meter]] = []
    unavailable: list[dict[str, str]] = []
    writer = None
    try:
        for kind, found in _open(job, locks):
            if isinstance(found, Unavailable):
                unavailable.append({"kind": kind, "reason": found.reason, "remedy": found.remedy})
            else:
                meters.append((kind, found))
        meters.append((MONITOR, _Monitor(cpu_clock_ns)))
        channels = [{**asdict(meter.sensor), "kind": kind} for kind, meter in meters]
        writer = SampleWriter(job.path, channels, {**job.facts, "unavailable": unavailable})
        rate_hz = job.rate_hz if len(meters) > 1 else 1.0  # the monitor alone is not worth more
        _poll([meter for _, meter in meters], writer, rate_hz, wait, started)
    finally:
        if writer is not None:
            writer.close()
        for _, meter in meters:
            _close(meter)
        locks.release()


def _open(job: Job, locks: DeviceLocks) -> Iterator[tuple[str, Meter | Unavailable]]:
    """Yield every meter, or why there is none, with the kind of its configuration."""
    for config in job.meters:
        if isinstance(config, tuple):
            yield config
            continue
        kind = str(getattr(config, "kind", type(config).__name__))
        try:
            found: Sequence[Meter | Unavailable] = config.build(job.site)  # type: ignore[attr-defined]
            devices = ["" if isinstance(one, Unavailable) else one.sensor.device for one in found]
        except Exception as error:
            yield kind, Unavailable(in_words(error))
            continue
        for one, device in zip(found, devices, strict=True):
            held = locks.take(device)
            if held is not None and not isinstance(one, Unavailable):
                _close(one)
            yield kind, held or one


def _close(meter: Meter) -> None:
    with contextlib.suppress(Exception):
        meter.close()


def _poll(
    meters: Sequence[Meter],
    writer: SampleWriter,
    rate_hz: float,
    wait: Callable[[float], bool],
    started: Callable[[], None],
) -> None:
    """Read at once, then at every moment of the schedule, then once more when told to stop."""
    begun_ns = synced_ns = time.monotonic_ns()
    tick, stopping = 0, False
    while True:
        for channel, meter in enumerate(meters):
            before_ns = time.monotonic_ns()
            raw = _read(meter)
            writer.put(channel, before_ns, time.monotonic_ns(), raw)
        if stopping:
            return
        if tick == 0:
            started()
        now_ns = time.monotonic_ns()
        if now_ns - synced_ns > SYNC_S * 1e9:
            synced_ns = now_ns
            with contextlib.suppress(OSError):
                writer.sync()
        tick, due_ns = next_moment(tick, time.monotonic_ns() - begun_ns, rate_hz)
        stopping = wait((due_ns - (time.monotonic_ns() - begun_ns)) / 1e9)


def next_moment(tick: int, now_ns: int, rate_hz: float) -> tuple[int, int]:
    """Return the next place in the schedule and its moment; places that have passed are left out, not made up for.

    Args:
        tick: place of the last reading.
        now_ns: time since the schedule began.
        rate_hz: places per second.
    """
    period_ns = 1e9 / rate_hz
    tick = max(tick + 1, math.floor(now_ns / period_ns))
    while (due_ns := period_ns * (tick + _chance(tick))) <= now_ns:
        tick += 1
    return tick, round(due_ns)


def _chance(tick: int) -> float:
    """Return a number from 0 to 1 that is always the same for a place and has nothing to do with its neighbours'.

    Multiples of a fixed number would do as well as chance, if a sensor's refresh were not also one.
    """
    mixed = (tick + 1) * _MIX & 0xFFFFFFFFFFFFFFFF
    mixed = (mixed ^ mixed >> 32) * _MIX & 0xFFFFFFFFFFFFFFFF
    return (mixed >> 32) / 2**32


def _read(meter: Meter) -> int | None:
    try:
        return operator.index(meter.read())  # type: ignore[arg-type]  # an Unavailable is no number, as is a text
    except Exception:
        return None


class _Monitor:
    """The sampler's own processor time.

    Args:
        clock_ns: reads it.
    """

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self.sensor = Sensor(
            domain=MONITOR,
            form=Form.LEVEL,
            scope="process",
            method="processor time of the sampler",
            unit="ns",
            resolution_s=1e-9,
        )
        self._clock_ns = clock_ns

    def read(self) -> int | Unavailable:
        """Return the processor time so far."""
        return self._clock_ns()

    def close(self) -> None:
        """Nothing was opened."""


def in_words(error: Exception) -> str:
    """Return an error as one line."""
    if isinstance(error, PerjouleError):
        return " ".join(str(error).split())
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
