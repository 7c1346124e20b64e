"""Build the ledger of a run from its folder: finished, killed, or still being written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perjoule.core.errors import RunFolderError
from perjoule.core.units import duration
from perjoule.measure.accounts import Course, build_account
from perjoule.measure.contract import Form, Sensor, Unavailable
from perjoule.measure.counter import frozen
from perjoule.measure.ledger import Account, Ledger
from perjoule.measure.occupancy import Whereabouts
from perjoule.measure.readings import Series, join
from perjoule.measure.sensors import agrees
from perjoule.runs.folder import RUNNING, device_event_path, event_path, is_live
from perjoule.runs.journal import Journal, read_journal
from perjoule.runs.samples import Samples, read_samples, sample_files
from perjoule.runs.tables import Run, Segment

MONITOR_DOMAIN = "monitor"
_PATIENCE_S = 2.0
"""A counter that works changes sooner than this."""


def build_ledger(run: Run) -> Ledger:
    """Return the ledger of a run: every account of every segment, node and domain."""
    accounts: list[Account] = []
    unavailable: dict[tuple[str, str], Unavailable] = {}
    for segment in run.segments:
        nodes: dict[str, list[Samples]] = {}
        for path in sample_files(run.path, segment.number):
            try:
                samples = read_samples(path)
            except RunFolderError as error:
                unavailable[("samples", path.name)] = Unavailable(str(error))
                continue
            nodes.setdefault(str(samples.header["node"]), []).append(samples)
            for missing in samples.header["unavailable"]:
                found = Unavailable(missing["reason"], missing.get("remedy", ""))
                unavailable[(missing["kind"], found.reason)] = found
        for node, files in nodes.items():
            for one in _accounts(run, segment, node, files, alone=len(nodes) == 1):
                if isinstance(one, Account):
                    accounts.append(one)
                else:
                    unavailable[(one.domain, one.missing.reason)] = one.missing
    return Ledger(tuple(accounts), tuple((kind, missing) for (kind, _), missing in unavailable.items()))


@dataclass(frozen=True)
class _NotMeasured:
    """A domain whose sensor was read and showed nothing."""

    domain: str
    missing: Unavailable


def _accounts(
    run: Run, segment: Segment, node: str, files: Sequence[Samples], alone: bool
) -> Iterator[Account | _NotMeasured]:
    """Yield the accounts of one segment and node, and the domains that have none although they were read."""
    journals = _journals(run.path, segment, node, alone)
    series = _series(files)
    monitor = series.pop(MONITOR_DOMAIN, None)
    killed = segment.facts.get("status") == RUNNING and not is_live(run.path)
    courses: dict[tuple[int, ...], Course] = {}
    for meters in series.values():
        readable = [one for one in meters if len(one) >= 2 and one.sensor.form != Form.LEVEL]
        if not readable or not journals:
            continue
        users = _users(journals, meters[0].sensor.domain)
        if users not in courses:
            ranks = _whereabouts(run.path, segment.number, journals, users)
            courses[users] = Course(segment.number, node, ranks, _window(run, segment), killed)
        total, power, notes = _choose(readable)
        if not total.sensor.modelled and not int(total.energy_uj[-1]):
            yield _NotMeasured(total.sensor.domain, stands_still(total))
            continue
        if (still_s := _still_s(total)) > 0:
            notes = [*notes, f"the counter stood still for {duration(still_s)}: it may show less than was used"]
        yield build_account(courses[users], total, power, monitor[0] if monitor else None, notes)


def _journals(run: Path, segment: Segment, node: str, alone: bool) -> dict[int, Journal]:
    """Return the journals of the ranks on a node; early runs do not say where a rank was."""
    journals = {rank: read_journal(event_path(run, segment.number, rank)) for rank in segment.ranks}
    return {
        rank: journal
        for rank, journal in journals.items()
        if len(journal.records) and (journal.header.get("node") == node or (alone and "node" not in journal.header))
    }


def _users(journals: Mapping[int, Journal], domain: str) -> tuple[int, ...]:
    """Return the ranks that use a device, none for a domain that all of a node's ranks share."""
    name = domain.removeprefix("module-").removeprefix("gpu-").removeprefix("GPU-")
    devices = {rank: str(journal.header.get("device", "")) for rank, journal in journals.items()}
    return tuple(rank for rank, device in devices.items() if device.removeprefix("GPU-") == name)


