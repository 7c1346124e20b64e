"""The modelled energy of the processor: exact CPU time, stated watts."""

import csv
import os
import statistics
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.measure.meters.conftest import Build
from tests.measure.programs import ASLEEP, Start

from perjoule.measure.contract import Form, Meter, Unavailable
from perjoule.measure.meters import cpu_time
from perjoule.measure.meters.cpu_time import CpuTimeConfig, physical_cores


def only(found: tuple[Meter | Unavailable, ...]) -> Meter:
    (meter,) = found
    assert not isinstance(meter, Unavailable), meter
    return meter


def energy_uj(meter: Meter) -> int:
    raw = meter.read()
    assert isinstance(raw, int)
    return raw


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_energy_is_idle_power_times_time_plus_active_power_times_cpu_time(build: Build) -> None:
    before_s, before_cpu_s = time.monotonic(), time.process_time()
    meter = only(build(CpuTimeConfig(active_w_per_core=12, idle_w_per_core=2, cores=3), os.getpid()))
    inner_s, inner_cpu_s = time.monotonic(), time.process_time()
    burn(0.1)
    low_s, low_cpu_s = time.monotonic() - inner_s, time.process_time() - inner_cpu_s
    used_uj = energy_uj(meter)
    high_s, high_cpu_s = time.monotonic() - before_s, time.process_time() - before_cpu_s
    share = physical_cores(os.sched_getaffinity(0)) / len(os.sched_getaffinity(0))
    assert 6e6 * low_s + 10e6 * share * low_cpu_s <= used_uj <= 6e6 * high_s + 10e6 * share * high_cpu_s
    assert meter.sensor.idle_w == 6
    assert meter.sensor.limit_w == 36


def test_figure_is_said_to_be_modelled_with_its_watts_cores_and_source(build: Build) -> None:
    sensor = only(build(CpuTimeConfig(cores=2), os.getpid())).sensor
    assert (sensor.domain, sensor.scope, sensor.form, sensor.unit) == ("cpu", "process", Form.COUNTER, "µJ")
    assert (sensor.modelled, sensor.accuracy) == (True, (0.5, 2.0))
    assert sensor.method == (
        "modelled from CPU time: 7 W a busy and 1.8 W an idle core, 2 cores "
        "(medians of public tables for 12 processors; not of this machine)"
    )
    given = CpuTimeConfig(active_w_per_core=9.5, idle_w_per_core=0.5)
    assert "9.5 W a busy and 0.5 W an idle core" in only(build(given, os.getpid())).sensor.method
    assert only(build(given, os.getpid())).sensor.method.endswith("(watts given by the user)")
    partly = only(build(CpuTimeConfig(active_w_per_core=9.5), os.getpid())).sensor.method
    assert "(partly given by the user, else medians of public tables" in partly


def test_config_that_went_to_another_process_says_the_same_of_its_source(build: Build) -> None:
    sent = CpuTimeConfig.model_validate_json(CpuTimeConfig().model_dump_json())
    assert "given by the user" not in only(build(sent, os.getpid())).sensor.method


def table(name: str) -> list[dict[str, str]]:
    text = (Path(cpu_time.__file__).parent / name).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def test_default_of_the_watts_is_the_median_of_the_tables_whose_rows_name_their_sources() -> None:
    busy, idle = table("processors.csv"), table("idle_power.csv")
    values = [float(row["tdp_w"]) / float(row["cores"]) for row in busy]
    assert len(values) == 12
    assert CpuTimeConfig().active_w_per_core == pytest.approx(statistics.median(values), abs=0.2)
    assert min(values) == pytest.approx(7.0 * 0.5, abs=0.1) and max(values) < 7.0 * 2.0
    shares = [float(row["idle_w"]) / float(row["full_w"]) for row in idle]
    assert CpuTimeConfig().idle_w_per_core / 7.0 == pytest.approx(statistics.median(shares), abs=0.01)
    assert min(shares) > 0.15 and max(shares) < 0.37
    assert {row["tdp_source"] for row in busy} == {"codecarbon"} and {row["source"] for row in idle} == {"ccf"}
    assert {row["cores_source"] for row in busy} == {"boavizta", "green-algorithms"}


def test_cores_are_those_that_the_processes_may_use(build: Build, start: Start) -> None:
    child = start(ASLEEP)
    first = min(os.sched_getaffinity(0))
    os.sched_setaffinity(child.pid, {first})
    alone = physical_cores({first})
    assert only(build(CpuTimeConfig(idle_w_per_core=1), child.pid)).sensor.idle_w == pytest.approx(alone)
    everything = physical_cores(os.sched_getaffinity(0))
    both = only(build(CpuTimeConfig(idle_w_per_core=1), child.pid, os.getpid()))
    assert both.sensor.idle_w == pytest.approx(everything)


@pytest.mark.parametrize(
    ("siblings", "cores"), [(["0,2", "1,3", "0,2", "1,3"], 2.0), (["0-1", "0-1", "2", "3"], 3.0), (["", "", "", ""], 4)]
)
def test_hyper_threads_are_parts_of_a_physical_core(siblings: list[str], cores: float, tmp_path: Path) -> None:
    for number, listing in enumerate(siblings):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{listing}\n")
    assert physical_cores(range(4), tmp_path) == cores


def test_nothing_to_meter_and_systems_without_the_clock_are_unavailable(
    build: Build, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build(CpuTimeConfig()) == (Unavailable("there is no process to meter"),)
    ended = start("pass")
    ended.communicate(timeout=20)
    assert build(CpuTimeConfig(), ended.pid) == (Unavailable("the run's process has ended"),)

    def missing(clock: int) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("time.clock_gettime_ns", missing)
    (unknown,) = build(CpuTimeConfig(), os.getpid())
    assert isinstance(unknown, Unavailable)
    assert unknown.reason == "only Linux has such clocks: [Errno 22] Invalid argument"


def test_busy_core_below_an_idle_one_is_refused() -> None:
    with pytest.raises(ValidationError, match="active_w_per_core must be at least idle_w_per_core"):
        CpuTimeConfig(active_w_per_core=1, idle_w_per_core=2)
