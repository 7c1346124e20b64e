"""What a recipe will cost before it starts: time, energy, carbon, cost, memory, with their intervals and origins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from perjoule.core.errors import ConfigError
from perjoule.core.limits import usable_cores
from perjoule.core.units import J_PER_KWH
from perjoule.estimate.contract import Estimate
from perjoule.estimate.devices import Device
from perjoule.estimate.own.device import job_of, on_device
from perjoule.estimate.own.machine import StepModel
from perjoule.estimate.own.work import Work
from perjoule.measure.carbon.intensity import Intensity
from perjoule.measure.contract import Unavailable
from perjoule.measure.meters.cpu_time import CpuTimeConfig

if TYPE_CHECKING:
    from perjoule.estimate.own.counting import Counted
    from perjoule.train.config import TrainConfig

COMPILED = Estimate(0.6, 0.45, 0.85, "", "prior: language models on two cores")
"""A compiled step over an eager one, where it was not measured on the machine (docs/log.md: 0.5 to 0.65)."""
_PROCESS_BYTES = (3.6e8, 4.0e8, 5.2e8)
"""Python with torch and what training loads, without a model: low, mean, high. 350 to 390 MB were seen here; threads
and libraries of other machines take more."""
_COUNTED = (0.6, 0.9, 2.0)
"""Memory in use over what a step asks for at once: kernels free sooner than autograd promises (0.65 for a RetNet), and
an allocator keeps what was freed, the more the longer a run and its evaluations go on (1.1 at the first steps of the
default recipe, 1.5 after twelve)."""
_STATE_COPIES = (0.0, 0.5, 2.0)
"""Copies of weights and optimizer while a checkpoint is written."""


@dataclass(frozen=True)
class Machine:
    """Where a recipe is to be trained.

    Args:
        model: speed and power, calibrated or not.
        chosen: what ``backend: auto`` stands for; empty if nothing was calibrated.
        device: an accelerator by its data sheet instead of this machine; None for this machine.
        power_limit_w: limit that is set on the device; None for that of its data sheet.
        compiled: a compiled step over an eager one.
    """

    model: StepModel
    chosen: Mapping[str, Any]
    device: Device | None = None
    power_limit_w: float | None = None
    compiled: Estimate = COMPILED

    def precision(self, asked: str) -> str:
        """Return the precision that a recipe's ``backend.precision`` stands for."""
        if asked != "auto":
            return asked
        if self.device is not None:
            return "bf16-autocast" if "bf16" in self.device.peak_flops else "float32"
        return str(self.chosen.get("precision", "float32"))


@dataclass(frozen=True)
class RecipeEstimate:
    """What training a recipe will take. ``None`` is unknown; ``notes`` say why.

    Args:
        steps: optimizer steps.
        samples: samples that are trained on.
        step_s: seconds of one step.
        seconds: of the training, evaluations included, start-up not.
        joules: of that time.
        gco2e: grams, PUE included.
        cost: in the currency of the recipe, which is its unit; PUE included.
        memory_bytes: most memory at once.
        parameters: weights that are trained.
        notes: what a reader must know, one line each.
    """

    steps: Estimate
    samples: float
    step_s: Estimate
    seconds: Estimate
    joules: Estimate
    gco2e: Estimate | None
    cost: Estimate | None
    memory_bytes: Estimate
    parameters: float
    notes: tuple[str, ...]


def estimate_recipe(config: TrainConfig, counted: Counted, machine: Machine) -> RecipeEstimate:
    """Estimate a recipe on a machine.

    Args:
        config: the recipe.
        counted: of its step, in the precision that the machine will take.
        machine: where it is to run.

    Raises:
        ConfigError: if the recipe ends with an amount of energy or carbon that cannot be estimated here.
    """
    notes: list[str] = []
    step_s, watts = _step(config, counted, machine, notes)
    evaluation_s = _evaluation_s(config, counted, step_s.mean)
    every = _evaluate_every(config, counted)
    whole_s = _scale(step_s, 1 + (evaluation_s / every / step_s.mean if every else 0.0), "s")
    gco2e_per_j, price_per_j = _per_joule(config, notes)
    steps = _num_steps(config, counted, whole_s, watts, gco2e_per_j, notes)
    evaluated = every is not None and math.floor(steps.mean / every) > math.floor((steps.mean - 1) / every)
    final_s = 0.0 if evaluated else evaluation_s
    seconds, joules = _totals(config, whole_s, watts, steps, final_s, gco2e_per_j)
    return RecipeEstimate(
        steps=steps,
        samples=steps.mean * config.batch.size,
        step_s=step_s,
        seconds=seconds,
        joules=joules,
        gco2e=None if gco2e_per_j is None else _scale(joules, gco2e_per_j, "gCO2e"),
        cost=None if price_per_j is None else _scale(joules, price_per_j, config.carbon.currency),
        memory_bytes=_memory(counted.work, machine.device is None),
        parameters=counted.work.trained_parameters,
        notes=tuple(notes),
    )


