"""Device time on a simulated device whose clock drifts against the host's and whose queue runs behind it."""

import struct
from pathlib import Path

import numpy as np
import pytest

from perjoule.core import phases
from perjoule.measure.device_clock import DeviceClock
from perjoule.measure.recorder import FencePolicy, Recorder
from perjoule.runs.journal import JournalWriter, read_journal
from perjoule.runs.phase_table import build_phase_table

NAMES = phases.RECORDED
FORWARD_NS, BACKWARD_NS = 3_000_000, 5_000_000


class Device:
    """Works through a queue; ``now_ns`` is host time and advances only as the host is told to spend it.

    Args:
        drift: how much faster its clock runs than the host's.
    """

    def __init__(self, drift: float = 0.0) -> None:
        self.now_ns = 7_000_000_000
        self.drift = drift
        self.busy_until_ns = self.now_ns
        self.num_events = self.num_fences = 0
        self.passed_ns: list[int] = []
        """Host time at which it passed each mark: the truth."""

    def monotonic_ns(self) -> int:
        self.now_ns += 200  # reading a clock takes time
        return self.now_ns

    def launch(self, work_ns: int) -> None:
        self.now_ns += 10_000
        self.busy_until_ns = max(self.busy_until_ns, self.now_ns) + work_ns

    def fence(self) -> None:
        self.num_fences += 1
        self.now_ns = max(self.now_ns, self.busy_until_ns) + 3_000

    def event(self) -> "Event":
        self.num_events += 1
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.host_ns = device, -1

    def record(self) -> None:
        device = self.device
        device.now_ns += 1_000
        self.host_ns = device.busy_until_ns = max(device.busy_until_ns, device.now_ns)
        device.passed_ns.append(self.host_ns)

    def query(self) -> bool:
        self.device.now_ns += 500
        return self.host_ns <= self.device.now_ns

    def elapsed_time(self, end: "Event") -> float:
        """Return milliseconds as a device does: by its own clock, as a 32-bit float."""
        milliseconds = (end.host_ns - self.host_ns) * (1 + self.device.drift) / 1e6
        return float(struct.unpack("<f", struct.pack("<f", milliseconds))[0])


def _train(device: Device, path: Path, num_steps: int, wait: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take steps of a forward and a backward phase that the device works on behind the host.

    ``wait``: wait for the step before the last, as a loop does that reads a loss one step late.
    """
    monkeypatch.setattr("perjoule.measure.device_clock.time", device)
    host = JournalWriter(path / "host.bin", NAMES)
    clock = DeviceClock(device.event, device.fence, JournalWriter(path / "device.bin", NAMES))
    recorder = Recorder(host, device.fence, FencePolicy.NONE, clock)
    step, forward, backward = (recorder.phase(name) for name in (phases.STEP, phases.FORWARD, phases.BACKWARD))
    device.passed_ns.clear()
    ends: list[int] = []
    for recorder.step in range(1, num_steps + 1):
        with step:
            with forward:
                device.launch(FORWARD_NS)
            with backward:
                device.launch(BACKWARD_NS)
        ends.append(device.busy_until_ns)
        if wait and len(ends) > 1:
            device.now_ns = max(device.now_ns, ends[-2] + 20_000)
    assert device.num_fences == 2, "both at the start"
    device.fence()
    recorder.close()


@pytest.mark.parametrize("drift", [0.0, 4e-5, -4e-5])
def test_device_times_lie_within_microseconds_of_the_truth(
    drift: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(drift)
    _train(device, tmp_path, 2000, True, monkeypatch)  # 16 s
    records = read_journal(tmp_path / "device.bin").records
    assert len(records) == len(device.passed_ns) == 2000 * 6
    error_ns = records["t_ns"] - np.array(device.passed_ns)
    assert np.abs(error_ns).max() < 60_000
    assert np.median(np.abs(error_ns)) < 40_000
    assert (np.diff(records["t_ns"]) >= 0).all()


def test_durations_are_those_of_the_device_not_of_the_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(4e-5)
    _train(device, tmp_path, 300, True, monkeypatch)
    table = build_phase_table(read_journal(tmp_path / "device.bin"))
    assert table.steps.tolist() == list(range(1, 301))
    # The first kernel finds the device idle: there, the launch is waited for.
    assert table.wall_ns[phases.FORWARD][1:] == pytest.approx(FORWARD_NS, rel=1e-3)
    assert table.wall_ns[phases.BACKWARD] == pytest.approx(BACKWARD_NS, rel=1e-3)
    assert (table.cpu_ns[phases.STEP] == 0).all()
    launched = read_journal(tmp_path / "host.bin")
    assert launched.records["phase"].tolist() == read_journal(tmp_path / "device.bin").records["phase"].tolist()


def test_a_host_that_never_waits_is_never_made_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    _train(device, tmp_path, 50, False, monkeypatch)
    table = build_phase_table(read_journal(tmp_path / "device.bin"))
    assert table.wall_ns[phases.BACKWARD] == pytest.approx(BACKWARD_NS, rel=1e-3)
    assert device.num_events > 250, "the device was far behind, and every edge had to have its own event"


def test_events_are_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    _train(device, tmp_path, 2000, True, monkeypatch)
    assert device.num_events < 30


def test_a_device_that_waits_for_the_host_is_followed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(-4e-5)
    monkeypatch.setattr("perjoule.measure.device_clock.time", device)
    clock = DeviceClock(device.event, device.fence, JournalWriter(tmp_path / "device.bin", NAMES))
    recorder = Recorder(JournalWriter(tmp_path / "host.bin", NAMES), device.fence, FencePolicy.NONE, clock)
    data, forward = recorder.phase(phases.DATA), recorder.phase(phases.FORWARD)
    device.passed_ns.clear()
    for recorder.step in range(1, 3001):
        with data:
            device.now_ns += 2_000_000  # the host works, the device idles
        with forward:
            device.launch(30_000)
    device.fence()
    recorder.close()
    error_ns = read_journal(tmp_path / "device.bin").records["t_ns"] - np.array(device.passed_ns)
    assert np.abs(error_ns).max() < 60_000


def test_what_the_device_has_not_passed_at_the_end_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr("perjoule.measure.device_clock.time", device)
    clock = DeviceClock(device.event, device.fence, JournalWriter(tmp_path / "device.bin", NAMES))
    recorder = Recorder(JournalWriter(tmp_path / "host.bin", NAMES), device.fence, FencePolicy.NONE, clock)
    with recorder.phase(phases.FORWARD):
        device.launch(FORWARD_NS)
    recorder.close()
    recorder.close()
    assert len(read_journal(tmp_path / "host.bin").records) == 2
    assert len(read_journal(tmp_path / "device.bin").records) == 1
