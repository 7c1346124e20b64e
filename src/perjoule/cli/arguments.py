"""What the command line accepts: a parser for each verb."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perjoule import __version__
from perjoule.cli import verbs

if TYPE_CHECKING:
    _Parsers = argparse._SubParsersAction[argparse.ArgumentParser]

EVALUATE_HELP = "any of loss, thinking, latency, harness (loss if none is named), and their settings: loss.splits=test"


def split_command(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words for ``measure`` itself and, behind ``--``, the command that it is to run."""
    if "measure" not in words[:2] or "--" not in words:
        return list(words), []
    place = list(words).index("--")
    return list(words[:place]), list(words[place + 1 :])


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="perjoule", description="Train it, and know what it cost.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"perjoule {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parsers = parser.add_subparsers(required=True, metavar="VERB")

    for add in (
        _add_train,
        _add_evaluate,
        _add_generate,
        _add_export,
        _add_data,
        _add_estimate,
        _add_measure,
        _add_ls,
        _add_report,
        _add_doctor,
    ):
        add(parsers, shared)
    return parser


def _add_train(parsers: _Parsers, shared: argparse.ArgumentParser) -> None:
    """Add ``train``."""
    train = parsers.add_parser("train", parents=[shared], help="train one model and record what it cost")
    train.add_argument("recipe", nargs="?", help="a YAML file; without one, the defaults")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="such as model.dim=512 stop.steps=200")
    train.add_argument("--resume", type=Path, metavar="RUN", help="continue this run folder")
    train.add_argument("--dry-run", action="store_true", help="check the recipe and print every value with its source")
    train.add_argument("--model", action="store_true", help="with --dry-run: print the model's modules and parameters")
    train.set_defaults(verb=verbs.train)


def _add_evaluate(parsers: _Parsers, shared: argparse.ArgumentParser) -> None:
    """Add ``evaluate``."""
    evaluate = parsers.add_parser(
        "evaluate", parents=[shared], help="loss, thinking, latency, tasks of a trained model"
    )
    evaluate.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    evaluate.add_argument("overrides", nargs="*", metavar="WHAT|key=value", help=EVALUATE_HELP)
    evaluate.set_defaults(verb=verbs.evaluate)


def _add_generate(parsers: _Parsers, shared: argparse.ArgumentParser) -> None:
    """Add ``generate``."""
    generate = parsers.add_parser("generate", parents=[shared], help="generate text from a trained model")
    generate.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    generate.add_argument("overrides", nargs="*", metavar="key=value", help="such as max_new_tokens=64 temperature=0.8")
    generate.add_argument("--prompt", action="append", metavar="TEXT", help="may be given several times")
    generate.add_argument("--prompts", type=Path, metavar="FILE", help=".txt (a prompt per line), .jsonl or .csv")
    generate.add_argument("--output", type=Path, metavar="FILE", help=".jsonl or .csv instead of the terminal")
    generate.add_argument("--append", action="store_true", help="add to the output file")
    generate.add_argument("--overwrite", action="store_true", help="replace the output file")
    generate.set_defaults(verb=verbs.generate)


def _add_export(parsers: _Parsers, shared: argparse.ArgumentParser) -> None:
    """Add ``export``."""
    export = parsers.add_parser("export", parents=[shared], help="write a Hugging Face model folder")
    export.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    export.add_argument("folder", type=Path, metavar="DIR", help="the folder to write, which must not exist")
    export.add_argument("overrides", nargs="*", metavar="key=value", help="checkpoint=last, best or a step")
    export.set_defaults(verb=verbs.export)


