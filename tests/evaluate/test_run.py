"""``perjoule evaluate``: what is asked for, what is printed, and what stays in the run folder."""

import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.system.tiny import Tiny, run_of

from perjoule.config import resolve
from perjoule.core.errors import CheckpointError, ConfigError
from perjoule.evaluate import run as module
from perjoule.evaluate.contract import Findings, Metric
from perjoule.evaluate.run import KINDS, EvaluationConfig, evaluate, table_of
from perjoule.evaluate.trained import Trained
from perjoule.runs.checkpoints import best_step
from perjoule.runs.evaluations import read_evaluations
from perjoule.runs.folder import RunFolder


def config_of(*overrides: str) -> EvaluationConfig:
    return resolve.load(EvaluationConfig, None, overrides).config


def lines_of(run: Path, *words: str, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Return what the command would print."""
    names = [word for word in words if "=" not in word]
    return list(evaluate(run, names, config_of(*(word for word in words if "=" in word)), say))


def test_a_table_has_as_many_digits_as_the_error_leaves_and_says_what_is_missing() -> None:
    metrics = [
        Metric("loss", 5.65393, "nats/token", 0.0199, of="validation"),
        Metric("perplexity", 285.41, "1", 5.76, 274.3, 296.9, of="validation"),
        Metric("bits_per_byte", None, "bits/byte", of="validation"),
        Metric("flops_per_token", 264380.0, "FLOP/token", of="1 step"),
        Metric("time_per_token", 1.25e-4, "s/token", None, 1.1e-4, 1.4e-4, of="1 step"),
        Metric("tiny", 3.21e-12, "J", 4.5e-14),
        Metric("huge", 3.21e12, "FLOP", 4.5e9),
        Metric("exact", 0.5, "1", 0.0),
        Metric("unexplained", None, "1"),
    ]
    lines = list(table_of(Findings(metrics, {"bits_per_byte": "not measured: the data is not text"})))
    numbers = ["5.654 ± 0.020", "285.4 ± 5.8", "-", "2.6438e+05", "0.000125 [0.00011, 0.00014]"]
    numbers += ["3.21e-12 ± 4.5e-14", "3.21e+12 ± 4.5e+09", "0.5", "-"]
    assert [line[29:56] for line in lines[:-2]] == [f"{number:>27}" for number in numbers]
    units = ["nats/token", "", "bits/byte", "FLOP/token", "s/token", "J", "FLOP", "", ""]
    assert [line[58:] for line in lines[:-2]] == units
    assert lines[3].startswith("1 step      flops_per_token  ")
    assert lines[-2:] == [
        "bits_per_byte: not measured: the data is not text",
        "unexplained: not measured: no reason is given",
    ]
    assert list(table_of(Findings([], {}))) == []


def test_loss_is_evaluated_if_nothing_is_named_and_everything_is_kept(tiny: Tiny) -> None:
    run = run_of(tiny.train())
    said: list[str] = []
    lines = lines_of(run, "loss.splits=test", "loss.batches=5", "loss.batch_size=4", say=said.append)
    assert lines[:2] == [f"{run}, step 5, on cpu", ""]
    assert lines[2].split()[:2] == ["test", "loss"]
    assert lines[2].endswith("nats/token")
    assert lines[-2:] == [str(run / "evaluations/0001-loss.json"), str(run / "evaluations/evaluations.csv")]
    assert len(said) == 1
    assert said[0].startswith("loss: test, 20 of 20 rows, ")
    entry = json.loads((run / "evaluations/0001-loss.json").read_text(encoding="utf-8"))
    assert (entry["schema"], entry["run"], entry["kind"], entry["step"]) == (1, run.name, "loss", 5)
    assert (entry["checkpoint"], entry["device"]) == ("last", "cpu")
    assert entry["settings"] == {"splits": ["test"], "batches": 5, "batch_size": 4}
    assert {"name", "cores", "python", "torch", "perjoule"} <= entry["host"].keys()
    assert 0 < entry["seconds"] < 30
    assert entry["details"]["splits"]["test"]["num_rows"] == 20
    with (run / "evaluations/evaluations.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["metric"] for row in rows] == ["loss", "perplexity", "bits_per_token", "bits_per_byte", "accuracy"]
    assert {row["run"] for row in rows} == {run.name}
    assert float(rows[0]["value"]) == entry["metrics"][0]["value"]
    assert float(rows[0]["stderr"]) == entry["metrics"][0]["stderr"]
    assert set(entry["metrics"][0]) == set(asdict(Metric("", None, "")))


def test_evaluations_run_in_the_order_asked_for_and_each_once(tiny: Tiny) -> None:
    run = run_of(tiny.train("model.kind=ebt"))
    lines_of(run, "thinking", "loss", "thinking", "thinking.steps=1", "thinking.batches=1", "thinking.candidates=[]")
    lines_of(run)
    found = read_evaluations(run)
    assert [one.file for one in found] == ["0001-thinking.json", "0002-loss.json", "0003-loss.json"]
    assert found[0].settings["steps"] == [1]
    assert found[1].metrics == found[2].metrics


def test_what_was_found_before_a_failure_is_kept(tiny: Tiny) -> None:
    run = run_of(tiny.train())
    with pytest.raises(ConfigError, match="a model of kind transformer cannot think"):
        lines_of(run, "loss", "thinking")
    assert [one.kind for one in read_evaluations(run)] == ["loss"]


def test_an_unknown_evaluation_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^no evaluation 'los': did you mean 'loss'\? \(accepted: harness, latency, l"
    ):
        lines_of(tmp_path / "none", "loss", "los")


def test_a_wrong_setting_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^loss\.split: unknown key: did you mean 'splits'\?"):
        config_of("loss.split=test")
    with pytest.raises(ConfigError, match=r"^checkpoint: "):
        config_of("checkpoint=newest")
    assert config_of("checkpoint=200").checkpoint == 200


def test_every_evaluation_has_settings_of_its_own_name() -> None:
    assert set(KINDS) == set(EvaluationConfig.model_fields) - {"checkpoint", "device", "data"}


def test_the_checkpoint_is_the_one_that_was_asked_for(tiny: Tiny) -> None:
    run = run_of(tiny.train("checkpoint.every_steps=2", "evaluate.every_steps=2", "optimizer.lr=0.3"))
    for asked in ("last", "best", "4"):
        lines_of(run, f"checkpoint={asked}", "loss.batches=1")
    last, best, fourth = read_evaluations(run)
    assert (last.step, best.step, fourth.step) == (5, best_step(run / "checkpoints"), 4)
    assert (last.checkpoint, best.checkpoint, fourth.checkpoint) == ("last", "best", 4)
    with pytest.raises(CheckpointError, match="has no checkpoint of step 3"):
        lines_of(run, "checkpoint=3")


def test_a_run_that_is_being_trained_can_be_evaluated(tiny: Tiny) -> None:
    run = run_of(tiny.train())
    writer = RunFolder.reopen(run)
    try:
        lines_of(run, "loss.batches=1")
    finally:
        writer.close()
    assert len(read_evaluations(run)) == 1


def test_progress_goes_to_standard_error(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def speaking(trained: Trained, settings: Any, say: Callable[[str], None]) -> Findings:
        say(f"half of {trained.step} steps")
        return Findings([], {})

    monkeypatch.setitem(module.KINDS, "loss", speaking)
    run = run_of(tiny.train())
    capsys.readouterr()
    list(evaluate(run, (), config_of()))
    assert capsys.readouterr() == ("", "half of 5 steps\n")
