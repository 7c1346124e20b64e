"""Pure functions from a run to its figures. Every figure says how it was obtained and from how many observations.

What a run cost is summed over everything that was computed, the work that a resume threw away included. What a run
reached (loss, curves) is taken from the steps that led to its last weights. Rates and phases are taken over the
*measured window*: the timed steps of every segment after its warm-up, without those that a resume threw away. The time
in steps is the window, the warm-up steps and what was thrown away, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perjoule.core.errors import RunFolderError
from perjoule.core.phases import STEP, parent
from perjoule.core.units import si
from perjoule.measure.bridges.codecarbon import explain
from perjoule.measure.ledger import Ledger
from perjoule.report.energy import Sheet, cumulative_j, energy_figures, missing_meters, sheets
from perjoule.report.phases import PhaseCost, RankCost, phase_costs, rank_costs
from perjoule.report.quantity import Distribution, Figure, Floats, Quantity, Unavailable, spread
from perjoule.runs.cross_check import read_cross_checks
from perjoule.runs.tables import Run


@dataclass(frozen=True)
class StartUp:
    """What happened before the first step of a segment: name of the part to seconds."""

    segment: int
    parts_s: Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """The figures of a run, those in ``LABELS`` first.

    Args:
        sheets: the ledger of every domain.
        not_metered: the meters that could not be read, each with its reason.
        cross_check: how CodeCarbon's figures differ from the ledger's, and why; empty if it did not meter the run.
        cumulative_j: (num_kept_steps,) joules from the beginning of the run to the end of each step that led to the
            last weights, with what was lost in between; NaN where nothing was metered.
        phases: what every phase took in the counted steps.
        ranks: what every rank took.
        startup: what happened before the first step of each segment.
    """

    wall_s: Figure
    window_s: Figure
    warmup_s: Figure
    lost_s: Figure
    training_s: Figure
    evaluate_s: Figure
    checkpoint_blocked_s: Figure
    startup_s: Figure
    after_s: Figure
    steps: Figure
    tokens: Figure
    samples: Figure
    samples_per_s: Figure
    tokens_per_s: Figure
    useful_tokens_per_s: Figure
    ignored_fraction: Figure
    step_s: Distribution | Unavailable
    loss_first: Figure
    loss_last: Figure
    loss_validation: Figure
    perplexity: Figure
    flops_per_s: Figure
    mfu_full: Figure
    mfu_causal: Figure
    memory_bytes: Figure
    energy_j: Figure
    energy_window_j: Figure
    energy_per_step_j: Figure
    energy_per_sample_j: Figure
    energy_per_token_j: Figure
    energy_per_useful_token_j: Figure
    power_w: Figure
    flops_per_j: Figure
    carbon_gco2e: Figure
    water_l: Figure
    price: Figure
    sheets: tuple[Sheet, ...]
    not_metered: tuple[str, ...]
    cross_check: tuple[str, ...]
    cumulative_j: Floats
    phases: tuple[PhaseCost, ...]
    ranks: tuple[RankCost, ...]
    startup: tuple[StartUp, ...]


LABELS = {
    "wall_s": "Time in steps",
    "window_s": "Measured window",
    "warmup_s": "Warm-up steps",
    "lost_s": "Recomputed after resume",
    "training_s": "Training time",
    "evaluate_s": "Evaluation",
    "checkpoint_blocked_s": "Blocked by checkpoints",
    "startup_s": "Start-up",
    "after_s": "After the last step",
    "steps": "Steps",
    "samples": "Samples",
    "tokens": "Tokens",
    "samples_per_s": "Samples per second",
    "tokens_per_s": "Tokens per second",
    "useful_tokens_per_s": "Useful tokens per second",
    "ignored_fraction": "Ignored tokens",
    "loss_first": "Training loss of the first batch",
    "loss_last": "Training loss of the last batch",
    "loss_validation": "Best validation loss",
    "perplexity": "Best validation perplexity",
    "flops_per_s": "Achieved, full attention",
    "mfu_full": "MFU, full attention",
    "mfu_causal": "MFU, causal attention",
    "memory_bytes": "Peak memory",
    "energy_j": "Energy",
    "energy_window_j": "Energy in the window",
    "energy_per_step_j": "Energy per step",
    "energy_per_sample_j": "Energy per sample",
    "energy_per_token_j": "Energy per token",
    "energy_per_useful_token_j": "Energy per useful token",
    "power_w": "Mean power",
    "flops_per_j": "FLOPs per joule",
    "carbon_gco2e": "Carbon",
    "water_l": "Water",
    "price": "Price",
}
"""The name of each figure for people, in the order in which they are shown."""


def figures(summary: Summary) -> dict[str, Figure]:
    """Return the figures of a summary by field name, in the order of ``LABELS``."""
    return {name: getattr(summary, name) for name in LABELS}


def summarize(run: Run, ledger: Ledger) -> Summary:
    """Compute the figures of a run.

    Args:
        run: what its folder says.
        ledger: its energy, as :func:`perjoule.measure.ledger.build_ledger` returns it.
    """
    steps, energy = run.steps, energy_figures(run, ledger)
    rates = _rates(run)
    evaluated = [one.seconds for one in run.evaluations]
    blocked = [one.blocked_s for one in run.checkpoints]
    startup = _startup(run)
    loss_validation = _best_validation(run)
    return Summary(
        wall_s=_total(steps.wall_s, "wall clock, all segments: measured window, warm-up steps, and what was lost"),
        window_s=_window(run),
        warmup_s=_warmup(run),
        lost_s=_lost(run),
        training_s=_total(steps.training_s, "wall clock, without evaluations and checkpoints"),
        evaluate_s=_listed(evaluated, "evaluation", "as timed by the loop"),
        checkpoint_blocked_s=_listed(blocked, "checkpoint", "how long training waited, as timed by the loop"),
        startup_s=_listed(
            [sum(one.parts_s.values()) for one in startup], "start-up time", "as timed before the first step"
        ),
        after_s=_after(run),
        steps=_count(steps.kept.step[-1:], "number of the last step", len(steps)),
        tokens=_count(steps.tokens, "label positions, with ignored and repeated ones", len(steps)),
        samples=_count(steps.samples, "with repeated ones", len(steps)),
        samples_per_s=rates["samples"],
        tokens_per_s=rates["tokens"],
        useful_tokens_per_s=rates["useful"],
        ignored_fraction=_ignored(run),
        step_s=spread(steps.training_s[steps.in_window]),
        loss_first=_loss(run, 0),
        loss_last=_loss(run, -1),
        loss_validation=loss_validation,
        perplexity=_perplexity(run, loss_validation),
        flops_per_s=_flops_per_s(run, rates["tokens"]),
        mfu_full=_mfu(run, rates["tokens"], "flops_per_token", "full"),
        mfu_causal=_mfu(run, rates["tokens"], "flops_per_token_causal", "causal"),
        memory_bytes=_memory(run),
        **energy,
        sheets=sheets(run, ledger),
        not_metered=missing_meters(ledger),
        cross_check=_cross_check(run, ledger),
        cumulative_j=cumulative_j(run, ledger),
        phases=phase_costs(run),
        ranks=rank_costs(run),
        startup=startup,
    )


def _cross_check(run: Run, ledger: Ledger) -> tuple[str, ...]:
    """Return what CodeCarbon says about each segment, and what explains the difference."""
    try:
        checks = read_cross_checks(run.path)
    except RunFolderError as error:
        return (str(error),)
    facts = {segment.number: segment.facts.get("carbon") for segment in run.segments}
    return tuple(line for check in checks for line in explain(ledger, check, facts.get(check.segment)))


def _total(seconds: Floats, how: str) -> Figure:
    timed = seconds[np.isfinite(seconds)]
    return Quantity(float(timed.sum()), "s", how, len(timed)) if len(timed) else Unavailable("no step was timed")


def _listed(seconds: list[float], what: str, how: str) -> Figure:
    return Quantity(sum(seconds), "s", how, len(seconds)) if seconds else Unavailable(f"no {what} in this run")


def _count(values: NDArray[np.int64], how: str, n: int) -> Figure:
    if not len(values):
        return Unavailable("no step was completed")
    return Quantity(float(values.sum()), "", how, n) if values.any() else Unavailable("not counted by this run's loop")


def _window(run: Run) -> Figure:
    """Return the time of the steps that rates and phases are taken over."""
    window = run.steps.where(run.steps.in_window)
    if not len(window):
        return Unavailable("no step after the warm-up" if len(run.steps) else "no step was completed")
    how = "steps after the warm-up of their segment, evaluations and checkpoints included"
    return Quantity(float(window.wall_s.sum()), "s", how, len(window))


def _warmup(run: Run) -> Figure:
    """Return the time of the first steps of each segment, which lie outside the window."""
    steps = run.steps
    timed = np.isfinite(steps.wall_s)
    if not timed.any():
        return Unavailable("no step was timed")
    warmup = steps.where(timed & ~steps.in_window & ~steps.superseded)
    if not len(warmup):
        return Quantity(0.0, "s", "no step was set apart as warm-up", 0)
    return Quantity(float(warmup.wall_s.sum()), "s", "compilation among them; outside the measured window", len(warmup))


def _lost(run: Run) -> Figure:
    """Return the time of the steps that a resume threw away."""
    lost = run.steps.where(run.steps.superseded)
    if not len(lost):
        return Quantity(0.0, "s", "no step was computed twice", 0)
    how = f"steps {lost.step.min()} to {lost.step.max()} were computed again after a resume"
    return Quantity(float(np.nansum(lost.wall_s)), "s", how, len(lost))


def _after(run: Run) -> Figure:
    """Return the time of what closes each segment: an evaluation and a checkpoint that belong to no step."""
    closings = [one.phases.after_ns for one in run.segments if one.phases is not None and len(one.phases.steps)]
    if not closings:
        return Unavailable("no step was timed")
    total_ns = sum(spent for one in closings for phase, spent in one.items() if parent(phase) == STEP)
    phases = sorted({phase for one in closings for phase in one})
    how = f"{' and '.join(phases)}, outside the time in steps" if phases else "nothing was recorded there"
    return Quantity(total_ns / 1e9, "s", how, sum(map(bool, closings)))


def _rates(run: Run) -> dict[str, Figure]:
    """Return samples, tokens and useful tokens per second of training time in the measured window."""
    window = run.steps.where(run.steps.in_window)
    seconds = float(window.training_s.sum())
    if seconds <= 0:
        reason = "no step after the warm-up" if len(run.steps) else "no step was completed"
        return dict.fromkeys(("samples", "tokens", "useful"), Unavailable(reason))
    how = "over the training time of the steps after the warm-up"
    counted = {"samples": window.samples, "tokens": window.tokens, "useful": window.useful}
    return {
        name: Quantity(
            float(counts.sum()) / seconds, "samples/s" if name == "samples" else "tokens/s", how, len(window)
        )
        if counts.any()
        else Unavailable("not counted by this run's loop")
        for name, counts in counted.items()
    }


def _ignored(run: Run) -> Figure:
    tokens = int(run.steps.tokens.sum())
    if not tokens:
        return Unavailable("no tokens were counted")
    share = 1 - int(run.steps.useful.sum()) / tokens
    return Quantity(share, "fraction", "label positions that are not trained on", len(run.steps))


def _loss(run: Run, row: int) -> Figure:
    """Return the training loss of the first (0) or last (-1) step for which it was logged."""
    kept = run.steps.kept
    if not len(kept):
        return Unavailable("no step was completed")
    kept = kept.where(~np.isnan(kept.loss))
    if not len(kept):
        return Unavailable("not logged by this run's loop")
    loss, step = float(kept.loss[row]), int(kept.step[row])
    return (
        Quantity(loss, "nats", f"at step {step}", 1)
        if math.isfinite(loss)
        else Unavailable(f"not finite at step {step}")
    )


def _best_validation(run: Run) -> Figure:
    losses = [(one.loss, one) for one in run.kept_evaluations if one.split == "validation" and one.loss is not None]
    if not losses:
        return Unavailable("no evaluation on the validation split")
    loss, best = min(losses, key=lambda pair: pair[0])
    return Quantity(loss, "nats", f"at step {best.step}, {best.tokens:,} tokens", len(losses))


def _perplexity(run: Run, loss: Figure) -> Figure:
    if isinstance(loss, Unavailable):
        return loss
    if run.fact("data", "vocab_size") is None:
        return Unavailable("the data has no vocabulary")
    if loss.value > 700:
        return Unavailable("the loss is too large to be raised to a power")
    return Quantity(math.exp(loss.value), "", f"exp(best validation loss), {loss.how}", loss.n)


def _flops_per_s(run: Run, tokens_per_s: Figure) -> Figure:
    """Return the FLOPs per second that the model needed."""
    flops = run.fact("model", "flops_per_token")
    if isinstance(tokens_per_s, Unavailable):
        return tokens_per_s
    if not flops:
        return Unavailable("the model gives no FLOPs per token")
    how = f"{int(flops):,} FLOPs per token × tokens per second"
    return Quantity(float(flops) * tokens_per_s.value, "FLOP/s", how, tokens_per_s.n)


def _mfu(run: Run, tokens_per_s: Figure, flops_key: str, convention: str) -> Figure:
    """Return model FLOP utilisation: FLOPs the model needs per second, of those the device can do."""
    if isinstance(tokens_per_s, Unavailable):
        return tokens_per_s
    flops = run.fact("model", flops_key)
    if not flops:
        return Unavailable("the model gives no FLOPs per token")
    peaks: list[Mapping[str, Any]] = [segment.facts.get("peak") or {} for segment in run.segments]
    for peak in peaks:
        if not peak.get("flops"):
            return Unavailable(str(peak.get("unavailable") or "the peak of this device is not known"))
    per_segment = {
        float(peak["flops"]) * int(segment.facts.get("world_size") or 1)
        for peak, segment in zip(peaks, run.segments, strict=True)
    }
    if len(per_segment) != 1:
        return Unavailable("the segments ran on devices with different peaks")
    (available,) = per_segment
    peak = peaks[0]
    how = (
        f"{convention} attention: {int(flops):,} FLOPs per token, of {si(available, 'FLOP/s')} "
        f"{peak.get('precision', '')} ({peak.get('how', 'source of the peak not recorded')})"
    )
    return Quantity(float(flops) * tokens_per_s.value / available, "fraction", how, tokens_per_s.n)


def _memory(run: Run) -> Figure:
    read = run.steps.memory_bytes[np.isfinite(run.steps.memory_bytes)]
    if not len(read):
        return Unavailable("the device's memory was not read")
    devices = sorted({str(segment.facts.get("device", "unknown device")) for segment in run.segments})
    return Quantity(float(read.max()), "B", f"largest at the end of a step, {', '.join(devices)}", len(read))


def startup_parts_s(facts: Mapping[str, Any]) -> dict[str, float]:
    """Return the parts of a segment's start-up. They add up; ``total``, which early runs wrote beside them, is none."""
    return {str(part): float(spent) for part, spent in (facts.get("startup_s") or {}).items() if part != "total"}


def _startup(run: Run) -> tuple[StartUp, ...]:
    parts = [(one.number, startup_parts_s(one.facts)) for one in run.segments]
    return tuple(StartUp(number, parts_s) for number, parts_s in parts if parts_s)
