"""Does thinking help? Loss and energy of an Energy-Based Transformer after every step, and of other ways to think.

    curve           0, 1, 2, … steps, beyond the number of training: loss, accuracy, and energy in one landscape
    best of N       N first guesses, of which the one that ends with the least energy counts
    accept if lower a step is taken only where it lowers the energy
    early stop      a position is done when a step changes its energy by little

Energies of different landscapes cannot be compared, so that every stage's energy is taken in the last step's landscape.
All is teacher-forced: the model thinks about every position of a row at once, given the true tokens before it. A
``loss_change`` is against thinking as in training, position by position, and its error is that of the difference, which
is far smaller than that of either loss. Errors are clustered as in estimates.py. What a way to think costs is measured
on one batch: FLOPs of matrix products by torch's counter and time, the pass that finds the energy of the end included.

Gladstone et al., Energy-Based Transformers are Scalable Learners and Thinkers, 2025, report gains from longer thinking
and from choosing by energy, larger out of distribution; the splits say which of it a model shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from perjoule.config import Config
from perjoule.core.errors import ConfigError, DataError
from perjoule.data.contract import DataSet
from perjoule.data.split import TEST, VALIDATION
from perjoule.evaluate.contract import Findings, Metric
from perjoule.evaluate.corpus import Part, nats_of, read_part
from perjoule.evaluate.estimates import Estimate, Floats, Integers, correlation, mean
from perjoule.evaluate.trained import Trained
from perjoule.models.ebt import EBT
from perjoule.models.ebt_decode import Decoding, Stage

OOD = "ood"
TIMED = 2
"""Times that a batch is thought about to time it; the shortest counts."""


class ThinkingCurvesConfig(Config):
    """Ways to think, and what is thought about."""

    splits: tuple[str, ...] | None = Field(None, min_length=1)
    """Null is validation, and beside it ``ood`` where the data has it, otherwise test."""
    steps: tuple[NonNegativeInt, ...] | None = Field(None, min_length=1)
    """Steps to report; null is 0, 1, and once, twice and four times those of training. The whole curve up to the most
    of them is in the details."""
    candidates: tuple[Annotated[int, Field(ge=2)], ...] = (2, 4)
    """First guesses of which the best is taken, as many steps as in training."""
    stop_shares: tuple[PositiveFloat, ...] = (0.1, 0.01)
    """Early stop at a step that changes the energy by less than this share of its mean fall in training's steps."""
    batches: PositiveInt | None = 4
    """Batches, taken evenly from each split; null is all of it."""
    batch_size: PositiveInt = 4
    """Rows at a time, of which every step's logits are kept."""

    @field_validator("splits", "steps", "candidates", "stop_shares", mode="before")
    @classmethod
    def _accept_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | int | float) else value


@dataclass(frozen=True)
class Observed:
    """What thinking came to at the positions that count.

    Args:
        nats: (stages, positions) surprise of the label.
        hits: (stages, positions) whether the label was most likely.
        energy: (stages, positions) in the last step's landscape.
        steps: (positions,) that were taken.
        clusters: (positions,) the document or row.
    """

    nats: Floats
    hits: Floats
    energy: Floats
    steps: Floats
    clusters: Integers

    def at(self, stage: int) -> Observed:
        """Return what had been come to after some steps."""
        chosen = slice(stage, stage + 1)
        return replace(self, nats=self.nats[chosen], hits=self.hits[chosen], energy=self.energy[chosen])

    def mean(self, values: npt.NDArray[Any]) -> Estimate:
        """Return the mean of something about the positions."""
        return mean(values, self.clusters)


@dataclass(frozen=True)
class Plan:
    """What is to be tried.

    Args:
        trained: the most steps of training, and those of an ordinary evaluation.
        reported: steps of the curve to report.
        variants: other ways to think, by name.
    """

    trained: int
    reported: Sequence[int]
    variants: dict[str, Decoding]

    @property
    def most(self) -> int:
        """Return the length of the curve."""
        return max(self.trained, *self.reported)