def _whereabouts(
    run: Path, segment: int, journals: Mapping[int, Journal], users: tuple[int, ...]
) -> tuple[Whereabouts, ...]:
    """Return where the users of a device were, by its own clock where that was recorded; without users, all ranks."""
    if not users:
        return tuple(map(Whereabouts, journals.values()))
    chosen = {rank: journals[rank] for rank in users}
    for rank in users:
        timeline = device_event_path(run, segment, rank)
        if timeline.is_file():
            with contextlib.suppress(RunFolderError):  # a damaged one gives way to the host's
                chosen[rank] = read_journal(timeline)
    return tuple(map(Whereabouts, chosen.values()))


def _series(files: Sequence[Samples]) -> dict[str, list[Series]]:
    """Return the series of every domain, each meter's readings joined over the samplers that made them."""
    pieces: dict[tuple[Any, ...], list[tuple[Any, Any, Any]]] = {}
    sensors: dict[tuple[Any, ...], Sensor] = {}
    for samples in files:
        for number, channel in enumerate(samples.channels):
            sensor = read_sensor(channel)
            key = (sensor.domain, sensor.form, sensor.method)
            sensors[key] = sensor
            pieces.setdefault(key, []).append(samples.of(number))
    rate_hz = float(files[0].header["rate_hz"])
    found: dict[str, list[Series]] = {}
    for key, sensor in sensors.items():
        found.setdefault(sensor.domain, []).append(join(sensor, pieces[key], rate_hz))
    return found


def read_sensor(channel: Mapping[str, Any]) -> Sensor:
    """Return the sensor that a header's JSON describes."""
    facts = {name: channel[name] for name in Sensor.__dataclass_fields__ if name in channel}
    return Sensor(**{**facts, "form": Form(facts["form"]), "accuracy": tuple(facts["accuracy"])})


def _choose(meters: Sequence[Series]) -> tuple[Series, Series | None, list[str]]:
    """Return the meter of the total, the one for regressions, and remarks on their choice.

    A counter is preferred, unless it stands still or runs away from the integral of the power.
    """
    counters = [one for one in meters if one.sensor.form == Form.COUNTER]
    powers = sorted(
        (one for one in meters if one.sensor.form == Form.POWER),
        key=lambda one: np.inf if one.sensor.window_s is None else one.sensor.window_s,
    )
    if not counters:
        return powers[0], None, ["energy is the power integrated over time"]
    if not powers:
        return counters[0], None, []
    counted_uj, integrated_uj = int(counters[0].energy_uj[-1]), int(powers[0].energy_uj[-1])
    if agrees(counted_uj, integrated_uj):
        return counters[0], powers[0], []
    ratio = counted_uj / integrated_uj
    remark = f"the energy counter shows {ratio:.2f} times the integral of the power and is not used"
    return powers[0], powers[0], [remark]


def stands_still(series: Series) -> Unavailable:
    """Return why a sensor that was read showed no energy: whatever it stands for draws some."""
    lasted_s = float(series.t_ns[-1] - series.t_ns[0]) / 1e9
    what = "counter stood still" if series.sensor.form == Form.COUNTER else "sensor showed 0 W"
    return Unavailable(f"{series.sensor.method}: its {what} for {duration(lasted_s)}, which is not 0 J: not measured")


def _still_s(series: Series) -> float:
    """Return how long a measured counter showed the same value, in stretches too long for its refresh."""
    if series.sensor.modelled or series.sensor.form != Form.COUNTER:
        return 0.0
    t_s = (series.t_ns - series.t_ns[0]) / 1e9
    patience_s = max(_PATIENCE_S, 10 * series.sensor.resolution_s)
    still = frozen(t_s, series.raw, np.ones(len(t_s)), patience_s)
    return float(np.diff(t_s)[still].sum())


def _window(run: Run, segment: Segment) -> tuple[int, int, int] | None:
    """Return the first and the last step of the measured window and how many it has."""
    steps = run.steps.step[(run.steps.segment == segment.number) & run.steps.in_window]
    return (int(steps.min()), int(steps.max()), len(steps)) if len(steps) else None
