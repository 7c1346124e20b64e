import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.measure.meters.conftest import Build

from perjoule.measure.contract import Form, Meter, Unavailable
from perjoule.measure.meters.memory import MemoryConfig, ProcessMemory


def of_this_process(build: Build) -> ProcessMemory:
    (meter,) = build(MemoryConfig(), os.getpid())
    assert isinstance(meter, ProcessMemory)
    return meter


def test_memory_is_a_meter_that_says_what_it_measures(build: Build) -> None:
    meter = of_this_process(build)
    assert isinstance(meter, Meter)
    sensor = meter.sensor
    assert (sensor.domain, sensor.form, sensor.scope) == (f"memory-{os.getpid()}", Form.LEVEL, "process")
    assert (sensor.unit, sensor.modelled) == ("bytes", False)


def test_reading_equals_what_the_system_says_and_grows_with_a_touched_block(build: Build) -> None:
    meter = of_this_process(build)
    before = meter.read()
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS:"))
    assert isinstance(before, int)
    assert abs(before - int(line.split()[1]) * 1024) < 8_000_000
    block = bytearray(b"x") * 64_000_000
    after = meter.read()
    assert isinstance(after, int)
    assert after - before > 50_000_000
    del block


def test_every_process_has_its_meter_and_one_that_ended_is_unavailable(build: Build) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        mine, its = build(MemoryConfig(), os.getpid(), child.pid)
        assert isinstance(mine, ProcessMemory) and isinstance(its, ProcessMemory)
        assert its.sensor.domain == f"memory-{child.pid}"
        assert isinstance(its.read(), int)
    finally:
        child.communicate(b"\n", timeout=20)
    assert its.read() == Unavailable("the process has ended")


def test_a_system_without_the_file_is_unavailable_with_the_reason(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, flags: int) -> int:
        raise FileNotFoundError(2, "No such file or directory", path)

    with monkeypatch.context() as patch:
        patch.setattr("os.open", refuse)
        (missing,) = build(MemoryConfig(), 7)
    assert isinstance(missing, Unavailable)
    assert missing.reason.startswith("/proc/7/statm: No such file")