def thinking_curves(trained: Trained, config: ThinkingCurvesConfig, say: Callable[[str], None]) -> Findings:
    """Let a model think longer, several times, and less.

    Args:
        trained: an Energy-Based Transformer.
        config: ways to think, and the splits.
        say: takes a line of progress.

    Raises:
        ConfigError: if the model cannot think.
        DataError: if the data cannot be prepared or has changed, or has no such split.
        TrainingDiverged: if a slope is not finite.
    """
    model, data = _thinker(trained), trained.data()
    plan = _plan(model, config)
    metrics: list[Metric] = []
    details: dict[str, Any] = {"trained_steps": plan.trained, "splits": {}}
    details |= {"energy_landscape": model.body.landscape_of(plan.most - 1), "num_landscapes": model.body.num_landscapes}
    for split in config.splits or _default_splits(data):

        def read(split: str = split) -> Part:
            return read_part(trained, data, split, config.batches, config.batch_size, spread=True)

        curve = _observe(model, read(), Decoding(steps=plan.most), staged=True)
        if not curve.clusters.size:
            raise DataError(f"{split}: none of the rows read has a label that counts; raise thinking.batches")
        say(f"thinking: {split}, {curve.clusters.size} positions, {plan.most} steps")
        if "early_stop_below" not in details:  # one threshold for all splits, as it would be in use
            plan, details["early_stop_below"] = _with_early_stop(plan, config.stop_shares, curve)
        others = {}
        for name, decoding in plan.variants.items():
            others[name] = _observe(model, read(), decoding)
            say(f"thinking: {split}, {name}")
        metrics += _split_metrics(split, plan, curve, others)
        details["splits"][split] = {
            "num_positions": curve.clusters.size,
            "num_clusters": len(np.unique(curve.clusters)),
            "clustered_by": read().clustered_by,
            "curve": _curve_details(curve, plan.trained),
        }
    first = next(read_part(trained, data, next(iter(details["splits"])), 1, config.batch_size).batches)
    metrics += _costs(model, first.batch.tensors["input_ids"], plan)
    for metric in metrics:
        if metric.value is None:
            details[metric.name] = "not finite, or the same at every position"
    return Findings(metrics, details)


def _thinker(trained: Trained) -> EBT:
    """Return the model if it can think."""
    if isinstance(trained.model, EBT):
        return trained.model
    kind = getattr(trained.config, "kind", "?")
    raise ConfigError(f"{trained.run}: a model of kind {kind} cannot think; accepted: runs of kind ebt")


def _default_splits(data: DataSet) -> list[str]:
    """Return what the model was trained for, and what lies farthest from it."""
    splits = [VALIDATION]
    for other in (OOD, TEST):
        try:
            data.split(other)
        except DataError:
            continue
        return [*splits, other]
    return splits


def _plan(model: EBT, config: ThinkingCurvesConfig) -> Plan:
    """Return what is to be tried, but for early stops, whose threshold depends on the energies."""
    trained = model.config.thinking.most_steps
    reported = sorted(set(config.steps or (0, 1, trained, 2 * trained, 4 * trained)))
    most = max(trained, *reported)
    variants = {f"best of {number}": Decoding(trained, number) for number in sorted(set(config.candidates))}
    for steps in sorted({trained, most}):
        variants[f"{_steps(steps)}, accept if lower"] = Decoding(steps, accept_lower=True)
    return Plan(trained, reported, variants)


def _with_early_stop(plan: Plan, shares: Sequence[float], curve: Observed) -> tuple[Plan, dict[str, float] | str]:
    """Return the plan with early stops, and their thresholds or why there is none."""
    fall = abs(float((curve.energy[0] - curve.energy[plan.trained]).mean()))
    if fall == 0 or not np.isfinite(fall):
        return plan, "not measured: thinking does not change the energy"
    thresholds = {f"{_steps(plan.most)}, early stop {share:g}": share * fall for share in sorted(set(shares))}
    stopping = {name: Decoding(plan.most, stop_below=threshold) for name, threshold in thresholds.items()}
    return replace(plan, variants=plan.variants | stopping), thresholds


def _steps(number: int) -> str:
    """Return ``1 step`` or ``2 steps``."""
    return f"{number} step{'s' * (number != 1)}"


