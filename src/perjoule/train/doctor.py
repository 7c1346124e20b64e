"""What this machine computes, and how well: precisions, matrix rates, bandwidth, attention, threads, compiler.

The rates are kept in the machine's profile, where training finds the peak for MFU and the backend its choices.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping

import torch

from perjoule.core.units import byte_size, si
from perjoule.measure import SHELF as METERS
from perjoule.measure.contract import Unavailable
from perjoule.measure.machine import MachineProfile, host_facts
from perjoule.models.layers.attention import KERNELS
from perjoule.train import probe
from perjoule.train.backend import choose, prepare
from perjoule.train.config import BackendConfig
from perjoule.train.distributed import Ranks


def examine(again: bool = False) -> Iterator[str]:
    """Measure what is not known yet and yield one line for each finding.

    Args:
        again: forget what is known and measure everything anew.
    """
    host = host_facts()
    yield f"machine    {host['cpu']}, {host['cores']} cores, {byte_size(host['memory_bytes'])} memory"
    yield f"software   Python {host['python']}, torch {host['torch']}, perjoule {host['perjoule']}, {host['system']}"
    profile = MachineProfile()
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
    for kind in METERS.names():
        meter = METERS.load(kind)().build()
        if isinstance(meter, Unavailable):
            yield f"meter      {kind:<16} unavailable: {meter.reason}"
        else:
            yield f"meter      {kind:<16} {meter.read()} {meter.unit}, {meter.scope}, {meter.method}"
            meter.close()
    backend = choose(BackendConfig(), torch.device("cpu"), early, profile)
    for line in backend.why:
        yield f"auto       {line}"
    yield f"profile    {profile.path}"


def _compared(seconds: Mapping[str, float]) -> str:
    """Return ``name time`` of each, separated by commas."""
    return ", ".join(f"{name} {si(value, 's')}" for name, value in seconds.items())
