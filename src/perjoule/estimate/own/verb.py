"""``perjoule estimate RECIPE`` and ``perjoule estimate RUN``: the lines that are printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from perjoule.core.errors import ConfigError
from perjoule.core.limits import num_cores
from perjoule.core.units import byte_size, duration, si
from perjoule.estimate.contract import Estimate
from perjoule.estimate.devices import Device, find_device
from perjoule.estimate.own.alternatives import Alternative, rank
from perjoule.estimate.own.budget import Budget, Fit, fit_budget, marks, parse_budget
from perjoule.estimate.own.calibration import (
    Trainer,
    calibrate,
    calibrate_compiled,
    read_calibration,
    read_compiled,
)
from perjoule.estimate.own.machine import fit
from perjoule.estimate.own.recipe import COMPILED, Machine, RecipeEstimate, estimate_recipe
from perjoule.estimate.own.remaining import Rest, estimate_rest
from perjoule.measure.machine import MachineProfile
from perjoule.runs.folder import MANIFEST
from perjoule.runs.machine_load import busy_line
from perjoule.runs.tables import load_run

if TYPE_CHECKING:
    from perjoule.train.config import TrainConfig

_NUM_ALTERNATIVES = 12


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Args:
        target: a recipe, a run folder, or None for the default recipe.
        overrides: ``key=value`` of the recipe.
        calibrate: measure this machine first.
        budget: an amount such as ``100kJ``, ``2h`` or ``10g``: say what fits.
        device: an accelerator to estimate for, by name; None for this machine.
        alternatives: rank what could be done otherwise.
        devices: data sheets beyond those of :data:`perjoule.estimate.devices.DEVICES`, by name; a single one is the
            device if no other is named and no alternatives are asked for.
    """

    target: Path | None = None
    overrides: Sequence[str] = ()
    calibrate: bool = False
    budget: str | None = None
    device: str | None = None
    alternatives: bool = False
    devices: Mapping[str, Device] = field(default_factory=dict)

    def find_device(self) -> Device | None:
        """Return the device that is asked for; None for this machine.

        Raises:
            ConfigError: if there is no data sheet of it, or it cannot be told which one is meant.
        """
        if self.device is not None:
            return find_device(self.device, self.devices)
        if self.alternatives or not self.devices:
            return None
        if len(self.devices) > 1:
            raise ConfigError(
                f"--device-sheet gives {len(self.devices)} devices: name one, --device {min(self.devices)!r}"
            )
        return next(iter(self.devices.values()))


def estimate_verb(request: Request, trainer: Trainer, profile: MachineProfile | None = None) -> Iterator[str]:
    """Yield the lines of the answer.

    Args:
        request: what was asked for.
        trainer: loads recipes; trains them for the calibration.
        profile: of this machine; None: the one in the cache folder.

    Raises:
        ConfigError: if something in the request or the recipe is not accepted.
        DataError: if the data or the run folder does not tell enough.
        RunFolderError: if the run folder cannot be read.
    """
    if request.target is not None and (request.target / MANIFEST).is_file():
        yield from _run_lines(request)
        return
    if request.target is not None and request.target.is_dir():
        raise ConfigError(f"{request.target} is neither a recipe (a YAML file) nor a run folder (with a {MANIFEST})")
    profile = profile or MachineProfile()
    device = request.find_device()
    budget = None if request.budget is None else parse_budget(request.budget)
    if request.calibrate:
        yield from calibrate(trainer, profile)
    target = None if request.target is None else str(request.target)
    config: TrainConfig = trainer.load(target, *request.overrides).config
    if request.calibrate and config.backend.compile is True:
        yield from calibrate_compiled(trainer, profile)
    known = read_calibration(profile)
    chosen = {} if known is None else dict(known.chosen)
    threads = int(chosen.get("threads") or num_cores())
    model = fit(known.samples if known else (), threads)
    machine = Machine(model, chosen, device, compiled=read_compiled(profile) or COMPILED)
    from perjoule.estimate.own.counting import count

    def estimate(more: Sequence[str], where: Machine) -> RecipeEstimate:
        changed: TrainConfig = trainer.load(target, *request.overrides, *more).config
        return estimate_recipe(changed, count(changed, where.precision(changed.backend.precision)), where)

    base = estimate((), machine)
    yield from _recipe_lines(target or "the default recipe", machine, base)
    if device is None and not request.calibrate and known is not None and (busy := busy_line(known.load)):
        yield f"when it was calibrated {busy}: perjoule estimate --calibrate measures it anew"
    if request.alternatives:
        yield from _alternative_lines(rank(config, machine, base, estimate, request.devices), machine)
    if budget is not None:
        tokens = count(config, machine.precision(config.backend.precision)).tokens_per_step
        yield from _budget_lines(budget, fit_budget(config, budget, machine, base, tokens, estimate))


