"""CodeCarbon's tables and our own, from ledgers whose figures are known by hand."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.report import ledgers
from tests.runs.synthetic import finished_run, interrupted_and_resumed_run

from perjoule.core.errors import RunFolderError
from perjoule.measure.bridges.codecarbon_schema import RUN_COLUMNS, TASK_COLUMNS
from perjoule.measure.contract import Form, Sensor
from perjoule.measure.ledger import Ledger, StepCurve
from perjoule.report.emissions import ENERGY_COLUMNS, write_emissions
from perjoule.runs.exports import write_csv
from perjoule.runs.tables import Run, load_run

CODECARBON_RUN = (
    "timestamp,project_name,run_id,experiment_id,duration,emissions,emissions_rate,cpu_power,gpu_power,ram_power,"
    "cpu_energy,gpu_energy,ram_energy,energy_consumed,water_consumed,country_name,country_iso_code,region,"
    "cloud_provider,cloud_region,os,python_version,codecarbon_version,cpu_count,cpu_model,gpu_count,gpu_model,"
    "longitude,latitude,ram_total_size,tracking_mode,cpu_utilization_percent,gpu_utilization_percent,"
    "ram_utilization_percent,ram_used_gb,on_cloud,pue,wue"
)
J_PER_KWH = 3.6e6


def with_carbon(run: Run, **facts: object) -> Run:
    known = {**ledgers.GERMANY, "pue": 1.0, **facts}
    segments = tuple(replace(one, facts={**one.facts, "carbon": known}) for one in run.segments)
    return replace(run, segments=segments)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return with_carbon(load_run(finished_run(tmp_path / "finished")))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def joules(row: dict[str, str], column: str = "energy_consumed") -> float:
    return float(row[column]) * J_PER_KWH


def test_the_columns_are_codecarbons_in_its_order() -> None:
    assert ",".join(RUN_COLUMNS) == CODECARBON_RUN and len(RUN_COLUMNS) == 38
    left_out = {"experiment_id", "pue", "wue"}
    assert TASK_COLUMNS == ("task_name", *(name for name in RUN_COLUMNS if name not in left_out))


def test_the_files_begin_with_their_columns(run: Run, tmp_path: Path) -> None:
    paths = write_emissions(run, ledgers.ledger())
    assert [path.name for path in paths] == [
        "emissions.csv",
        "emissions_steps.csv",
        "emissions_phases.csv",
        "energy.csv",
    ]
    assert all(path.parent == run.path for path in paths)
    heads = [path.read_text(encoding="utf-8").splitlines()[0] for path in paths]
    assert heads[0] == f"{CODECARBON_RUN},provenance,energy_parts,emissions_basis"
    assert heads[1] == heads[2] == ",".join((*TASK_COLUMNS, "provenance", "energy_parts", "emissions_basis"))
    assert heads[3] == ",".join(ENERGY_COLUMNS)


def test_the_run_has_its_energy_by_part_with_power_and_carbon(run: Run) -> None:
    (row,) = table(write_emissions(run, ledgers.ledger())[0])
    assert joules(row) == pytest.approx(1100) and joules(row, "gpu_energy") == pytest.approx(1000)
    assert joules(row, "cpu_energy") == pytest.approx(100), "of the process, although it is modelled"
    assert float(row["duration"]) == 13.5
    assert float(row["gpu_power"]) == pytest.approx(1000 / 13.5)
    assert float(row["emissions"]) == pytest.approx(1100 / J_PER_KWH * 360 / 1e3)
    assert float(row["emissions_rate"]) == pytest.approx(float(row["emissions"]) / 13.5)
    assert row["provenance"] == "measured+modelled"


def test_what_is_not_known_is_empty_and_never_zero(run: Run) -> None:
    (row,) = table(write_emissions(run, ledgers.ledger())[0])
    for column in ("ram_energy", "ram_power", "water_consumed", "longitude", "latitude", "gpu_model", "wue"):
        assert row[column] == "", column
    assert row["energy_parts"] == "gpu+cpu; not metered: ram", "memory is not in energy_consumed, and the file says so"


@pytest.mark.parametrize(
    ("sensors", "device", "parts", "gpus"),
    [
        (
            [replace(ledgers.GPU, domain=f"gpu-{n}", model="NVIDIA A40") for n in range(8)],
            "cuda",
            "gpu",
            "8 x NVIDIA A40",
        ),
        (
            [replace(ledgers.GPU, domain=f"gpu-{n}", model=f"Card {n}") for n in (1, 2)],
            "cuda",
            "gpu",
            "1 x Card 1 | 1 x Card 2",
        ),
        ([replace(ledgers.GPU, domain="gpu-1", model="Card"), ledgers.GPU], "cuda", "gpu", ""),
        ([ledgers.CPU, replace(ledgers.CPU, domain="ram", scope="ram")], "cpu", "cpu+ram", ""),
        ([ledgers.CPU], "cuda:0", "cpu", ""),
        ([replace(ledgers.CPU, domain="node", scope="node")], "cuda:0", "node", ""),
        ([replace(ledgers.CPU, domain="psys", scope="psys")], "cuda:0", "psys", ""),
    ],
)
def test_the_file_says_which_parts_were_metered_and_which_gpus(
    run: Run, sensors: list[Sensor], device: str, parts: str, gpus: str
) -> None:
    on_device = tuple(replace(one, facts={**one.facts, "device": device}) for one in run.segments)
    accounts = tuple(ledgers.account(one, [ledgers.bucket("forward", 10.0)]) for one in sensors)
    (row,) = table(write_emissions(replace(run, segments=on_device), Ledger(accounts))[0])
    held, _, missing = row["energy_parts"].partition("; not metered: ")
    assert held == parts and row["gpu_model"] == gpus
    assert row["gpu_count"] == (str(len(sensors)) if "gpu" in parts else "")
    everything = {"node": set(), "psys": {"gpu"}}.get(parts, {"cpu", "ram", *(["gpu"] if device != "cpu" else [])})
    assert set(filter(None, missing.split("+"))) == everything - set(parts.split("+"))


def test_place_and_machine_are_those_of_the_manifest(run: Run) -> None:
    located = with_carbon(run, location="CAN-british-columbia", pue=1.2, water_l_per_kwh=2.0)
    (row,) = table(write_emissions(located, ledgers.ledger())[0])
    assert (row["country_name"], row["country_iso_code"], row["region"]) == ("Canada", "CAN", "british columbia")
    assert (row["run_id"], row["project_name"], row["cpu_model"]) == ("finished", "default", "Test CPU")
    assert (row["codecarbon_version"], row["on_cloud"], row["gpu_count"]) == ("perjoule 0.1", "N", "1")
    assert row["pue"] == "1.2" and row["tracking_mode"] == "machine"
    assert float(row["water_consumed"]) == pytest.approx(1100 / J_PER_KWH * 2.0 * 1.2)
    assert float(row["emissions"]) == pytest.approx(1100 / J_PER_KWH * 0.36 * 1.2)


def test_without_a_location_every_row_has_codecarbons_stand_in_and_says_so(tmp_path: Path) -> None:
    run = load_run(finished_run(tmp_path / "nowhere"))
    paths = write_emissions(run, Ledger((ledgers.cpu(),)))
    for path in paths[:3]:
        for row in table(path):
            kwh = float(row["energy_consumed"])
            assert float(row["emissions"]) == pytest.approx(kwh * 0.475), "as CodeCarbon does where it knows no place"
            assert row["country_name"] == row["country_iso_code"] == "not given", "the dashboard calls .upper() on it"
            assert row["emissions_basis"].startswith("no intensity known: ") and "475 g/kWh" in row["emissions_basis"]
    assert {row["gco2e"] for row in table(paths[3])} == {""}, "our own file says that it is not known"
    (row,) = table(paths[0])
    assert row["tracking_mode"] == "process" and row["gpu_count"] == ""
    assert row["provenance"] == "modelled"


@pytest.mark.parametrize(
    ("facts", "place"),
    [
        ({"location": "DE", "source": "Electricity Maps, life cycle"}, ("Germany", "DEU", "")),
        ({"location": "US-CAL-CISO", "source": "Electricity Maps, life cycle"}, ("United States", "USA", "")),
        ({"location": "GB", "source": "given by the user"}, ("United Kingdom", "GBR", "")),
        ({"location": "XY-1", "source": "given by the user"}, ("not given", "not given", "")),
        ({"location": "USA-new-york", "source": "eGRID"}, ("United States", "USA", "new york")),
    ],
)
def test_a_country_has_its_code_of_three_letters_and_its_name(
    run: Run, facts: dict[str, Any], place: tuple[str, str, str]
) -> None:
    (row,) = table(write_emissions(with_carbon(run, **facts), ledgers.ledger())[0])
    assert (row["country_name"], row["country_iso_code"], row["region"]) == place
    assert facts["location"] in row["emissions_basis"] and "360 g/kWh" in row["emissions_basis"]


def test_the_dashboard_finds_a_number_and_a_text_wherever_it_needs_one(run: Run, tmp_path: Path) -> None:
    """What ``codecarbon.viz`` 3.3.2 does with a file; the dashboard itself: ``benchmarks/carbonboard.py``."""
    nowhere = load_run(finished_run(tmp_path / "nowhere"))
    written = [write_emissions(one, ledgers.ledger())[:3] for one in (run, nowhere)]
    for rows in zip(*[[table(path) for path in paths] for paths in written], strict=True):
        merged = sorted([*rows[0], *rows[1]], key=lambda row: row["timestamp"])
        for column in ("duration", "emissions", "energy_consumed"):
            assert sum(float(row[column]) for row in merged) > 0, "they are added up"
        for row in merged:
            assert (
                all(row[column] for column in ("project_name", "country_name", "timestamp")) and row["on_cloud"] == "N"
            )
            assert row["country_iso_code"].upper()


def test_phases_add_up_to_the_run_with_a_word_for_each(run: Run) -> None:
    rows = table(write_emissions(run, ledgers.ledger())[2])
    names = [row["task_name"] for row in rows]
    assert names[:2] == ["data", "forward"] and names[-3:] == ["outside", "monitor", "unknown"]
    assert sum(map(joules, rows)) == pytest.approx(1100)
    forward = rows[names.index("forward")]
    assert forward["provenance"] == "calibrated+modelled"
    assert joules(forward, "gpu_energy") == pytest.approx(250) and joules(forward, "cpu_energy") == pytest.approx(20)
    assert float(forward["duration"]) == 1.0, "two domains were metered over the same second"
    assert rows[names.index("unknown")]["cpu_energy"] == ""


def test_steps_are_grouped_to_five_refreshes_and_close_with_the_rest(run: Run) -> None:
    rows = table(write_emissions(run, ledgers.ledger())[1])
    groups = rows[:-1]
    assert rows[-1]["task_name"] == "Start-up, first step and end"
    assert sum(map(joules, rows)) == pytest.approx(1100), "unlike CodeCarbon's, nothing is lost between tasks"
    assert all(float(row["duration"]) >= 0.5 - 1e-9 for row in groups), "refresh 0.1 s"
    assert groups[0]["task_name"] == "Steps #2-6" and joules(groups[0]) == pytest.approx(0.9 / 20 * 5 * 1100)
    total_s = sum(float(row["duration"]) for row in rows)
    assert total_s == pytest.approx(13.5)


def test_a_fast_meter_has_a_row_for_each_step(run: Run) -> None:
    ledger = Ledger((ledgers.cpu(refresh_s=0.001),))
    rows = table(write_emissions(run, ledger)[1])
    assert [row["task_name"] for row in rows[:3]] == ["Step #2", "Step #3", "Step #4"]
    assert len(rows) == 20 and {row["provenance"] for row in rows} == {"modelled"}


def test_a_segment_without_steps_has_only_its_rest(run: Run) -> None:
    none = StepCurve(np.empty(0, np.int64), np.empty(0, np.int64))
    (row,) = table(write_emissions(run, Ledger((ledgers.gpu(by_step=none),)))[1])
    assert row["task_name"] == "Start-up, first step and end" and joules(row) == pytest.approx(1000)


def test_segments_of_a_resumed_run_add_up_each_with_its_intensity(tmp_path: Path) -> None:
    run = with_carbon(load_run(interrupted_and_resumed_run(tmp_path / "resumed")))
    first = replace(run.segments[0], facts={**run.segments[0].facts, "carbon": {"g_per_kwh": 100.0}})
    run = replace(run, segments=(first, run.segments[1]))
    ledger = Ledger((ledgers.gpu(steps=(1, 13)), ledgers.gpu(2.0, segment=1, steps=(11, 20))))
    run_csv, steps_csv, phases_csv, energy_csv = write_emissions(run, ledger)
    (row,) = table(run_csv)
    assert float(row["duration"]) == 27
    assert float(row["emissions"]) == pytest.approx((1000 * 0.1 + 2000 * 0.36) / J_PER_KWH)
    for path in (steps_csv, phases_csv):
        rows = table(path)
        assert sum(map(joules, rows)) == pytest.approx(3000)
        assert sum(float(one["emissions"]) for one in rows) == pytest.approx(float(row["emissions"]))
    forward = next(one for one in table(energy_csv) if one["bucket"] == "forward")
    assert forward["energy_j"] == "750.000000" and forward["time_s"] == "2.0"
    assert float(forward["gco2e"]) == pytest.approx((250 * 100 + 500 * 360) / J_PER_KWH)


def test_energy_csv_has_every_bucket_with_its_word_and_interval(run: Run) -> None:
    rows = table(write_emissions(run, ledgers.ledger())[3])
    assert len(rows) == 7 + 5 + 2
    assert {row["provenance"] for row in rows} == {"measured", "calibrated", "regressed", "shared", "modelled"}
    gpu = [row for row in rows if row["domain"] == "gpu-0"]
    assert sum(round(float(row["energy_j"]) * 1e6) for row in gpu) == 1_000_000_000
    data = gpu[0]
    assert (data["bucket"], data["low_j"], data["high_j"], data["tier"]) == ("data", "0.000000", "90.000000", "shared")
    assert data["why"] == ledgers.SHORT and data["idle_j"] == "" and gpu[1]["idle_j"] == "60.000000"
    assert float(data["gco2e_high"]) == pytest.approx(90 / J_PER_KWH * 360)


def test_a_domain_inside_another_is_listed_and_not_added(run: Run) -> None:
    ledger = ledgers.ledger()
    (row,) = table(write_emissions(run, ledger)[0])
    inside = {row["domain"] for row in table(run.path / "energy.csv") if row["in_total"] == "no"}
    assert inside == {"mig-0"} and joules(row) == pytest.approx(1100)


def test_a_whole_machine_is_in_the_total_only(run: Run) -> None:
    plug = Sensor("node", Form.POWER, "node", "wall plug", "µW", 1.0)
    (row,) = table(write_emissions(run, Ledger((ledgers.account(plug, (ledgers.bucket("forward", 500),)),)))[0])
    assert joules(row) == pytest.approx(500)
    assert row["cpu_energy"] == row["gpu_energy"] == row["ram_energy"] == ""


def test_negative_microjoules_stay_exact(run: Run) -> None:
    ledger = Ledger((ledgers.account(ledgers.GPU, (ledgers.bucket("forward", 1, low_uj=-1_500_000),)),))
    (row,) = table(write_emissions(run, ledger)[3])
    assert row["low_j"] == "-1.500000"


def test_a_run_without_a_meter_writes_nothing(run: Run) -> None:
    assert write_emissions(run, Ledger(())) == ()
    assert not (run.path / "emissions.csv").exists()


def test_another_folder_leaves_the_run_alone(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    assert write_emissions(run, ledgers.ledger(), folder)[0] == folder / "emissions.csv"
    assert not (run.path / "emissions.csv").exists()


def test_a_table_that_cannot_be_written_keeps_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot write"):
        write_csv(tmp_path / "gone" / "x.csv", ("a",), [])
