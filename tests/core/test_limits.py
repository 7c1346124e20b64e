"""Cores and memory of a process: the machine's, its affinity, and the limits of nested cgroups of both versions."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from perjoule.core.limits import available_bytes, cpu_quota, memory_bytes, num_cores, usable_cores

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "32 31 0:29 {inside} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {inside} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)
INFINITE = float("inf")


def system(root: Path, mounts: str, groups: str, files: Mapping[str, str], pid: int | None = None) -> Path:
    """Write the files in which Linux tells a process's cgroups and their limits."""
    process = root / "proc" / str(pid or os.getpid())
    process.mkdir(parents=True)
    (process / "mountinfo").write_text(mounts)
    (process / "cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"pod/job/cpu.max": "50000 100000"}, 0.5),
        ({"pod/cpu.max": "150000 100000", "pod/job/cpu.max": "max 100000"}, 1.5),
        ({"pod/cpu.max": "50000 100000", "pod/job/cpu.max": "400000 100000"}, 0.5),
        ({"pod/cpu.max": "400000 100000", "pod/job/cpu.max": "10000 20000"}, 0.5),
        ({"cpu.max": "25000 100000"}, 0.25),
        ({"pod/job/cpu.max": "max 100000"}, INFINITE),
        ({"pod/job/cpu.max": ""}, INFINITE),
        ({"pod/job/cpu.max": "5 0"}, INFINITE),
        ({"elsewhere/cpu.max": "50000 100000"}, INFINITE),
        ({}, INFINITE),
    ],
)
def test_the_tightest_quota_of_nested_groups_is_in_force(files: dict[str, str], cores: float, tmp_path: Path) -> None:
    assert cpu_quota(root=system(tmp_path, V2, "0::/pod/job\n", files)) == cores


@pytest.mark.parametrize(
    ("inside", "path", "folder"),
    [
        ("/", "/docker/abc", "docker/abc"),  # the host, or a container with a view of all groups
        ("/docker/abc", "/docker/abc", ""),  # a container without a cgroup namespace
        ("/docker/abc", "/docker/abc/step", "step"),
        ("/kubepods", "/docker/abc", ""),  # the path lies outside of what is mounted
        ("/", "/../outside", ""),
    ],
)
def test_quota_of_version_1_is_found_wherever_the_group_is_mounted(
    inside: str, path: str, folder: str, tmp_path: Path
) -> None:
    there = Path("cpu,cpuacct", folder)
    files = {f"{there}/cpu.cfs_quota_us": "50000", f"{there}/cpu.cfs_period_us": "100000"}
    groups = f"4:memory:{path}\n3:cpu,cpuacct:{path}\n1:name=systemd:/\n"
    assert cpu_quota(root=system(tmp_path, V1.format(inside=inside), groups, files)) == 0.5


def test_version_1_without_a_quota_sets_no_limit_and_its_parent_does(tmp_path: Path) -> None:
    files = {"cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000"}
    assert cpu_quota(root=system(tmp_path / "1", V1.format(inside="/"), "3:cpu,cpuacct:/a/b\n", files)) == INFINITE
    files |= {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}
    assert cpu_quota(root=system(tmp_path / "2", V1.format(inside="/"), "3:cpu,cpuacct:/a/b\n", files)) == 3


def test_both_versions_side_by_side_are_read(tmp_path: Path) -> None:
    mounts = V1.format(inside="/") + V2.replace("/sys/fs/cgroup rw", "/sys/fs/cgroup/uni\\040fied rw")
    files = {"cpu,cpuacct/a/cpu.cfs_quota_us": "70000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}
    files["uni fied/b/cpu.max"] = "60000 100000"
    assert cpu_quota(root=system(tmp_path, mounts, "3:cpu,cpuacct:/a\n0::/b\n", files)) == 0.6


def test_processes_of_one_group_share_its_quota_and_those_of_two_have_at_most_their_parents(tmp_path: Path) -> None:
    files = {"p/cpu.max": "120000 100000", "p/a/cpu.max": "50000 100000", "p/b/cpu.max": "90000 100000"}
    for pid, group in ((11, "a"), (12, "a"), (13, "b")):
        system(tmp_path, V2, f"0::/p/{group}\n", files, pid)
    assert cpu_quota((11, 12), tmp_path) == 0.5
    assert cpu_quota((11, 13), tmp_path) == 1.2
    (tmp_path / "sys/fs/cgroup/p/cpu.max").write_text("max 100000\n")
    assert cpu_quota((11, 12, 13), tmp_path) == 1.4


def test_usable_cores_are_the_affinity_or_the_quota_if_that_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(128)))
    root = system(tmp_path, V2, "0::/job\n", {"job/cpu.max": "50000 100000"})
    assert usable_cores(root=root) == 0.5
    assert usable_cores(root=tmp_path / "nowhere") == 128
    for quota, threads in ((0.5, 1), (2.5, 2), (4.0, 4)):
        monkeypatch.setattr("perjoule.core.limits.cpu_quota", lambda *_, quota=quota: quota)
        assert num_cores() == threads
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(root=root) == 1


@pytest.mark.parametrize(
    ("mounts", "groups", "files", "limit"),
    [
        (V2, "0::/a/b\n", {"a/memory.max": "100000000", "a/b/memory.max": "max"}, 100_000_000),
        (V2, "0::/a/b\n", {"a/memory.max": "max", "a/b/memory.max": "70000000"}, 70_000_000),
        (V1.format(inside="/"), "4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "80000000"}, 80_000_000),
        (V1.format(inside="/"), "4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9223372036854771712"}, None),
        (V2, "0::/\n", {"memory.max": "max"}, None),
        (V2, "0::/\n", {"memory.max": "99999999999999999"}, None),
    ],
)
def test_memory_is_that_of_the_machine_or_the_tightest_limit(
    mounts: str, groups: str, files: dict[str, str], limit: int | None, tmp_path: Path
) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_bytes(system(tmp_path, mounts, groups, files)) == (limit or machine)


def test_damaged_lines_limit_nothing(tmp_path: Path) -> None:
    root = system(tmp_path, "nonsense\n1 2 - x\n" + V2, "0::/job\n", {"job/cpu.max": "many of them"})
    assert cpu_quota(root=root) == INFINITE


def test_memory_that_is_left_is_that_of_the_tightest_group_and_cached_files_are_given_up(tmp_path: Path) -> None:
    files = {
        "pod/memory.max": "1000000",
        "pod/memory.current": "400000",
        "pod/memory.stat": "anon 1\ninactive_file 50000",
        "memory.max": "max",
    }
    root = system(tmp_path, V2, "0::/pod\n", files)
    assert available_bytes(root) == 650_000
    (root / "proc/meminfo").write_text("MemTotal: 800 kB\nMemAvailable:   600 kB\n")
    assert available_bytes(root) == 600 * 1024
