"""The physical formula: how long a step takes and what power it draws, from what the device and the work are.

::

    compute = FLOPs / (peak · e_c · (peak / bandwidth / 20)^-b)
    memory  = bytes / (bandwidth · e_m) + r · (bytes again / bandwidth + FLOPs in series / peak)
    busy  = s · (compute + memory + kernels · l)                                 seconds of the device, per step
    busy *= exp(a · x + b · x²),  x = log(power wanted / power allowed) above 0  a power limit lowers the clock
    host  = t · (h + kernels · k),  data = t · batch · bytes of a sample · d     seconds of the processor, per step
    step  = (busy^p + host^p + data^p)^(1/p)                                     they overlap, not perfectly
    watts = idle + (power of products - idle) · (worth / step)^g                 worth: busy, its parts weighted

Bytes are the activations written and read by the forward pass and, where trained, the backward pass, and the weights
with their optimizer state. A recurrent layer reads its weights *again* at each position, whatever the batch, and its
products follow one another. A second of memory traffic draws less power than one of products, one that waits for a
launch much less. The processor's slowness ``t`` is one figure for all that it does, and what a framework makes it do
(``h``, ``k``) another: a run that shows the one on a new host tells all others there.

A device that can do many FLOPs for each byte it can read reaches less of its peak (``b``): its products wait for data.
Every quantity in small letters is positive; its logarithm is a sum of one shared value and of deviations of the device,
the host, the framework, the architecture and the data set (``LATENTS``), with Gaussian priors. What is known of nothing
keeps the width of its prior, so that a device that was never measured still gets an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from perjoule.estimate.contract import Job

Floats = NDArray[np.float64]
_BYTES = 4.0
_UPDATE_BYTES = 28.0  # read weight, gradient and two moments, write weight and two moments, in float32
_SAMPLE_S = 1e-6  # to hand over one sample, however small
_BALANCE = 20.0  # FLOP per byte: of a device whose peak is that of float32
_REACHED_SHARE = 0.97  # of a power limit, on average


@dataclass(frozen=True)
class Latent:
    """A positive quantity of the formula, as a prior on its logarithm.

    Args:
        value: its median for an unknown device and architecture.
        shared: standard deviation of that median.
        groups: standard deviation of the deviations of each device, host, framework, architecture, dataset.
    """

    value: float
    shared: float
    groups: Mapping[str, float]

    @property
    def deviations(self) -> Mapping[str, float]:
        """Return the standard deviations by kind of group; that of all rows, where there is one, under ``""``."""
        return {"": self.shared, **self.groups} if self.shared else self.groups


LATENTS: Mapping[str, Latent] = {
    "device_slowness": Latent(1.0, 0.0, {"device": 0.2}),
    "compute": Latent(0.35, 0.5, {"device": 0.2, "architecture": 0.4}),
    "balance": Latent(0.35, 0.5, {}),
    "memory": Latent(0.6, 0.4, {"device": 0.2, "architecture": 0.3}),
    "reuse": Latent(2.0, 0.8, {}),
    "serial": Latent(2.0, 0.5, {"device": 0.6, "architecture": 0.3}),
    "latency_s": Latent(6e-6, 0.6, {"device": 0.2, "architecture": 0.3}),
    "host_slowness": Latent(1.0, 0.5, {"host": 0.5}),
    "host_s": Latent(5e-4, 0.7, {"framework": 0.7, "architecture": 0.3}),
    "launch_s": Latent(1.5e-5, 0.5, {"framework": 0.5, "architecture": 0.3}),
    "data_s": Latent(2e-9, 0.8, {"dataset": 0.8}),
    "overlap": Latent(2.0, 0.3, {}),
    "dynamic": Latent(0.8, 0.2, {"device": 0.15, "architecture": 0.15}),
    "memory_power": Latent(0.8, 0.3, {}),
    "latency_power": Latent(0.3, 0.5, {}),
    "idle": Latent(1.0, 0.3, {"device": 0.2}),
    "busy_power": Latent(0.8, 0.3, {"device": 0.2, "architecture": 0.2}),
    "slow_linear": Latent(0.3, 0.4, {"device": 0.2, "architecture": 0.2}),
    "slow_square": Latent(0.3, 0.5, {"device": 0.2, "architecture": 0.2}),
}


@dataclass(frozen=True)
class Widths:
    """How far the priors reach: by how much devices, hosts and their networks differ.

    Args:
        device: factor of all standard deviations of devices in ``LATENTS``.
        host: standard deviation of hosts; as much is left open of what all hosts share.
        pair: standard deviation of what a network does on one device alone.
    """

    device: float = 0.75
    host: float = 0.35
    pair: float = 0.03

    def latents(self) -> dict[str, Latent]:
        """Return the priors with these widths."""
        found = {}
        for name, latent in LATENTS.items():
            groups = {kind: sd * self.device if kind == "device" else sd for kind, sd in latent.groups.items()}
            if "host" in groups:
                found[name] = Latent(latent.value, self.host, {**groups, "host": self.host})
            else:
                found[name] = Latent(latent.value, latent.shared, groups)
        return found


WIDTHS = Widths()
"""What :func:`perjoule.estimate.choice.choose_widths` finds on the measurements that the tests' are a part of."""


