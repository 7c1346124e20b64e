"""A recipe on a named accelerator, from its data sheet: the physical formula with nothing measured.

The formula and the distribution of its quantities over devices and architectures are those of the estimator
``physical`` before it has seen any measurement (``step_model``). The interval comes from drawing them: it is wide, a
factor of about three, and that is what a data sheet is worth.
"""

from __future__ import annotations

import numpy as np

from perjoule.estimate.contract import Estimate, Job
from perjoule.estimate.devices import Device
from perjoule.estimate.own.work import Work
from perjoule.estimate.step_model import LATENTS, evaluate, features
from perjoule.estimate.workloads import Architecture, Workload

METHOD = "data sheet"
_NUM_DRAWS = 400
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}
_KERNELS = 0.5
"""Share of the calls that launch a kernel; the others are views."""


def job_of(work: Work, kind: str, batch_size: int, device: Device) -> Job:
    """Return a counted recipe in the terms of the estimators: an epoch of one step.

    Args:
        work: of one optimizer step.
        kind: of the model.
        batch_size: samples per step.
        device: data sheet.
    """
    forward = work.forward_share
    architecture = Architecture(
        name=kind,
        flops_forward=work.flops * forward / batch_size,
        # Every number that an operation writes was counted when it was written and when it was read.
        activations=work.all_bytes * forward / batch_size / 8,
        num_parameters=work.trained_parameters,
        num_layers=max(1, round(work.num_calls * forward * _KERNELS)),
        reference_size=1.0,
    )
    workload = Workload(architecture, "own", 1.0, float(batch_size))
    return Job(device, workload, batch_size, precision=_PRECISIONS[work.computes_in])


def on_device(job: Job) -> tuple[Estimate, Estimate]:
    """Return the seconds per epoch and the watts of a job on a device that was never measured."""
    random = np.random.default_rng(0)
    log_latents = {}
    for name, latent in LATENTS.items():
        spread = np.sqrt(latent.shared**2 + sum(sd**2 for sd in latent.groups.values()))
        drawn = np.log(latent.value) + spread * random.standard_normal(_NUM_DRAWS)
        log_latents[name] = drawn
    log_seconds, log_watts = evaluate(features([job] * _NUM_DRAWS), log_latents)
    return _estimate(log_seconds, "s"), _estimate(log_watts, "W")


def _estimate(logs: np.ndarray[tuple[int, ...], np.dtype[np.float64]], unit: str) -> Estimate:
    low, mean, high = np.exp(np.quantile(logs, (0.05, 0.5, 0.95)))
    return Estimate(float(mean), float(low), float(high), unit, METHOD)
