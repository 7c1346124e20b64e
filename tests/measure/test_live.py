"""What a run has used so far equals what its readings say, however they come in."""

import os
from dataclasses import asdict
from pathlib import Path

import pytest

from perjoule.core.errors import RunFolderError
from perjoule.measure.book import build_ledger
from perjoule.measure.contract import Form, Sensor, Unavailable
from perjoule.measure.ledger import Total
from perjoule.measure.live import LiveEnergy
from perjoule.runs.folder import RunFolder, sample_path
from perjoule.runs.journal import BEGIN, END, JournalWriter
from perjoule.runs.mapped import HEADER_BYTES
from perjoule.runs.sample_writer import SampleWriter
from perjoule.runs.tables import load_run

SECOND = 10**9


def sensor(domain: str, scope: str, form: Form = Form.COUNTER, modelled: bool = False) -> Sensor:
    unit = {Form.COUNTER: "µJ", Form.POWER: "µW", Form.LEVEL: "ns"}[form]
    return Sensor(domain, form, scope, f"test {form}", unit, 0.1, modelled=modelled)


PACKAGE, CPU = sensor("package-0", "package"), sensor("cpu", "process", modelled=True)
GPU, GPU_POWER = sensor("gpu-a", "gpu"), sensor("gpu-a", "gpu", Form.POWER)
MONITOR = sensor("monitor", "process", Form.LEVEL)


class Written:
    """A run folder with sample files that a test fills."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder.create(path, "", {}, {})
        self.folder.begin_segment({})
        self.path = path

    def samples(self, *sensors: Sensor, node: str = "here", attempt: int = 0, missing: str = "") -> SampleWriter:
        unavailable = [{"kind": "rapl", "reason": missing, "remedy": ""}] if missing else []
        path = sample_path(self.path, self.folder.segment, node, attempt)
        return SampleWriter(
            path,
            [{**asdict(one), "kind": "test"} for one in (*sensors, MONITOR)],
            {"node": node, "rate_hz": 10.0, "unavailable": unavailable},
        )

    def read(self) -> float | Unavailable:
        return LiveEnergy(self.path).read()


@pytest.fixture
def run(tmp_path: Path) -> Written:
    return Written(tmp_path / "run")


def put(writer: SampleWriter, channel: int, *readings: tuple[float, float]) -> None:
    """Write (second, joules or watts)."""
    for t_s, value in readings:
        t_ns = round(t_s * SECOND)
        writer.put(channel, t_ns, t_ns + 1000, round(value * 1e6))


def test_only_what_is_new_is_added(run: Written) -> None:
    writer = run.samples(PACKAGE)
    live = LiveEnergy(run.path)
    assert live.read() == Unavailable("there are no two readings of any meter yet")
    put(writer, 0, (0, 100))
    assert live.read() == Unavailable("there are no two readings of any meter yet")
    put(writer, 0, (1, 130))
    assert [live.read(), live.read()] == [30, 30]
    put(writer, 0, (2, 150), (3, 160))
    assert live.read() == 60
    writer.close()
    assert live.read() == run.read() == 60


def test_a_model_s_energy_between_two_looks_counts(run: Written) -> None:
    writer = run.samples(CPU)
    live = LiveEnergy(run.path)
    for number in range(20):  # one new reading, or none, at each look
        put(writer, 0, (number / 10, 7 * number))
        live.read()
        live.read()
    assert live.read() == run.read() == 7 * 19


def test_power_is_integrated_over_all_readings(run: Written) -> None:
    writer = run.samples(GPU_POWER)
    live = LiveEnergy(run.path)
    put(writer, 0, (0, 100), (1, 100), (2, 300))
    assert live.read() == 300
    put(writer, 0, (4, 300))
    assert live.read() == run.read() == 900


def test_no_joule_counts_twice(run: Written) -> None:
    writer = run.samples(PACKAGE, CPU, GPU, GPU_POWER)
    for channel, joules in enumerate((10, 1000)):
        put(writer, channel, (0, 0), (1, joules))
    put(writer, 2, (0, 0), (1, 200))
    put(writer, 3, (0, 190), (1, 190))
    put(writer, 4, (0, 0), (1, 5000))
    assert run.read() == 210


def test_a_counter_that_stands_still_is_not_believed(run: Written) -> None:
    writer = run.samples(GPU, GPU_POWER)
    put(writer, 0, (0, 50), (5, 50))
    put(writer, 1, (0, 200), (5, 200))
    assert run.read() == 1000


def test_a_meter_without_readings_hides_no_other(run: Written) -> None:
    writer = run.samples(PACKAGE, CPU)
    put(writer, 1, (0, 0), (1, 7))
    assert run.read() == 7


def test_nodes_segments_and_samplers_add_up(run: Written) -> None:
    first = run.samples(PACKAGE)
    put(first, 0, (0, 0), (1, 10))
    again = run.samples(PACKAGE, attempt=1)
    put(again, 0, (3, 25), (4, 30))  # what was used while no sampler ran is in the counter
    put(run.samples(PACKAGE, node="there"), 0, (0, 0), (1, 100))
    assert run.read() == 130
    run.folder.begin_segment({})
    live = LiveEnergy(run.path)
    assert live.read() == Unavailable("there are no two readings of any meter yet")
    later = run.samples(PACKAGE)
    put(later, 0, (9, 5), (10, 6))
    assert live.read() == 131
    put(again, 0, (5, 5000))  # a segment that is over is not looked at again
    put(later, 0, (11, 7))
    assert live.read() == 132


def test_a_counter_that_began_again_goes_on_from_there(run: Written) -> None:
    put(run.samples(CPU), 0, (0, 0), (1, 10))
    put(run.samples(CPU, attempt=1), 0, (2, 0), (3, 5))
    assert run.read() == 15


def test_without_any_meter_the_reason_is_given(run: Written) -> None:
    run.samples(missing="no RAPL zone")
    assert run.read() == Unavailable("rapl: no RAPL zone")


def test_a_file_that_cannot_be_read_yet_is_left_for_later(run: Written) -> None:
    put(run.samples(PACKAGE), 0, (0, 0), (1, 10))
    torn = sample_path(run.path, 0, "there")
    torn.write_bytes(b"PJSAMPLE")
    live = LiveEnergy(run.path)
    assert live.read() == 10
    os.truncate(torn, 0)
    torn.unlink()
    put(run.samples(PACKAGE, node="there"), 0, (0, 0), (1, 10))
    assert torn.stat().st_size > HEADER_BYTES
    assert live.read() == 20


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run folder"):
        LiveEnergy(tmp_path / "nowhere")


def test_live_total_equals_that_of_the_ledger(run: Written) -> None:
    journal = JournalWriter(run.folder.event_path(0), ("step",), {"node": "here"})
    writer = run.samples(PACKAGE, CPU, GPU_POWER)
    for number in range(40):
        t_s = number / 10
        journal.put(round(t_s * SECOND), round(t_s * SECOND), number + 1, journal.code("step", BEGIN))
        journal.put(round((t_s + 0.09) * SECOND), round(t_s * SECOND), number + 1, journal.code("step", END))
        put(writer, 0, (t_s, 3.7 * number))
        put(writer, 1, (t_s, 2.2 * number))
        put(writer, 2, (t_s, 200 + 13 * (number % 7)))
    journal.close()
    total = build_ledger(load_run(run.path)).total()
    assert isinstance(total, Total)
    assert run.read() == pytest.approx(total.energy_uj / 1e6, abs=1e-6)
