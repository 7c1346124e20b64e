"""Import our own run folders: seconds and joules of the steps that led to the last weights, by scope.

A run is counted as one epoch of ``steps · batch`` samples. Its energy is that of the steps: from the end of the first
to the end of the last, and as much for the first as for the others; start-up is not in it. The steps are cut into up to
a hundred equal parts, which stand for the epochs that online estimators watch. Nothing here waits for a run or changes
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perjoule.core.errors import DataError
from perjoule.estimate.contract import Epoch, Job, Measurement, Scopes
from perjoule.estimate.devices import Device, find_device
from perjoule.estimate.step_model import Floats
from perjoule.estimate.workloads import Architecture, Workload
from perjoule.measure.book import build_ledger
from perjoule.measure.ledger import Account, Ints, outermost_accounts
from perjoule.runs.tables import Run, load_run

_SCOPES = {
    "gpu_j": ("gpu", "mig", "module"),
    "cpu_j": ("package", "process", "psys", "node"),
    "ram_j": ("dram", "ram"),
}
_UJ_PER_J = 1e6
_MOST_PARTS = 100
_WRITES = 12.0  # numbers that a block of a Transformer writes per position, over its width
_KERNELS_PER_LAYER = 20


def read_run(path: Path, devices: Mapping[str, Device] | None = None) -> Measurement:
    """Read a run folder: finished, stopped, killed or still being written.

    Args:
        path: the folder.
        devices: data sheets beyond those of :data:`perjoule.estimate.devices.DEVICES`, by name; a run on a processor
            needs that of its processor, by the name in the manifest.

    Raises:
        ConfigError: if there is no data sheet of the device.
        DataError: if no step is timed.
        RunFolderError: if the folder is no run.
    """
    run = load_run(path)
    steps = run.steps.kept.where(np.isfinite(run.steps.kept.wall_s))
    if not len(steps):
        raise DataError(f"{path}: no step of this run is timed: nothing to learn from")
    accounts = outermost_accounts(build_ledger(run).merged())
    seconds = float(steps.wall_s.sum())
    # All figures are the share of one device: of as many GPUs as were metered.
    num = max(1, len({one.sensor.domain for one in accounts if one.sensor.scope in _SCOPES["gpu_j"]}))
    by_scope = {
        name: _joules_by_step([one for one in accounts if one.sensor.scope in scopes], steps.step, num)
        for name, scopes in _SCOPES.items()
    }
    scopes = Scopes(**{name: None if joules is None else float(joules.sum()) for name, joules in by_scope.items()})
    of_device = by_scope["cpu_j"] if by_scope["gpu_j"] is None else by_scope["gpu_j"]
    device_j = scopes.device_j
    return Measurement(
        _job(run, int(steps.samples.sum()) / num, len(steps), devices),
        scopes,
        seconds_per_epoch=seconds,
        watts=None if device_j is None else device_j / seconds,
        total_s=seconds,
        total_j=device_j,
        replicate=run.name,
        source=str(path),
        study="perjoule",
        epochs=() if of_device is None else _parts(steps.wall_s, of_device),
        num_devices=num,
    )


def _joules_by_step(accounts: Sequence[Account], steps: Ints, num_devices: int) -> Floats | None:
    """Return a device's share of the (num_steps,) joules from one step's end to the next; None without accounts."""
    curves = [one.by_step for one in accounts if len(one.by_step.steps) > 1]
    if not curves or len(steps) < 2:
        return None
    ends = sum((np.interp(steps, one.steps, one.energy_uj) / _UJ_PER_J for one in curves), np.zeros(len(steps)))
    joules: Floats = np.diff(ends, prepend=np.nan) / num_devices
    joules[0] = joules[1:].mean()
    return joules


def _parts(seconds: Floats, joules: Floats) -> tuple[Epoch, ...]:
    """Return equal parts of a run, without the first step, whose energy has no begin."""
    num = min(_MOST_PARTS, len(seconds) - 1)
    if num < 1:
        return ()
    parts = zip(np.array_split(seconds[1:], num), np.array_split(joules[1:], num), strict=True)
    return tuple(Epoch(float(some_s.sum()), float(some_j.sum())) for some_s, some_j in parts)


def _job(run: Run, samples: float, num_steps: int, devices: Mapping[str, Device] | None) -> Job:
    """Return what was known before the run."""
    facts = run.segments[-1].facts
    host = facts.get("host") or {}
    kind = str(run.fact("model", "kind") or "unknown")
    length = float(run.fact("data", "seq_len") or 1)
    flops_per_token = float(run.fact("model", "flops_per_token_causal") or 0.0)
    parameters = float(run.fact("model", "parameters") or 1.0)
    width = float(_setting(run, "model.dim") or 1.0)
    layers = int(_setting(run, "model.num_layers") or 1)
    architecture = Architecture(
        f"{kind} {parameters:g}",
        flops_per_token / 3 * length,
        _WRITES * width * layers * length,
        parameters,
        _KERNELS_PER_LAYER * layers,
        length,
        exponent=1.0,
    )
    precision = str((facts.get("backend") or {}).get("chosen", {}).get("precision") or "float32")
    return Job(
        find_device(str(host.get("gpu") or host.get("cpu") or "unknown"), devices),
        Workload(architecture, str(run.fact("data", "kind") or ""), length, samples),
        max(1, round(samples / num_steps)),
        precision="bf16" if precision.startswith("bf16") else "fp32",
        epochs=1,
        host=str(host.get("name") or ""),
        ram_gb=float(host.get("memory_bytes") or 0.0) / 1e9 or None,
    )


def _setting(run: Run, key: str) -> Any:
    """Return a value of the resolved configuration, or None."""
    return run.resolved.get(key, {}).get("value")
