"""The fake NVML keeps its promises: what it shows is what it was told."""

import math
import os
import shutil
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pynvml  # type: ignore[import-untyped]
import pytest
from tests.fakes import nvml
from tests.fakes.nvml import Edges, Gpu

MS = 1_000_000


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("the fake NVML needs gcc")
    return nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def edges(library: Path, tmp_path: Path) -> Iterator[Edges]:
    """One GPU of which every reading is new, opened in this process."""
    path = tmp_path / "edges"
    gpu = Gpu(refresh_ms=0, window_ms=0, counter_refresh_ms=0)
    with Edges.create(path, [gpu], idle_w=100.0) as edges, nvml.loaded(library, path):
        pynvml.nvmlInit()
        yield edges
        pynvml.nvmlShutdown()


def power_mw() -> int:
    return int(pynvml.nvmlDeviceGetPowerUsage(pynvml.nvmlDeviceGetHandleByIndex(0)))


def count_mj() -> int:
    return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0)))


def test_truth_is_the_area_under_the_edges_and_adds_up_by_label(edges: Edges) -> None:
    start_ns = edges.set_power(120, "data")
    for row, (watts, label) in enumerate([(300, "forward"), (400, "backward"), (120, "data")]):
        edges.set_power(watts, label, t_ns=start_ns + (row + 1) * MS)
    end_ns = start_ns + 6 * MS
    assert edges.energy_uj(start_ns, end_ns) == 120e3 + 300e3 + 400e3 + 3 * 120e3
    parts = edges.energy_by_label_uj(start_ns, end_ns)
    assert parts == {"": 0, "data": 4 * 120e3, "forward": 300e3, "backward": 400e3}
    assert edges.time_by_label_ns(start_ns, end_ns) == {"": 0, "data": 4 * MS, "forward": MS, "backward": MS}
    assert edges.energy_by_label_uj(start_ns + MS // 2, start_ns + MS)["data"] == 60e3
    assert edges.energy_uj(0, start_ns - 10_000 * MS) == 0


def test_power_of_this_moment_is_that_of_the_last_edge(edges: Edges) -> None:
    assert power_mw() == 100_000
    edges.set_power(321.5)
    assert power_mw() == 321_500
    edges.set_power(50, t_ns=time.monotonic_ns() + 10**12)
    assert power_mw() == 321_500


def test_counter_is_its_offset_and_the_true_energy(edges: Edges) -> None:
    edges.set_power(250)
    first_ns = time.monotonic_ns()
    begin_mj = count_mj()
    inner_ns = time.monotonic_ns()
    time.sleep(0.03)
    last_ns = time.monotonic_ns()
    end_mj = count_mj()
    outer_ns = time.monotonic_ns()
    assert edges.energy_uj(inner_ns, last_ns) / 1e3 - 1 <= end_mj - begin_mj
    assert end_mj - begin_mj <= edges.energy_uj(first_ns, outer_ns) / 1e3 + 1
    assert begin_mj > 123_456_000 + 3 * 100_000
    edges.set(0, counter_offset_mj=0.0)
    assert count_mj() < begin_mj
    edges.set(0, frozen_counter=1, counter_offset_mj=77.0)
    assert count_mj() == 77


def filtered_mean_w(edges: Edges, from_ns: int, to_ns: int, tau_ns: float) -> float:
    """Return the mean of the low-passed staircase, walked through forwards and segment by segment."""
    steps = edges.written()
    moments = np.unique(np.concatenate([steps["t_ns"], [from_ns, to_ns]]))
    state, area = 0.0, 0.0
    for begin_ns, end_ns in pairwise(moments[moments <= to_ns].tolist()):
        power = steps["power_mw"][np.searchsorted(steps["t_ns"], begin_ns, side="right") - 1] / 1000
        decayed = math.exp(-(end_ns - begin_ns) / tau_ns)
        if begin_ns >= from_ns:
            area += power * (end_ns - begin_ns) + (state - power) * tau_ns * (1 - decayed)
        state = power + (state - power) * decayed
    return area / (to_ns - from_ns)


@pytest.mark.parametrize(("window_ms", "lag_ms", "tau_ms"), [(25, 0, 10), (100, 15, 20), (10, 40, 3)])
def test_low_pass_window_and_lag_agree_with_a_filter_of_the_staircase(
    window_ms: int, lag_ms: int, tau_ms: int, edges: Edges
) -> None:
    edges.set(0, refresh_ms=1000.0, window_ms=float(window_ms), lag_ms=float(lag_ms), lowpass_tau_ms=float(tau_ms))
    generator = np.random.default_rng(window_ms)
    t_ns = time.monotonic_ns() - 2500 * MS
    while t_ns < time.monotonic_ns():
        edges.set_power(float(generator.uniform(50, 400)), t_ns=t_ns)
        t_ns += int(generator.integers(MS, 12 * MS))
    before_s = after_s = -1
    while before_s < 0 or before_s != after_s:  # until the sensor did not refresh meanwhile
        before_s = time.monotonic_ns() // 10**9
        shown_mw = power_mw()
        after_s = time.monotonic_ns() // 10**9
    end_ns = before_s * 10**9 - lag_ms * MS
    expected_w = filtered_mean_w(edges, end_ns - window_ms * MS, end_ns, tau_ms * MS)
    assert shown_mw == pytest.approx(1000 * expected_w, abs=1)


def test_jitter_makes_refreshes_late_by_up_to_its_share(edges: Edges) -> None:
    edges.set(0, counter_refresh_ms=5.0, jitter=0.8, counter_offset_mj=0.0)
    start_ns = edges.set_power(1000)
    before_mj = edges.energy_uj(0, start_ns) / 1000
    counts: set[int] = set()
    while len(counts) < 20 and time.monotonic_ns() < start_ns + 20_000 * MS:
        counts.add(count_mj())
    ticks_ns = [start_ns + 1000 * (count - before_mj) for count in sorted(counts) if count > before_mj + 1]
    late_ms = np.array([tick_ns % (5 * MS) / MS for tick_ns in ticks_ns])
    assert len(late_ms) > 15
    assert late_ms.max() < 4.01
    assert np.ptp(late_ms) > 1.0


def test_gain_and_noise_are_factors_of_the_truth(edges: Edges) -> None:
    edges.set_power(200)
    edges.set(0, gain=0.95)
    assert power_mw() == 190_000
    edges.set(0, gain=1.0, noise=0.01)
    values = np.array([power_mw() for _ in range(3000)]) / 200_000
    assert values.mean() == pytest.approx(1.0, abs=0.001)
    assert values.std() == pytest.approx(0.01, rel=0.1)


def test_edges_are_written_in_order_and_not_beyond_the_file(library: Path, tmp_path: Path) -> None:
    with Edges.create(tmp_path / "edges", [Gpu(), Gpu()], capacity=3) as edges:
        t_ns = edges.set_power(100, device=1)
        with pytest.raises(ValueError, match=f"edge at {t_ns - 1} ns lies before the last one at {t_ns} ns"):
            edges.set_power(100, device=1, t_ns=t_ns - 1)
        edges.set_power(200, device=1)
        with pytest.raises(IndexError, match="holds 3 edges of a GPU and is full"):
            edges.set_power(300, device=1)
        assert edges.written(1)["power_mw"].tolist() == [60_000, 100_000, 200_000]
        assert edges.written(0)["power_mw"].tolist() == [60_000]
        assert edges.energy_uj(t_ns - MS, t_ns, device=1) == edges.energy_uj(t_ns, t_ns + MS, device=0) == 60e3


def test_library_is_compiled_once(library: Path) -> None:
    written_ns = library.stat().st_mtime_ns
    assert nvml.build(library.parent) == library
    assert library.stat().st_mtime_ns == written_ns
    assert library.name == "libnvidia-ml.so.1"
    assert os.access(library.with_name("nvidia-smi"), os.X_OK)


def test_variables_of_a_process_put_the_library_first(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.setenv("PATH", "/elsewhere")
    assert nvml.environment(library, tmp_path / "edges") == {
        "LD_LIBRARY_PATH": str(library.parent),
        "PATH": f"{library.parent}:/elsewhere",
        "FAKE_NVML_EDGES": str(tmp_path / "edges"),
    }


def test_everything_that_other_tools_ask_is_answered(edges: Edges) -> None:
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlSystemGetDriverVersion() == "999.99"
    assert pynvml.nvmlDeviceGetName(gpu) == "NVIDIA A100-SXM4-40GB"
    assert pynvml.nvmlDeviceGetMemoryInfo(gpu).total == 40 * 2**30
    assert pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu == 50
    assert pynvml.nvmlDeviceGetTemperature(gpu, 0) == pynvml.nvmlDeviceGetTemperatureV(gpu, 0) == 50
    assert pynvml.nvmlDeviceGetComputeMode(gpu) == 0
    assert pynvml.nvmlDeviceGetPersistenceMode(gpu) == 1
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(gpu) == []
    assert pynvml.nvmlDeviceGetGraphicsRunningProcesses(gpu) == []
    assert pynvml.nvmlDeviceGetPowerManagementLimitConstraints(gpu) == [100_000, 400_000]
    assert pynvml.nvmlDeviceGetPowerManagementLimit(gpu) == 400_000
    assert pynvml.nvmlDeviceGetPowerManagementDefaultLimit(gpu) == 400_000
    assert pynvml.nvmlDeviceGetIndex(gpu) == pynvml.nvmlDeviceGetMinorNumber(gpu) == 0


def test_partitioned_gpu_has_one_instance_that_leads_to_it(edges: Edges) -> None:
    edges.set(0, partitioned=1)
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu) == 1
    instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
    assert pynvml.nvmlDeviceIsMigDeviceHandle(instance).value == 1
    assert pynvml.nvmlDeviceGetUUID(instance).startswith("MIG-")
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetTotalEnergyConsumption(instance)
