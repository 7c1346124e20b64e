"""One short function per verb: it parses what argparse cannot, calls, prints, and returns an exit code.

Nothing heavy is imported before a verb is known: ``--help``, ``ls`` and ``report`` never import torch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perjoule.core.errors import ConfigError, DataError, suggestion
from perjoule.core.units import duration, si

SHELVES = ("models", "data", "measure", "estimate", "recipes", "runs")
DATA_STEPS = {
    "download": ("download", "download", "DownloadConfig"),
    "split": ("splitting", "split", "SplitConfig"),
    "tokenizer": ("train_tokenizer", "train_tokenizer", "TrainTokenizerConfig"),
    "tokenize": ("tokenize", "tokenize_files", "TokenizeConfig"),
    "inspect": ("inspect", "inspect", "InspectConfig"),
}
"""The steps of the data pipeline: module, function and configuration of each."""


def only_prints(options: argparse.Namespace) -> bool:
    """Tell whether what a verb prints is all that it does, so that it may end when nobody reads."""
    match options.verb:
        case _ if options.verb in {ls, doctor, estimate}:
            return True
        case _ if options.verb is train:
            return bool(options.dry_run)
        case _ if options.verb is data:
            return bool(options.step == "inspect")
        case _:
            return options.verb is generate and options.output is None


def train(options: argparse.Namespace) -> int:
    """Train, or only check the recipe."""
    recipe, overrides = _split_recipe(options.recipe, options.overrides)
    _set_wait_policy()
    from perjoule.config import resolve
    from perjoule.runs.folder import CONFIG
    from perjoule.train.config import TrainConfig

    source = recipe if recipe is not None or options.resume is None else options.resume / CONFIG
    if options.resume is not None:
        from perjoule.runs.folder import read_manifest

        read_manifest(options.resume)
    resolved = resolve.load(TrainConfig, source, overrides)
    if options.model:
        if not options.dry_run:
            raise ConfigError("--model only prints: give --dry-run as well")
        from perjoule.train.outline import outline

        print(*outline(resolved.config), sep="\n")
        return 0
    if options.dry_run:
        for key, entry in resolved.as_json().items():
            print(f"{key:<32} {entry['value']!s:<24} {entry['source']}")
        return 0
    from perjoule.train.run import train

    result = train(resolved, recipe=recipe.stem if recipe is not None else "run", resume=options.resume)
    if result.run is not None:
        print(f"what it cost: perjoule report {result.run}")
        if result.signal is not None:
            print(f"to continue:  perjoule train --resume {result.run}")
    return 0 if result.signal is None else 128 + result.signal


def evaluate(options: argparse.Namespace) -> int:
    """Evaluate a trained model; results go into its run folder."""
    _set_wait_policy()
    from perjoule.config import resolve
    from perjoule.evaluate.run import EvaluationConfig, evaluate

    what = [word for word in options.overrides if "=" not in word]
    settings = [word for word in options.overrides if "=" in word]
    config = resolve.load(EvaluationConfig, None, settings).config
    for line in evaluate(options.run, what, config):
        print(line, flush=True)
    return 0


def generate(options: argparse.Namespace) -> int:
    """Generate text from a trained model."""
    _set_wait_policy()
    from perjoule.config import resolve
    from perjoule.evaluate.write import Output, WriteConfig, write

    config = resolve.load(WriteConfig, None, options.overrides).config
    if options.output is None and (options.append or options.overwrite):
        raise ConfigError("--append and --overwrite are about a file: give --output as well")
    output = None if options.output is None else Output(options.output, options.append, options.overwrite)
    for text in write(options.run, config, options.prompt or (), options.prompts, output):
        print(text, end="", flush=True)
    return 0


def export(options: argparse.Namespace) -> int:
    """Write a Hugging Face model folder."""
    from perjoule.config import resolve
    from perjoule.export import ExportConfig, export

    config = resolve.load(ExportConfig, None, options.overrides).config
    for path in export(options.run, options.folder, config):
        print(path)
    return 0


def data(options: argparse.Namespace) -> int:
    """Run one step of the data pipeline."""
    from importlib import import_module

    from perjoule.config import resolve

    module, step, section = DATA_STEPS[options.step]
    places = [getattr(options, f"place{number}") for number in range(options.num_places)]
    code = import_module(f"perjoule.data.{module}")
    flags = [f"{name}={getattr(options, name)}" for name in ("documents", "tokens") if getattr(options, name, None)]
    config = resolve.load(getattr(code, section), None, [*options.overrides, *flags]).config
    if options.step == "inspect":
        found = code.inspect(*places, config, (lambda line: None) if options.json else print)
        if options.json:
            print(json.dumps(found.as_json()))
        return 0
    getattr(code, step)(*places, config, print)
    return 0


def estimate(options: argparse.Namespace) -> int:
    """Estimate a recipe or the rest of a run, or score the estimators."""
    from perjoule.estimate.sheets import read_sheets

    if options.figure is not None and options.figure.suffix.lower() != ".svg":
        raise ConfigError(f"cannot draw {options.figure}: figures are SVG; accepted: a name that ends in .svg")
    devices = read_sheets(options.device_sheet)
    if options.score is not None:
        from perjoule.estimate.score import score, score_unseen

        if bool(options.score) == bool(options.fit) or bool(options.fit) != bool(options.test):
            raise ConfigError("--score needs measured runs: --score FILE…, or --score --fit FILE… --test FILE…")
        if options.fit:
            scores = score_unseen(options.fit, options.test, print, devices)
        else:
            scores = score(options.score, print, devices)
        if options.figure is not None:
            from perjoule.report.estimators import score_figure
            from perjoule.runs.files import write_atomically

            if not (figure := score_figure(scores)):
                raise DataError(f"{options.figure} was not drawn: no energy was estimated, only what the table shows")
            write_atomically(options.figure, figure)
        return 0
    if options.fit or options.test or options.figure:
        raise ConfigError("--fit, --test and --figure need --score")
    _set_wait_policy()
    from perjoule import load
    from perjoule.estimate.own.calibration import Trainer
    from perjoule.estimate.own.verb import Request, estimate_verb

    def train(config: Any, *, recipe: str) -> Any:
        from perjoule.train.console import Console
        from perjoule.train.run import train

        return train(config, recipe=recipe, console=Console(silent=True))

    target, overrides = _split_recipe(options.target, options.overrides)
    request = Request(
        target, overrides, options.calibrate, options.budget, options.device, options.alternatives, devices
    )
    for line in estimate_verb(request, Trainer(load, train)):
        print(line, flush=True)
    return 0


def _split_recipe(recipe: str | None, overrides: list[str]) -> tuple[Path | None, list[str]]:
    """Tell a recipe from a first override, which has an equals sign and is no file."""
    if recipe is None:
        return None, overrides
    if "=" in recipe and not Path(recipe).exists():
        return None, [recipe, *overrides]
    return Path(recipe), overrides


def _set_wait_policy() -> None:
    """Let OpenMP's threads sleep when other programs want the cores; must be set before torch is imported.

    Threads that spin while they wait take cores from others on a busy machine, and make a step a third
    faster on an idle one. What counts is who runs now: the load average still remembers the run before this one.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        from perjoule.measure.machine import others_running

        os.environ["OMP_WAIT_POLICY"] = "passive" if others_running() > 0.5 else "active"


