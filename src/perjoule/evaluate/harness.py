"""The LM-evaluation harness on a trained model: its own tasks or task files of yours, offline.

    files, names ─> tasks with their data ─> questions ─> the model (harness_model.py) ─> answers ─> scores ± errors

The questions, the scores and their defaults are the harness's. The standard errors are in harness_scores.py.

Gao et al., A framework for few-shot language model evaluation, 2021; version 0.4.13 is what the tests run.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from perjoule.config import Config
from perjoule.core.cache import expand_home
from perjoule.core.errors import ConfigError, MissingExtra
from perjoule.evaluate.contract import Findings
from perjoule.evaluate.decoding import DecodingConfig
from perjoule.evaluate.trained import Trained


class HarnessConfig(Config):
    """Which tasks of the LM-evaluation harness, and how."""

    tasks: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Names of tasks, groups or tags of the harness; paths of task or group files, or of folders of them."""
    include_path: tuple[Path, ...] = ()
    """Folders whose tasks and groups can be asked for by name."""
    limit: PositiveInt | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Documents of each task, from the first on; below 1 a share of them; null is all."""
    num_fewshot: NonNegativeInt | None = None
    """Examples before each question; null is the task's own number. A task that says 0 itself keeps it."""
    batch_size: PositiveInt = 8
    """Requests that are read together; the scores do not depend on it."""
    max_length: PositiveInt | None = None
    """Tokens of an input at most, of which the last are kept; null is the length of the training sequences."""
    max_gen_toks: PositiveInt | None = None
    """Tokens of a written answer at most; null is the task's own number, or 256."""
    score_bos: bool = True
    """Count the beginning of a document in its perplexity, as the harness does; false counts its text alone."""
    seed: NonNegativeInt = 1234
    """Of the few-shot examples and of sampled answers."""
    python_seed: NonNegativeInt = 0
    """Of Python's random, with which some tasks shuffle their choices."""
    bootstrap: PositiveInt = 1000
    """Draws for the standard error of a metric that has no formula for it."""
    thinking: DecodingConfig = DecodingConfig()
    """For a model that thinks: how, when it is asked."""
    log_samples: bool = False
    """Keep every question, answer and score."""
    offline: bool = True
    """Use no network: data is what task files name, or what Hugging Face's cache has."""

    @field_validator("tasks", "include_path", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        """Accept one without brackets."""
        return (value,) if isinstance(value, str | Path) else value


def harness(trained: Trained, config: HarnessConfig, say: Callable[[str], None]) -> Findings:
    """Run tasks of the LM-evaluation harness on a model.

    Args:
        trained: a language model.
        config: which tasks, and how.
        say: takes lines of progress.

    Raises:
        MissingExtra: if lm_eval is not installed.
        ConfigError: if a task does not exist or does not fit the model, or the model is no language model.
        DataError: if the data of a task is not here.
    """
    if not config.tasks:
        raise ConfigError("harness.tasks is empty; accepted: names of tasks, paths of task files or of folders of them")
    if find_spec("lm_eval") is None:
        raise MissingExtra("the LM-evaluation harness is not installed: pip install 'perjoule[harness]'")
    with _quiet(say) as aloud, _seeded(config), contextlib.ExitStack() as network:
        from perjoule.evaluate.harness_model import HarnessModel
        from perjoule.evaluate.harness_scores import facts, scores
        from perjoule.evaluate.harness_tasks import load_tasks, offline

        if config.offline:
            network.enter_context(offline())
        model = HarnessModel(
            trained, config.batch_size, config.max_length, config.score_bos, config.seed, config.thinking, aloud
        )
        found = load_tasks(config.tasks, [expand_home(folder) for folder in config.include_path])
        for name, task in found.tasks.items():
            _prepare(name, task, config, aloud)
        results = _ask(model, found, config)
        if model.cut.requests:
            aloud(
                f"harness: {model.cut.requests} requests were longer than the {model.max_length} tokens that the model "
                f"reads at once: {model.cut.tokens} tokens at their beginnings were left out"
            )
        metrics, worthless, uncertain = scores(results, found, config.bootstrap, config.seed)
    details: dict[str, Any] = {
        **worthless,
        "lm_eval": version("lm_eval"),
        "tasks": facts(results, found),
        "groups": {name: group.child_names for name, group in found.groups.items()},
        "left_out": vars(model.cut),
        "max_length": model.max_length,
        "without_stderr": uncertain,
    }
    if config.log_samples:
        details["samples"] = json.loads(json.dumps(results["samples"], default=str))
    return Findings(metrics, details)


def _ask(model: Any, found: Any, config: HarnessConfig) -> dict[str, Any]:
    """Return the harness's results, without its standard errors.

    Raises:
        ConfigError: if a score cannot be computed.
    """
    from lm_eval import evaluator  # type: ignore[import-untyped]

    asked, names = {"tasks": found.tasks, "groups": found.groups}, ", ".join(found.tasks)
    try:
        results: dict[str, Any] = evaluator.evaluate(model, asked, limit=config.limit, bootstrap_iters=0)
    except OverflowError as error:
        raise ConfigError(
            f"harness.tasks {names}: a perplexity is too large for a number; accepted: bits_per_byte in the task's "
            "metric_list (to word_perplexity, a text without spaces is one word)"
        ) from error
    except (ZeroDivisionError, statistics.StatisticsError) as error:
        raise ConfigError(f"harness.tasks {names}: a score is a mean over nothing") from error
    except ValueError as error:  # such as a metric that the answers are not for
        line = str(error).partition("\n")[0]
        raise ConfigError(f"harness.tasks {names}: a metric or a question fails: {line}") from error
    return results


def _prepare(name: str, task: Any, config: HarnessConfig, say: Callable[[str], None]) -> None:
    """Set a task's number of examples, seed and length of answers, as the harness's command line does.

    Raises:
        ConfigError: if the task is not one for a model of text, or has not enough examples.
    """
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"harness.tasks {name}: needs a model that sees or hears; accepted: tasks of text")
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(f"harness.tasks {name}: runs the code that the model writes; accepted: tasks that do not")
    own = task.get_config("num_fewshot")
    if config.num_fewshot is not None and own == 0 and config.num_fewshot != 0:
        say(f"harness: {name} says num_fewshot: 0 itself, and keeps it")
    elif config.num_fewshot is not None:
        task.set_config(key="num_fewshot", value=config.num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=config.seed)
    shots = task.get_config("num_fewshot")
    examples = len(getattr(getattr(task, "sampler", None), "df", ()))
    if shots and shots > examples:
        raise ConfigError(f"harness.num_fewshot {shots}: {name} has {examples} examples; accepted: up to {examples}")
    if config.max_gen_toks is not None and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value={"max_gen_toks": config.max_gen_toks}, update=True)


@contextlib.contextmanager
def _quiet(say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Let the harness and its libraries say nothing: their log, and their progress bars on standard error.

    Yields:
        What says our own lines, as ``say`` does, to the standard error that there was.
    """

    def aloud(line: str) -> None:
        with contextlib.redirect_stderr(heard):
            say(line)

    heard = sys.stderr
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with contextlib.redirect_stderr(io.StringIO()):
            yield aloud
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _seeded(config: HarnessConfig) -> Iterator[None]:
    """Seed the global generators that tasks may draw from, as the harness's command line does, and put them back."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        random.seed(config.python_seed)
        np.random.seed(config.seed)
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
