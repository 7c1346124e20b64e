"""Files of others: what is read from them, and what is said of those that cannot be used."""

import gzip
import os
from pathlib import Path
from statistics import median

import pytest
from tests.estimate.measured import DATA, GAISSA, ZEUS, gaissa_runs

from perjoule.core.errors import ConfigError, DataError
from perjoule.estimate.devices import Device
from perjoule.estimate.imports import read_measurements
from perjoule.estimate.imports.emissions import read_emissions
from perjoule.estimate.imports.gaissa import RAM_OVER_GPU, read_gaissa
from perjoule.estimate.imports.table import Row
from perjoule.estimate.imports.zeus import read_zeus

ZEUS_HEADER = "dataset,network,batch_size,optimizer,power_limit,time_per_epoch,average_power"
ZEUS_LINE = "imagenet,resnet50,64,adadelta,250,3754.3,222.9"
EMISSIONS_HEADER = "run_id,project_name,duration,cpu_energy,gpu_energy,ram_energy,gpu_model,cpu_model,pue"
GAISSA_LINES = GAISSA.read_text().splitlines()


def write(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def change(line: str, column: str, value: str) -> str:
    """Return a line of the GAISSA table with another cell; it has one quoted cell at the end at most."""
    cells = line.split(",")
    cells[GAISSA_LINES[0].split(",").index(column)] = value
    return ",".join(cells)


def gaissa_line(kind: str) -> str:
    return next(line for line in GAISSA_LINES if line.startswith(kind))


def test_a_zeus_line_is_a_measurement_of_the_device_in_the_file_name(tmp_path: Path) -> None:
    (one,) = read_zeus(write(tmp_path, "summary_power_v100.csv", ZEUS_HEADER, ZEUS_LINE))
    assert one.job.device.name == "V100"
    assert (one.job.batch_size, one.job.limit_w, one.study) == (64, 250, "Zeus")
    assert one.job.workload_key == ("resnet50", "imagenet", "adadelta")
    assert (one.seconds_per_epoch, one.watts) == (3754.3, 222.9)
    assert one.scopes.gpu_j == pytest.approx(3754.3 * 222.9)
    assert one.scopes.cpu_j is one.scopes.ram_j is one.scopes.pue is None


def test_traces_of_devices_that_were_never_measured_here_are_read_too(tmp_path: Path) -> None:
    for name, device in (("a40", "A40"), ("rtx6000", "RTX 6000")):
        (one,) = read_zeus(write(tmp_path, f"summary_power_{name}.csv", ZEUS_HEADER, ZEUS_LINE))
        assert one.job.device.name == device


def test_gpu_and_modelled_memory_are_taken_apart_in_the_gaissa_runs() -> None:
    one = next(one for one in gaissa_runs() if one.source.endswith("run_krr_recovered"))
    gpu_j, ram_j, watts, seconds = one.scopes.gpu_j, one.scopes.ram_j, one.watts, one.seconds_per_epoch
    assert gpu_j is not None and ram_j is not None and watts is not None and seconds is not None
    assert ram_j == pytest.approx(RAM_OVER_GPU * gpu_j)
    assert seconds == pytest.approx(gpu_j / watts)


def test_derived_epoch_durations_agree_with_those_that_were_timed() -> None:
    timed = {one.job.configuration_key: one for one in gaissa_runs() if one.source.endswith("config_epoch_duration")}
    ratios = [
        (one.seconds_per_epoch or 0) / (timed[one.job.configuration_key].seconds_per_epoch or 0)
        for one in gaissa_runs()
        if one.source.endswith("run_krr_recovered") and one.job.configuration_key in timed
    ]
    assert len(ratios) > 50
    assert median(ratios) == pytest.approx(1, abs=0.01)
    assert 0.9 < min(ratios) and max(ratios) < 1.1


def test_both_sets_of_chess_runs_share_their_configurations() -> None:
    keys: dict[str, set[tuple[str, ...]]] = {}
    for one in gaissa_runs():
        if one.job.workload.dataset == "chesslive":
            keys.setdefault(one.source.split()[-1], set()).add(one.job.configuration_key)
    assert keys["run_seaa2023"] <= keys["run_krr_recovered"]


def test_whole_runs_give_use_and_total_but_nothing_per_epoch() -> None:
    one = next(one for one in gaissa_runs() if one.source.endswith("run_seaa2023"))
    assert one.seconds_per_epoch is None and one.scopes.device_j is None
    assert one.total_s and one.total_j and one.utilization
    assert one.total_j == pytest.approx(one.total_s * (one.watts or 0), rel=0.03)


def test_a_sensor_that_shows_the_same_at_any_load_is_not_trusted() -> None:
    assert {one.job.device.name for one in gaissa_runs() if not one.trusted} == {"GTX 750 Ti"}


def test_a_frozen_network_has_no_backward_pass_but_a_head() -> None:
    frozen = next(one.job.workload for one in gaissa_runs() if one.job.workload.dataset == "caltech101")
    tuned = next(one.job.workload for one in gaissa_runs() if one.job.workload.dataset == "chesslive")
    assert frozen.trained_share == 0 and frozen.head_parameters > 1e6
    assert tuned.trained_share == 0.9 and tuned.head_parameters == 0


def test_codecarbon_keeps_its_scopes_apart_and_reads_0_as_not_metered(tmp_path: Path) -> None:
    path = write(tmp_path, "emissions.csv", EMISSIONS_HEADER, "r1,demo,100,0.001,0.002,0,1 x NVIDIA A40,Some CPU,1.2")
    (one,) = read_emissions(path)
    assert one.job.device.name == "A40"
    assert one.scopes.gpu_j == pytest.approx(7200) and one.scopes.cpu_j == pytest.approx(3600)
    assert one.scopes.ram_j is None
    assert one.watts == pytest.approx(72)
    assert (one.scopes.pue, one.replicate) == (1.2, "r1")


def test_codecarbon_without_a_gpu_is_a_run_on_the_processor(tmp_path: Path) -> None:
    path = write(tmp_path, "emissions.csv", EMISSIONS_HEADER, "r1,demo,100,0.001,,,,Some CPU,")
    cpu = Device("Some CPU", {"fp32": 1e12}, 1e11, 1e10, 65, 10, 8)
    (one,) = read_emissions(path, {"Some CPU": cpu})
    assert one.job.device is cpu and one.total_j == pytest.approx(3600)
    with pytest.raises(ConfigError, match="no data sheet of the device 'Some CPU'"):
        read_emissions(path)


def test_codecarbon_without_any_energy_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "emissions.csv", EMISSIONS_HEADER, "r1,demo,100,0,0,0,,Some CPU,")
    with pytest.raises(DataError, match="line 2: neither gpu_energy nor cpu_energy is above 0: nothing was measured"):
        read_emissions(path)