def _totals(
    config: TrainConfig,
    whole_s: Estimate,
    watts: Estimate,
    steps: Estimate,
    final_s: float,
    gco2e_per_j: float | None,
) -> tuple[Estimate, Estimate]:
    """Return the seconds and the joules of the run; what ends it is not estimated but given."""
    method = whole_s.method
    given = {"stop.energy": config.stop.energy}
    if gco2e_per_j is not None and config.stop.carbon is not None:
        given["stop.carbon"] = config.stop.carbon / gco2e_per_j
    if (joules := given.get(steps.method)) is not None:
        seconds = Estimate(joules / watts.mean, joules / watts.high, joules / watts.low, "s", method)
        # Patience may end it before the amount is used up.
        soonest_s = min(seconds.low, whole_s.low * steps.low)
        least_j = min(joules, soonest_s * watts.low) if config.stop.patience else joules
        seconds = replace(seconds, low=soonest_s)
        return seconds, Estimate(joules, least_j, joules, "J", steps.method)
    if steps.method == "stop.seconds" and config.stop.seconds is not None:
        soonest_s = min(config.stop.seconds, whole_s.low * steps.low) if config.stop.patience else config.stop.seconds
        seconds = Estimate(config.stop.seconds, soonest_s, config.stop.seconds, "s", steps.method)
    else:
        longer = 1 + final_s / (whole_s.mean * steps.mean)
        seconds = Estimate(
            mean=longer * whole_s.mean * steps.mean,
            low=longer * whole_s.low * steps.low,
            high=longer * whole_s.high * steps.high,
            unit="s",
            method=method,
        )
    return seconds, _product(seconds, watts, "J", method)


def _step(config: TrainConfig, counted: Counted, machine: Machine, notes: list[str]) -> tuple[Estimate, Estimate]:
    """Return the seconds of one step and the mean power."""
    if machine.device is not None:
        kind = str(getattr(config.model, "kind", "model"))
        notes.append(
            f"{machine.device.name}: scaled from its data sheet, nothing was measured; joules are the device's"
        )
        job = job_of(counted.work, kind, config.batch.size, machine.device)
        return on_device(replace(job, power_limit_w=machine.power_limit_w))
    model = machine.model
    found = model.step_s(counted.work)
    if model.num_samples:
        method = f"calibrated on {model.num_samples} configurations"
    else:
        method = "not calibrated"
        notes.append("not calibrated: run perjoule estimate --calibrate; figures are those of a common processor")
    seconds = Estimate(found.mean, found.low, found.high, "s", method)
    if config.backend.compile is True:
        seconds = _product(seconds, machine.compiled, "s", method)
        factor = "{:.2f} ({:.2f} to {:.2f})".format(
            *(getattr(machine.compiled, key) for key in ("mean", "low", "high"))
        )
        notes.append(f"compiled: {factor} of the time, {machine.compiled.method}; compiling itself is not included")
    elif config.backend.compile == "auto":
        notes.append("backend.compile=auto: estimated without; it may compile a long run, see --alternatives")
    watts, source = _watts(config, model)
    notes.append(f"power: {source}")
    return seconds, watts


def _watts(config: TrainConfig, model: StepModel) -> tuple[Estimate, str]:
    """Return the power while training and where it comes from."""
    if model.watts is not None:
        found = Estimate(model.watts.mean, model.watts.low, model.watts.high, "W", model.meters)
        return found, f"{model.watts.mean:.3g} W in the calibration ({model.meters})"
    cpu = next((one for one in config.energy.meters if isinstance(one, CpuTimeConfig)), CpuTimeConfig())
    cores = usable_cores()
    most = cores * cpu.idle_w_per_core + min(model.threads, cores) * (cpu.active_w_per_core - cpu.idle_w_per_core)
    how = (
        f"modelled: {model.threads} busy of {cores:g} cores, {cpu.active_w_per_core:g} W a busy core, within a factor 2"
    )
    return Estimate(most, most / 2, most * 2, "W", "modelled"), how


