"""A recorded series that is played: the clock is the test's."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.measure.meters.conftest import Build

from perjoule.measure.contract import Form, Unavailable
from perjoule.measure.meters.replay import Replay, ReplayConfig


class Clock:
    def __init__(self) -> None:
        self.now_ns = 5_000_000_000

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic_ns", clock)
    return clock


@pytest.fixture
def series(tmp_path: Path) -> Path:
    path = tmp_path / "series.csv"
    path.write_text("time_s,power_w,energy_j\n3.0,60,100\n3.1,190.5,110\n3.3,70,140\n3.4,60,145\n")
    return path


def built(build: Build, config: ReplayConfig) -> Replay:
    (meter,) = build(config)
    assert isinstance(meter, Replay), meter
    return meter


def readings(meter: Replay, clock: Clock, moments_s: list[float]) -> list[int | Unavailable]:
    start_ns = clock.now_ns
    found = []
    for moment_s in moments_s:
        clock.now_ns = start_ns + round(1e9 * moment_s)
        found.append(meter.read())
    return found


def test_power_is_that_of_the_row_in_force_and_starts_again_at_the_end(
    series: Path, clock: Clock, build: Build
) -> None:
    meter = built(build, ReplayConfig(path=series))
    assert readings(meter, clock, [0, 0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 1.05]) == [
        60_000_000,
        60_000_000,
        190_500_000,
        190_500_000,
        70_000_000,
        60_000_000,
        60_000_000,
        60_000_000,
    ]
    assert readings(meter, clock, [0.1]) == [190_500_000]


def test_counter_goes_on_when_the_series_starts_again(series: Path, clock: Clock, build: Build) -> None:
    meter = built(build, ReplayConfig(path=series, value_column="energy_j"))
    assert (meter.sensor.form, meter.sensor.unit) == (Form.COUNTER, "µJ")
    assert readings(meter, clock, [0, 0.15, 0.45, 0.55, 0.65, 1.05]) == [
        100_000_000,
        110_000_000,
        145_000_000,
        150_000_000,
        160_000_000,
        200_000_000,
    ]


def test_speed_makes_the_series_and_its_sensor_faster(series: Path, clock: Clock, build: Build) -> None:
    meter = built(build, ReplayConfig(path=series, speed=10.0, window_s=0.025, resolution_s=0.1))
    assert readings(meter, clock, [0.015, 0.035, 0.045]) == [190_500_000, 70_000_000, 60_000_000]
    assert meter.sensor.resolution_s == pytest.approx(0.01)
    assert meter.sensor.window_s == pytest.approx(0.0025)
    assert meter.sensor.method == "replay of series.csv, power_w, 10× as fast"


def test_series_may_end(series: Path, clock: Clock, build: Build) -> None:
    meter = built(build, ReplayConfig(path=series, at_end="end", domain="gpu-0"))
    last, ended = readings(meter, clock, [0.49, 0.51])
    assert last == 60_000_000
    assert ended == Unavailable("gpu-0: the recorded series has ended")


def test_sensor_is_what_the_config_says_and_refreshes_as_the_rows_do(series: Path, build: Build) -> None:
    config = ReplayConfig(path=series, domain="gpu-a", scope="node", accuracy=(0.9, 1.1), idle_w=50, limit_w=400)
    sensor = built(build, config).sensor
    assert (sensor.domain, sensor.scope, sensor.accuracy) == ("gpu-a", "node", (0.9, 1.1))
    assert (sensor.idle_w, sensor.limit_w, sensor.modelled, sensor.window_s) == (50, 400, False, None)
    assert sensor.resolution_s == pytest.approx(0.1)


def test_other_columns_may_be_played(tmp_path: Path, clock: Clock, build: Build) -> None:
    path = tmp_path / "series.csv"
    path.write_text("t,power_draw_w,power_instant_w\n0,1,2\n1,3,4\n")
    meter = built(build, ReplayConfig(path=path, time_column="t", value_column="power_instant_w"))
    assert readings(meter, clock, [0.5, 1.5]) == [2_000_000, 4_000_000]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("time_s,power\n0,1\n1,2\n", "no column 'power_w': did you mean 'power'? (accepted: power, time_s)"),
        ("", "no column 'time_s': it is empty"),
        ("time_s,power_w\n0,1\n1,much\n", "line 3 does not have two numbers"),
        ("time_s,power_w\n0,1\n1\n", "line 3: 1 cells, and 2 columns"),
        ('time_s,power_w\n0,"1\n1,2\n2,"3\n', "line 4: ',' expected after '\"'; the row begins in line 2"),
        ("time_s,power_w\n0,1\n1,inf\n", "line 3 does not have two numbers"),
        ("time_s,power_w\n0,1\n", "needs two rows or more"),
        ("time_s,power_w\n0,1\n1,1\n1,1\n", "time_s must ascend from row to row"),
    ],
)
def test_file_that_is_no_series_is_unavailable_with_the_reason(
    content: str, reason: str, tmp_path: Path, build: Build
) -> None:
    path = tmp_path / "series.csv"
    path.write_text(content)
    assert build(ReplayConfig(path=path)) == (Unavailable(f"{path}: {reason}"),)


def test_missing_file_is_unavailable(tmp_path: Path, build: Build) -> None:
    path = tmp_path / "nowhere.csv"
    assert build(ReplayConfig(path=path)) == (
        Unavailable(f"cannot read the recorded series {path}: No such file or directory"),
    )


def test_column_of_another_unit_is_refused(series: Path) -> None:
    with pytest.raises(ValidationError, match="value_column"):
        ReplayConfig(path=series, value_column="power_kw")
