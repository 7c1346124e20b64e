"""What is left of a run, from its folder: running, stopped or killed. Reads only; never imports torch.

The folder is read into what ``perjoule.outlook`` works on; carbon and cost follow from the joules by what the run knows
of the place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perjoule.core.errors import DataError
from perjoule.core.phases import CHECKPOINT, EVALUATE
from perjoule.core.units import J_PER_KWH
from perjoule.estimate.contract import Estimate
from perjoule.measure.book import build_ledger
from perjoule.measure.ledger import outermost_accounts
from perjoule.outlook.rest import Outlook, Past, Patience, Recurrent, guess_recurrent, look_ahead
from perjoule.outlook.series import Span
from perjoule.runs.folder import FINISHED
from perjoule.runs.tables import Run

Floats = NDArray[np.float64]
_BLOCKS = 200
_BLOCK_S = 0.3
"""Energy is looked at in at most so many blocks of steps, of at least so many seconds: a meter resolves no shorter."""
_FEW_BLOCKS = 5
_METHOD = "online"


@dataclass(frozen=True)
class Rest:
    """What a run still needs. ``None`` is unknown; ``notes`` say why.

    Args:
        num_done: steps that led to the present weights.
        steps: steps that are left.
        step_s: seconds of one of them.
        seconds: until the end, evaluations and checkpoints included.
        joules: of these.
        gco2e: grams, PUE included.
        cost: in the unit's currency, PUE included.
        ends_by: the condition that will be met first.
        notes: what a reader must know, one line each.
    """

    num_done: int
    steps: Estimate
    step_s: Estimate
    seconds: Estimate
    joules: Estimate | None
    gco2e: Estimate | None
    cost: Estimate | None
    ends_by: str
    notes: tuple[str, ...]


def estimate_rest(run: Run) -> Rest:
    """Estimate the rest of a run.

    Raises:
        DataError: if no step of it was timed yet, or it does not say when it ends.
    """
    notes: list[str] = []
    past = read_past(run, notes)
    if run.status == FINISHED:
        notes.insert(0, "the run is finished")
        nothing = Span(0.0, 0.0, 0.0)
        step_s = Span(*np.quantile(past.step_s, (0.5, 0.05, 0.95)))
        found = Outlook(past.num_done, nothing, step_s, nothing, None if past.step_j is None else nothing, run.reason)
    else:
        ahead = look_ahead(past)
        if ahead is None:
            raise DataError(f"{run.path} does not say when it ends in steps, epochs, tokens, seconds or metered energy")
        found = ahead
    joules = None if found.joules is None else Estimate(*found.joules, "J", _METHOD)
    gco2e, cost = _per_joule(run, joules, notes)
    return Rest(
        num_done=found.num_done,
        steps=Estimate(*found.steps, "steps", found.ends_by),
        step_s=Estimate(*found.step_s, "s", _METHOD),
        seconds=Estimate(*found.seconds, "s", _METHOD),
        joules=joules,
        gco2e=gco2e,
        cost=cost,
        ends_by=found.ends_by,
        notes=tuple(notes),
    )


def read_past(run: Run, notes: list[str]) -> Past:
    """Return what a run folder says of the run so far.

    Args:
        run: the run.
        notes: takes what a reader must know.

    Raises:
        DataError: if no step was timed yet.
    """
    kept = run.steps.kept
    seconds = kept.training_s[np.isfinite(kept.training_s)]
    if not len(seconds):
        raise DataError(f"{run.path} has no timed step yet: wait for the first, or estimate its recipe")
    energy = _Energy(run, notes)
    joules_left = dict(_joules_left(run, energy.used_j))
    patience, every = _value(run, "stop.patience"), _every_steps(run, "evaluate")
    losses = [math.inf if one.loss is None else one.loss for one in run.kept_evaluations]
    return Past(
        num_done=int(kept.step[-1]),
        step_s=seconds,
        step_j=energy.step_j,
        energy_block=energy.block,
        mean_w=energy.mean_w,
        recurrent=tuple(_recurrent(run, float(np.median(seconds)))),
        steps_left=dict(_steps_left(run)),
        seconds_left=dict(_seconds_left(run)),
        joules_left=joules_left,
        patience=None if patience is None or every is None else Patience(int(patience), every, losses),
    )


class _Energy:
    """The energy of steps, over all meters that do not contain one another.

    Args:
        run: the run.
        notes: takes what a reader must know.
    """

    def __init__(self, run: Run, notes: list[str]) -> None:
        self.step_j: Floats | None = None
        self.mean_w: float | None = None
        self.block = 1.0
        self.used_j = 0.0
        kept = run.steps.kept
        accounts = outermost_accounts(build_ledger(run).merged())
        curves = [one.by_step for one in accounts if len(one.by_step.steps) > 1]
        first = max((int(one.steps[0]) for one in curves), default=0)
        last = min((int(one.steps[-1]) for one in curves), default=0)
        last = min(last, int(kept.step[-1]))
        if last <= first:
            notes.append("energy: unknown, no meter was read while it trained")
            return
        wall_s = np.nan_to_num(np.interp(np.arange(first + 1, last + 1), kept.step, kept.wall_s))
        block = max(1, (last - first) // _BLOCKS, math.ceil(_BLOCK_S / max(float(np.median(wall_s)), 1e-9)))
        block = min(block, last - first)
        edges = np.arange(last, first - 1, -block)[::-1]
        total_j = sum((np.interp(edges, one.steps, one.energy_uj) for one in curves), np.zeros(len(edges))) / 1e6
        self.block, self.used_j = float(block), float(total_j[-1])
        self.mean_w = float(total_j[-1] - total_j[0]) / float(wall_s[edges[0] - first :].sum())
        # What comes on schedule is counted by its time, so that it is taken out of the steps.
        besides_s = np.nan_to_num(kept.wall_s - kept.training_s)[np.isin(kept.step, np.arange(edges[0] + 1, last + 1))]
        besides_s = np.pad(besides_s, (int(edges[-1] - edges[0]) - len(besides_s), 0)).reshape(-1, block).sum(axis=1)
        joules = (np.diff(total_j) - besides_s * self.mean_w) / block
        joules = joules[joules > 0]
        if not self.mean_w > 0:
            notes.append("energy: unknown, the meters have not moved yet")
            return
        self.step_j = joules
        if len(joules) < _FEW_BLOCKS:  # they tell the power, and the steps the rest
            self.step_j, self.block = kept.training_s[np.isfinite(kept.training_s)] * self.mean_w, 1.0
        modelled = sorted({one.sensor.domain for one in accounts if one.sensor.modelled})
        if modelled:
            notes.append(f"energy: {', '.join(modelled)} is modelled, not measured")


def _recurrent(run: Run, step_s: float) -> Iterator[Recurrent]:
    """Yield evaluations and checkpoints, with what they took so far."""
    splits = _mapping(_mapping(run.fact("data", "facts")).get("splits"))
    held_out = _mapping(splits.get(str(_value(run, "evaluate.split")))).get("num_samples")
    guesses = guess_recurrent(
        step_s,
        batches=_value(run, "evaluate.batches"),
        held_out_batches=None if held_out is None else int(held_out) / int(_value(run, "batch.size") or 1),
        parameters=float(run.fact("model", "parameters") or 0.0),
    )
    for (phase, section), guess in zip(((EVALUATE, "evaluate"), (CHECKPOINT, "checkpoint")), guesses, strict=True):
        spent = run.phase_s(phase)
        yield Recurrent(_every_steps(run, section), spent[np.isfinite(spent) & (spent > 0)].tolist(), guess)


def _every_steps(run: Run, section: str) -> int | None:
    """Return the steps from one evaluation or checkpoint to the next, rounded for parts of an epoch.

    None if only the end has one, or the size of an epoch is not known.
    """
    if (every := _value(run, f"{section}.every_steps")) is not None:
        return int(every)
    epochs, size = _value(run, f"{section}.every_epochs"), _value(run, "batch.size")
    if epochs is None or not size or (epoch := _samples_per_epoch(run)) is None:
        return None
    return max(1, round(float(epochs) * epoch / int(size)))


def _steps_left(run: Run) -> Iterator[tuple[str, float]]:
    """Yield the conditions in steps with what they leave."""
    kept = run.steps.kept
    if (wanted := _value(run, "stop.steps")) is not None:
        yield "stop.steps", wanted - int(kept.step[-1])
    if (wanted := _value(run, "stop.tokens")) is not None:
        yield "stop.tokens", math.ceil((wanted - int(kept.tokens.sum())) / float(np.mean(kept.tokens[-100:])))
    if (wanted := _value(run, "stop.epochs")) is not None and (epoch := _samples_per_epoch(run)):
        yield "stop.epochs", math.ceil((wanted * epoch - int(kept.samples.sum())) / float(np.mean(kept.samples[-100:])))


def _seconds_left(run: Run) -> Iterator[tuple[str, float]]:
    """Yield the condition in seconds with what it leaves."""
    if (wanted := _value(run, "stop.seconds")) is not None:
        yield "stop.seconds", wanted - float(np.nansum(run.steps.kept.wall_s))


def _joules_left(run: Run, used_j: float) -> Iterator[tuple[str, float]]:
    """Yield the conditions in joules, and in carbon by the last intensity, with what they leave."""
    if (wanted := _value(run, "stop.energy")) is not None:
        yield "stop.energy", wanted - used_j
    if (wanted := _value(run, "stop.carbon")) is not None and (per_joule := _gco2e_per_j(run)) is not None:
        yield "stop.carbon", wanted / per_joule - used_j


def _gco2e_per_j(run: Run) -> float | None:
    """Return the grams of CO2e of a joule, PUE included, or None."""
    facts = _mapping(run.segments[-1].facts.get("carbon")) if run.segments else {}
    grams = facts.get("g_per_kwh")
    return None if grams is None else float(grams) * float(facts.get("pue") or 1.0) / J_PER_KWH


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _value(run: Run, key: str) -> Any:
    """Return a value of the run's configuration, or None."""
    return run.resolved.get(key, {}).get("value")


def _samples_per_epoch(run: Run) -> int | None:
    """Return the size of the training split, if the manifest knows it."""
    splits = _mapping(_mapping(run.fact("data", "facts")).get("splits"))
    num = _mapping(splits.get("train")).get("num_samples")
    return int(num) if num else None


def _per_joule(run: Run, joules: Estimate | None, notes: list[str]) -> tuple[Estimate | None, Estimate | None]:
    """Return carbon and cost of an energy, by what the last segment knows of the place."""
    facts = run.segments[-1].facts.get("carbon") if run.segments else None
    if joules is None or not isinstance(facts, Mapping):
        return None, None
    price, grams = facts.get("price_per_kwh"), _gco2e_per_j(run)
    if grams is None:
        notes.append(f"carbon: unknown, {facts.get('unavailable', 'no intensity in the manifest')}")
    each = None if price is None else float(price) * float(facts.get("pue") or 1.0) / J_PER_KWH
    return (
        None if grams is None else _scaled(joules, grams, "gCO2e"),
        None if each is None else _scaled(joules, each, str(facts.get("currency") or "")),
    )


def _scaled(one: Estimate, factor: float, unit: str) -> Estimate:
    return Estimate(one.mean * factor, one.low * factor, one.high * factor, unit, one.method)
