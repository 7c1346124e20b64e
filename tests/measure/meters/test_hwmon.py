"""Meters on a folder of sensors of our own."""

from pathlib import Path

import pytest
from tests.measure.meters.conftest import Build

from perjoule.measure.contract import Form, Meter, Unavailable
from perjoule.measure.meters.hwmon import HwmonConfig


@pytest.fixture
def root(tmp_path: Path) -> Path:
    device(tmp_path, 2, "corsairpsu", power1_input=250_000_000, power1_label="power total", power2_input=90_000_000)
    device(tmp_path, 2, "corsairpsu", power2_label="power +12v", power1_crit=850_000_000)
    device(tmp_path, 10, "ina226", power1_input=4_000_000, energy1_input=77_000_000, update_interval=140)
    device(tmp_path, 10, "ina226", temp1_input=40_000)
    return tmp_path


def device(root: Path, number: int, driver: str, **files: object) -> Path:
    folder = root / f"hwmon{number}"
    folder.mkdir(exist_ok=True)
    for name, content in {"name": driver, **files}.items():
        (folder / name).write_text(f"{content}\n")
    return folder


def meters(found: tuple[Meter | Unavailable, ...]) -> dict[str, Meter]:
    assert all(not isinstance(each, Unavailable) for each in found), found
    return {each.sensor.domain: each for each in found if not isinstance(each, Unavailable)}


def test_every_power_and_energy_sensor_is_a_domain_with_the_scope_of_its_driver(root: Path, build: Build) -> None:
    found = meters(build(HwmonConfig(root=root)))
    assert {domain: (meter.sensor.scope, meter.sensor.form, meter.read()) for domain, meter in found.items()} == {
        "hwmon-corsairpsu-power-total": ("node", Form.POWER, 250_000_000),
        "hwmon-corsairpsu-power-12v": ("board", Form.POWER, 90_000_000),
        "hwmon-ina226-energy1": ("board", Form.COUNTER, 77_000_000),
        "hwmon-ina226-power1": ("board", Form.POWER, 4_000_000),
    }
    psu, rail = found["hwmon-corsairpsu-power-total"].sensor, found["hwmon-ina226-power1"].sensor
    assert (psu.unit, psu.limit_w, psu.resolution_s, psu.window_s) == ("µW", 850.0, 1.0, None)
    assert (rail.limit_w, rail.resolution_s, rail.accuracy) == (None, 0.14, (0.9, 1.1))
    assert found["hwmon-ina226-energy1"].sensor.unit == "µJ"


def test_reading_follows_the_file(root: Path, build: Build) -> None:
    (meter,) = meters(build(HwmonConfig(root=root, only=("hwmon-*-power-total",)))).values()
    (root / "hwmon2" / "power1_input").write_text("123456789\n")
    assert meter.read() == 123_456_789


def test_smoothed_sensor_is_taken_where_there_are_both(tmp_path: Path, build: Build) -> None:
    device(tmp_path, 0, "amdgpu", power1_average=30_000_000, power1_input=1, power1_average_interval=50, power1_cap=2e8)
    (meter,) = meters(build(HwmonConfig(root=tmp_path))).values()
    assert (meter.read(), meter.sensor.scope, meter.sensor.window_s) == (30_000_000, "gpu", 0.05)
    assert (meter.sensor.domain, meter.sensor.resolution_s) == ("hwmon-amdgpu-power1", 0.05)


def test_scope_and_accuracy_may_be_given(root: Path, build: Build) -> None:
    config = HwmonConfig(root=root, only=("hwmon-ina226-power1",), scope="node", accuracy=(0.98, 1.02))
    (meter,) = meters(build(config)).values()
    assert (meter.sensor.scope, meter.sensor.accuracy) == ("node", (0.98, 1.02))


@pytest.mark.parametrize(
    ("label", "scope"),
    [
        ("Module Power Socket 0", "module"),
        ("Grace Power Socket 0", "package"),
        ("CPU Power Socket 0", "board"),
        ("SysIO Power Socket 0", "board"),
        ("", "node"),
    ],
)
def test_part_of_a_grace_machine_is_told_by_the_label(label: str, scope: str, tmp_path: Path, build: Build) -> None:
    device(tmp_path, 1, "power_meter", power1_average=100_000_000, power1_oem_info=label)
    (meter,) = meters(build(HwmonConfig(root=tmp_path))).values()
    assert meter.sensor.scope == scope


def test_equal_devices_have_domains_of_their_own(tmp_path: Path, build: Build) -> None:
    for number in (0, 1):
        device(tmp_path, number, "amdgpu", power1_average=10_000_000, power1_label="PPT")
    found = meters(build(HwmonConfig(root=tmp_path)))
    assert list(found) == ["hwmon-amdgpu-ppt-hwmon0-power1", "hwmon-amdgpu-ppt-hwmon1-power1"]


def test_cores_beside_their_socket_are_left_out(tmp_path: Path, build: Build) -> None:
    labels = {"energy1_label": "Ecore000", "energy2_label": "Esocket0"}
    device(tmp_path, 0, "amd_energy", energy1_input=1, energy2_input=2, **labels)
    found = meters(build(HwmonConfig(root=tmp_path)))
    assert {domain: meter.sensor.scope for domain, meter in found.items()} == {"hwmon-amd_energy-esocket0": "package"}


def test_sensor_that_cannot_be_read_is_unavailable_with_the_reason(tmp_path: Path, build: Build) -> None:
    folder = device(tmp_path, 0, "ina226", power1_input="")
    (off,) = build(HwmonConfig(root=tmp_path))
    assert off == Unavailable("hwmon-ina226-power1: the kernel gave no number")
    (folder / "power1_input").unlink()
    (folder / "power1_input").symlink_to(folder / "nowhere")
    (gone,) = build(HwmonConfig(root=tmp_path))
    assert isinstance(gone, Unavailable)
    assert gone.reason.endswith("power1_input: No such file or directory")


def test_machine_without_sensors_and_pattern_without_a_match_say_so(root: Path, tmp_path: Path, build: Build) -> None:
    (missing,) = build(HwmonConfig(root=tmp_path / "elsewhere"))
    assert isinstance(missing, Unavailable)
    assert missing.reason == f"no power or energy sensor in {tmp_path / 'elsewhere'}"
    (missing,) = build(HwmonConfig(root=root, only=("hwmon-psu-*",)))
    assert isinstance(missing, Unavailable)
    assert missing.reason.startswith("no sensor matches hwmon-psu-*; there are: hwmon-corsairpsu-power-total, ")
