"""The toolkit's files from our ledger, with figures known by hand."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from tests.report import ledgers
from tests.runs.synthetic import finished_run, interrupted_and_resumed_run

from perjoule.core.errors import RunFolderError
from perjoule.measure.bridges.course_files import COURSE_TASK_COLUMNS, FULL_COLUMNS, course_table, write_course_files
from perjoule.measure.contract import Unavailable
from perjoule.measure.ledger import Ledger
from perjoule.runs.tables import Run, load_run

COURSE_COLUMNS = (
    "timestamp,project_name,run_id,experiment_id,duration,emissions,emissions_rate,cpu_power,gpu_power,ram_power,"
    "cpu_energy,gpu_energy,ram_energy,energy_consumed,water_consumed,country_name,country_iso_code,region,"
    "cloud_provider,cloud_region,os,python_version,codecarbon_version,cpu_count,cpu_model,gpu_count,gpu_model,"
    "longitude,latitude,ram_total_size,tracking_mode,on_cloud,pue,wue"
)
J_PER_KWH = 3.6e6


@pytest.fixture
def run(tmp_path: Path) -> Run:
    loaded = load_run(finished_run(tmp_path / "finished"))
    carbon = {"g_per_kwh": 100.0, "pue": 1.5, "location": "CAN-quebec"}
    return replace(
        loaded, segments=tuple(replace(one, facts={**one.facts, "carbon": carbon}) for one in loaded.segments)
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def joules(row: dict[str, str], column: str = "energy_consumed") -> float:
    return float(row[column]) * J_PER_KWH


def test_the_columns_are_those_of_the_codecarbon_that_the_toolkit_uses() -> None:
    assert ",".join(FULL_COLUMNS) == COURSE_COLUMNS and len(FULL_COLUMNS) == 34
    assert len(COURSE_TASK_COLUMNS) == 32 and COURSE_TASK_COLUMNS[0] == "task_name"
    assert not {"experiment_id", "pue", "wue"} & set(COURSE_TASK_COLUMNS)


def test_the_names_are_the_toolkits(run: Run, tmp_path: Path) -> None:
    written = write_course_files(run, ledgers.ledger(), tmp_path / "out", 7, "0")
    assert [str(path.relative_to(tmp_path / "out")) for path in written] == [
        "losses/run_7_cc_loss_rank_0.csv",
        "run_7_cc_full_rank_0.csv",
        "run_7_cc_step_rank_0-steps.csv",
        "run_7_cc_substep_rank_0-substeps.csv",
    ]


def test_losses_are_under_the_columns_0_and_1(run: Run, tmp_path: Path) -> None:
    path = write_course_files(run, Ledger(()), tmp_path, 1, "0")[0]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["0,1", "Step #1,8.0"] and len(lines) == 21


def test_a_run_is_one_row_with_its_carbon(run: Run, tmp_path: Path) -> None:
    (row,) = rows(write_course_files(run, ledgers.ledger(), tmp_path, 1, "0")[1])
    assert joules(row) == pytest.approx(1100) and row["region"] == "quebec"
    assert float(row["emissions"]) == pytest.approx(1100 / J_PER_KWH * 100 * 1.5 / 1e3)


def test_substeps_share_the_energy_of_their_phase_by_time(run: Run, tmp_path: Path) -> None:
    found = rows(write_course_files(run, Ledger((ledgers.gpu(),)), tmp_path, 1, "0")[3])
    assert [row["task_name"] for row in found[:4]] == [
        "Forward pass #1",
        "Backward pass #1",
        "Optimisation step #1",
        "Forward pass #2",
    ]
    assert len(found) == 60
    assert joules(found[0]) == pytest.approx((250 + 130) / 20), "what is nested in a forward pass is part of it"
    assert float(found[0]["duration"]) == pytest.approx(0.030)
    assert joules(found[1], "gpu_energy") == pytest.approx(450 / 20) and found[1]["cpu_energy"] == ""
    assert found[0]["provenance"] == "calibrated+regressed+by time"
    assert found[2]["provenance"] == "shared+by time"


def test_a_step_is_without_its_data_its_evaluation_and_its_checkpoint(run: Run, tmp_path: Path) -> None:
    found = rows(write_course_files(run, Ledger((ledgers.gpu(),)), tmp_path, 1, "0")[2])
    assert len(found) == 20
    assert {round(float(row["duration"]), 6) for row in found} == {0.090}, "100 ms less 10 ms of data"
    assert joules(found[9]) == pytest.approx((250 + 130 + 450 + 60) / 20)
    assert float(found[9]["gpu_power"]) == pytest.approx(joules(found[9]) / 0.090)


def test_segments_of_a_resumed_run_follow_one_another(tmp_path: Path) -> None:
    run = load_run(interrupted_and_resumed_run(tmp_path / "resumed"))
    ledger = Ledger((ledgers.gpu(steps=(1, 13)), ledgers.gpu(2.0, segment=1, steps=(11, 20))))
    found = rows(write_course_files(run, ledger, tmp_path, 1, "0")[2])
    assert len(found) == 13 + 10
    assert found[12]["task_name"] == "Step #13" and found[13]["task_name"] == "Step #11"
    assert sum(map(joules, found)) == pytest.approx(3 * 890)
    assert found[0]["country_name"] == "not given" and "stands in" in found[0]["emissions_basis"]


def test_the_printed_table_has_mean_time_and_energy_of_each_task(run: Run) -> None:
    lines = course_table(run, Ledger((ledgers.gpu(),)))
    assert lines[0].split() == ["task", "number", "mean", "ms", "mean", "J", "provenance"]
    assert lines[2].split() == "Forward pass 20 30.000 19 calibrated+regressed+by time".split()
    assert [line.split()[0] for line in lines[1:]] == ["Step", "Forward", "Backward", "Optimisation"]


def test_without_energy_the_table_says_why(run: Run) -> None:
    assert course_table(run, Ledger(())) == ["no energy: no meter"]
    missing = Ledger((), (("rapl", Unavailable("no powercap here")),))
    assert course_table(run, missing) == ["no energy: no powercap here"]


def test_a_folder_that_cannot_be_made_is_said(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"cannot create .*losses: Not a directory"):
        write_course_files(run, Ledger(()), tmp_path / "file", 1, "0")