def test_the_format_of_a_file_is_told_by_its_columns(tmp_path: Path) -> None:
    emissions = write(tmp_path, "x.csv", EMISSIONS_HEADER, "r1,demo,100,0.001,0.002,0,A40,Some CPU,1.2")
    found = read_measurements([GAISSA, *ZEUS, emissions])
    assert {one.study for one in found} == {"GAISSA", "Zeus", "CodeCarbon"}
    assert len(found) == sum(len(path.read_text().splitlines()) - 1 for path in (GAISSA, *ZEUS, emissions))


def test_a_file_of_no_known_format_is_told_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no known format\. Accepted, .*: the GAISSA table \(record_type"):
        read_measurements([write(tmp_path, "x.csv", "a,b,c", "1,2,3")])


def test_a_file_that_is_missing_or_empty_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.csv: No such file or directory"):
        read_measurements([tmp_path / "none.csv"])
    empty = tmp_path / "empty.csv"
    empty.touch()
    with pytest.raises(DataError, match=r"empty\.csv is empty: the first line must name its columns"):
        read_measurements([empty])


def test_a_missing_column_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    path = write(tmp_path, "summary_power_v100.csv", ZEUS_HEADER.replace("average_power", "mean_power"), ZEUS_LINE)
    with pytest.raises(DataError, match="no column 'average_power'"):
        read_measurements([path])


def test_a_column_that_one_kind_of_line_needs_is_named(tmp_path: Path) -> None:
    row = Row(tmp_path / "x.csv", 2, {"watts": "5"})
    with pytest.raises(DataError, match=r"x\.csv: no column 'watt': did you mean 'watts'\?"):
        row.number("watt")


@pytest.mark.parametrize("value", ["-3", "0", "nan", "inf", "many"])
def test_a_figure_that_cannot_be_is_refused_with_its_line(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, "summary_power_v100.csv", ZEUS_HEADER, ZEUS_LINE.replace("3754.3", value))
    with pytest.raises(DataError, match=f"line 2: time_per_epoch must be above 0, not '{value}'"):
        read_zeus(path)


def test_an_empty_cell_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "summary_power_v100.csv", ZEUS_HEADER, ZEUS_LINE.replace("3754.3", ""))
    with pytest.raises(DataError, match="line 2: time_per_epoch is empty"):
        read_zeus(path)