def _observe(model: EBT, part: Part, decoding: Decoding, staged: bool = False) -> Observed:
    """Return where thinking ends, or every stage of it with the start first."""
    rows: dict[str, list[Tensor]] = {"nats": [], "hits": [], "energy": [], "steps": []}
    clusters = []
    for scored in part.batches:
        useful, labels = scored.useful, scored.batch.tensors["labels"][scored.useful]
        tensors = scored.batch.tensors
        verdict = model.deliberate(tensors["input_ids"], decoding, staged, tensors.get("documents"))
        stages = verdict.stages or [Stage(verdict.logits, verdict.energy)]
        rows["nats"].append(torch.stack([nats_of(stage.logits[useful], labels) for stage in stages]))
        rows["hits"].append(torch.stack([stage.logits[useful].argmax(-1) == labels for stage in stages]))
        rows["energy"].append(torch.stack([stage.energy[useful] for stage in stages]))
        rows["steps"].append(verdict.steps[useful])
        clusters.append(scored.clusters[useful.cpu().numpy()])
    columns = {name: torch.cat(parts, dim=-1).double().cpu().numpy() for name, parts in rows.items()}
    return Observed(**columns, clusters=np.concatenate(clusters))


def _split_metrics(split: str, plan: Plan, curve: Observed, others: dict[str, Observed]) -> Iterator[Metric]:
    """Yield the metrics of one split."""
    usual = curve.at(plan.trained)
    ways = {_steps(number): curve.at(number) for number in plan.reported} | others
    for name, seen in ways.items():
        of = f"{split}, {name}"
        yield _metric("loss", seen.mean(seen.nats[0]), "nats/token", of)
        if name != _steps(plan.trained):
            yield _metric("loss_change", seen.mean(seen.nats[0] - usual.nats[0]), "nats/token", of)
        yield _metric("accuracy", seen.mean(seen.hits[0]), "1", of)
        yield _metric("energy", seen.mean(seen.energy[0]), "1", of)
        if name in others and not name.startswith("best of"):
            yield _metric("steps_taken", seen.mean(seen.steps), "steps/token", of)
    for steps in sorted({plan.trained, plan.most}):
        falls = _falls_throughout(curve.energy[: steps + 1])
        yield _metric("energy_falls_throughout", curve.mean(falls), "1", f"{split}, {_steps(steps)}")
    related = correlation(usual.energy[0], usual.nats[0], usual.clusters)
    yield _metric("energy_loss_correlation", related, "1", f"{split}, {_steps(plan.trained)}")


def _falls_throughout(energy: Floats) -> npt.NDArray[np.bool_]:
    """Return at which positions the energy rises at no step and ends lower than it began."""
    falls: npt.NDArray[np.bool_] = (np.diff(energy, axis=0) <= 0).all(axis=0) & (energy[-1] < energy[0])
    return falls


def _metric(name: str, estimate: Estimate, unit: str, of: str) -> Metric:
    return Metric(name, estimate.value, unit, estimate.stderr, of=of)


def _curve_details(curve: Observed, trained: int) -> dict[str, Any]:
    """Return the whole curve as lists over steps, from 0."""
    columns = {
        "loss": curve.nats,
        "loss_change": curve.nats - curve.nats[trained],
        "accuracy": curve.hits,
        "energy": curve.energy,
    }
    lists: dict[str, Any] = {"steps": list(range(len(curve.nats)))}
    for name, rows in columns.items():
        estimates = [curve.mean(row) for row in rows]
        lists[name] = [estimate.value for estimate in estimates]
        lists[f"{name}_stderr"] = [estimate.stderr for estimate in estimates]
    return lists


def _costs(model: EBT, input_ids: Tensor, plan: Plan) -> Iterator[Metric]:
    """Yield what every way to think costs for each token of a batch."""
    ways = {_steps(number): Decoding(number) for number in plan.reported if number} | plan.variants
    for name, decoding in ways.items():
        with FlopCounterMode(display=False) as counter:  # the first time, which warms up as well
            model.deliberate(input_ids, decoding)
        times = []
        for _ in range(TIMED):
            started = time.perf_counter()
            model.deliberate(input_ids, decoding).energy.sum().item()  # waits for the device
            times.append(time.perf_counter() - started)
        yield Metric("flops_per_token", counter.get_total_flops() / input_ids.numel(), "FLOP/token", of=name)
        yield Metric("time_per_token", min(times) / input_ids.numel(), "s/token", of=name)
