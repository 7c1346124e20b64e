"""``perjoule evaluate``: look at the model that a run left, and keep what was found in its folder."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt

from perjoule.config import Config
from perjoule.core.errors import ConfigError, suggestion
from perjoule.evaluate.contract import Findings, Metric
from perjoule.evaluate.corpus import LossConfig, corpus_loss
from perjoule.evaluate.harness import HarnessConfig, harness
from perjoule.evaluate.latency import LatencyConfig, latency
from perjoule.evaluate.thinking_curves import ThinkingCurvesConfig, thinking_curves
from perjoule.evaluate.trained import Trained, load_trained
from perjoule.measure.machine import host_facts
from perjoule.runs.evaluations import Evaluation, record_evaluation

Say = Callable[[str], None]
KINDS: dict[str, Callable[[Trained, Any, Say], Findings]] = {
    "loss": corpus_loss,
    "thinking": thinking_curves,
    "latency": latency,
    "harness": harness,
}
"""What can be asked for. To add one: a file in this folder with a function and its config, a line here, and a field of
the same name in :class:`EvaluationConfig`."""


class EvaluationConfig(Config):
    """Which state of the model is evaluated, and how."""

    checkpoint: Literal["last", "best"] | NonNegativeInt = "last"
    """The newest, the one with the lowest held-out loss, or that of a step."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1."""
    data: dict[str, Any] = Field(default_factory=dict)
    """What is said anew of the run's data: data.path=… where it was moved."""
    loss: LossConfig = LossConfig()
    """Loss, perplexity, bits per byte and accuracy."""
    thinking: ThinkingCurvesConfig = ThinkingCurvesConfig()
    """Thinking longer, several times, and less."""
    latency: LatencyConfig = LatencyConfig()
    """Time and energy of reading a prompt and of writing a token."""
    harness: HarnessConfig = HarnessConfig()
    """Tasks of the LM-evaluation harness."""


def evaluate(run: Path, what: Sequence[str], config: EvaluationConfig, say: Say | None = None) -> Iterator[str]:
    """Evaluate a run's model and record the findings in its folder, each as soon as it is there.

    Args:
        run: the run folder; the run may still be going on.
        what: names of evaluations; ``loss`` if there is none.
        config: the settings of all of them.
        say: takes lines of progress; unless given, they go to standard error.

    Yields:
        Lines for the terminal: for each evaluation a table and the file that was written; last, the table of them all.

    Raises:
        ConfigError: if an evaluation is not known, or the model cannot be evaluated so.
        PerjouleError: whatever the evaluations raise.
    """
    for name in what:
        if name not in KINDS:
            raise ConfigError(f"no evaluation {name!r}: {suggestion(name, KINDS)}")
    trained = load_trained(run, config.checkpoint, config.device, config.data)
    yield f"{run}, step {trained.step}, on {config.device}"
    for name in dict.fromkeys(what or ("loss",)):
        settings: Config = getattr(config, name)
        started = time.monotonic()
        findings = KINDS[name](trained, settings, say or _to_standard_error)
        evaluation = Evaluation(
            kind=name,
            step=trained.step,
            checkpoint=config.checkpoint,
            device=config.device,
            host=host_facts(),
            settings=settings.model_dump(mode="json"),
            seconds=time.monotonic() - started,
            metrics=[vars(metric) for metric in findings.metrics],
            details=findings.details,
        )
        file, table = record_evaluation(run, evaluation)
        yield from ("", *table_of(findings), "", str(file))
    yield str(table)


def table_of(findings: Findings) -> Iterator[str]:
    """Yield an aligned table: what it is of, metric, value ± standard error, unit; below it, what is missing."""
    rows = [(m.of, m.name, _number(m), "" if m.unit == "1" else m.unit) for m in findings.metrics]
    widths = [max(len(row[column]) for row in rows) for column in range(3)] if rows else []
    for of, name, number, unit in rows:
        yield f"{of:<{widths[0]}}  {name:<{widths[1]}}  {number:>{widths[2]}}  {unit}".rstrip()
    for name in dict.fromkeys(metric.name for metric in findings.metrics if metric.value is None):
        reason = str(findings.details.get(name, "no reason is given")).removeprefix("not measured: ")
        yield f"{name}: not measured: {reason}"


def _number(metric: Metric) -> str:
    """Return a metric's value with as many digits as its error leaves."""
    value, error = metric.value, metric.stderr
    if value is None:
        return "-"
    if error is None or error <= 0 or not math.isfinite(error):
        interval = "" if metric.low is None or metric.high is None else f" [{metric.low:.4g}, {metric.high:.4g}]"
        return f"{value:.5g}{interval}"
    decimals = max(0, 1 - math.floor(math.log10(error)))  # two digits of the error
    if decimals > 8 or abs(value) >= 1e7:
        return f"{value:.4g} ± {error:.2g}"
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _to_standard_error(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
