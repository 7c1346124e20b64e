"""The command line: verbs, shelves, exit codes, and what it does not import."""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.system.tiny import Tiny, losses, run_of, write_corpus

import perjoule
from perjoule.cli import arguments, main, verbs
from perjoule.cli.verbs import SHELVES
from perjoule.config import yaml
from perjoule.runs.folder import CONFIG, read_manifest

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = """
import sys
from perjoule.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
heavy = sorted({"torch", "tokenizers", "safetensors"} & sys.modules.keys())
print(f"imported {heavy}, code {code}", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    return run_of(Tiny(write_corpus(folder / "corpus"), folder / "runs").train("name=small"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["ls"],
        ["ls", "models"],
        ["ls", "data"],
        ["ls", "measure"],
        ["ls", "recipes"],
        ["ls", "runs", "RUNS"],
        ["report", "RUN"],
        ["ls", "modles"],
    ],
    ids=" ".join,
)
def test_verbs_that_train_nothing_never_import_torch(arguments: list[str], trained: Path) -> None:
    places = {"RUN": str(trained), "RUNS": str(trained.parent)}
    command = [sys.executable, "-c", WITHOUT_TORCH, *(places.get(word, word) for word in arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == f"imported [], code {2 if 'modles' in arguments else 0}"


def test_python_m_perjoule_is_the_command(trained: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "perjoule", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"perjoule {perjoule.__version__}\n"
    refused = subprocess.run([sys.executable, "-m", "perjoule", "ls", "modles"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("perjoule: no shelf 'modles': did you mean 'models'?")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(("verb", "full", "code"), [("ls", False, 141), ("report", False, 141), ("ls", True, 1)])
def test_output_that_nobody_can_read_has_an_exit_code_and_leaves_the_files(
    verb: str, full: bool, code: int, trained: Path
) -> None:
    page = trained / "report.html"
    page.unlink(missing_ok=True)
    reading, writing = os.pipe()
    os.close(reading)
    words = ["ls", "models"] if verb == "ls" else ["report", str(trained)]
    with os.fdopen(writing, "w") as gone, Path("/dev/full").open("w", encoding="utf-8") as disk:
        command = [sys.executable, "-m", "perjoule", *words]
        done = subprocess.run(command, stdout=disk if full else gone, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == code
    said = "perjoule: standard output: No space left on device; what was printed there is incomplete\n"
    assert done.stderr == (said if full else "")
    assert page.is_file() == (verb == "report")


def test_training_goes_on_without_its_terminal(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["train", *tiny.arguments("name=unseen")]) == 0
        monkeypatch.undo()
    assert read_manifest(tiny.runs / "unseen")["status"] == "finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("as_what", [None, ImportError, SystemExit], ids=str)
def test_a_signal_ends_any_verb_with_its_code(
    number: signal.Signals,
    as_what: type[BaseException] | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_away = []

    def verb(options: argparse.Namespace) -> int:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as stopped:
            if as_what is not None:  # as libraries do that were interrupted while they were imported
                raise as_what(0) from stopped
            raise
        finally:
            put_away.append(number)
        return 0

    before = signal.getsignal(number)
    monkeypatch.setattr(verbs, "ls", verb)
    assert main(["ls", "models"]) == 128 + number
    assert put_away == [number]
    assert signal.getsignal(number) is before
    assert capsys.readouterr().err == f"perjoule: stopped by {number.name}\n"


@pytest.mark.parametrize("moment", ["build_parser", "split_command"])
def test_a_signal_before_the_verb_began_ends_with_its_code(
    moment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*words: object) -> None:
        signal.raise_signal(signal.SIGHUP)

    monkeypatch.setattr(arguments, moment, interrupted)
    before = signal.getsignal(signal.SIGHUP)
    assert main(["ls", "models"]) == 129
    assert signal.getsignal(signal.SIGHUP) is before
    assert capsys.readouterr().err == "perjoule: stopped by SIGHUP\n"


def test_a_signal_that_a_library_swallowed_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def verb(options: argparse.Namespace) -> int:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr(verbs, "ls", verb)
    assert main(["ls", "models"]) == 143


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (PermissionError(13, "Permission denied", "x.yaml"), 1, "x.yaml: Permission denied"),
        (MemoryError(), 1, "out of memory"),
        (KeyError("data"), 70, "a fault of perjoule's, please report it: KeyError: 'data' ("),
    ],
    ids=["system", "memory", "ours"],
)
def test_an_error_that_nobody_foresaw_is_one_line(
    error: Exception,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def verb(options: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(verbs, "ls", verb)
    assert main(["ls", "models"]) == code
    said = capsys.readouterr().err
    assert said.startswith(f"perjoule: {line}")
    assert said.count("\n") == 1
    with pytest.raises(type(error)):
        main(["ls", "models", "--debug"])


@pytest.mark.parametrize("shelf", ["models", "data", "measure", "estimate"])
def test_every_shelf_is_listed_with_a_line_for_each_entry(shelf: str, capsys: pytest.CaptureFixture[str]) -> None:
    from importlib import import_module

    assert main(["ls", shelf]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = import_module(f"perjoule.{shelf}").SHELF.names()
    assert [line.split()[0] for line in lines] == names
    assert all(len(line.split()) > 3 for line in lines), "each says what it is"


def test_shelves_recipes_and_runs_are_listed(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["ls"]) == 0
    assert capsys.readouterr().out.split() == list(SHELVES)
    monkeypatch.chdir(ROOT)
    assert main(["ls", "recipes"]) == 0
    assert re.search(r"^recipes/default\.yaml +The default: ", capsys.readouterr().out, re.MULTILINE)
    assert main(["ls", "runs", str(trained.parent)]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split() == ["run", "status", "began", "loss", "energy", "time", "why", "it", "ended"]
    began = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.fullmatch(rf"{trained}  finished  {began}  \d\.\d{{4}} +– +[\d.]+ \S*s  reached 5 steps", line)


def test_what_cannot_be_read_hides_nothing_of_a_list(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_bytes("# größer\n".encode("latin-1"))
    os.mkfifo(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_text("# the third\nseed: 1\n", encoding="utf-8")
    assert main(["ls", "recipes", str(tmp_path)]) == 0
    lines = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["(cannot be read: not UTF-8)", "(not a file)", "the third"]
    shutil.copytree(trained, tmp_path / "runs" / "b\x1b[2J\nc")
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "manifest.json").write_text("{", encoding="utf-8")
    assert main(["ls", "runs", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr().out
    assert "b\\x1b[2J c  finished" in shown
    assert len(shown.splitlines()) == 3


def test_a_figure_of_another_format_is_refused_before_anything_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--score", "none.csv", "--figure", "a.png"]) == 2
    assert capsys.readouterr().err == (
        "perjoule: cannot draw a.png: figures are SVG; accepted: a name that ends in .svg\n"
    )


def test_a_report_takes_place_and_price_afterwards(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(trained), "carbon.location=FRA", "carbon.price_per_kwh=0.25"]) == 0
    assert "carbon.location=FRA" in (trained / "report.md").read_text(encoding="utf-8").replace("\\", "")
    assert main(["report", str(trained), "model.dim=3"]) == 2
    assert "such as carbon.location=FRA" in capsys.readouterr().err


def test_a_folder_without_recipes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "recipes", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"perjoule: no recipes (*.yaml) in {tmp_path}\n"


def test_a_dry_run_prints_every_value_with_its_source_and_creates_nothing(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {kind: transformer, preset: 4xs}\nbatch:\n  size: 6\n")
    assert main(["train", str(recipe), "--dry-run", f"runs={tiny.runs}", "stop.steps=9"]) == 0
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["model.dim"] == ["128", "preset 4xs"]
    assert rows["batch.size"] == ["6", f"{recipe}:3"]
    assert rows["stop.steps"] == ["9", "command line"]
    assert rows["seed"] == ["0", "default"]
    assert rows["runs"] == [str(tiny.runs), "command line"]
    assert not tiny.runs.exists()


def test_options_may_stand_between_overrides(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 5\n")
    assert main(["train", str(recipe), "batch.size=2", "--dry-run", "seed=7"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^batch\.size +2 +command line$", shown, re.MULTILINE)
    assert re.search(r"^seed +7 +command line$", shown, re.MULTILINE)
    assert main(["train", "--dry-run", "seed=9"]) == 0, "without a recipe the first word is an override"
    assert re.search(r"^seed +9 +command line$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("arguments", [[], ["trian"], ["ls", "models", "x", "y"], ["train", "--dryrun"]], ids=str)
def test_what_is_not_understood_has_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: perjoule" in capsys.readouterr().err


def test_training_from_a_recipe_names_the_run_after_it_and_says_what_is_next(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "quick.yaml"
    recipe.write_text("seed: 0\n")
    assert main(["train", str(recipe), *tiny.arguments()]) == 0
    (run,) = tiny.runs.iterdir()
    assert re.fullmatch(r"quick-\d{8}-\d{6}-[0-9a-f]{4}", run.name)
    assert read_manifest(run)["recipe"] == "quick"
    assert capsys.readouterr().out.endswith(f"what it cost: perjoule report {run}\n")
    # The configuration that it leaves behind trains the same again.
    assert main(["train", str(run / CONFIG), "name=again"]) == 0
    assert losses(tiny.runs / "again") == losses(run)
    assert yaml.load((run / CONFIG).read_text(), "config.yaml").data["seed"] == 0
    resolved = json.loads((run / "resolved.json").read_text())
    assert resolved["seed"] == {"value": 0, "source": f"{recipe}:1"}
    assert resolved["batch.size"] == {"value": 4, "source": "command line"}


def test_resume_takes_its_recipe_from_the_run(tiny: Tiny) -> None:
    run = run_of(tiny.train("schedule.kind=constant"))
    assert main(["train", "--resume", str(run), "stop.steps=8"]) == 0
    assert losses(run) == tiny.losses_of("schedule.kind=constant", "stop.steps=8")


def test_report_shows_a_run_and_compares_two(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(trained), str(trained), "--output", str(page)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [str(page), str(page.with_suffix(".md"))]
    assert page.read_text(encoding="utf-8").count("small") > 1


@pytest.fixture
def small_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import partial

    from perjoule.train import doctor, probe

    monkeypatch.setenv("PERJOULE_CACHE", str(tmp_path))
    monkeypatch.setattr(probe, "SHAPES", ((64, 64, 64),))
    monkeypatch.setattr(doctor, "meter_lines", partial(doctor.meter_lines, 0.0))


def test_doctor_says_what_the_machine_can_do_and_keeps_it(
    small_probes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from perjoule.train import probe

    assert main(["doctor"]) == 0
    first = capsys.readouterr().out
    for expected in (
        r"^matmul +float32-highest +[\d.]+ [GMT]FLOP/s +relative error \d",
        r"^matmul +bf16 ",
        r"^memory ",
        r"^meter +cpu_time +cpu: counter, modelled, scope process; refresh .*, window not known, resolution 1 µs, "
        r"read in [\d.]+ [µm]s; modelled from CPU time",
        r"^meter +nvidia +not available: ",
        r"^meter +replay +not available: needs to be told path; energy\.meters=\[{kind: replay, path: …}\]$",
        r"^overhead +not measured: perjoule doctor --overhead$",
    ):
        assert re.search(expected, first, re.MULTILINE), expected
    assert list(tmp_path.glob("machine-*.json"))
    monkeypatch.setattr(probe, "best_s", lambda run, budget_s: 1.0)  # a machine that has become very busy
    assert main(["doctor"]) == 0
    kept = [line for line in first.splitlines() if not line.startswith(("load", "meter"))]
    assert set(kept) <= set(capsys.readouterr().out.splitlines()), "what was better before is kept"
    assert main(["doctor", "--again"]) == 0
    assert re.search(r"^memory +copy bandwidth +512 MB/s", capsys.readouterr().out, re.MULTILINE)


def test_doctor_measures_what_recording_costs_when_asked(
    small_probes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--overhead", "--quick"]) == 0
    found = capsys.readouterr().out
    arms = "no-op again", "time", "energy", "synchronised energy", "synchronising"
    for arm in arms:
        assert re.search(rf"^overhead +{arm} +\d\.\d{{3}} \[\d\.\d{{3}}, \d+\.\d{{3}}\]", found, re.MULTILINE), arm
    assert main(["doctor"]) == 0
    assert set(found.splitlines()) <= set(capsys.readouterr().out.splitlines()), "and keeps it"


def test_doctor_has_nothing_to_hurry_without_the_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--quick"]) == 2
    expected = "perjoule: --quick shortens the overhead experiment: give --overhead as well\n"
    assert capsys.readouterr().err == expected


def test_the_package_itself_is_the_verb(tiny: Tiny) -> None:
    from typing import Any

    package: Any = perjoule
    result = package.train(perjoule.load(None, *tiny.arguments("stop.steps=1")))
    assert result.step == 1
    assert package.train.__name__ == "perjoule.train", "and still the module"
    with pytest.raises(AttributeError, match="module 'perjoule' has no attribute 'trian'"):
        _ = package.trian


def test_inspect_prints_json_for_programs(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(corpus), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found


@pytest.mark.parametrize("words", [["--score"], ["--score", "a.csv", "--fit", "b.csv"], ["--score", "--fit", "b.csv"]])
def test_scoring_without_measured_runs_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *words]) == 2
    line = "perjoule: --score needs measured runs: --score FILE…, or --score --fit FILE… --test FILE…\n"
    assert capsys.readouterr().err == line


def test_rows_to_score_without_scoring_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--fit", "a.csv"]) == 2
    assert capsys.readouterr().err == "perjoule: --fit, --test and --figure need --score\n"


def test_scores_are_drawn_where_energy_was_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(__file__).parents[1] / "estimate" / "data"
    fit, test = (str(data / f"summary_power_{device}.csv") for device in ("v100", "p100"))
    figure = tmp_path / "scores.svg"
    assert main(["estimate", "--score", "--fit", fit, "--test", test, "--figure", str(figure)]) == 0
    assert "physical" in capsys.readouterr().out
    assert "physical" in figure.read_text(encoding="utf-8")

    monkeypatch.setattr("perjoule.estimate.score.score_unseen", lambda *arguments: [])
    assert main(["estimate", "--score", "--fit", fit, "--test", test, "--figure", str(figure)]) == 6
    assert capsys.readouterr().err.startswith(f"perjoule: {figure} was not drawn: no energy was estimated")


def test_a_configuration_made_in_python_is_trained_and_says_so(tiny: Tiny) -> None:
    from perjoule.runs.folder import read_resolved
    from perjoule.train.run import train

    config = perjoule.load(None, *tiny.arguments("stop.steps=1")).config
    result = train(config)
    assert result.run is not None
    assert read_resolved(result.run)["model.dim"] == {"value": 32, "source": "Python"}


def test_estimate_says_what_is_left_of_a_run(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny.train("stop.steps=9").run
    assert main(["estimate", str(run)]) == 0
    assert "steps left" in capsys.readouterr().out
