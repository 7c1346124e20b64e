"""Facts about the machine, and the measurements that are kept between runs."""

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import pytest

from perjoule.measure import machine
from perjoule.measure.machine import MachineProfile, cache_folder, cpu_info, host_facts, installed


def test_stored_measurement_is_found_by_the_next_process(tmp_path: Path) -> None:
    profile = MachineProfile(tmp_path)
    assert profile.get("bandwidth") is None
    profile.put("bandwidth", 1.5e10)
    profile.put("matmul", {"bf16": {"flops": 1e12}})
    again = MachineProfile(tmp_path)
    assert again.get("bandwidth") == 1.5e10
    assert again.get("matmul") == {"bf16": {"flops": 1e12}}
    assert [path.name for path in tmp_path.iterdir()] == [again.path.name]


@pytest.mark.parametrize("change", [{"model": "Another CPU"}, {"flags": frozenset({"amx_bf16"})}, {"cores": 999}])
def test_profile_is_not_used_for_another_machine(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MachineProfile(tmp_path).put("bandwidth", 1.0)
    here = cpu_info()
    monkeypatch.setattr(machine, "cpu_info", lambda: {**here, **change})
    assert MachineProfile(tmp_path).get("bandwidth") is None


def test_profile_is_not_used_for_another_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MachineProfile(tmp_path).put("bandwidth", 1.0)
    monkeypatch.setattr(machine, "installed", lambda package: "0.0")
    assert MachineProfile(tmp_path).get("bandwidth") is None


@pytest.mark.parametrize("content", ['{"bandwidth": 1.', "[1, 2]", "", "\x00\x00"])
def test_damaged_profile_is_measured_again(content: str, tmp_path: Path) -> None:
    path = MachineProfile(tmp_path).path
    path.write_text(content)
    profile = MachineProfile(tmp_path)
    assert profile.get("bandwidth") is None
    profile.put("bandwidth", 2.0)
    assert json.loads(path.read_text()) == {"bandwidth": 2.0}


def test_profile_without_a_writable_folder_lasts_for_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    profile = MachineProfile(tmp_path / "file")
    profile.put("bandwidth", 1.0)
    assert profile.get("bandwidth") == 1.0
    assert (tmp_path / "file").read_bytes() == b""


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERJOULE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("PERJOULE_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "perjoule"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "perjoule"
    assert MachineProfile().path.parent == tmp_path / ".cache" / "perjoule"


def test_cores_are_those_this_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    assert cpu_info()["cores"] == len(before)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cpu_info()["cores"] == 1
    finally:
        os.sched_setaffinity(0, before)


def test_cpu_is_named_even_where_proc_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", missing)
        cpu = cpu_info()
    assert cpu["model"] == (platform.processor() or platform.machine())
    assert cpu["flags"] == frozenset()


def test_host_facts_are_json_with_plausible_values() -> None:
    facts = host_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["memory_bytes"] > 100e6
    assert facts["python"] == platform.python_version()
    assert facts["cpu"]
    assert re.match(r"\d+\.\d+", facts["torch"])


def test_missing_package_has_no_version() -> None:
    assert installed("no-such-package-of-anyone") is None