def _add_estimate(parsers: _Parsers, shared: argparse.ArgumentParser) -> None:
    """Add ``estimate``."""
    estimate = parsers.add_parser("estimate", parents=[shared], help="what a run will cost, or what is left of one")
    estimate.add_argument("target", nargs="?", metavar="RECIPE|RUN", help="a YAML file or a run folder")
    estimate.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")
    estimate.add_argument("--calibrate", action="store_true", help="measure this machine first, in about a minute")
    estimate.add_argument("--alternatives", action="store_true", help="rank what could be done otherwise")
    estimate.add_argument("--budget", metavar="100kJ|2h|10g", help="models and tokens that fit")
    estimate.add_argument("--device", metavar="NAME", help="an accelerator, by its data sheet, instead of this machine")
    sheet_help = "a data sheet of your own, or a folder of them (docs/estimate.md); may be repeated"
    estimate.add_argument("--device-sheet", type=Path, action="append", default=[], metavar="FILE", help=sheet_help)
    estimate.add_argument("--score", type=Path, nargs="*", metavar="FILE", help="score every method on measured runs")
    estimate.add_argument("--fit", type=Path, nargs="+", default=[], metavar="FILE", help="with --score: to learn from")
    estimate.add_argument("--test", type=Path, nargs="+", default=[], metavar="FILE", help="with --score: unseen rows")
    estimate.add_argument("--figure", type=Path, metavar="FILE.svg", help="with --score: draw what it found")
    estimate.set_defaults(verb=verbs.estimate)


def _add_measure(parsers: _Parsers, shared: argparse.ArgumentParser) -> None:
    """Add ``measure``."""
    measure = parsers.add_parser(
        "measure",
        parents=[shared],
        help="run any program, or follow a running one, and record what it cost",
        usage="perjoule measure [key=value …] [--append] (-- COMMAND … | --pid N)",
    )
    measure.add_argument("overrides", nargs="*", metavar="key=value", help="such as name=mine carbon.location=FRA")
    measure.add_argument("--pid", type=int, action="append", metavar="N", help="follow this process and its children")
    measure.add_argument("--append", action="store_true", help="add to the run folder if it exists")
    measure.set_defaults(verb=verbs.measure)


def _add_ls(parsers: _Parsers, shared: argparse.ArgumentParser) -> None:
    """Add ``ls``."""
    listing = parsers.add_parser("ls", parents=[shared], help="list models, data, meters, recipes or runs")
    listing.add_argument("shelf", nargs="?", help=", ".join(verbs.SHELVES))
    listing.add_argument("folder", nargs="?", type=Path, help="of the recipes or runs")
    listing.set_defaults(verb=verbs.ls)


def _add_report(parsers: _Parsers, shared: argparse.ArgumentParser) -> None:
    """Add ``report``."""
    report = parsers.add_parser("report", parents=[shared], help="show what runs cost: terminal, Markdown, HTML page")
    report.add_argument("runs", nargs="+", metavar="RUN|carbon.key=value", help="run folders; carbon.location=FRA")
    report.add_argument("--output", type=Path, metavar="X.html", help="page to write, with X.md beside it")
    report.set_defaults(verb=verbs.report)


def _add_doctor(parsers: _Parsers, shared: argparse.ArgumentParser) -> None:
    """Add ``doctor``."""
    doctor = parsers.add_parser("doctor", parents=[shared], help="what this machine can do and measure, and how well")
    doctor.add_argument("--again", action="store_true", help="measure anew instead of showing what is known")
    doctor.add_argument("--overhead", action="store_true", help="measure what recording costs, in a minute")
    doctor.add_argument("--quick", action="store_true", help="with --overhead: a few steps only")
    doctor.set_defaults(verb=verbs.doctor)


def _add_data(parsers: _Parsers, shared: argparse.ArgumentParser) -> None:
    """Add ``data`` with a parser for each step, in the order of the pipeline."""
    data = parsers.add_parser("data", help="the data pipeline: download, split, tokenizer, tokenize, inspect")
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
            step.add_argument("--documents", metavar="FIRST:END", help="of a store: show these, 0:1 the first one")
            step.add_argument("--tokens", metavar="N", help="with --documents: of each, 200 unless given")
        step.set_defaults(verb=verbs.data, step=name, num_places=len(places))