def test_a_line_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "summary_power_v100.csv", ZEUS_HEADER, ZEUS_LINE.rpartition(",")[0])
    with pytest.raises(DataError, match="line 2: 6 cells, and 7 columns"):
        read_zeus(path)


def test_watts_far_above_the_limit_are_taken_for_another_unit(tmp_path: Path) -> None:
    path = write(tmp_path, "summary_power_v100.csv", ZEUS_HEADER, ZEUS_LINE.replace("222.9", "222900"))
    with pytest.raises(DataError, match=r"is 892 times the limit of 250 W: both must be in watts"):
        read_zeus(path)
    line = change(gaissa_line("run_krr_recovered"), "avg_gpu_power_w", "5000")
    with pytest.raises(DataError, match="line 2: 5000 W on average is"):
        read_gaissa(write(tmp_path, "g.csv", GAISSA_LINES[0], line))


def test_a_use_above_a_hundred_percent_is_refused(tmp_path: Path) -> None:
    line = change(gaissa_line("run_seaa2023"), "gpu_util_pct", "130")
    with pytest.raises(DataError, match="gpu_util_pct must be above 0 and at most 100, not '130'"):
        read_gaissa(write(tmp_path, "g.csv", GAISSA_LINES[0], line))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("gpu", "GTX 5", "no data sheet of the device 'GTX 5'"),
        ("architecture", "vgg", "unknown architecture 'vgg': did you mean 'vgg16'?"),
        ("record_type", "run", "line 2: unknown record_type 'run'"),
    ],
)
def test_a_gaissa_line_with_an_unknown_name_is_refused(tmp_path: Path, column: str, value: str, message: str) -> None:
    path = write(tmp_path, "g.csv", GAISSA_LINES[0], change(gaissa_line("run_krr_recovered"), column, value))
    with pytest.raises((ConfigError, DataError)) as caught:
        read_gaissa(path)
    assert message in str(caught.value)


def test_a_zeus_trace_without_a_device_or_with_unknown_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a Zeus trace says its device in its name: summary_power_v100\.csv"):
        read_zeus(write(tmp_path, "power.csv", ZEUS_HEADER, ZEUS_LINE))
    path = write(tmp_path, "summary_power_v100.csv", ZEUS_HEADER, ZEUS_LINE.replace("imagenet", "imagenets"))
    with pytest.raises(DataError, match=r"line 2: unknown dataset 'imagenets': did you mean 'imagenet'\?"):
        read_zeus(path)


def test_the_data_beside_the_tests_has_its_source_and_licence() -> None:
    text = (DATA / "README.md").read_text()
    for path in DATA.glob("*.csv"):
        assert path.name in text
    assert "CC BY 4.0" in text and "Apache-2.0" in text


def test_rows_that_cannot_be_used_are_left_out_counted_and_named(tmp_path: Path) -> None:
    bad = (
        ZEUS_LINE.replace("222.9", "301.8"),  # 1.207 times the limit
        ZEUS_LINE.replace("3754.3", "nan"),
        ZEUS_LINE.replace("resnet50", "resnet51"),
        ZEUS_LINE.rpartition(",")[0],
        'imagenet,"resnet50,64,adadelta,250,3754.3,222.9',
    )
    said: list[str] = []
    found = read_measurements(
        [write(tmp_path, "summary_power_v100.csv", ZEUS_HEADER, ZEUS_LINE, *bad, ZEUS_LINE)], say=said.append
    )
    assert len(found) == 2
    assert "5 of 7 rows left out: line 3: 301.8 W on average is 1.21 times the limit of 250 W" in said[0]
    assert "line 4: time_per_epoch" in said[0] and "unknown architecture 'resnet51'" in said[0]
    assert "and 2 more" in said[0] and len(said) == 1


