"""Facts about the machine, and the measurements that are kept between runs."""

import fcntl
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from perjoule.measure import machine
from perjoule.measure.machine import (
    MachineProfile,
    cpu_info,
    device_name,
    host_facts,
    installed,
    others_running,
    process_age_s,
)


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


def test_processes_that_store_at_the_same_time_keep_each_others_measurements(tmp_path: Path) -> None:
    first, second = MachineProfile(tmp_path), MachineProfile(tmp_path)
    first.put("bandwidth", 1.0)
    second.put("matmul", 2.0)
    second.put("bandwidth", 3.0)
    first.put("threads", 4)
    assert json.loads(first.path.read_text()) == {"bandwidth": 3.0, "matmul": 2.0, "threads": 4}
    assert (first.get("bandwidth"), first.get("matmul")) == (3.0, 2.0)


def test_many_processes_that_store_at_once_lose_nothing(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from perjoule.measure.machine import MachineProfile\n"
        "profile = MachineProfile(Path(sys.argv[1])); sys.stdin.readline()\n"
        "for number in range(8): profile.put(f'{sys.argv[2]}-{number}', number)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    writers = [subprocess.Popen([*command, name], stdin=subprocess.PIPE) for name in "abc"]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len(json.loads(MachineProfile(tmp_path).path.read_text())) == 24


def test_a_folder_that_another_process_holds_for_long_does_not_stop_storing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_LOCK_S", 0.05)
    profile = MachineProfile(tmp_path)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        profile.put("bandwidth", 1.0)
    finally:
        os.close(descriptor)
    assert json.loads(profile.path.read_text()) == {"bandwidth": 1.0}


def test_profile_without_a_writable_folder_lasts_for_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    profile = MachineProfile(tmp_path / "file")
    profile.put("bandwidth", 1.0)
    assert profile.get("bandwidth") == 1.0
    assert (tmp_path / "file").read_bytes() == b""


def test_profile_stands_in_the_cache_folder_and_can_be_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERJOULE_CACHE", str(tmp_path))
    profile = MachineProfile()
    profile.put("bandwidth", 1.0)
    assert profile.path.parent == tmp_path
    profile.forget()
    assert profile.get("bandwidth") is None
    assert MachineProfile().get("bandwidth") is None
    profile.forget()


def test_process_age_is_counted_from_the_start_of_the_process() -> None:
    before = process_age_s()
    started_s = time.clock_gettime(time.CLOCK_BOOTTIME) - before
    assert 0 < before < time.clock_gettime(time.CLOCK_BOOTTIME)
    script = "from perjoule.measure.machine import process_age_s; print(process_age_s())"
    begun = time.monotonic()
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 0 < float(child.stdout) <= time.monotonic() - begun + 0.02
    assert time.clock_gettime(time.CLOCK_BOOTTIME) - process_age_s() == pytest.approx(started_s, abs=0.005)


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
        cpu, age_s = cpu_info(), process_age_s()
    assert age_s == pytest.approx(time.process_time(), abs=0.5)
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


def test_a_busy_neighbour_is_seen_running_and_an_idle_machine_is_not_assumed_busy() -> None:
    quiet = min(others_running() for _ in range(3))
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        time.sleep(0.3)
        busy = max(others_running() for _ in range(3))
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
    assert busy > quiet
    assert busy >= 1


def test_who_runs_is_zero_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert others_running() == 0


MIG = "MIG-5a3b1e2c-0000-1111-2222-333344445555"


@pytest.mark.parametrize(
    ("index", "visible", "uuid", "name"),
    [
        (0, None, None, "0"),
        (3, None, None, "3"),
        (0, "2,5", None, "2"),
        (1, "2, 5", None, "5"),
        (1, "2,5", "0a1b", "GPU-0a1b"),
        (0, None, "GPU-0a1b", "GPU-0a1b"),
        (1, "GPU-aa,GPU-bb", None, "GPU-bb"),
        (1, "GPU-aa,GPU-bb", "bbcc", "GPU-bb"),
        (0, MIG, "0a1b", MIG),
        (0, "", None, "0"),
        (2, "4,5", None, "2"),
    ],
)
def test_a_device_is_named_by_uuid_or_by_its_number_without_the_mask(
    index: int, visible: str | None, uuid: str | None, name: str
) -> None:
    assert device_name(index, visible, uuid) == name