def measure(options: argparse.Namespace) -> int:
    """Run a program, or follow one, and write what it cost. Standard output is the program's; lines go to the other."""
    if bool(options.command) == bool(options.pid):
        raise ConfigError("give either a command (perjoule measure -- python script.py) or --pid N")
    if stray := [word for word in options.overrides if "=" not in word]:
        raise ConfigError(f"{stray[0]!r} is not a key=value; the command comes after --: perjoule measure -- COMMAND …")
    from perjoule.measure.blocked import blocked_signals

    with blocked_signals():  # before a library starts threads, which would be sent the signals instead
        from perjoule.config import resolve
        from perjoule.measure.command import MeasureConfig, follow, measure_command

        config = resolve.load(MeasureConfig, None, options.overrides).config
        if options.command:
            found = measure_command(options.command, config, options.append)
        else:
            found = follow(options.pid, config, options.append)
        for line in _report_quietly(found.run):
            print(line, file=sys.stderr)
    return found.exit_code


def _report_quietly(run: Path) -> Iterator[str]:
    """Write the report of a run and yield what it cost in a line, without the tables."""
    from rich.console import Console

    from perjoule.measure.book import build_ledger
    from perjoule.measure.contract import Unavailable
    from perjoule.report import build
    from perjoule.runs.tables import load_run

    loaded = load_run(run)
    total = build_ledger(loaded).total()
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        build([run], console=Console(file=nowhere))
    if isinstance(total, Unavailable):
        energy = f"energy not metered: {total.reason}"
    else:
        energy = f"{si(total.energy_uj / 1e6, 'J')} ({'modelled' if total.modelled else 'measured'})"
    seconds = float(loaded.segments[-1].facts.get("seconds") or 0.0)
    yield f"perjoule: {loaded.reason}; {duration(seconds)}, {energy}; what it cost: perjoule report {run}"


