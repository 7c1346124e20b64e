"""The files that GAISSA's studies write, in small: columns and spellings are theirs, figures are made."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from perjoule.core.errors import DataError
from perjoule.estimate.contract import Measurement
from perjoule.estimate.imports import read_measurements

GPU_2022 = (
    "timestamp,gpu_name,gpu_usage,gpu_memory_usage,gpu_total_memory,gpu_memory_used,gpu_power_draw,gpu_max_power,"
    "gpu_temperature"
)
GPU_2023 = (
    "timestamp, name, utilization.gpu [%], utilization.memory [%], memory.total [MiB], memory.used [MiB], "
    "power.draw [W], power.max_limit [W], temperature.gpu"
)
PROCESSED_2023: dict[str, object] = {
    "training environment": "Local ML Engineer/Gamer",
    "architecture": "mobilenet_v2",
    "run": 3,
    "training duration (h)": 0.5,
    "gpu model": "NVIDIA GeForce RTX 3070",
    "gpu usage (%)": 40.0,
    "average power draw (W)": 120.0,
    "max power limit (W)": 240.0,
    "energy (MJ)": 0.216,
    "training size": 23807,
    "validation size": 10203,
    "batch size": 32,
    "GFLOPs": 0.064,
    "trained epochs": 98,
}
PROCESSED_2024: dict[str, object] = {
    "training environment": "Cloud",
    "architecture": "inception_v3",
    "dataset": "stanford_dogs",
    "run_id": "ab",
    "training duration (h)": 0.5,
    "gpu model": "NVIDIA GeForce RTX 3090",
    "gpu usage (%)": 80.0,
    "average gpu power (W)": 200.0,
    "max power limit (W)": 350.0,
    "gpu energy (MJ)": 0.36,
    "ram energy (MJ)": 0.01,
    "energy (MJ)": 0.37,
    "training size": 12000,
    "validation size": 8580,
    "batch size": 256,
    "image size": "(128,128)",
    "GFLOPs": 1.507,
    "total ram (GB)": 32,
    "measured epochs": 100,
    "return code": 0.0,
}


def table(folder: Path, rows: Sequence[Mapping[str, object]], name: str = "data.gzip") -> Path:
    """Write rows as the study does: Parquet that is called .gzip; or as CSV."""
    path = folder / name
    if name.endswith(".csv"):
        lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, compression="gzip")
    return path


def raw(folder: Path, header: str, time: str, *, epochs: int = 0) -> Path:
    """Write a run of 100 s at 200.5 W, and three more samples, in the study's layout."""
    folder.mkdir(parents=True)
    start = np.datetime64("2023-03-02T09:00:00.500")
    stamps = [str(start + np.timedelta64(second * 1000, "ms")).replace("T", " ") for second in range(104)]
    if "." in header:
        stamps = [stamp.replace("-", "/") for stamp in stamps]
    watts = ["[N/A]" if at == 50 else "200.50 W" if at < 101 else "30.00 W" for at in range(104)]
    fixed = "50 %, 5 %, 8192 MiB, 7375 MiB"
    lines = [f"{at}, NVIDIA GeForce RTX 3070, {fixed}, {w}, 240.00 W, 40" for at, w in zip(stamps, watts, strict=True)]
    (folder / f"gpu-power-{time}.csv").write_text("\n".join([header, *lines]) + "\n")
    used = [f"2023-03-02T09:00:{at:02d}.1,1.0,16000.0,30.0" for at in range(50)]
    (folder / "cpu-mem-usage-20230302T090003.csv").write_text(
        "\n".join(["timestamp,cpu usage (%),memory usage (MB),temperature (Celsius)", *used])
    )
    if epochs:
        ends = [f"{at},{start + np.timedelta64((at + 1) * 100_000 // epochs, 'ms')}" for at in range(epochs)]
        (folder / f"epoch_end-{time}.csv").write_text("\n".join(["epoch,end_time", *ends]).replace("T", " "))
    return folder


def only(found: list[Measurement]) -> Measurement:
    (one,) = found
    return one


@pytest.mark.parametrize("name", ["data.gzip", "data.csv"])
def test_the_table_of_runs_of_2023_gives_totals_of_the_gpu(tmp_path: Path, name: str) -> None:
    one = only(read_measurements([table(tmp_path, [PROCESSED_2023], name)]))
    assert (one.job.device.name, one.job.host, one.job.batch_size) == ("RTX 3070", "gaissa Local ML Engineer", 32)
    assert (one.total_s, one.total_j, one.watts, one.utilization) == pytest.approx((1800, 216_000, 120, 0.4))
    assert one.seconds_per_epoch is None and one.scopes.device_j is None  # its epochs disagree with those of 2024


