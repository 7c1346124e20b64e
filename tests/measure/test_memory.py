"""Resident memory of this process."""

import os

import pytest

from perjoule.measure.memory import ProcessMemory


def test_resident_memory_grows_by_what_is_allocated() -> None:
    memory = ProcessMemory()
    before = memory.read_bytes()
    assert before is not None
    assert before > 1e6
    block = bytearray(b"x") * 64_000_000
    after = memory.read_bytes()
    memory.close()
    assert after is not None
    assert 50e6 < after - before < 100e6
    assert len(block) == 64_000_000


def test_memory_is_unknown_after_close_and_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = ProcessMemory()
    memory.close()
    memory.close()
    assert memory.read_bytes() is None

    def refuse(*_: object) -> int:
        raise FileNotFoundError

    monkeypatch.setattr(os, "open", refuse)
    assert ProcessMemory().read_bytes() is None
