"""The sampler reads what it is told to, in a process or a thread, and nothing that a meter does ends it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.measure import third_party

from perjoule.config import Config
from perjoule.measure import polling
from perjoule.measure.config import EnergyConfig
from perjoule.measure.contract import Site, Unavailable
from perjoule.measure.polling import next_moment
from perjoule.measure.sampler import Sampler, SamplerState
from perjoule.runs.folder import sample_path
from perjoule.runs.sample_writer import SampleWriter
from perjoule.runs.samples import Samples, read_samples

Start = Callable[..., Sampler]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start samplers that are ended with the test."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    third_party.install(tmp_path / "packages", monkeypatch)
    started: list[Sampler] = []

    def start(*meters: str | dict[str, Any] | Config, run: str = "run", **settings: Any) -> Sampler:
        (tmp_path / run).mkdir(exist_ok=True)
        config = EnergyConfig(meters=meters or ("cpu_time",), **{"rate_hz": 20, **settings})
        path = sample_path(tmp_path / run, 0, "here")
        started.append(Sampler.start(path, config, Site((os.getpid(),)), "here", {"segment": 0}))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def wait_for(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.005)


def read(one: Sampler) -> Samples:
    return read_samples(one.path)


def num_readings(one: Sampler) -> int:
    return len(read(one).of(0)[0])


def state(one: Sampler) -> SamplerState:
    found = one.ready(10)
    assert isinstance(found, SamplerState), found
    return found


def pid_of(one: Sampler) -> int:
    return int(read(one).header["pid"])


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("mode", ["process", "thread"])
def test_meters_are_read_from_the_start_to_the_stop(start: Start, mode: str) -> None:
    one = start("cpu_time", "memory", sampler=mode, rate_hz=10)
    found = state(one)
    ready_ns = time.monotonic_ns()
    assert num_readings(one) >= 1
    wait_for(lambda: num_readings(one) >= 3)
    assert one.alive()
    stopping_ns = time.monotonic_ns()
    one.stop()
    samples = read(one)
    assert not one.alive()
    assert [channel["domain"] for channel in samples.channels] == ["cpu", f"memory-{os.getpid()}", "monitor"]
    assert [channel["kind"] for channel in samples.channels] == ["cpu_time", "memory", "monitor"]
    assert found == SamplerState(one.path, mode, samples.channels, ())
    assert {len(samples.of(channel)[0]) for channel in range(3)} == {len(samples.records) // 3}
    before_ns, after_ns, energy_uj = samples.of(0)
    assert before_ns[0] < ready_ns
    assert before_ns[-1] > stopping_ns
    assert (before_ns < after_ns).all()
    assert (np.diff(before_ns) > 0).all()
    assert (np.diff(energy_uj) > 0).all()
    monitor = samples.of(2)[2]
    assert (np.diff(monitor) > 0).all() and monitor[0] > 0
    header = samples.header
    assert (header["node"], header["mode"], header["rate_hz"], header["segment"]) == ("here", mode, 10, 0)
    assert header["processes"] == [os.getpid()]
    assert header["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (header["pid"] == os.getpid()) == (mode == "thread")


def test_a_thread_reads_no_faster_than_ten_times_a_second(start: Start) -> None:
    one = start(sampler="thread", rate_hz=20)
    state(one)
    assert read(one).header["rate_hz"] == 10


def test_the_samplers_process_imports_neither_torch_nor_numpy() -> None:
    code = "import sys; import perjoule.measure.sampler; print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"set()\n"


@pytest.mark.parametrize("mode", ["process", "thread"])
def test_what_cannot_be_read_is_listed_with_the_reason(start: Start, tmp_path: Path, mode: str) -> None:
    nowhere = {"kind": "rapl", "root": str(tmp_path / "nowhere")}
    found = state(start(nowhere, {"kind": "wild", "habit": "no build"}, "wild", sampler=mode))
    assert [channel["domain"] for channel in found.channels] == ["wild", "monitor"]
    assert [kind for kind, _ in found.unavailable] == ["rapl", "wild", "wild"]
    reasons = [missing for _, missing in found.unavailable]
    assert reasons[0].reason.startswith(f"no RAPL zone in {tmp_path / 'nowhere'}")
    assert reasons[1] == Unavailable("RuntimeError: the driver is upset")
    assert reasons[2] == Unavailable("there is only one", "buy another")


@pytest.mark.parametrize("mode", ["process", "thread"])
@pytest.mark.parametrize("habit", ["raises", "returns text"])
def test_a_reading_that_fails_is_marked_and_the_next_is_made(start: Start, mode: str, habit: str) -> None:
    one = start({"kind": "wild", "habit": habit}, "memory", sampler=mode)
    state(one)
    wait_for(lambda: num_readings(one) >= 3)
    one.stop()
    records = read(one).records
    wild = records[records["channel"] == 0]
    assert wild["flag"].tolist() == [number % 2 for number in range(len(wild))]
    assert wild["raw"].tolist() == [0 if number % 2 else 1000 * (number + 1) for number in range(len(wild))]
    assert (records[records["channel"] == 1]["flag"] == 0).all()


def test_a_configuration_that_the_process_cannot_make_again_is_unavailable(start: Start) -> None:
    class LocalConfig(Config):
        kind: str = "local"

    class GoneConfig(Config):
        kind: str = "gone"

    found = state(start(LocalConfig(), GoneConfig(), "memory"))
    assert [channel["kind"] for channel in found.channels] == ["memory", "monitor"]
    local, gone = (missing.reason for _, missing in found.unavailable)
    assert local.startswith("unknown measure kind 'local'")
    assert "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'" in gone


def test_a_thread_reads_where_no_process_can_be_started(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    one = start()
    assert state(one).mode == "thread"
    remark = read(one).header["remark"]
    assert remark == "read by a thread: no process could be started ([Errno 11] Resource temporarily unavailable)"


def test_a_sampler_that_is_off_reads_nothing(start: Start) -> None:
    one = start(sampler="off")
    assert one.ready(0) == Unavailable("no meter is read (energy.sampler=off)")
    assert one.watch() is None
    assert not one.alive()
    assert not one.path.exists()


def test_with_no_meter_at_all_the_reasons_are_still_on_record(start: Start, tmp_path: Path) -> None:
    one = start({"kind": "rapl", "root": str(tmp_path / "nowhere")})
    found = state(one)
    assert [channel["kind"] for channel in found.channels] == ["monitor"]
    assert len(found.unavailable) == 1
    assert one.watch() is None


@pytest.mark.parametrize("mode", ["process", "thread"])
def test_a_sampler_that_cannot_write_says_so_and_raises_nothing(start: Start, tmp_path: Path, mode: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples").write_text("in the way")
    one = start(sampler=mode)
    found = one.ready(10)
    assert isinstance(found, Unavailable)
    assert found.reason.startswith("the sampler ended: cannot create the sample file")
    assert found.reason.endswith("Not a directory")
    notes = []
    for _ in range(4):
        wait_for(lambda: not one.alive())
        notes.append(one.watch())
    assert all(note is not None and "Not a directory) and was started again" in note for note in notes[:3])
    assert notes[3] is not None and "is not started again: energy from here on is unknown" in notes[3]
    assert one.watch() is None


@pytest.mark.parametrize("mode", ["process", "thread"])
def test_nothing_is_ready_while_a_meter_is_being_opened(start: Start, mode: str) -> None:
    one = start({"kind": "wild", "habit": "is slow to build"}, sampler=mode)
    assert one.ready(0.05) == Unavailable("the sampler gave no reading within 0.05 s")
    assert one.watch() is None
    pid = one._worker._process.pid if mode == "process" else 0  # type: ignore[union-attr]
    one.stop(0.05)
    if mode == "process":
        assert one.ready(1) == Unavailable("the sampler was stopped before it gave a reading")
        assert is_gone(pid)


def test_a_meter_that_hangs_does_not_hold_up_the_end(start: Start) -> None:
    one = start({"kind": "wild", "habit": "hangs"})
    state(one)
    pid = pid_of(one)
    one.stop(0.3)
    assert is_gone(pid)
    assert read(one).of(0)[2].tolist() == [1000]


def test_a_killed_sampler_is_started_again_three_times(start: Start) -> None:
    one, paths = start(), []
    for attempt in range(4):
        state(one)
        paths.append(one.path)
        assert one.watch() is None
        os.kill(pid_of(one), signal.SIGKILL)
        wait_for(lambda: not one.alive())
        note = one.watch()
        assert note is not None and note.startswith("the sampler ended (signal 9) and")
        assert ("is not started again" in note) == (attempt == 3)
    assert one.watch() is None
    assert [path.name for path in paths] == [f"0000-here-{attempt}.bin" for attempt in range(4)]
    assert all(len(read_samples(path).of(0)[0]) >= 1 for path in paths)


def test_a_stopped_sampler_is_not_started_again(start: Start) -> None:
    one = start()
    state(one)
    one.stop()
    one.stop()
    assert one.watch() is None
    assert not one.alive()


def test_signals_to_all_processes_of_a_job_are_left_to_the_trainer(start: Start) -> None:
    one = start()
    state(one)
    pid, before = pid_of(one), num_readings(one)
    assert os.getsid(pid) == pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    wait_for(lambda: num_readings(one) > before + 2)
    assert one.alive()


def test_a_sampler_outlives_the_thread_that_started_it(start: Start) -> None:
    started: list[Sampler] = []
    thread = threading.Thread(target=lambda: started.append(start()))
    thread.start()
    thread.join()
    state(started[0])
    before = num_readings(started[0])
    wait_for(lambda: num_readings(started[0]) > before + 2)
    assert started[0].alive()


def test_a_process_that_holds_the_pipe_open_does_not_hold_up_the_end(start: Start) -> None:
    one = start()
    state(one)
    held = os.dup(one._worker._input.fileno())  # type: ignore[union-attr]
    try:
        one.stop(10)
        assert read(one).records["sequence"][-1] * 32 + 4096 == one.path.stat().st_size  # it ended in good order
    finally:
        os.close(held)


def test_two_runs_do_not_meter_the_same_device(start: Start) -> None:
    meter = {"kind": "wild", "device": "GPU-1/2"}
    first = start(meter, meter, run="one")
    assert [channel["kind"] for channel in state(first).channels] == ["wild", "wild", "monitor"]
    second = start(meter, run="two")
    found = state(second)
    assert [channel["kind"] for channel in found.channels] == ["monitor"]
    reason = found.unavailable[0][1].reason
    run = first.path.parent.parent
    assert reason == (f"GPU-1/2 is metered by process {pid_of(first)} (run {run}): its energy would be counted twice")
    os.kill(pid_of(first), signal.SIGKILL)
    wait_for(lambda: not first.alive())
    third = start(meter, run="three")
    assert [channel["kind"] for channel in state(third).channels] == ["wild", "monitor"]


def test_everything_is_on_the_disk_every_thirty_seconds(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def refuse(self: SampleWriter) -> None:
        synced.append(self.num_records)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(SampleWriter, "sync", refuse)
    monkeypatch.setattr(polling, "SYNC_S", 0.0)
    one = start(sampler="thread")
    state(one)
    wait_for(lambda: num_readings(one) >= 3)
    one.stop()
    assert len(synced) >= 2
    assert one._worker is not None and one._worker.why_ended() == "it was stopped"


def test_restarting_costs_the_trainer_nothing_while_all_is_well(start: Start) -> None:
    one = start()
    state(one)
    began = time.thread_time_ns()
    assert [one.watch() for _ in range(1000)] == [None] * 1000
    assert (time.thread_time_ns() - began) / 1000 < 1e6  # a millisecond each; it is microseconds


@pytest.mark.parametrize("rate_hz", [1.0, 9.7, 20.0])
def test_moments_keep_to_the_schedule_and_never_fall_into_step(rate_hz: float) -> None:
    now_ns = tick = 0
    moments = []
    for _ in range(2000):
        tick, due_ns = next_moment(tick, now_ns, rate_hz)
        assert due_ns > now_ns
        moments.append(due_ns)
        now_ns = due_ns + 50_000
    places = np.array(moments) * rate_hz / 1e9
    assert 2000 <= tick <= 2005, "one in each period, but for those too close to the one before"
    for refresh in (1.0, 0.5, 2.0, 0.618034):  # evenly against any refresh, also against one of a period
        assert np.histogram(places / refresh % 1, bins=8)[0].min() > 200


def test_moments_that_have_passed_are_left_out() -> None:
    tick, due_ns = next_moment(3, 12_340_000_000, 10.0)
    assert 123 <= tick <= 124
    assert 12_340_000_000 < due_ns < 12_500_000_000


def test_a_job_without_a_parent_ends_at_once(tmp_path: Path) -> None:
    told = (
        f'{{"path": "{tmp_path / "0000-here-0.bin"}", "meters": [], "site": {{"pids": [], "devices": []}}, '
        '"rate_hz": 10, "facts": {}, "parent": 1, "from_main_thread": false}\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "perjoule.measure.sampler"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(told.encode())
    process.stdin.flush()
    try:
        assert process.wait(10) == 0  # although its input is still open
        assert len(read_samples(tmp_path / "0000-here-0.bin").records) == 2
    finally:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait()
