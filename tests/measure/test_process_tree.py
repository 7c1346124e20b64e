"""CPU time of a tree of processes, whoever ended, and the memory of all of them."""

import os
import subprocess
import sys
import time

import pytest
from tests.measure.programs import ASLEEP, WORK, Start

from perjoule.measure import process_tree
from perjoule.measure.process_tree import CpuClocks, ResidentMemory, cpu_time_ns, descendants


@pytest.fixture
def rescan_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_tree, "_SCAN_S", (0.0, 0.0))


def line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_clock_of_another_process_is_exact(start: Start) -> None:
    assert cpu_time_ns(os.getpid()) == pytest.approx(time.process_time_ns(), abs=5e6)
    child = start(WORK.format(0.05) + ASLEEP)
    line(child)
    spent_ns = cpu_time_ns(child.pid)
    assert spent_ns >= 50e6
    assert cpu_time_ns(child.pid) >= spent_ns
    child.communicate(timeout=20)
    with pytest.raises(OSError):
        cpu_time_ns(child.pid)


def test_time_of_all_processes_is_added_and_that_of_one_that_ended_is_kept(start: Start) -> None:
    ready = "print('ready', flush=True)\n"
    busy, other = start(ready + ASLEEP + "\n" + WORK.format(0.05) + "time.sleep(60)"), start(ready + ASLEEP)
    assert line(busy) == line(other) == b"ready\n"
    clocks = CpuClocks((busy.pid, other.pid))
    assert clocks.spent_ns() < 40e6
    assert busy.stdin is not None
    busy.stdin.close()
    assert line(busy) == b"done\n"
    spent_ns = clocks.spent_ns()
    assert spent_ns >= 50e6
    busy.kill()
    busy.wait()
    assert spent_ns <= clocks.spent_ns() < spent_ns + 20e6


@pytest.mark.usefixtures("rescan_always")
def test_time_of_processes_that_the_run_starts_is_counted_and_that_of_this_process_is_not(start: Start) -> None:
    program = (
        "import subprocess, sys\n"
        "sys.stdin.readline()\n"
        f"loader = subprocess.Popen([sys.executable, '-S', '-c', {WORK.format(0.05) + ASLEEP!r}], stdin=0, stdout=1)\n"
        "loader.wait()\n"
    )
    run = start(program)
    clocks = CpuClocks((run.pid,))
    assert run.stdin is not None
    run.stdin.write(b"\n")
    run.stdin.flush()
    assert line(run) == b"done\n"
    spent_ns = clocks.spent_ns()
    assert spent_ns >= 50e6
    assert len(descendants((run.pid,))) == 1
    before_ns = clocks.spent_ns()
    burn(0.05)
    assert clocks.spent_ns() - before_ns < 40e6
    assert run.pid in descendants((os.getpid(),))
    assert os.getpid() not in descendants((os.getppid(),))


def test_child_from_before_counts_only_from_now_on(start: Start) -> None:
    child = start(WORK.format(0.05) + ASLEEP)
    line(child)
    begun_ns = time.process_time_ns()
    clocks = CpuClocks((os.getpid(),))
    spent_ns = clocks.spent_ns()
    assert spent_ns < time.process_time_ns() - begun_ns + 20e6


def test_time_never_falls_when_a_number_is_given_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    times, starts = iter([100, 100, 900, 30, 30]), iter([1, 2])
    monkeypatch.setattr(process_tree, "cpu_time_ns", lambda pid: next(times))
    monkeypatch.setattr(process_tree, "descendants", lambda pids: set())
    monkeypatch.setattr(process_tree, "_SCAN_S", (1000.0, 1000.0))
    monkeypatch.setattr(process_tree, "text", lambda path: f"77 (a b) S 1 {'0 ' * 17}{next(starts)} 0")
    clocks = CpuClocks((77,))
    assert [clocks.spent_ns(), clocks.spent_ns(), clocks.spent_ns()] == [800, 800, 800]


USED = """
import resource, subprocess, sys, time
def used():
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)
print('ready', flush=True)
sys.stdin.readline()
before = used()
subprocess.run({command!r}, shell=True, stdin=subprocess.DEVNULL)
print(used() - before, flush=True)
sys.stdin.read()
"""
BUSY = f"{sys.executable} -S -c 'import time\nwhile time.process_time() < 0.06: pass'"