@dataclass(frozen=True)
class Features:
    """What the formula reads of jobs. All columns have shape (num_jobs,).

    Work is per epoch and comes as that of the training steps and that of the validation.
    """

    train_steps: Floats
    validation_steps: Floats
    batch: Floats
    train_flops: Floats
    validation_flops: Floats
    train_bytes: Floats
    validation_bytes: Floats
    update_bytes: Floats
    train_bytes_again: Floats
    validation_bytes_again: Floats
    serial_share: Floats
    kernels: Floats
    backward: Floats
    depthwise: Floats
    peak: Floats
    bandwidth: Floats
    tdp_w: Floats
    idle_w: Floats
    limit_w: Floats
    size: Floats
    sample_bytes: Floats

    def __len__(self) -> int:
        return len(self.batch)


def features(jobs: Sequence[Job]) -> Features:
    """Return the columns of jobs."""
    rows = []
    for job in jobs:
        work, device = job.workload, job.device
        share = work.trained_share
        rows.append(
            (
                job.steps_per_epoch,
                np.ceil(work.validation_samples / job.batch_size),
                job.batch_size,
                work.training_flops * job.batch_size,
                work.forward_flops * job.batch_size,
                _BYTES * work.forward_activations * (2 + 3 * share) * job.batch_size,
                _BYTES * work.forward_activations * 2 * job.batch_size,
                _UPDATE_BYTES * work.trained_parameters,
                work.serial_bytes * (1 + 2 * share),
                work.serial_bytes,
                work.architecture.serial_share,
                work.architecture.num_layers,
                1 + 2 * share,
                work.architecture.depthwise,
                device.peak(job.precision),
                device.bandwidth,
                device.tdp_w,
                device.idle_w,
                job.limit_w,
                work.sample_size,
                work.sample_bytes,
            )
        )
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(fields(Features)))
    return Features(*table.T)


def group_labels(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """Return the device, host, framework, architecture and dataset of each job."""
    return {
        "framework": [job.framework for job in jobs],
        "device": [job.device.name for job in jobs],
        "host": [job.host or f"host of {job.device.name}" for job in jobs],
        "architecture": [job.workload.architecture.name for job in jobs],
        "dataset": [job.workload.dataset for job in jobs],
    }


def evaluate(x: Features, log_latents: Mapping[str, Floats]) -> Floats:
    """Return the (2, num_jobs) logarithms of the seconds per epoch and of the mean watts.

    Args:
        x: what is known of the jobs.
        log_latents: latent to its (num_jobs,) logarithm.
    """
    q = {name: np.exp(values) for name, values in log_latents.items()}
    idle = np.minimum(x.idle_w * q["idle"], 0.9 * x.limit_w)
    # Where the limit binds the clock falls, and with it what the device takes for nothing.
    slowed_idle = np.minimum(idle, 0.6 * x.limit_w)
    wanted = (x.tdp_w - x.idle_w) * q["dynamic"]
    allowed = np.maximum(_REACHED_SHARE * x.limit_w - slowed_idle, 0.05 * x.limit_w)
    over = _soft_positive(np.log(wanted / allowed))
    slow = np.exp(q["slow_linear"] * over + q["slow_square"] * over**2)
    worth, step = np.zeros(len(x)), np.zeros(len(x))
    slow *= q["device_slowness"]
    reached = q["compute"] * (x.peak / x.bandwidth / _BALANCE) ** -q["balance"]
    no_update = np.zeros(len(x))
    for num, flops, moved, updated, again, kernels in (
        (x.train_steps, x.train_flops, x.train_bytes, x.update_bytes, x.train_bytes_again, x.kernels * x.backward),
        (x.validation_steps, x.validation_flops, x.validation_bytes, no_update, x.validation_bytes_again, x.kernels),
    ):
        compute = flops * (1 - x.serial_share) / (x.peak * reached)
        memory = (moved * (1 + q["reuse"] * x.depthwise) + updated) / (x.bandwidth * q["memory"])
        memory += q["serial"] * (again / x.bandwidth + flops * x.serial_share / x.peak)
        latency = kernels * q["latency_s"]
        one = slow * (compute + memory + latency)
        host = q["host_slowness"] * (q["host_s"] + kernels * q["launch_s"])
        data = q["host_slowness"] * x.batch * (x.sample_bytes * q["data_s"] + _SAMPLE_S)
        p = q["overlap"]
        step += num * (one**p + host**p + data**p) ** (1 / p)
        worth += num * slow * (compute + q["memory_power"] * memory + q["latency_power"] * latency)
    used = np.clip(worth / step, 1e-6, 1.0) ** q["busy_power"]
    watts = idle + (slowed_idle - idle + wanted * np.exp(-over)) * used
    return np.stack([np.log(step), np.log(watts)])


def _soft_positive(values: Floats) -> Floats:
    """Return ``max(0, values)`` with a rounded corner: a device meets its limit in bursts before it does on average."""
    width = 0.08
    rounded: Floats = width * np.logaddexp(0.0, values / width)
    return rounded