def ls(options: argparse.Namespace) -> int:
    """List a shelf, or the shelves."""
    if options.shelf is None:
        print("\n".join(SHELVES))
        return 0
    if options.shelf == "runs":
        return _ls_runs(options.folder or Path("runs"))
    if options.shelf == "recipes":
        return _ls_recipes(options.folder or Path("recipes"))
    if options.shelf not in SHELVES:
        raise ConfigError(f"no shelf {options.shelf!r}: {suggestion(options.shelf, SHELVES)}")
    from importlib import import_module

    shelf = import_module(f"perjoule.{options.shelf}").SHELF
    for kind in shelf.names():
        print(f"{kind:<16} {shelf.describe(kind)}")
    return 0


def _ls_runs(folder: Path) -> int:
    """List run folders, oldest first: when, how each of them stands, loss, joules and time."""
    from perjoule.report.listing import listed_runs

    for line in listed_runs(folder):
        print(line)
    return 0


def _ls_recipes(folder: Path) -> int:
    """List recipes with the first comment line of each."""
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise ConfigError(f"no recipes (*.yaml) in {folder.resolve()}")
    for path in paths:
        print(f"{path!s:<32} {_first_comment(path)}")
    return 0


def _first_comment(path: Path) -> str:
    """Return the first comment line of a recipe, or why it cannot be read."""
    if not path.is_file():  # a named pipe would wait for somebody who writes
        return "(not a file)"
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = file.readline(1000).rstrip()
    except OSError as error:
        return f"(cannot be read: {error.strerror})"
    except UnicodeDecodeError:
        return "(cannot be read: not UTF-8)"
    return first.lstrip("# ") if first.startswith("#") else ""


def report(options: argparse.Namespace) -> int:
    """Print and write the report of one or several runs."""
    from perjoule.report import build

    given = [word for word in options.runs if "=" in word and not Path(word).exists()]
    if strange := [word for word in given if not word.startswith("carbon.")]:
        raise ConfigError(f"{strange[0]}: a report takes run folders and carbon.key=value, such as carbon.location=FRA")
    runs = [Path(word) for word in options.runs if word not in given]
    for path in build(runs, options.output, carbon=given):
        print(path)
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Measure this machine and print what was found."""
    _set_wait_policy()
    from perjoule.train.doctor import examine, measure_overhead

    if options.quick and not options.overhead:
        raise ConfigError("--quick shortens the overhead experiment: give --overhead as well")
    for line in measure_overhead(options.quick) if options.overhead else examine(again=options.again):
        print(line, flush=True)
    return 0
