"""NVIDIA's meters on a library of our own, whose GPUs draw a power that is known."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pynvml  # type: ignore[import-untyped]
import pytest
from tests.fakes import nvml
from tests.fakes.nvml import Edges, Gpu
from tests.measure.meters.conftest import Build

from perjoule.measure.contract import Form, Meter, Site, Unavailable
from perjoule.measure.meters.nvidia import NvidiaConfig

MS = 1_000_000
FIRST, SECOND = (f"GPU-{index:08x}-0000-4000-8000-{index:012x}" for index in range(2))

POLL = """
import json, time
from perjoule.measure.contract import Site
from perjoule.measure.meters.nvidia import NvidiaConfig
meters = NvidiaConfig().build(Site((1,), ("0",)))
rows, values = [], [set() for _ in meters]
begun_s = time.monotonic()
while min(map(len, values)) < 5 and time.monotonic() < begun_s + 15:
    for channel, meter in enumerate(meters):
        before_ns = time.monotonic_ns()
        raw = meter.read()
        rows.append((channel, before_ns, time.monotonic_ns(), raw))
        values[channel].add(raw)
    time.sleep(0.004)
for meter in meters:
    meter.close()
print(json.dumps([[meter.sensor.method for meter in meters], rows]))
"""


def poll(library: Path, edges: Edges) -> tuple[list[str], np.ndarray]:
    """Read all meters of GPU 0 in another process until each has shown five values.

    Returns their methods and (channel, before_ns, after_ns, raw) rows.
    """
    done = subprocess.run(
        [sys.executable, "-c", POLL],
        env=os.environ | nvml.environment(library, edges.path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    methods, rows = json.loads(done.stdout)
    return methods, np.array(rows, np.int64)


def staircase(edges: Edges, seconds: float) -> None:
    """Write the power of the coming seconds: four phases of 23 ms in all, again and again."""
    t_ns = time.monotonic_ns()
    end_ns = t_ns + int(1e9 * seconds)
    while t_ns < end_ns:
        for label, watts, lasts_ms in (("data", 120, 3), ("forward", 300, 7), ("backward", 400, 11), ("step", 220, 2)):
            t_ns = edges.set_power(watts, label, t_ns=t_ns) + lasts_ms * MS


def expected_uw(edges: Edges, t_ns: tuple[int, int], refresh_ms: int, window_ms: int, lag_ms: int) -> list[float]:
    """Return what the sensor shows between two moments: one value for each refresh among them."""
    ticks = range(t_ns[0] // (refresh_ms * MS), t_ns[1] // (refresh_ms * MS) + 1)
    ends_ns = [(tick * refresh_ms - lag_ms) * MS for tick in ticks]
    return [1e9 * edges.energy_uj(end_ns - window_ms * MS, end_ns) / (window_ms * MS) for end_ns in ends_ns]


@pytest.mark.parametrize(("refresh_ms", "window_ms", "lag_ms"), [(100, 25, 0), (20, 10, 15), (50, 100, 5)])
def test_readings_follow_the_refresh_the_window_and_the_lag_of_the_sensor(
    refresh_ms: int, window_ms: int, lag_ms: int, library: Path, tmp_path: Path
) -> None:
    gpu = Gpu(refresh_ms=refresh_ms, window_ms=window_ms, lag_ms=lag_ms, average_window_ms=200, counter_refresh_ms=40)
    with Edges.create(tmp_path / "edges", [gpu]) as edges:
        staircase(edges, seconds=20)
        methods, rows = poll(library, edges)
        assert methods == [
            f"NVML {name} of {gpu.name}" for name in ("energy counter", "instant power", "average power")
        ]
        for channel, length_ms in ((1, window_ms), (2, 200)):
            readings = rows[rows[:, 0] == channel]
            assert len(np.unique(readings[:, 3])) >= 5
            for _, before_ns, after_ns, raw in readings.tolist():
                possible = expected_uw(edges, (before_ns, after_ns), refresh_ms, length_ms, lag_ms)
                assert min(abs(raw - expected) for expected in possible) <= 500  # NVML's mW
        counter = rows[rows[:, 0] == 0]
        edges_ns = [(t_ns // (40 * MS) * 40 - lag_ms) * MS for t_ns in counter[[0, 0, -1, -1], [1, 2, 1, 2]].tolist()]
        used_uj = counter[-1, 3] - counter[0, 3]
        assert edges.energy_uj(edges_ns[1], edges_ns[2]) - 2000 <= used_uj
        assert used_uj <= edges.energy_uj(edges_ns[0], edges_ns[3]) + 2000
        assert len(np.unique(counter[:, 3])) <= (counter[-1, 2] - counter[0, 1]) / (40 * MS) + 2


def test_a_slow_driver_shows_in_the_time_that_a_reading_takes(library: Path, tmp_path: Path) -> None:
    with Edges.create(tmp_path / "edges", [Gpu(call_delay_us=3000, noise=0.01, refresh_ms=0)], capacity=10) as edges:
        _, rows = poll(library, edges)
    assert np.all(rows[:, 2] - rows[:, 1] >= 3 * MS)


def meters_of(found: tuple[Meter | Unavailable, ...]) -> list[Meter]:
    assert all(not isinstance(each, Unavailable) for each in found), found
    return [each for each in found if not isinstance(each, Unavailable)]


def test_meters_of_a_gpu_say_what_they_measure(gpus: Edges, build: Build) -> None:
    counter, instant, average = (meter.sensor for meter in meters_of(build(NvidiaConfig(), devices=("1",))))
    uuid = SECOND.removeprefix("GPU-")
    for sensor in (counter, instant, average):
        assert (sensor.domain, sensor.scope, sensor.device) == (f"gpu-{uuid}", "gpu", SECOND)
        assert (sensor.accuracy, sensor.limit_w, sensor.modelled) == ((0.90, 1.08), 400.0, False)
    assert (counter.form, counter.unit, counter.wraps_at) == (Form.COUNTER, "µJ", None)
    assert (instant.form, instant.unit, instant.window_s, instant.resolution_s) == (Form.POWER, "µW", 0.025, 0.1)
    assert (average.form, average.window_s) == (Form.POWER, 1.0)


@pytest.mark.parametrize(
    ("names", "uuids"),
    [
        (("0",), [FIRST]),
        (("1", "0"), [SECOND, FIRST]),
        ((SECOND,), [SECOND]),
        (("GPU-00000001",), [SECOND]),
        ((FIRST.removeprefix("GPU-"),), [FIRST]),
        (("1", SECOND, "GPU-00000001"), [SECOND]),
    ],
)
def test_devices_are_found_by_number_uuid_and_beginning_each_once(
    names: tuple[str, ...], uuids: list[str], gpus: Edges, build: Build
) -> None:
    found = meters_of(build(NvidiaConfig(), devices=names))
    assert [meter.sensor.device for meter in found[::3]] == uuids
    assert len(found) == 3 * len(uuids)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("7", "no GPU 7: NVML shows 2"),
        ("GPU-0000000", f"several GPUs begin with GPU-0000000; there are: {FIRST}, {SECOND}"),
        ("GPU-ff", f"no GPU begins with GPU-ff; there are: {FIRST}, {SECOND}"),
        ("MIG-ff", "MIG-ff: Not Found"),
    ],
)
def test_a_device_that_is_not_there_is_unavailable(name: str, reason: str, gpus: Edges, build: Build) -> None:
    assert build(NvidiaConfig(), devices=(name,)) == (Unavailable(reason),)


def test_a_run_without_a_gpu_reads_none_unless_it_is_asked_for(gpus: Edges, build: Build) -> None:
    assert build(NvidiaConfig()) == (Unavailable("the run uses no CUDA device"),)
    every = meters_of(build(NvidiaConfig(all=True)))
    assert [meter.sensor.device for meter in every] == [FIRST] * 3 + [SECOND] * 3
    chosen = meters_of(build(NvidiaConfig(devices=(1, "GPU-00000001")), devices=("0",)))
    assert [meter.sensor.device for meter in chosen] == [SECOND] * 3


def test_numbers_of_different_models_are_not_guessed(
    gpus: Edges, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus.set(1, name="NVIDIA RTX A5000")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    (refused,) = build(NvidiaConfig(), devices=("0",))
    assert isinstance(refused, Unavailable)
    assert refused.reason.startswith("GPU 0 may be any of NVIDIA A100-SXM4-40GB, NVIDIA RTX A5000: CUDA numbers them")
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in refused.remedy
    assert len(meters_of(build(NvidiaConfig(), devices=(FIRST,)))) == 3
    assert len(meters_of(build(NvidiaConfig(devices=(0,))))) == 3
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert meters_of(build(NvidiaConfig(), devices=("1",)))[0].sensor.device == SECOND


@pytest.mark.parametrize(
    ("architecture", "name", "resolution_s", "window_s"),
    [
        (5, "Tesla V100-SXM2-16GB", 0.02, 0.01),
        (6, "Quadro RTX 8000", 0.1, None),
        (7, "NVIDIA A30", 0.1, 0.025),
        (7, "NVIDIA A300 of the future", 0.1, 0.1),
        (7, "NVIDIA GeForce RTX 3090", 0.1, 0.1),
        (8, "NVIDIA GeForce RTX 4090", 0.1, 0.1),
        (9, "NVIDIA H100 PCIe", 0.1, 0.025),
        (10, "NVIDIA B200", 0.1, None),
        (77, "NVIDIA of another time", 0.1, None),
    ],
)
def test_window_is_that_of_the_generation_and_none_where_it_is_not_known(
    architecture: int, name: str, resolution_s: float, window_s: float | None, gpus: Edges, build: Build
) -> None:
    gpus.set(0, architecture=architecture, name=name)
    _, instant, _ = meters_of(build(NvidiaConfig(), devices=(FIRST,)))
    assert (instant.sensor.resolution_s, instant.sensor.window_s) == (resolution_s, window_s)


def test_an_older_driver_gives_its_power_usage_and_says_that_there_is_no_average(gpus: Edges, build: Build) -> None:
    gpus.set(0, has_fields=0, has_counter=0, architecture=4, name="Tesla P100-PCIE-16GB")
    counter, usage, average = build(NvidiaConfig(), devices=(FIRST,))
    who = f"Tesla P100-PCIE-16GB ({FIRST}): this GPU or its driver does not have it"
    assert counter == Unavailable(f"energy counter of {who}")
    assert average == Unavailable(f"average power of {who}")
    assert not isinstance(usage, Unavailable)
    assert (usage.sensor.method, usage.sensor.window_s) == ("NVML power usage of Tesla P100-PCIE-16GB", 0.01)
    gpus.set(0, has_power=0)
    assert build(NvidiaConfig(), devices=(FIRST,))[1] == Unavailable(f"instant power of {who}")


def test_a_power_of_zero_is_no_reading(gpus: Edges, build: Build) -> None:
    gpus.set(0, gain=0.0, has_power=0)
    _, instant, _ = build(NvidiaConfig(), devices=(FIRST,))
    assert isinstance(instant, Unavailable)
    assert instant.reason.endswith("NVML says 0 W, which no GPU draws")


def test_grace_hopper_counts_its_module(gpus: Edges, build: Build) -> None:
    gpus.set(0, module_extra_w=150.0, architecture=9, name="NVIDIA GH200 480GB")
    counter, instant, average, module = meters_of(build(NvidiaConfig(), devices=(FIRST,)))
    uuid = FIRST.removeprefix("GPU-")
    assert [meter.sensor.scope for meter in (counter, instant, average, module)] == ["module", "gpu", "gpu", "module"]
    assert counter.sensor.domain == module.sensor.domain == f"module-{uuid}"
    assert instant.sensor.domain == average.sensor.domain == f"gpu-{uuid}"
    assert counter.sensor.limit_w is None
    assert (instant.read(), module.read()) == (60_000_000, 210_000_000)


def test_an_instance_of_a_partitioned_gpu_has_no_sensor_but_its_whole_may_be_read(gpus: Edges, build: Build) -> None:
    gpus.set(0, partitioned=1)
    instance = FIRST.replace("GPU", "MIG")
    for name in (instance, FIRST):
        (refused,) = build(NvidiaConfig(), devices=(name,))
        assert isinstance(refused, Unavailable)
        assert refused.reason == f"{name}: an instance of a partitioned GPU (MIG) has no sensors of its own"
        assert refused.remedy.startswith("`{kind: nvidia, mig_parent: true}`")
    assert build(NvidiaConfig(devices=(instance,)))[0] == build(NvidiaConfig(), devices=(instance,))[0]
    assert len(meters_of(build(NvidiaConfig(devices=(FIRST,))))) == 3
    for meter in meters_of(build(NvidiaConfig(mig_parent=True), devices=(instance, FIRST))):
        assert meter.sensor.device == FIRST
        assert meter.sensor.method.endswith("the whole GPU with all its MIG instances")
        assert isinstance(meter.read(), int)
    assert len(meters_of(build(NvidiaConfig(all=True)))) == 6


def test_a_device_with_an_error_is_unavailable_and_the_others_are_read(gpus: Edges, build: Build) -> None:
    gpus.set(0, error=15)
    lost, *others = build(NvidiaConfig(all=True))
    assert isinstance(lost, Unavailable)
    assert lost.reason == "GPU 0: the GPU is lost: it has fallen off the bus"
    assert "dmesg" in lost.remedy
    assert len(meters_of(tuple(others))) == 3


def test_a_gpu_that_is_lost_while_it_is_read_says_so(gpus: Edges, build: Build) -> None:
    counter, instant, _ = meters_of(build(NvidiaConfig(), devices=("0",)))
    assert isinstance(counter.read(), int)
    gpus.set(0, error=15)
    domain = f"gpu-{FIRST.removeprefix('GPU-')}"
    for meter in (counter, instant):
        reading = meter.read()
        assert isinstance(reading, Unavailable)
        assert reading.reason == f"{domain}: the GPU is lost: it has fallen off the bus"
    gpus.set(0, error=0)
    assert isinstance(counter.read(), int)


@pytest.mark.parametrize(
    ("code", "reason", "remedy"),
    [
        (4, "NVML: this user may not read it", "Container Toolkit"),
        (9, "NVML: the NVIDIA kernel driver is not loaded", "nvidia-smi"),
        (16, "NVML: the GPU must be reset", "--gpu-reset"),
        (18, "NVML: driver and library are of different versions", "restart"),
        (999, "NVML: Unknown Error", ""),
    ],
)
def test_a_library_that_does_not_start_is_unavailable_with_a_remedy(
    code: int, reason: str, remedy: str, library: Path, tmp_path: Path, build: Build
) -> None:
    path = tmp_path / "edges"
    with Edges.create(path, [Gpu()], capacity=10, init_error=code), nvml.loaded(library, path):
        (missing,) = build(NvidiaConfig(), devices=("0",))
    assert isinstance(missing, Unavailable)
    assert missing.reason == reason
    assert remedy in missing.remedy


def test_a_machine_without_gpus_has_none(library: Path, tmp_path: Path, build: Build) -> None:
    path = tmp_path / "edges"
    with Edges.create(path, [], capacity=10), nvml.loaded(library, path):
        assert build(NvidiaConfig(all=True)) == (Unavailable("NVML shows no GPU"),)


def test_a_machine_without_the_driver_says_what_to_install(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", refuse)
    (missing,) = build(NvidiaConfig(), devices=("0",))
    assert isinstance(missing, Unavailable)
    assert missing.reason == "NVML: no NVIDIA driver: libnvidia-ml.so.1 was not found"
    assert "NVIDIA_DRIVER_CAPABILITIES" in missing.remedy


def test_nvml_is_shut_down_with_the_last_meter(gpus: Edges) -> None:
    found = meters_of(NvidiaConfig().build(Site((1,), ("0",))))
    for meter in found[:-1]:
        meter.close()
        meter.close()
    assert isinstance(found[-1].read(), int)
    found[-1].close()
    with pytest.raises(pynvml.NVMLError):
        pynvml.nvmlDeviceGetCount()
    gone = found[-1].read()
    assert isinstance(gone, Unavailable)
