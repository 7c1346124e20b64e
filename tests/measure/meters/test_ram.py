import os
import subprocess
import sys

import pytest
from tests.measure.meters.conftest import Build

from perjoule.measure.contract import Form, Unavailable
from perjoule.measure.meters.memory import MemoryConfig
from perjoule.measure.meters.ram import ModelledRam, RamConfig


def test_power_is_the_memory_in_use_times_the_watts(build: Build) -> None:
    (meter,) = build(RamConfig(w_per_gib=2.0), os.getpid())
    (memory,) = build(MemoryConfig(), os.getpid())
    assert isinstance(meter, ModelledRam) and not isinstance(memory, Unavailable)
    used_bytes, power_uw = memory.read(), meter.read()
    assert isinstance(used_bytes, int) and isinstance(power_uw, int)
    assert power_uw == pytest.approx(2e6 * used_bytes / 2**30, rel=0.02)


def test_figure_is_said_to_be_modelled_with_its_source(build: Build) -> None:
    (meter,) = build(RamConfig(), os.getpid())
    assert isinstance(meter, ModelledRam)
    sensor = meter.sensor
    assert (sensor.domain, sensor.scope, sensor.form, sensor.unit) == ("ram", "ram", Form.POWER, "µW")
    assert (sensor.modelled, sensor.accuracy) == (True, (0.2, 3.0))
    source = "0.4 W per GiB (0.3725 W/GB, Green Algorithms 2021)"
    assert sensor.method == f"modelled from memory in use: {source}"
    assert 0.4 / 2**30 == pytest.approx(0.3725 / 1e9, rel=1e-3)
    (given,) = build(RamConfig(w_per_gib=0.3), os.getpid())
    assert isinstance(given, ModelledRam)
    assert given.sensor.method.endswith("0.3 W per GiB (given by the user)")


def test_processes_are_added_and_those_that_ended_use_nothing(build: Build) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (both,), (alone,) = build(RamConfig(), os.getpid(), child.pid), build(RamConfig(), child.pid)
        assert isinstance(both, ModelledRam) and isinstance(alone, ModelledRam)
        with_child, its = both.read(), alone.read()
        assert isinstance(with_child, int) and isinstance(its, int)
        assert with_child > its > 0
    finally:
        child.communicate(b"\n", timeout=20)
    without = both.read()
    assert isinstance(without, int)
    assert 0 < without < with_child
    assert alone.read() == Unavailable("all processes of the run have ended")


def test_process_that_is_not_there_makes_it_unavailable(build: Build) -> None:
    assert build(RamConfig()) == (Unavailable("there is no process to meter"),)
    (missing,) = build(RamConfig(), os.getpid(), 2**22 + 1)
    assert isinstance(missing, Unavailable)
    assert missing.reason.startswith(f"there is no /proc/{2**22 + 1}/statm")
