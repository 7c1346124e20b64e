"""RAPL's meters on a powercap tree of our own."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.powercap import Powercap
from tests.measure.meters.conftest import Build

from perjoule.measure.contract import Form, Meter, Unavailable
from perjoule.measure.counter import unwrap
from perjoule.measure.meters.rapl import RaplConfig


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Powercap]:
    tree = Powercap(tmp_path / "powercap")
    yield tree
    tree.close()


def reading(meter: Meter | Unavailable) -> int:
    assert not isinstance(meter, Unavailable)
    raw = meter.read()
    assert isinstance(raw, int)
    return raw


def test_packages_and_their_memory_are_read_and_cores_are_not(tree: Powercap, build: Build) -> None:
    for number in range(2):
        package = tree.add(f"package-{number}", watts=40, offset_uj=10**6 * (number + 1))
        tree.add("core", watts=30, parent=package)
        tree.add("dram", watts=3, parent=package, offset_uj=7 * (number + 1), limits_w=())
    found = build(RaplConfig(root=tree.root))
    sensors = [meter.sensor for meter in found if not isinstance(meter, Unavailable)]
    assert [sensor.domain for sensor in sensors] == ["package-0", "dram-0", "package-1", "dram-1"]
    assert [sensor.scope for sensor in sensors] == ["package", "dram", "package", "dram"]
    assert [sensor.limit_w for sensor in sensors] == [250.0, None, 250.0, None]
    assert {(sensor.form, sensor.unit, sensor.wraps_at) for sensor in sensors} == {
        (Form.COUNTER, "µJ", 262_143_328_850)
    }
    before = [reading(meter) for meter in found]
    tree.advance(2.0)
    increase = [reading(meter) - first for meter, first in zip(found, before, strict=True)]
    assert increase == [80_000_000, 6_000_000, 80_000_000, 6_000_000]


def test_wraps_and_resets_are_found_by_the_reader(tree: Powercap, build: Build) -> None:
    package = tree.add("package-0", watts=100, max_uj=500_000_000, offset_uj=499_000_000)
    (meter,) = build(RaplConfig(root=tree.root))
    assert not isinstance(meter, Unavailable)
    raw = [reading(meter)]
    for _ in range(30):
        tree.advance(0.1)
        raw.append(reading(meter))
    package.reset()
    tree.advance(0.1)
    raw.append(reading(meter))
    increase, unknown = unwrap(np.array(raw), meter.sensor.wraps_at, np.full(31, 0.1), meter.sensor.limit_w)
    assert min(np.diff(raw)) < 0
    assert increase[:30].tolist() == [10_000_000] * 30
    assert unknown.tolist() == [False] * 30 + [True]


def test_board_is_named_and_read_only_on_request(tree: Powercap, build: Build) -> None:
    tree.add("package-0", watts=10)
    tree.add("psys", watts=15)
    _, psys = build(RaplConfig(root=tree.root))
    assert psys == Unavailable("psys: it holds the packages, which are read", "`{kind: rapl, psys: true}` reads it")
    _, psys = build(RaplConfig(root=tree.root, psys=True))
    assert not isinstance(psys, Unavailable)
    assert (psys.sensor.domain, psys.sensor.scope) == ("psys", "psys")


def test_dies_that_show_the_same_counter_are_read_once(
    tree: Powercap, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", tree.advance)
    first = tree.add("package-0-die-0", watts=60)
    tree.add("package-0-die-1", watts=60, mirror_of=first)
    tree.add("package-1-die-0", watts=55)
    one, mirror, other = build(RaplConfig(root=tree.root))
    assert not isinstance(one, Unavailable) and not isinstance(other, Unavailable)
    assert mirror == Unavailable("package-0-die-1: its counter is that of package-0-die-0, which is read")


def test_counters_that_were_never_written_are_not_taken_for_one(tree: Powercap, build: Build) -> None:
    tree.add("package-0", watts=0, offset_uj=0)
    tree.add("package-1", watts=0, offset_uj=0)
    assert all(not isinstance(meter, Unavailable) for meter in build(RaplConfig(root=tree.root)))


def test_second_view_of_the_same_package_is_left_alone(tree: Powercap, build: Build) -> None:
    tree.add("package-0", watts=10)
    again = Powercap(tree.root, control="intel-rapl-mmio")
    again.add("package-0", watts=10)
    (meter,) = build(RaplConfig(root=tree.root))
    again.close()
    assert not isinstance(meter, Unavailable)


def test_file_for_root_only_is_unavailable_with_a_remedy_for_that_file(
    tree: Powercap, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = tree.add("package-0", watts=10)
    true_open = os.open

    def refuse(path: Path, flags: int) -> int:
        if Path(path).name == "energy_uj":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return true_open(path, flags)

    monkeypatch.setattr("os.open", refuse)
    (forbidden,) = build(RaplConfig(root=tree.root))
    assert isinstance(forbidden, Unavailable)
    assert forbidden.reason.startswith(f"package-0: {tree.root / zone.path.name / 'energy_uj'}: only root may read it")
    assert "CVE-2020-8694" in forbidden.reason
    assert "udev" in forbidden.remedy and "chmod -R" not in forbidden.remedy


def test_zone_without_its_counter_is_unavailable(tree: Powercap, build: Build) -> None:
    zone = tree.add("package-0", watts=10)
    (zone.path / "energy_uj").unlink()
    (missing,) = build(RaplConfig(root=tree.root))
    assert isinstance(missing, Unavailable)
    assert missing.reason.endswith("energy_uj: No such file or directory")


def test_machine_without_zones_says_where_they_would_be(tmp_path: Path, build: Build) -> None:
    (missing,) = build(RaplConfig(root=tmp_path))
    assert isinstance(missing, Unavailable)
    assert missing.reason == f"no RAPL zone in {tmp_path}: a virtual machine, a container, or a processor without it"
    assert "cpu_time" in missing.remedy


def test_content_that_is_no_number_is_no_reading(tree: Powercap, build: Build) -> None:
    zone = tree.add("package-0", watts=10)
    (meter,) = build(RaplConfig(root=tree.root))
    assert not isinstance(meter, Unavailable)
    os.pwrite(zone.descriptor, b"nonsense" + 20 * b" ", 0)
    assert meter.read() == Unavailable("package-0: the kernel gave no number")
    assert build(RaplConfig(root=tree.root)) == (Unavailable("package-0: the kernel gave no number"),)
    zone.write()
    assert isinstance(meter.read(), int)
    meter.close()
    assert meter.read() == Unavailable("package-0: Bad file descriptor")