def go_on(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


@pytest.mark.parametrize("command", [BUSY, f"{BUSY} | {BUSY}; true", f"({BUSY}; {BUSY}) & wait", f"sh -c '' ; {BUSY}"])
def test_time_of_processes_that_no_reading_saw_is_counted(
    command: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_tree, "_SCAN_S", (1000.0, 1000.0))
    run = start(USED.format(command=command))
    assert line(run) == b"ready\n"
    clocks = CpuClocks((run.pid,))
    go_on(run)
    expected_ns = 1e9 * float(line(run))
    monkeypatch.setattr(clocks, "_next_scan_s", 0.0)
    assert expected_ns > 60e6
    assert clocks.spent_ns() == pytest.approx(expected_ns, abs=45e6)


@pytest.mark.usefixtures("rescan_always")
@pytest.mark.parametrize("waits", [True, False])
def test_time_of_a_child_that_was_seen_is_counted_once_whether_its_parent_waits_or_not(
    waits: bool, start: Start
) -> None:
    handling = "" if waits else "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    child = f"{WORK.format(0.15)}{ASLEEP}"
    program = (
        f"{handling}import os, sys\nprint('ready', flush=True)\nsys.stdin.readline()\nif not (pid := os.fork()):\n"
        f"    exec({child.replace('sys.stdin.read()', 'os.read(0, 1); os._exit(0)')!r})\n"
        "try:\n    os.waitpid(pid, 0)\nexcept OSError:\n    pass\nprint('waited', flush=True)\nsys.stdin.read()\n"
    )
    run = start(program)
    assert line(run) == b"ready\n"
    clocks = CpuClocks((run.pid,))
    go_on(run)
    assert line(run) == b"done\n"
    seen_ns = clocks.spent_ns()
    go_on(run)
    assert line(run) == b"waited\n"
    assert 150e6 <= seen_ns <= clocks.spent_ns() < seen_ns + 45e6


@pytest.mark.usefixtures("rescan_always")
def test_a_process_whose_parent_ended_is_followed_and_its_time_kept(start: Start) -> None:
    orphan = f"{WORK.format(0.06)}import os; os.read(0, 1)\n{WORK.format(0.12)}"
    middle = f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', {orphan!r}]); os.read(0, 1)"
    run = start(
        f"import subprocess, sys, time; subprocess.run([sys.executable, '-S', '-c', {middle!r}]); time.sleep(60)"
    )
    assert line(run) == b"done\n"
    clocks = CpuClocks((run.pid,))
    assert len(clocks.pids()) == 3
    go_on(run)
    go_on(run)
    assert line(run) == b"done\n"
    before_ns = clocks.spent_ns()
    deadline_s = time.monotonic() + 20
    while len(clocks.pids()) > 1 and time.monotonic() < deadline_s:
        before_ns = clocks.spent_ns()
    assert clocks.pids() == (run.pid,)
    assert 55e6 <= before_ns <= clocks.spent_ns() < 200e6


def test_children_count_and_their_parent_does_not(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_tree, "_SCAN_S", (0.0, 0.0))
    other = start(ASLEEP)
    child = start(f"import sys; sys.stdin.readline()\n{WORK.format(0.1)}{ASLEEP}")
    clocks = CpuClocks((), os.getpid(), without=(other.pid,))
    burn(0.1)
    assert clocks.spent_ns() < 60e6
    assert child.pid in clocks.pids() and other.pid not in clocks.pids() and os.getpid() not in clocks.pids()
    go_on(child)
    assert line(child) == b"done\n"
    assert 100e6 <= clocks.spent_ns() < 160e6
    child.communicate(timeout=20)
    assert 100e6 <= clocks.spent_ns() < 200e6


def test_memory_of_a_tree_is_that_of_all_its_processes(start: Start) -> None:
    block = "block = bytearray(b'x') * 40_000_000; print('ready', flush=True); import sys; sys.stdin.read()"
    run = start(f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {block!r}])")
    assert line(run) == b"ready\n"
    memory = ResidentMemory((run.pid,))
    used = memory.read_bytes()
    assert used is not None and 40e6 < used < 90e6
    run.communicate(timeout=20)
    assert memory.read_bytes() is None
    alone = start("import sys; print('ready', flush=True); sys.stdin.read()")
    assert line(alone) == b"ready\n"
    assert ResidentMemory((), alone.pid).read_bytes() == 0
    alone.communicate(timeout=20)