@pytest.mark.parametrize("name", ["data.gzip", "data.csv"])
def test_the_table_of_runs_of_2024_gives_epochs_and_takes_memory_apart(tmp_path: Path, name: str) -> None:
    failed = PROCESSED_2024 | {"run_id": "cd", "return code": -9.0}
    said: list[str] = []
    one = only(read_measurements([table(tmp_path, [PROCESSED_2024, failed], name)], say=said.append))
    assert (one.job.batch_size, one.job.workload.sample_size, one.job.ram_gb) == (256, 128, 32)
    assert (one.seconds_per_epoch, one.scopes.gpu_j, one.scopes.ram_j) == pytest.approx((18, 3600, 100))
    assert one.job.workload.trained_share == 0
    assert "1 of 2 rows left out" in said[0] and "the run ended with code -9.0" in said[0]


def test_the_table_of_epochs_gives_each_run_with_its_epochs(tmp_path: Path) -> None:
    epochs: list[dict[str, object]] = [
        {
            "training environment": "Cloud",
            "architecture": "inception_v3",
            "dataset": "caltech101",
            "run_id": run,
            "epoch": epoch,
            "duration (s)": 60.0 if epoch == 0 else 2.0,
            "batch size": 64,
            "image size": "(75,75)",
            "total ram (GB)": 32,
            "mean gpu power (W)": 150.0,
            "gpu energy (kJ)": 9.0 if epoch == 0 else 0.3,
            "ram energy (kJ)": 0.02,
        }
        for run in ("a", "b")
        for epoch in range(4)
    ]
    found = read_measurements([table(tmp_path, epochs)])
    assert [one.replicate for one in found] == ["a", "b"]
    assert [one.seconds for one in found[0].epochs] == [60, 2, 2, 2]
    assert found[0].scopes.gpu_j == pytest.approx(9900 / 4) and found[0].scopes.ram_j == pytest.approx(20)
    assert found[0].job.device.name == "RTX 3090"
    with pytest.raises(DataError, match="the GPU of the environment 'Moon' is unknown; known: Local Normal User"):
        read_measurements([table(tmp_path, [one | {"training environment": "Moon"} for one in epochs])])


@pytest.mark.parametrize(("header", "time"), [(GPU_2022, "20230302T090000"), (GPU_2023, "20230302T090000")])
def test_raw_samples_are_integrated_without_the_last_three(tmp_path: Path, header: str, time: str) -> None:
    folder = raw(tmp_path / "raw" / "local-v2" / "vgg16", header, time)
    for path in (tmp_path, folder / f"gpu-power-{time}.csv"):
        one = only(read_measurements([path]))
        assert (one.total_s, one.total_j) == pytest.approx((100, 20_050))
        assert (one.job.workload.dataset, one.job.batch_size, one.utilization) == ("chesslive", 32, 0.5)
        assert one.epochs == () and one.seconds_per_epoch is None


def test_raw_samples_with_ends_of_epochs_give_a_series(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "raw" / "local-v2" / "inception_v3" / "stanford_dogs"
    raw(folder, GPU_2023, "20230302T090000", epochs=10)
    with pytest.raises(DataError, match=r"batch and image size are not in the samples, and no out/oom-experiments"):
        read_measurements([tmp_path])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "oom-experiments_1.csv").write_text(
        "start_time,architecture,dataset,input_size,batch_size,return_code\n"
        "2023-03-02 08:00:00,inception_v3,stanford_dogs,224,32,0\n"
        "2023-03-02 08:59:40,inception_v3,stanford_dogs,128,256,0\n"
    )
    one = only(read_measurements([tmp_path]))
    assert (one.job.batch_size, one.job.workload.sample_size) == (256, 128)
    assert [epoch.joules for epoch in one.epochs] == pytest.approx([2005] * 10)
    assert one.scopes.ram_j == pytest.approx(16000 * 3.75e-4 * 10)
    assert one.seconds_per_epoch == pytest.approx(10)


def test_the_table_of_all_samples_gives_a_run_for_each_of_its_names(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {
            "train_environment": "cloud",
            "architecture": "resnet50",
            "dataset": "chesslive-occupancy",
            "run_id": run,
            "timestamp": (np.datetime64("2023-03-02T09:00:00", "ms") + np.timedelta64(second, "s")).astype(object),
            "gpu_name": "NVIDIA GeForce RTX 3090",
            "gpu_usage": 0.5,
            "gpu_power_draw": watts,
            "gpu_max_power": 350.0,
            "memory_power_draw": 6.0,
            "epoch": second // 20,
        }
        for run, watts in (("a", 100.0), ("b", 300.0))
        for second in range(100)
    ]
    found = read_measurements([table(tmp_path, rows)])
    assert {one.replicate: one.watts for one in found} == pytest.approx({"a": 100, "b": 300})
    assert [len(one.epochs) for one in found] == [5, 5]
    assert found[0].total_j == pytest.approx(9900) and found[0].job.batch_size == 32


def test_samples_outside_the_layout_of_the_study_are_refused(tmp_path: Path) -> None:
    raw(tmp_path / "mine", GPU_2022, "20230302T090000")
    with pytest.raises(DataError, match="must lie in ENVIRONMENT/ARCHITECTURE/DATASET, the first of local, local-v2"):
        read_measurements([tmp_path])
