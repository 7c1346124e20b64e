"""The command line: one short function per verb. It parses, calls, prints, and returns an exit code.

Nothing heavy is imported before a verb is known: ``--help``, ``ls`` and ``report`` never import torch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perjoule import __version__
from perjoule.core.errors import ConfigError, DataError, PerjouleError, suggestion

if TYPE_CHECKING:
    _Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

EVALUATE_HELP = "any of loss, thinking, latency, harness (loss if none is named), and their settings: loss.splits=test"
SHELVES = ("models", "data", "measure", "estimate", "recipes", "runs")
DATA_STEPS = {
    "download": ("download", "download", "DownloadConfig"),
    "split": ("splitting", "split", "SplitConfig"),
    "tokenizer": ("train_tokenizer", "train_tokenizer", "TrainTokenizerConfig"),
    "tokenize": ("tokenize", "tokenize_files", "TokenizeConfig"),
    "inspect": ("inspect", "inspect", "InspectConfig"),
}
"""The steps of the data pipeline: module, function and configuration of each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: without the program's name; None: those of the process.

    Returns:
        0 if it did what was asked; the error's code (core.errors) after a mistake; 128 plus the signal's number if a
        run was stopped by a signal.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"not understood: {' '.join(rest)}")
    if rest:  # argparse takes positional words from one place only: `train r.yaml --dry-run stop.steps=3`
        options.overrides = [*options.overrides, *rest]
    code = _run(options)
    if arguments is None and options.verb is _train and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # DistributedDataParallel keeps its group's native threads alive. One that wants the interpreter for its last
        # tensor while the interpreter is being taken down aborts the process, whose work is done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(options: argparse.Namespace) -> int:
    """Run the verb and return the exit code."""
    try:
        return int(options.verb(options))
    except PerjouleError as error:
        if options.debug:
            raise
        print(f"perjoule: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("perjoule: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="perjoule", description="Train it, and know what it cost.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"perjoule {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    for add in (
        _add_train,
        _add_evaluate,
        _add_generate,
        _add_export,
        _add_data,
        _add_estimate,
        _add_ls,
        _add_report,
        _add_doctor,
    ):
        add(verbs, shared)
    return parser


def _add_train(verbs: _Verbs, shared: argparse.ArgumentParser) -> None:
    """Add ``train``."""
    train = verbs.add_parser("train", parents=[shared], help="train one model and record what it cost")
    train.add_argument("recipe", nargs="?", help="a YAML file; without one, the defaults")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="such as model.dim=512 stop.steps=200")
    train.add_argument("--resume", type=Path, metavar="RUN", help="continue this run folder")
    train.add_argument("--dry-run", action="store_true", help="check the recipe and print every value with its source")
    train.set_defaults(verb=_train)


def _add_evaluate(verbs: _Verbs, shared: argparse.ArgumentParser) -> None:
    """Add ``evaluate``."""
    evaluate = verbs.add_parser("evaluate", parents=[shared], help="loss, thinking, latency, tasks of a trained model")
    evaluate.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    evaluate.add_argument("overrides", nargs="*", metavar="WHAT|key=value", help=EVALUATE_HELP)
    evaluate.set_defaults(verb=_evaluate)


def _add_generate(verbs: _Verbs, shared: argparse.ArgumentParser) -> None:
    """Add ``generate``."""
    generate = verbs.add_parser("generate", parents=[shared], help="let a trained model go on with prompts")
    generate.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    generate.add_argument("overrides", nargs="*", metavar="key=value", help="such as max_new_tokens=64 temperature=0.8")
    generate.add_argument("--prompt", action="append", metavar="TEXT", help="may be given several times")
    generate.add_argument("--prompts", type=Path, metavar="FILE", help=".txt (a prompt per line), .jsonl or .csv")
    generate.add_argument("--output", type=Path, metavar="FILE", help=".jsonl or .csv instead of the terminal")
    generate.set_defaults(verb=_generate)


def _add_export(verbs: _Verbs, shared: argparse.ArgumentParser) -> None:
    """Add ``export``."""
    export = verbs.add_parser("export", parents=[shared], help="write a Hugging Face model folder")
    export.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    export.add_argument("folder", type=Path, metavar="DIR", help="the folder to write, which must not exist")
    export.add_argument("overrides", nargs="*", metavar="key=value", help="checkpoint=last, best or a step")
    export.set_defaults(verb=_export)


def _add_estimate(verbs: _Verbs, shared: argparse.ArgumentParser) -> None:
    """Add ``estimate``."""
    estimate = verbs.add_parser("estimate", parents=[shared], help="what a run will cost, or what is left of one")
    estimate.add_argument("target", nargs="?", metavar="RECIPE|RUN", help="a YAML file or a run folder")
    estimate.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")
    estimate.add_argument("--calibrate", action="store_true", help="measure this machine first, in about a minute")
    estimate.add_argument("--alternatives", action="store_true", help="rank what could be done otherwise")
    estimate.add_argument("--budget", metavar="100kJ|2h|10g", help="models and tokens that fit")
    estimate.add_argument("--device", metavar="NAME", help="an accelerator, by its data sheet, instead of this machine")
    estimate.add_argument("--score", type=Path, nargs="*", metavar="FILE", help="score every method on measured runs")
    estimate.add_argument("--fit", type=Path, nargs="+", default=[], metavar="FILE", help="with --score: to learn from")
    estimate.add_argument("--test", type=Path, nargs="+", default=[], metavar="FILE", help="with --score: unseen rows")
    estimate.add_argument("--figure", type=Path, metavar="FILE.svg", help="with --score: draw what it found")
    estimate.set_defaults(verb=_estimate)


def _add_ls(verbs: _Verbs, shared: argparse.ArgumentParser) -> None:
    """Add ``ls``."""
    listing = verbs.add_parser("ls", parents=[shared], help="list models, data, meters, recipes or runs")
    listing.add_argument("shelf", nargs="?", help=", ".join(SHELVES))
    listing.add_argument("folder", nargs="?", type=Path, help="of the recipes or runs")
    listing.set_defaults(verb=_ls)


def _add_report(verbs: _Verbs, shared: argparse.ArgumentParser) -> None:
    """Add ``report``."""
    report = verbs.add_parser("report", parents=[shared], help="show what runs cost: terminal, Markdown, HTML page")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    report.add_argument("--output", type=Path, metavar="X.html", help="page to write, with X.md beside it")
    report.set_defaults(verb=_report)


def _add_doctor(verbs: _Verbs, shared: argparse.ArgumentParser) -> None:
    """Add ``doctor``."""
    doctor = verbs.add_parser("doctor", parents=[shared], help="what this machine can do and measure, and how well")
    doctor.add_argument("--again", action="store_true", help="measure anew instead of showing what is known")
    doctor.add_argument("--overhead", action="store_true", help="measure what recording costs, in a minute")
    doctor.add_argument("--quick", action="store_true", help="with --overhead: a few steps only")
    doctor.set_defaults(verb=_doctor)


def _add_data(verbs: _Verbs, shared: argparse.ArgumentParser) -> None:
    """Add ``data`` with a parser for each step, in the order of the pipeline."""
    data = verbs.add_parser("data", help="the data pipeline: download, split, tokenizer, tokenize, inspect")
    steps = data.add_subparsers(required=True, metavar="STEP")
    for name, (says, *places) in {
        "download": ("fetch a corpus: hf:owner/name, https://…, stdlib or a path", "SOURCE", "DIR"),
        "split": ("into training, validation and test documents, by hash", "SRC", "DIR"),
        "tokenizer": ("train a tokenizer", "SRC", "FILE.json"),
        "tokenize": ("write a token store: tokenizer=FILE.json", "SRC", "STORE"),
        "inspect": ("what a corpus or a store holds", "PATH"),
    }.items():
        step = steps.add_parser(name, parents=[shared], help=says)
        for number, place in enumerate(places):
            kind = str if place == "SOURCE" else Path
            step.add_argument(f"place{number}", type=kind, metavar=place)
        step.add_argument("overrides", nargs="*", metavar="key=value")
        if name == "inspect":
            step.add_argument("--json", action="store_true", help="as JSON")
        step.set_defaults(verb=_data, step=name, num_places=len(places))


def _train(options: argparse.Namespace) -> int:
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


def _evaluate(options: argparse.Namespace) -> int:
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


def _generate(options: argparse.Namespace) -> int:
    """Let a trained model go on with prompts."""
    _set_wait_policy()
    from perjoule.config import resolve
    from perjoule.evaluate.write import WriteConfig, write

    config = resolve.load(WriteConfig, None, options.overrides).config
    for text in write(options.run, config, options.prompt or (), options.prompts, options.output):
        print(text, end="", flush=True)
    return 0


def _export(options: argparse.Namespace) -> int:
    """Write a Hugging Face model folder."""
    from perjoule.config import resolve
    from perjoule.export import ExportConfig, export

    config = resolve.load(ExportConfig, None, options.overrides).config
    for path in export(options.run, options.folder, config):
        print(path)
    return 0


def _data(options: argparse.Namespace) -> int:
    """Run one step of the data pipeline."""
    from importlib import import_module

    from perjoule.config import resolve

    module, step, section = DATA_STEPS[options.step]
    places = [getattr(options, f"place{number}") for number in range(options.num_places)]
    code = import_module(f"perjoule.data.{module}")
    config = resolve.load(getattr(code, section), None, options.overrides).config
    if options.step == "inspect":
        found = code.inspect(*places, config, (lambda line: None) if options.json else print)
        if options.json:
            print(json.dumps(found.as_json()))
        return 0
    getattr(code, step)(*places, config, print)
    return 0


def _estimate(options: argparse.Namespace) -> int:
    """Estimate a recipe or the rest of a run, or score the estimators."""
    if options.score is not None:
        from perjoule.estimate.score import score, score_unseen

        if bool(options.score) == bool(options.fit) or bool(options.fit) != bool(options.test):
            raise ConfigError("--score needs measured runs: --score FILE…, or --score --fit FILE… --test FILE…")
        scores = score_unseen(options.fit, options.test, print) if options.fit else score(options.score, print)
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
    request = Request(target, overrides, options.calibrate, options.budget, options.device, options.alternatives)
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


def _ls(options: argparse.Namespace) -> int:
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
    """List run folders with how each of them stands."""
    from perjoule.runs.tables import list_runs

    for run in list_runs(folder):
        print(f"{run.path!s:<48} {run.status:<12} {run.reason or ''}")
    return 0


def _ls_recipes(folder: Path) -> int:
    """List recipes with the first comment line of each."""
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise ConfigError(f"no recipes (*.yaml) in {folder.resolve()}")
    for path in paths:
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        print(f"{path!s:<32} {first.lstrip('# ') if first.startswith('#') else ''}")
    return 0


def _report(options: argparse.Namespace) -> int:
    """Print and write the report of one or several runs."""
    from perjoule.report import build

    for path in build(options.runs, options.output):
        print(path)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    """Measure this machine and print what was found."""
    _set_wait_policy()
    from perjoule.train.doctor import examine, measure_overhead

    if options.quick and not options.overhead:
        raise ConfigError("--quick shortens the overhead experiment: give --overhead as well")
    for line in measure_overhead(options.quick) if options.overhead else examine(again=options.again):
        print(line, flush=True)
    return 0