def test_a_table_without_a_mark_of_what_was_left_out_tells_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (EMISSIONS_HEADER, "r1,demo,100,0.001,0.002,0,A40,C,1.2", "r2,demo,100,0.001,0.002,0,B40,C,1.2")
    assert len(read_emissions(write(tmp_path, "emissions.csv", *lines))) == 1
    assert "1 of 2 rows left out: no data sheet of the device 'B40'" in caplog.text


@pytest.mark.parametrize(
    "model", ["8 x NVIDIA A40", "8xA40", "A40 x8", "A40 (x8)", "NVIDIA A40", "|".join(8 * ["A40"])]
)
def test_a_run_on_eight_gpus_gives_watts_and_joules_of_one(tmp_path: Path, model: str) -> None:
    header, line = EMISSIONS_HEADER + ",gpu_count", f"r,p,3600,0.8,1.9,0,{model},Some CPU,1.0,8"
    (one,) = read_emissions(write(tmp_path, "emissions.csv", header, line))
    assert (one.job.device.name, one.num_devices) == ("A40", 8)
    assert one.watts == pytest.approx(237.5)
    assert one.total_j == pytest.approx(1.9 / 8 * 3.6e6) and one.scopes.cpu_j == pytest.approx(0.1 * 3.6e6)


@pytest.mark.parametrize(
    ("model", "count", "message"),
    [
        ("4 x A40", "8", "gpu_count is 8, and gpu_model says 4"),
        ("A40 | A100", "2", "gpu_model names several kinds"),
        ("A40", "1.5", "gpu_count must be a whole number"),
        ("0 x A40", "", "gpu_model names 0 devices"),
        ("A40", "", "times the limit of 300 W: both must be in watts and of one device"),
    ],
)
def test_a_number_of_gpus_that_cannot_be_told_is_refused(tmp_path: Path, model: str, count: str, message: str) -> None:
    header, line = EMISSIONS_HEADER + ",gpu_count", f"r,p,3600,0.8,1.9,0,{model},Some CPU,1.0,{count}"
    with pytest.raises(DataError, match=message):
        read_emissions(write(tmp_path, "emissions.csv", header, line))


def test_two_processors_are_two_devices(tmp_path: Path) -> None:
    cpu = Device("Intel Xeon", {"fp32": 1e12}, 1e11, 1e10, 150, 10, 8)
    path = write(tmp_path, "emissions.csv", EMISSIONS_HEADER, "r1,demo,100,0.002,,,,2 x Intel Xeon,")
    (one,) = read_emissions(path, {"Intel Xeon": cpu})
    assert one.num_devices == 2 and one.watts == pytest.approx(36)


def test_a_name_of_several_devices_is_refused_where_one_is_asked_for(tmp_path: Path) -> None:
    line = change(gaissa_line("run_krr_recovered"), "gpu", "2 x RTX 3090")
    with pytest.raises(ConfigError, match="'2 x RTX 3090' names 2 devices"):
        read_gaissa(write(tmp_path, "g.csv", GAISSA_LINES[0], line))
    with pytest.raises(ConfigError, match="'4xv100' names 4 devices"):
        read_zeus(write(tmp_path, "summary_power_4xv100.csv", ZEUS_HEADER, ZEUS_LINE))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_table_may_have_a_byte_order_mark_or_be_compressed(tmp_path: Path, encoding: str) -> None:
    text = f"{ZEUS_HEADER}\r\n{ZEUS_LINE}\r\n".encode(encoding)
    for content in (text, gzip.compress(text)):
        path = tmp_path / "summary_power_v100.csv"
        path.write_bytes(content)
        assert len(read_measurements([path])) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ZEUS_HEADER.encode() + b"\nimag\xe9net,", r"line 2: byte 0xe9 is not UTF-8"),
        (f'"{ZEUS_HEADER}\n{ZEUS_LINE}'.encode(), "line 1: the names of the columns cannot be read"),
        (f"{ZEUS_HEADER},network\n".encode(), "two columns are called 'network'"),
        (f"{ZEUS_HEADER}\n".encode(), "has its columns and no row"),
        (b"PAR1 and no more", "cannot read"),
        (b"\x1f\x8b and no more", "cannot read"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "summary_power_v100.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_measurements([path])
    assert "\n" not in str(caught.value)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="it is no regular file"):
        read_measurements([tmp_path / "pipe.csv"])
