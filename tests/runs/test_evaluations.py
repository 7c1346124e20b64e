"""Evaluations in a run folder: numbered files, one table of all of them, several writers, kills."""

import csv
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perjoule.core.errors import RunFolderError
from perjoule.runs.evaluations import COLUMNS, EVALUATIONS, TABLE, Evaluation, read_evaluations, record_evaluation

LOSS = {"name": "loss", "value": 2.5, "unit": "nats/token", "stderr": 0.1, "low": None, "high": None, "of": "test"}
BITS = {"name": "bits_per_byte", "value": None, "unit": "bits/byte", "stderr": None, "of": "test"}
FOUND = Evaluation(
    kind="loss",
    step=200,
    checkpoint="best",
    device="cpu",
    host={"name": "here", "torch": "2.13"},
    settings={"splits": ["test"]},
    seconds=1.5,
    metrics=[LOSS, BITS],
    details={"bits_per_byte": "the data is not text"},
)
WRITER = """
import sys
from pathlib import Path
from perjoule.runs.evaluations import Evaluation, record_evaluation
for number in range(12):
    metric = {"name": "loss", "value": float(number), "unit": "nats", "of": sys.argv[2]}
    found = Evaluation(sys.argv[2], 1, "last", "cpu", {}, {}, 0.0, [metric], {})
    record_evaluation(Path(sys.argv[1]), found)
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"schema": 1, "status": "running"}', encoding="utf-8")
    return folder


def table(run: Path) -> list[dict[str, str]]:
    with (run / EVALUATIONS / TABLE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_an_evaluation_is_a_numbered_file_and_a_row_for_each_metric(run: Path) -> None:
    file, rows = record_evaluation(run, FOUND)
    assert (file, rows) == (run / EVALUATIONS / "0001-loss.json", run / EVALUATIONS / "evaluations.csv")
    entry = json.loads(file.read_text(encoding="utf-8"))
    assert (entry["schema"], entry["run"], entry["kind"], entry["step"]) == (1, "first", "loss", 200)
    assert (entry["checkpoint"], entry["device"], entry["host"]["torch"]) == ("best", "cpu", "2.13")
    assert (entry["settings"], entry["details"]) == (FOUND.settings, FOUND.details)
    assert entry["metrics"][0] == LOSS
    first, second = table(run)
    assert tuple(first) == COLUMNS
    assert first == {
        "date": entry["date"],
        "run": "first",
        "step": "200",
        "kind": "loss",
        "of": "test",
        "metric": "loss",
        "value": "2.5",
        "stderr": "0.1",
        "low": "",
        "high": "",
        "unit": "nats/token",
        "file": "0001-loss.json",
    }
    assert (second["metric"], second["value"]) == ("bits_per_byte", "")


def test_what_was_recorded_is_read_back_in_order(run: Path) -> None:
    assert read_evaluations(run) == []
    for kind in ("thinking", "loss", "latency"):
        record_evaluation(run, replace(FOUND, kind=kind))
    read = read_evaluations(run)
    assert [one.file for one in read] == ["0001-thinking.json", "0002-loss.json", "0003-latency.json"]
    assert replace(read[1], date="", file="") == FOUND
    assert read[0].date <= read[2].date


def test_a_number_that_is_not_finite_is_null_in_the_file_and_empty_in_the_table(run: Path) -> None:
    metric = {**LOSS, "value": math.inf, "stderr": math.nan}
    details = {"curve": (1.0, math.nan), "by_step": {2: "two"}}
    file, _ = record_evaluation(run, replace(FOUND, metrics=[metric], details=details))
    entry = json.loads(file.read_text(encoding="utf-8"))
    assert (entry["metrics"][0]["value"], entry["metrics"][0]["stderr"]) == (None, None)
    assert entry["details"] == {"curve": [1.0, None], "by_step": {"2": "two"}}
    assert (table(run)[0]["value"], table(run)[0]["stderr"]) == ("", "")


def test_evaluators_at_the_same_time_get_numbers_of_their_own_and_lose_nothing(run: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(run), kind]) for kind in ("loss", "thinking", "x")]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    files = sorted(path.name for path in (run / EVALUATIONS).glob("*.json"))
    assert [int(name[:4]) for name in files] == list(range(1, 37))
    for kind in ("loss", "thinking", "x"):
        assert [row["value"] for row in table(run) if row["of"] == kind] == [str(float(n)) for n in range(12)]
    assert [row["file"] for row in table(run)] == files


@pytest.mark.parametrize("kept", [0, 1, 60, 130])
def test_a_table_that_a_kill_cut_off_is_whole_after_the_next_evaluation(run: Path, kept: int) -> None:
    _, rows = record_evaluation(run, FOUND)
    whole = rows.read_text(encoding="utf-8")
    assert kept < len(whole)
    rows.write_text(whole[:kept], encoding="utf-8")
    record_evaluation(run, FOUND)
    assert rows.read_text(encoding="utf-8").startswith(whole)
    assert len(table(run)) == 4


def test_a_file_that_a_disk_damaged_is_left_out_and_its_number_stays_taken(run: Path) -> None:
    damaged, _ = record_evaluation(run, FOUND)
    foreign, _ = record_evaluation(run, FOUND)
    damaged.write_text('{"schema": 1, "kind"', encoding="utf-8")
    foreign.write_text("[1, 2]", encoding="utf-8")
    (run / EVALUATIONS / "notes-mine.json").write_text("{}", encoding="utf-8")
    assert record_evaluation(run, FOUND)[0].name == "0003-loss.json"
    assert [one.file for one in read_evaluations(run)] == ["0003-loss.json"]
    assert {row["file"] for row in table(run)} == {"0003-loss.json"}


def test_an_evaluation_of_a_newer_perjoule_is_not_misread(run: Path) -> None:
    file, _ = record_evaluation(run, FOUND)
    entry: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**entry, "schema": 2}), encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"0001-loss\.json has schema 2; this perjoule reads 1: upgrade perjoule$"):
        read_evaluations(run)


def test_a_folder_that_is_no_run_or_cannot_be_written_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is not a run folder: it has no manifest\.json$"):
        record_evaluation(tmp_path, FOUND)
    with pytest.raises(RunFolderError, match=r"no run folder"):
        read_evaluations(tmp_path / "none")
    (run / EVALUATIONS).write_text("in the way", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"cannot write .*evaluations: File exists$"):
        record_evaluation(run, FOUND)
