"""What this machine computes and measures, and how well: precisions, rates, threads, compiler, meters, overhead.

The rates are kept in the machine's profile, where training finds the peak for MFU and the backend its choices.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping

import torch

from perjoule.core.units import byte_size, si
from perjoule.measure.contract import Site, Unavailable
from perjoule.measure.machine import MachineProfile, host_facts
from perjoule.measure.machine_load import MachineLoad
from perjoule.measure.overhead import AGAIN, NOT_MEASURED, Overhead, stored
from perjoule.measure.sensors import Refresh
from perjoule.measure.survey import Finding, survey
from perjoule.models.layers.attention import KERNELS
from perjoule.runs.machine_load import busy_line
from perjoule.train import overhead, probe
from perjoule.train.backend import choose, prepare
from perjoule.train.config import BackendConfig
from perjoule.train.distributed import Ranks
from perjoule.train.metering import Place


def examine(again: bool = False) -> Iterator[str]:
    """Measure what is not known yet and yield one line for each finding.

    Args:
        again: forget what is known and measure everything anew.
    """
    host = host_facts()
    yield f"machine    {host['cpu']}, {host['cores']} cores, {byte_size(host['memory_bytes'])} memory"
    yield f"software   Python {host['python']}, torch {host['torch']}, perjoule {host['perjoule']}, {host['system']}"
    profile, load = MachineProfile(), MachineLoad()
    if again:
        profile.forget()
    early = prepare(BackendConfig(), Ranks(), profile)
    yield f"threads    {early.threads} (OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')})"
    yield f"load       {os.getloadavg()[0]:.2f} processes on average in the last minute; rates are best of several"
    for name, rate in probe.matmul_rates(profile, budget_s=0.15, again=True).items():
        exact = "" if not name.startswith("float32") or rate.error <= probe.ACCURATE else "  not exact to float32"
        yield f"matmul     {name:<16} {si(rate.flops, 'FLOP/s'):>14}   relative error {rate.error:.1e}{exact}"
    if not probe.cpu_has_bf16():
        yield "matmul     bf16             not in this CPU's hardware; emulation would be slower than float32"
    yield "matmul     fp16             never used on CPUs: slower than bf16 and short of range"
    yield f"memory     copy bandwidth   {si(probe.copy_bandwidth(profile), 'B/s'):>14}   read plus written, 256 MB"
    seconds = probe.attention_seconds(
        profile, {str(k): run for k, run in KERNELS.items()}, (8, 4, 256, 64), torch.bfloat16
    )
    yield f"attention  {_compared(seconds)}   forward and backward, bf16, batch 8, 4 heads of 64, 256 tokens"
    yield f"adamw      {_compared(probe.optimizer_seconds(profile))}   one step over 5M weights"
    compiler = next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)
    yield f"compiler   {compiler or 'none on the path: torch.compile is not used'}"
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield f"gpu        {f'{cuda} CUDA devices' if cuda else 'torch sees none'}"
    yield from meter_lines()
    backend = choose(BackendConfig(), torch.device("cpu"), early, profile)
    for line in backend.why:
        yield f"auto       {line}"
    device = "cuda" if cuda else "cpu"
    yield from overhead_lines(stored(profile, device), device)
    if busy := busy_line(load.facts()):
        yield f"load       {busy} while this was measured"
    yield f"profile    {profile.path}"


def meter_lines(seconds: float = 1.0) -> Iterator[str]:
    """Read every meter of the shelf for some seconds and yield a line for each quantity, with what would help."""
    cuda = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    devices = tuple(Place.here(torch.device("cuda", index)).device for index in cuda)
    for kind, found in survey(Site((os.getpid(),), devices), seconds):
        if isinstance(found, Unavailable):
            yield f"meter      {kind:<10} not available: {'; '.join(filter(None, (found.reason, found.remedy)))}"
        else:
            yield f"meter      {kind:<10} {_qualities(found)}"


def measure_overhead(quick: bool = False) -> Iterator[str]:
    """Run the overhead experiment and yield what was found.

    Args:
        quick: take so few steps that the figures mean little.
    """
    name = "cuda" if torch.cuda.is_available() else "cpu"
    yield from overhead_lines(overhead.measure(MachineProfile(), torch.device(name), quick), name)


def overhead_lines(found: Overhead | None, device: str) -> Iterator[str]:
    """Yield a line for each arm of the overhead experiment."""
    if found is None:
        yield f"overhead   {NOT_MEASURED}"
        return
    turns = f"{found.num_rounds} blocks of {found.num_steps} steps in turn, 95 % intervals"
    yield f"overhead   {device}: step time relative to the bare step of {si(found.step_s, 's')} ({turns}):"
    for arm, ratio in found.ratios.items():
        yield f"overhead   {arm:<20} {ratio}{'  the band: nothing within it can be told apart' * (arm == AGAIN)}"
    yield f"overhead   {'synchronising':<20} {found.synchronising}  synchronised energy over energy"


def _qualities(found: Finding) -> str:
    """Return what a meter is and how good."""
    sensor = found.sensor
    how = "modelled" if sensor.modelled else "measured"
    window = "not known" if sensor.window_s is None else si(sensor.window_s, "s")
    return (
        f"{sensor.domain}: {sensor.form}, {how}, scope {sensor.scope}; {_refresh(found.refresh)}, window {window}, "
        f"resolution {si(sensor.resolution_s, 's')}, read in {si(found.read_s, 's')}; {sensor.method}"
    )


def _refresh(seen: Refresh | Unavailable) -> str:
    """Return how often a sensor was seen to change."""
    if isinstance(seen, Unavailable):
        return f"refresh not seen ({seen.reason})"
    if seen.only_bounded:
        return f"refresh at most {si(seen.high_s, 's')}"
    return f"refresh {si(seen.period_s, 's')} [{si(seen.low_s, 's')}, {si(seen.high_s, 's')}]"


def _compared(seconds: Mapping[str, float]) -> str:
    """Return ``name time`` of each, separated by commas."""
    return ", ".join(f"{name} {si(value, 's')}" for name, value in seconds.items())
