from pathlib import Path

import pytest

from perjoule.measure.contract import Meter, Unavailable
from perjoule.measure.meters.memory import MemoryConfig, ProcessMemory


def built() -> ProcessMemory:
    meter = MemoryConfig().build()
    assert isinstance(meter, ProcessMemory)
    return meter


def test_memory_is_a_meter_that_says_what_it_measures() -> None:
    meter = built()
    assert isinstance(meter, Meter)
    assert (meter.scope, meter.unit) == ("process", "bytes")
    meter.close()


def test_reading_equals_what_the_system_says_and_grows_with_a_touched_block() -> None:
    meter = built()
    before = meter.read()
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS:"))
    assert isinstance(before, int)
    assert abs(before - int(line.split()[1]) * 1024) < 8_000_000
    block = bytearray(b"x") * 64_000_000
    after = meter.read()
    assert isinstance(after, int)
    assert after - before > 50_000_000
    del block
    meter.close()
    meter.close()


def test_a_system_without_the_file_is_unavailable_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr("os.open", refuse)
    meter = MemoryConfig().build()
    assert isinstance(meter, Unavailable)
    assert meter.reason.startswith("/proc/self/statm: No such file")
