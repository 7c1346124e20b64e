"""The fake powercap tree keeps its promises."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.fakes.powercap import Powercap

ROOT = Path(__file__).parents[2]


def content(path: Path) -> str:
    return path.read_text().strip()


def test_tree_is_found_as_the_kernel_shows_it(tmp_path: Path) -> None:
    tree = Powercap(tmp_path)
    package = tree.add("package-0", watts=40)
    tree.add("core", watts=30, parent=package)
    tree.add("dram", watts=3, parent=package, limits_w=(20.0,))
    tree.add("psys", watts=50)
    nested = tmp_path / "intel-rapl" / "intel-rapl:0" / "intel-rapl:0:1"
    assert content(nested / "name") == content(tmp_path / "intel-rapl:0:1" / "name") == "dram"
    assert content(tmp_path / "intel-rapl:1" / "name") == "psys"
    assert content(nested / "constraint_0_power_limit_uw") == "20000000"
    assert content(nested / "max_energy_range_uj") == "262143328850"
    tree.close()


def test_counters_grow_by_the_power_wrap_and_reset(tmp_path: Path) -> None:
    tree = Powercap(tmp_path)
    zone = tree.add("package-0", watts=10, max_uj=50_000_000, offset_uj=0)
    mirror = tree.add("package-1", watts=99, mirror_of=zone)
    file = zone.path / "energy_uj"
    seen = []
    for _ in range(6):
        tree.advance(1.0)
        seen.append(int(content(file)))
    assert seen == [10_000_000, 20_000_000, 30_000_000, 40_000_000, 0, 10_000_000]
    assert content(mirror.path / "energy_uj") == content(file)
    zone.watts = 3
    zone.reset()
    assert content(file) == "0"
    tree.advance(1.0)
    assert content(file) == "3000000"
    assert zone.energy_uj == pytest.approx(63e6)
    tree.close()


def test_time_passes_in_a_thread_while_the_block_runs(tmp_path: Path) -> None:
    tree = Powercap(tmp_path)
    zone = tree.add("package-0", watts=100, offset_uj=0)
    begin_s = time.monotonic()
    with tree.running():
        while zone.energy_uj < 1e6:
            time.sleep(0.001)
    assert zone.energy_uj <= 100e6 * (time.monotonic() - begin_s)
    assert int(content(zone.path / "energy_uj")) == int(zone.energy_uj)
    tree.close()


def test_process_keeps_a_tree_until_its_input_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fakes.powercap", str(tmp_path), "package-0=100", "dram=10", "psys=120"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            names = [content(path / "name") for path in sorted(tmp_path.glob("intel-rapl:*"))]
            assert names == ["package-0", "dram", "psys"]
            first = int(content(tmp_path / "intel-rapl:0:0" / "energy_uj"))
            while int(content(tmp_path / "intel-rapl:0:0" / "energy_uj")) == first:
                assert process.poll() is None
            process.communicate(timeout=20)
            assert process.returncode == 0
        finally:
            process.kill()
