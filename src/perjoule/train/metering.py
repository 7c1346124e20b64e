"""The meters of a run as training sees them: one sampler per node, started early, looked after, ended last.

Nothing here may stop or slow training: the sampler is another process, and what fails in it shows as energy that is
not known. Only a run that is to end at a budget refuses to start without a meter.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from perjoule.core.errors import MeterUnavailable
from perjoule.core.units import J_PER_KWH
from perjoule.measure.book import read_sensor
from perjoule.measure.bridges.codecarbon import Referee
from perjoule.measure.carbon import CarbonConfig, Intensity
from perjoule.measure.config import EnergyConfig
from perjoule.measure.contract import Form, Site, Unavailable
from perjoule.measure.live import LiveEnergy
from perjoule.measure.machine import device_name
from perjoule.measure.machine_load import MachineLoad
from perjoule.measure.sampler import Sampler, SamplerState
from perjoule.measure.scopes import outermost
from perjoule.runs import folder
from perjoule.runs.carbon_series import read_carbon_series
from perjoule.runs.machine_load import KEY
from perjoule.train.budget import Budget, Emitted
from perjoule.train.config import StopConfig, TrainConfig
from perjoule.train.console import Console
from perjoule.train.distributed import Ranks

if TYPE_CHECKING:
    from perjoule.measure.carbon.electricity_maps import Poller

READY_WITHIN_S = 10.0
"""How long the first step waits for a sampler that has had the whole start-up to get ready."""
WATCH_EVERY_S = 1.0


class Place(NamedTuple):
    """Where a rank is.

    Args:
        node: name of its machine.
        pid: its process.
        device: UUID or number of its CUDA device; "" on a CPU.
    """

    node: str
    pid: int
    device: str

    @classmethod
    def here(cls, device: torch.device) -> Place:
        """Return the place of this process."""
        name = ""
        if device.type == "cuda":
            uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            name = device_name(device.index or 0, visible, None if uuid is None else str(uuid))
        return cls(platform.node(), os.getpid(), name)


@dataclass
class Metering:
    """What one segment is metered with, as far as this rank looks after it.

    Args:
        energy: which meters.
        carbon: where the electricity is from.
        run: the run folder.
        segment: number of the segment.
        node: name of this machine.
        console: where lines go.
        nodes: names of all nodes of the run.
        sampler: None on ranks that do not lead their node, and where nothing is metered.
        intensity: what a kWh emits when the segment begins; None on ranks that do not lead.
        poller: fetches it again and again, where it changes.
        load: what other programs use meanwhile, on the node that leads.
        referee: CodeCarbon beside our meters, where it was asked for.
    """

    energy: EnergyConfig
    carbon: CarbonConfig
    run: Path
    segment: int
    node: str
    console: Console
    nodes: tuple[str, ...]
    sampler: Sampler | None
    intensity: Intensity | Unavailable | None = None
    poller: Poller | None = None
    load: MachineLoad | None = None
    referee: Referee | None = None
    _next_s: float = 0.0

    @classmethod
    def start(
        cls, config: TrainConfig, run: Path, segment: int, ranks: Ranks, place: Place, console: Console
    ) -> Metering:
        """Start the sampler of this node without waiting for it. All ranks must come here.

        Args:
            config: of the run.
            run: its folder.
            segment: number of the segment that begins.
            ranks: the first one on each node leads it.
            place: of this rank.
            console: where lines go.

        Raises:
            ConfigError: if carbon's source does not know the place.
            MissingExtra: if carbon's source, or CodeCarbon for the cross-check, is not installed.
        """
        places = [Place(*other) for other in ranks.gather(tuple(place))]
        nodes = tuple(dict.fromkeys(other.node for other in places))
        metering = cls(config.energy, config.carbon, run, segment, place.node, console, nodes, None)
        mine = [other for other in places if other.node == place.node]
        if mine[0] == place and config.energy.sampler != "off" and config.energy.meters:
            devices = dict.fromkeys(other.device for other in mine if other.device)
            site = Site(tuple(other.pid for other in mine), tuple(devices))
            path = folder.sample_path(run, segment, place.node)
            metering.sampler = Sampler.start(path, config.energy, site, place.node, {"segment": segment})
        if ranks.leads:
            metering.load = MachineLoad(tuple(other.pid for other in mine))
        try:
            if mine[0] == place and config.energy.cross_check is not None:
                metering.referee = Referee.start(config.carbon.location)
            metering.intensity = ranks.leader_does(config.carbon.resolve)
        except BaseException:
            metering.stop()
            raise
        if metering.intensity is not None:
            metering.poller = config.carbon.follow(run, metering.intensity)
        return metering

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says; only the leading rank knows it all."""
        energy = {"config": self.energy.model_dump(mode="json"), "nodes": list(self.nodes)}
        return {"energy": energy} | ({"carbon": self.carbon.facts(self.intensity)} if self.intensity else {})

    def load_facts(self) -> dict[str, Any]:
        """Return what the manifest says at the end of how busy other programs kept the machine."""
        return {} if self.load is None else {KEY: self.load.facts()}

    def ready(self) -> None:
        """Wait for the sampler, but not for long, and print what is metered."""
        if self.sampler is None:
            return
        state = self.sampler.ready(READY_WITHIN_S)
        if isinstance(state, Unavailable):
            self.console.line(f"energy: not metered: {state.reason}")
            return
        self.console.line(f"energy: {_sources(state) or 'no meter can be read'}")
        if self.energy.meters != EnergyConfig().meters:  # they were chosen by hand
            for kind, missing in state.unavailable:
                self.console.line(f"not available: {kind}: {'; '.join(filter(None, (missing.reason, missing.remedy)))}")
        elif state.unavailable:
            kinds = ", ".join(dict.fromkeys(kind for kind, _ in state.unavailable))
            self.console.line(f"not available: {kinds} (why: perjoule doctor)")

    def can_calibrate(self, ranks: Ranks) -> bool:
        """Return, on every rank, whether a sensor reads what a calibration would show, and say so if none does."""
        state = self.sampler.ready(READY_WITHIN_S) if self.sampler else Unavailable("no sampler was started")
        reason = ""
        if ranks.leads:
            channels = () if isinstance(state, Unavailable) else state.channels
            sensors = [sensor for sensor in map(read_sensor, channels) if sensor.form != Form.LEVEL]
            if all(sensor.modelled for sensor in sensors):
                there = "all energy here is modelled" if sensors else "no meter can be read"
                reason = f"no calibration (energy.calibrate): {there}, and only sensors show the power of a phase"
        reason = ranks.from_leader(reason)
        if reason:
            self.console.line(reason)
        return not reason

    def watch(self) -> None:
        """See once a second whether the sampler still lives; cheap enough for every step."""
        if self.sampler is None or (now := time.monotonic()) < self._next_s:
            return
        self._next_s = now + WATCH_EVERY_S
        if note := self.sampler.watch():
            self.console.line(f"energy: {note}")

    def budgets(self, stop: StopConfig, ranks: Ranks) -> tuple[Budget, ...]:
        """Return what the run may use of energy and carbon; the leading rank watches it, the others have none.

        Raises:
            MeterUnavailable: on every rank if nothing is metered that a budget could be held against.
        """
        if stop.energy is None and stop.carbon is None:
            return ()
        return ranks.leader_does(lambda: tuple(self._budgets(stop))) or ()

    def _budgets(self, stop: StopConfig) -> Iterator[Budget]:
        """Yield the budgets with the meters that they are held against."""
        what = "stop.energy" if stop.energy is not None else "stop.carbon"
        state = self.sampler.ready(READY_WITHIN_S) if self.sampler else Unavailable("no sampler was started")
        if isinstance(state, Unavailable):
            raise MeterUnavailable(f"{what} needs a meter, but nothing is metered: {state.reason}")
        sources, live = _sources(state), LiveEnergy(self.run)
        if not sources:
            missing = "; ".join(f"{kind}: {one.reason}" for kind, one in state.unavailable)
            raise MeterUnavailable(f"{what} needs a meter that gives energy, and there is none: {missing}")
        lag_s = 1 / self.energy.rate_hz + _refresh_s(state)
        if stop.energy is not None:
            yield Budget(stop.energy, "J", live.read, sources, lag_s)
        if stop.carbon is not None:
            begins_with = self.intensity
            assert begins_with is not None  # this is the leading rank
            if isinstance(begins_with, Unavailable):
                raise MeterUnavailable(f"stop.carbon needs the carbon intensity of the grid: {begins_with.reason}")
            before_j = [0.0 if isinstance(one, Unavailable) else one for one in live.earlier_segments_j()]
            before_g = sum(
                joules / J_PER_KWH * self._earlier_g_per_kwh(segment, begins_with)
                for segment, joules in enumerate(before_j)
            )
            emitted = Emitted(live.read, lambda: self._g_per_kwh(begins_with), sum(before_j), before_g)
            yield Budget(stop.carbon, "gCO2e", emitted.read, f"{sources}; {begins_with.source}", lag_s)

    def _g_per_kwh(self, begins_with: Intensity) -> float:
        """Return the intensity in force, PUE included."""
        g_per_kwh = begins_with.g_per_kwh
        if self.carbon.is_live and len(fetched := read_carbon_series(self.run).g_per_kwh):
            g_per_kwh = float(fetched[-1])
        return self.carbon.pue * g_per_kwh

    def _earlier_g_per_kwh(self, segment: int, otherwise: Intensity) -> float:
        """Return the intensity that was in force while an earlier segment ran, PUE included.

        Args:
            segment: its number.
            otherwise: stands in for one that nobody knows.
        """
        facts = folder.read_manifest(self.run)["segments"][segment]
        known = facts.get("carbon") or {}
        g_per_kwh, pue = known.get("g_per_kwh"), float(known.get("pue") or self.carbon.pue)
        if self.carbon.is_live:
            series = read_carbon_series(self.run)
            begin, end = (_wall_s(facts.get(name)) for name in ("started", "ended"))
            inside = series.g_per_kwh[(series.t_wall_s >= begin) & (series.t_wall_s <= end)]
            g_per_kwh = float(inside.mean()) if len(inside) else g_per_kwh
        return pue * float(otherwise.g_per_kwh if g_per_kwh is None else g_per_kwh)

    def stop(self) -> None:
        """End the sampler, which takes a last reading, and the referee. May be called twice."""
        if self.poller is not None:
            self.poller.stop()
        if self.sampler is not None:
            self.sampler.stop()
            self.sampler = None
        if self.referee is not None:
            self.referee.stop(self.run, self.segment, self.node)
            self.referee = None


def _wall_s(date: str | None) -> float:
    """Return the seconds since 1970 of an ISO 8601 date; infinity without one, of a segment that was killed."""
    return math.inf if date is None else datetime.fromisoformat(date).timestamp()


def _refresh_s(state: SamplerState) -> float:
    """Return how old a sensor's value may be when it is read."""
    sensors = outermost([read_sensor(channel) for channel in state.channels])
    return max((sensor.resolution_s for sensor in sensors), default=0.0)


def _sources(state: SamplerState) -> str:
    """Return what the energy of a node is made of: ``measured: package-0 dram-0, modelled: ram``; "" if of nothing."""
    domains: dict[str, list[str]] = {}
    for sensor in outermost([read_sensor(channel) for channel in state.channels]):
        domains.setdefault("modelled" if sensor.modelled else "measured", []).append(sensor.domain)
    return ", ".join(f"{how}: {' '.join(names)}" for how, names in sorted(domains.items()))
