"""Scores of the LM-evaluation harness with a standard error each. Imports lm_eval, so only harness.py imports it.

    mean of n documents       s / √n with the standard deviation s of their scores, as the harness has it
    ratio, Σx / Σw            the linearised error of estimates.py: bits per byte
    exponential of these      the value times the error of its logarithm, and a 95 % interval: perplexities
    anything else             the standard deviation of the score over documents drawn anew, n of n: F1, MCC, BLEU …
    group                     the harness's formula, from the errors of its tasks

The harness has an error for means and for some of the others, which it draws anew in a pool of processes; it has none
for word_perplexity, byte_perplexity and bits_per_byte.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api import metrics as lm_eval  # type: ignore[import-untyped]

from perjoule.evaluate.contract import Metric
from perjoule.evaluate.estimates import ratio
from perjoule.evaluate.harness_tasks import Tasks

NOT_MEASURED = "N/A"
"""Where the harness has no standard error."""
NO_FILTER = "none"
UNITS = {"bits_per_byte": "bits/byte"}
"""Of metrics that are more than a number."""
SLOW, SLOW_DRAWS = ("bleu", "chrf", "chrf++", "ter"), 100
"""Metrics that take seconds for one draw, and the draws they get; as in the harness."""
Z_95 = 1.959964


@dataclass(frozen=True)
class Error:
    """How certain a score is.

    Args:
        stderr: its standard error; None if there is none.
        low: lower end of its interval, where the error is not symmetric.
        high: upper end.
        reason: why there is none.
    """

    stderr: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def scores(
    results: Mapping[str, Any], found: Tasks, draws: int, seed: int
) -> tuple[list[Metric], dict[str, str], dict[str, str]]:
    """Put a standard error beside every score.

    Args:
        results: what the harness's ``evaluate`` returned, with its samples.
        found: the tasks and groups that were evaluated.
        draws: of documents, for scores that need them.
        seed: of these.

    Returns:
        The scores of tasks, then of groups; why scores have no value, by metric; and why they have no error, by task
        and metric.
    """
    shown: list[Metric] = []
    plain: dict[str, dict[str, Any]] = {name: dict(results["results"][name]) for name in found.tasks}
    worthless, uncertain = {}, {}
    for name, task in found.tasks.items():
        for metric, chosen in _pairs(plain[name]):
            documents = [one for one in results["samples"][name] if one["filter"] == chosen and metric in one]
            aggregate = task.aggregation().get(metric, lm_eval.mean)
            error = error_of(aggregate, metric, [one[metric] for one in documents], draws, seed)
            plain[name][f"{metric}_stderr,{chosen}"] = NOT_MEASURED if error.stderr is None else error.stderr
            shown.append(_metric(name, metric, chosen, plain[name], error))
            if error.reason:
                uncertain[f"{name} {shown[-1].name}"] = error.reason
    for name, group in found.groups.items():
        plain[name] = dict(group.aggregate(plain))
        for metric, chosen in _pairs(plain[name]):
            pooled = plain[name][f"{metric}_stderr,{chosen}"]
            error = Error(None, reason="a task has none") if pooled == NOT_MEASURED else Error(float(pooled))
            shown.append(_metric(name, metric, chosen, plain[name], error))
            if error.reason:
                uncertain[f"{name} {shown[-1].name}"] = error.reason
    for one in shown:
        if one.value is None:
            worthless[one.name] = f"not a finite number for {one.of}"
    return shown, worthless, uncertain


def error_of(
    aggregate: Callable[[Sequence[Any]], Any], metric: str, values: Sequence[Any], draws: int, seed: int
) -> Error:
    """Return how certain a score is.

    Args:
        aggregate: the harness's function from the documents' values to the score.
        metric: its name.
        values: one for each document; for ratios a pair, the numerator and the weight.
        draws: of documents, if there is no formula.
        seed: of these.
    """
    if len(values) < 2:
        return Error(None, reason="a single document")
    if aggregate is lm_eval.mean:
        return Error(float(lm_eval.mean_stderr(values)))
    if aggregate is lm_eval.acc_all:
        return Error(float(lm_eval.acc_all_stderr(values)))
    if aggregate is lm_eval.bits_per_byte:
        logarithm, error = _surprise(values)
        return Error(error / math.log(2))
    if aggregate is lm_eval.weighted_perplexity or aggregate is lm_eval.perplexity:
        logarithm, error = _surprise([one if isinstance(one, tuple) else (one, 1) for one in values])
        low, high = (math.exp(logarithm + sign * Z_95 * error) for sign in (-1, 1))
        return Error(math.exp(logarithm) * error, low, high)
    generator = random.Random(seed)
    draws = min(draws, SLOW_DRAWS) if metric in SLOW else draws
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a draw may be without a class, which scikit-learn remarks upon
        drawn = [float(aggregate(generator.choices(values, k=len(values)))) for _ in range(draws)]
    return Error(float(np.std(drawn, ddof=1)))


def _surprise(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return nats per weight of (log-likelihood, weight), and its standard error."""
    loglikelihoods, weights = np.array(values, dtype=np.float64).T
    estimate = ratio(-loglikelihoods, weights, np.arange(len(values)))
    assert estimate.value is not None and estimate.stderr is not None, "the harness has divided by these weights"
    return estimate.value, estimate.stderr


def _metric(name: str, metric: str, chosen: str, numbers: Mapping[str, Any], error: Error) -> Metric:
    """Return a score; its name has the filter that chose the answers, if the task has filters."""
    value = float(numbers[f"{metric},{chosen}"])
    label = metric if chosen == NO_FILTER else f"{metric}[{chosen}]"
    if not math.isfinite(value):
        return Metric(label, None, UNITS.get(metric, "1"), of=name)
    return Metric(label, value, UNITS.get(metric, "1"), error.stderr, error.low, error.high, of=name)


def _pairs(numbers: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the metrics and filters that have a score."""
    for metric, comma, chosen in [key.partition(",") for key in numbers]:
        if comma and not metric.endswith("_stderr"):
            yield metric, chosen


def facts(results: Mapping[str, Any], found: Tasks) -> dict[str, dict[str, Any]]:
    """Return, for every task, what its scores are scores of."""
    return {
        name: {
            "documents": results["n-samples"][name]["effective"],
            "of": results["n-samples"][name]["original"],
            "num_fewshot": results["n-shot"][name],
            "version": results["versions"][name],
            "output_type": task.get_config("output_type"),
            "higher_is_better": results["higher_is_better"][name],
        }
        for name, task in found.tasks.items()
    }