def _evaluation_s(config: TrainConfig, counted: Counted, step_s: float) -> float:
    """Return the seconds of one evaluation: forward passes only."""
    if not counted.held_out_samples:
        return 0.0
    whole = math.ceil(counted.held_out_samples / config.batch.size)
    batches = min(config.evaluate.batches or whole, whole)
    return batches * step_s * counted.work.forward_share


def _evaluate_every(config: TrainConfig, counted: Counted) -> float | None:
    """Return the steps from one evaluation to the next, on average; None if only the end is evaluated."""
    section = config.evaluate
    if section.every_epochs is None:
        return section.every_steps
    return max(1.0, section.every_epochs * counted.samples_per_epoch / config.batch.size)


def _num_steps(
    config: TrainConfig,
    counted: Counted,
    whole_s: Estimate,
    watts: Estimate,
    gco2e_per_j: float | None,
    notes: list[str],
) -> Estimate:
    """Return the optimizer steps: the first of all the ends that the recipe names."""
    stop, size = config.stop, config.batch.size
    ends: list[Estimate] = []
    for num, how in (
        (stop.steps, "stop.steps"),
        (None if stop.epochs is None else math.ceil(stop.epochs * counted.samples_per_epoch / size), "stop.epochs"),
        (None if stop.tokens is None else math.ceil(stop.tokens / counted.tokens_per_step), "stop.tokens"),
    ):
        if num is not None:
            ends.append(Estimate(num, num, num, "steps", how))
    whole_j = _product(whole_s, watts, "J", "")
    if stop.seconds is not None:
        ends.append(_quotient(stop.seconds, whole_s, "stop.seconds"))
    if stop.energy is not None:
        ends.append(_quotient(stop.energy, whole_j, "stop.energy"))
    if stop.carbon is not None and gco2e_per_j is not None:
        ends.append(_quotient(stop.carbon / gco2e_per_j, whole_j, "stop.carbon"))
    if not ends:
        raise ConfigError("stop.carbon alone cannot be estimated without a fixed intensity: give stop.steps as well")
    first = min(ends, key=lambda one: one.mean)
    if stop.patience is not None and (every := _evaluate_every(config, counted)):
        soonest = math.ceil((stop.patience + 1) * every)
        notes.append(
            f"stop.patience: it may end from step {soonest} on; nobody knows before the run, so the whole is estimated "
            "and the lower ends assume the soonest"
        )
        first = Estimate(first.mean, min(first.low, soonest), first.high, "steps", first.method)
    return first


def _per_joule(config: TrainConfig, notes: list[str]) -> tuple[float | None, float | None]:
    """Return the grams of CO2e and the price of a joule, PUE included, each None if unknown."""
    carbon = config.carbon
    price = None if carbon.price_per_kwh is None else carbon.price_per_kwh * carbon.pue / J_PER_KWH
    if price is None:
        notes.append("cost: unknown, give carbon.price_per_kwh")
    found: Intensity | Unavailable
    found = Unavailable("a live intensity is not known before the run") if carbon.is_live else carbon.resolve()
    if isinstance(found, Unavailable):
        notes.append(f"carbon: unknown, {found.reason}")
        return None, price
    notes.append(
        f"carbon: {found.g_per_kwh:g} gCO2e/kWh ({found.source}), PUE {carbon.pue:g}; its error is not included"
    )
    return found.g_per_kwh * carbon.pue / J_PER_KWH, price


def _memory(work: Work, on_cpu: bool) -> Estimate:
    """Return the most memory at once; on a processor that of the interpreter and of a checkpoint's copy is in it."""
    low, mean, high = (
        share * work.memory_bytes + (base + copies * work.weight_bytes if on_cpu else 0.0)
        for share, base, copies in zip(_COUNTED, _PROCESS_BYTES, _STATE_COPIES, strict=True)
    )
    return Estimate(mean, low, high, "B", "counted")


def _product(one: Estimate, other: Estimate, unit: str, method: str) -> Estimate:
    """Multiply independent figures; the logarithms of their intervals add up as the errors of a sum do."""
    mean = one.mean * other.mean
    down = math.hypot(math.log(one.mean / one.low), math.log(other.mean / other.low))
    up = math.hypot(math.log(one.high / one.mean), math.log(other.high / other.mean))
    return Estimate(mean, mean * math.exp(-down), mean * math.exp(up), unit, method)


def _quotient(amount: float, each: Estimate, how: str) -> Estimate:
    """Return how many steps an amount suffices for."""
    return Estimate(amount / each.mean, amount / each.high, amount / each.low, "steps", how)


def _scale(one: Estimate, factor: float, unit: str) -> Estimate:
    return Estimate(one.mean * factor, one.low * factor, one.high * factor, unit, one.method)
