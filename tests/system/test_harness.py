"""The LM-evaluation harness gives a run and its exported folder the same scores, and the command line runs it."""

import json
import re
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import lm_eval  # type: ignore[import-untyped]
import pytest
from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]
from tests.system.tiny import Tiny, run_of

import perjoule.models.huggingface  # noqa: F401  (tells transformers of the architectures)
from perjoule.cli import main
from perjoule.evaluate.contract import Findings
from perjoule.evaluate.harness import HarnessConfig, harness
from perjoule.evaluate.trained import load_trained
from perjoule.export import ExportConfig, export

TASKS = Path(__file__).parents[1] / "evaluate" / "tasks"
SHORT = ("harness.limit=6", "harness.bootstrap=10")
SEQ_LEN = 32
"""Shorter than the longest of the sentences, and than the questions with their examples."""


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No network, no cache but ours, and nothing of the harness that takes seconds."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: pytest.fail(f"the network was asked: {arguments}"))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # datasets tells its makers of every load otherwise
        monkeypatch.setattr(datasets.config, name, True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")  # it would draw documents anew in a pool of processes
    yield


def trained_and_exported(tiny: Tiny, folder: Path, kind: str) -> Path:
    run = run_of(tiny.train(f"model.kind={kind}", f"data.seq_len={SEQ_LEN}", "stop.steps=20"))
    export(run, folder, ExportConfig())
    return run


def of_the_run(run: Path, **settings: Any) -> Findings:
    config = HarnessConfig(tasks=(str(TASKS),), batch_size=4, log_samples=True, bootstrap=10, **settings)
    return harness(load_trained(run), config, lambda line: None)


def of_the_folder(folder: Path, tasks: list[str], shots: int | None = None, **settings: Any) -> dict[str, Any]:
    """Return what the harness says of an exported folder, by its own means."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and transformers' own, of what this model class of the harness does
        from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]

        model = HFLM(pretrained=str(folder), device="cpu", batch_size=3, **settings)
        manager = TaskManager(include_path=str(TASKS), include_defaults=False)
        found: dict[str, Any] = lm_eval.simple_evaluate(
            model, tasks=tasks, task_manager=manager, num_fewshot=shots, bootstrap_iters=10
        )
    return found


@pytest.mark.parametrize("kind", ["transformer", "retnet", "longnet", "ebt"])
def test_a_run_has_the_scores_that_the_harness_gives_to_its_exported_folder(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run = trained_and_exported(tiny, tmp_path / "exported", kind)
    sentences = map(json.loads, (TASKS / "sentences.jsonl").read_text(encoding="utf-8").splitlines())
    tokenizer = load_trained(run).tokenizer
    assert max(len(tokenizer.encode(one["text"])) for one in sentences) > SEQ_LEN, "one is to need several windows"
    ours = of_the_run(run, num_fewshot=3)
    monkeypatch.chdir(TASKS)  # where the harness looks for the data
    theirs = of_the_folder(tmp_path / "exported", ["words", "sentences", "copies"], shots=3)
    assert ours.details["left_out"]["requests"] > 0, "contexts that are too long are to be among them"
    assert {metric.of for metric in ours.metrics} == theirs["results"].keys()
    for metric in ours.metrics:
        scores = theirs["results"][metric.of]
        assert metric.value == pytest.approx(scores[f"{metric.name},none"], rel=1e-4), metric
        if metric.name in {"acc", "acc_norm", "exact_match"}:
            assert metric.stderr == pytest.approx(scores[f"{metric.name}_stderr,none"], rel=1e-6), metric
    for name, samples in theirs["samples"].items():
        for one, other in zip(samples, ours.details["samples"][name], strict=True):
            assert one["doc"] == other["doc"]
            if name == "copies":
                assert other["resps"] == one["resps"]
            else:
                assert numbers(other["resps"]) == pytest.approx(numbers(one["resps"]), abs=1e-4)


def numbers(answers: Any) -> list[float]:
    """Return every log-likelihood, and every flag as 0 or 1, of nested lists."""
    if isinstance(answers, list | tuple):
        return [number for answer in answers for number in numbers(answer)]
    return [float(answers)]


def test_texts_without_their_beginning_have_the_scores_of_a_tokenizer_without_one(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained_and_exported(tiny, tmp_path / "exported", "transformer")
    ours = of_the_run(run, score_bos=False)
    monkeypatch.chdir(TASKS)
    theirs = of_the_folder(tmp_path / "exported", ["sentences"], add_bos_token=False)["results"]["sentences"]
    (bits,) = [metric.value for metric in ours.metrics if metric.name == "bits_per_byte"]
    assert bits == pytest.approx(theirs["bits_per_byte,none"], rel=1e-5)


def test_the_command_line_shows_and_keeps_the_scores(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tiny.train("data.seq_len=32"))
    capsys.readouterr()
    assert main(["evaluate", str(run), "harness", f"harness.tasks=[{TASKS}/words.yaml]", *SHORT]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^next_word +acc +0\.\d+ ± 0\.\d+$", printed, re.MULTILINE)
    assert re.search(r"^words +acc +0\.\d+ ± 0\.\d+$", printed, re.MULTILINE)
    (file,) = (run / "evaluations").glob("*harness*.json")
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert kept["details"]["groups"] == {"words": ["next_word", "first_word"]}
    assert {metric["of"] for metric in kept["metrics"]} == {"next_word", "first_word", "words"}


def test_the_command_line_says_what_is_no_task(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tiny.train())
    assert main(["evaluate", str(run), "harness", "harness.tasks=arc_esy"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("perjoule: harness.tasks arc_esy: the LM-evaluation harness has no such task")
    assert "did you mean arc_easy?" in last