def _run_lines(request: Request) -> Iterator[str]:
    """Yield the rest of a run."""
    unfit = [
        name
        for name, given in (
            ("key=value", request.overrides),
            ("--calibrate", request.calibrate),
            ("--budget", request.budget),
            ("--device", request.device),
            ("--device-sheet", request.devices),
            ("--alternatives", request.alternatives),
        )
        if given
    ]
    if unfit:
        raise ConfigError(f"{request.target} is a run folder; these options need a recipe: {', '.join(unfit)}")
    assert request.target is not None
    run = load_run(request.target)
    rest = estimate_rest(run)
    yield f"{run.name}: {run.status} after step {rest.num_done}"
    yield _row("steps left", rest.steps, lambda value: f"{value:,.0f}", rest.ends_by)
    yield _row("step", rest.step_s, lambda value: si(value, "s"), rest.step_s.method)
    yield _row("time left", rest.seconds, duration)
    yield from _cost_rows(rest, " left")
    yield from (f"  note: {note}" for note in rest.notes)


def _recipe_lines(name: str, machine: Machine, found: RecipeEstimate) -> Iterator[str]:
    """Yield the estimate of a recipe."""
    where = "this machine" if machine.device is None else f"{machine.device.name} (data sheet)"
    yield f"{name} on {where}: {si(found.parameters)} parameters; figures with their 90 % intervals"
    yield _row("steps", found.steps, lambda value: f"{value:,.0f}", found.steps.method)
    yield _row("step", found.step_s, lambda value: si(value, "s"), found.step_s.method)
    yield _row("time", found.seconds, duration, "start-up not included")
    yield from _cost_rows(found, "")
    yield _row("peak memory", found.memory_bytes, byte_size, found.memory_bytes.method)
    yield from (f"  note: {note}" for note in found.notes)


def _cost_rows(found: RecipeEstimate | Rest, left: str) -> Iterator[str]:
    """Yield energy, carbon and cost, as far as they are known."""
    if found.joules is not None:
        yield _row(f"energy{left}", found.joules, lambda value: si(value, "J"))
    if found.gco2e is not None:
        yield _row(f"carbon{left}", found.gco2e, lambda value: si(value, "gCO2e"))
    if found.cost is not None:
        yield _row(f"cost{left}", found.cost, lambda value: f"{value:.3g} {found.cost.unit if found.cost else ''}")


def _row(name: str, one: Estimate, show: object, method: str = "") -> str:
    """Return a line: name, figure, interval, origin."""
    assert callable(show)
    interval = "" if one.low == one.high else f"{show(one.low)} to {show(one.high)}"
    return f"  {name:<12} {show(one.mean):<12} {interval:<28} {method}".rstrip()


def _alternative_lines(found: Sequence[Alternative], here: Machine) -> Iterator[str]:
    """Yield the alternatives: on this device, then others."""
    yield "alternatives at equal training, by energy (* within the interval of the recipe's own figure):"
    for one in [one for one in found if not one.elsewhere][:_NUM_ALTERNATIVES]:
        yield _alternative_line(one)
    if elsewhere := [one for one in found if one.elsewhere][:_NUM_ALTERNATIVES]:
        others = "other accelerators, from their data sheets; joules of the accelerator alone"
        yield f"{others}:" if here.device is not None else f"{others}, not to be compared with those above:"
        yield from map(_alternative_line, elsewhere)


def _alternative_line(one: Alternative) -> str:
    """Return a line: the change, its joules and seconds, and what it saves as far as that can be told."""
    energy = "" if one.saved_j is None else _saves(one.saved_j, "energy") + ("*" if one.within_error else "")
    saved = f"{energy:<18} {_saves(one.saved_s, 'time')}" if energy else _saves(one.saved_s, "time")
    return f"  {one.change:<34} {si(one.joules, 'J'):<10} {duration(one.seconds):<12} {saved}"


def _saves(share: float, what: str) -> str:
    return f"{abs(share):.0%} {'less' if share >= 0 else 'more'} {what}"


def _budget_lines(budget: Budget, found: Sequence[Fit]) -> Iterator[str]:
    """Yield what a budget suffices for."""
    yield f"{budget} would train any one of these (width x depth, tokens with their interval):"
    for one, says in zip(found, marks(found), strict=True):
        tokens = f"{si(one.tokens.mean)} ({si(one.tokens.low)} to {si(one.tokens.high)})"
        steps = f"{one.steps.mean:,.0f} steps"
        ratio = one.tokens_per_parameter
        each = f"{ratio:{',.0f' if ratio >= 10 else '.2g'}} tokens a weight"
        yield f"  {one.shape:<12} {si(one.parameters):>6} weights  {tokens:<28} {steps:<16} {each:<24} {says}".rstrip()
