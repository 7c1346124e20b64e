"""From run folders to ledgers: segments, nodes, devices, samplers that died, files that cannot be read."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from perjoule.core.phases import RECORDED, STEP
from perjoule.measure.accounts import _memory_s
from perjoule.measure.book import build_ledger, read_sensor
from perjoule.measure.contract import Form, Sensor, Unavailable
from perjoule.measure.ledger import Ledger
from perjoule.measure.live import LiveEnergy
from perjoule.measure.readings import join
from perjoule.runs.folder import FINISHED, RunFolder, device_event_path, event_path, sample_path
from perjoule.runs.journal import BEGIN, END, JournalWriter
from perjoule.runs.sample_writer import SampleWriter
from perjoule.runs.samples import read_samples
from perjoule.runs.tables import load_run

MS = 1_000_000
PACKAGE = Sensor("package-0", Form.COUNTER, "package", "powercap", "µJ", 0.001, wraps_at=10**12, idle_w=5.0)
GPU = Sensor("gpu-GPU-42", Form.COUNTER, "gpu", "NVML energy", "µJ", 0.1, accuracy=(0.9, 1.08))
GPU_POWER = Sensor("gpu-GPU-42", Form.POWER, "gpu", "NVML power", "µW", 0.1, window_s=0.025, accuracy=(0.9, 1.08))
MEMORY = Sensor("memory-1", Form.LEVEL, "process", "pages", "bytes", 0.0)
MONITOR = Sensor("monitor", Form.LEVEL, "process", "CPU time", "ns", 0.0)


class Folder:
    """A run folder that is written by hand; every segment has 40 steps of 50 ms from ``start_ms``."""

    def __init__(self, path: Path) -> None:
        self.run = RunFolder.create(path, "seed: 0\n", {}, {"recipe": "test"})
        self.path = path

    def segment(self, ranks: dict[int, tuple[str, str]], start_ms: int, first_step: int = 1) -> int:
        """Write a segment whose ranks are on (node, device)."""
        number = self.run.begin_segment({"world_size": len(ranks), "first_step": first_step, "warmup_steps": 2})
        for rank, (node, device) in ranks.items():
            facts = {"rank": rank, "segment": number, "node": node, "device": device}
            self.journal(event_path(self.path, number, rank), facts, start_ms, first_step)
        for step in range(first_step, first_step + 40):
            self.run.append_event(
                "step", step=step, loss=1.0, grad_norm=1.0, lr=0.1, samples=4, tokens=64, useful=64, memory_bytes=1
            )
        return number

    def journal(self, path: Path, facts: dict[str, object], start_ms: int, first_step: int) -> None:
        writer = JournalWriter(path, RECORDED, facts)
        for step in range(first_step, first_step + 40):
            at = (start_ms + 50 * (step - first_step)) * MS
            for phase, kind, part_ms in (
                (STEP, BEGIN, 0),
                ("data", BEGIN, 0),
                ("data", END, 10),
                ("forward", BEGIN, 10),
                ("forward", END, 49),
                (STEP, END, 50),
            ):
                writer.put(at + part_ms * MS, at + part_ms * MS, step, writer.code(phase, kind))
        writer.close()

    def samples(
        self,
        segment: int,
        node: str,
        sensors: Sequence[Sensor],
        times_ms: Sequence[int],
        power_w: float,
        attempt: int = 0,
    ) -> None:
        """Write readings of a constant power."""
        path = sample_path(self.path, segment, node, attempt)
        facts = {
            "node": node,
            "rate_hz": 10.0,
            "unavailable": [{"kind": "rapl", "reason": "no powercap", "remedy": "x"}],
        }
        writer = SampleWriter(path, [{**asdict(one), "kind": "test"} for one in (*sensors, MONITOR)], facts)
        for at in times_ms:
            for number, sensor in enumerate(sensors):
                raw = power_w * at * 1000 + 1e9 if sensor.form == Form.COUNTER else power_w * 1e6
                writer.put(number, at * MS, at * MS + 1000, round(raw))
            writer.put(len(sensors), at * MS, at * MS + 1000, at * 10)
        writer.close()

    def ledger(self) -> Ledger:
        self.run.end(FINISHED, "test")
        self.run.close()
        ledger = build_ledger(load_run(self.path))
        for account in ledger.accounts:
            assert sum(bucket.energy_uj for bucket in account.buckets) == account.total_uj
        return ledger


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "run")


def test_a_run_on_one_node_has_an_account_for_each_domain_and_says_what_was_not_metered(folder: Folder) -> None:
    folder.samples(
        folder.segment({0: ("a", "GPU-42")}, 1000), "a", [PACKAGE, GPU, GPU_POWER, MEMORY], range(500, 3500, 100), 80
    )
    ledger = folder.ledger()
    assert [account.sensor.domain for account in ledger.accounts] == ["package-0", "gpu-GPU-42"]
    assert ledger.unavailable == (("rapl", Unavailable("no powercap", "x")),)
    for account in ledger.accounts:
        assert account.total_uj == pytest.approx(2.9 * 80e6)
        assert account.window_steps == 38
        assert account.window_uj == pytest.approx(38 * 0.05 * 80e6, rel=1e-3)
    total = ledger.total()
    assert not isinstance(total, Unavailable)
    assert total.energy_uj == sum(account.total_uj for account in ledger.accounts)


@pytest.mark.parametrize("sensors", [[GPU], [GPU_POWER], [GPU, GPU_POWER]])
def test_a_sensor_that_shows_nothing_is_not_measured_and_a_model_counts_instead(
    sensors: list[Sensor], folder: Folder
) -> None:
    segment = folder.segment({0: ("a", "GPU-42")}, 1000)
    folder.samples(segment, "a", [*sensors], range(500, 3500, 100), 0.0)
    ledger = folder.ledger()
    assert ledger.accounts == ()
    assert isinstance(ledger.total(), Unavailable)
    (domain, missing) = ledger.unavailable[-1]
    assert domain == "gpu-GPU-42"
    assert missing.reason.endswith("for 2.9 s, which is not 0 J: not measured")


def test_a_package_that_stands_still_gives_way_to_the_model(folder: Folder) -> None:
    segment = folder.segment({0: ("a", "")}, 1000)
    cpu = replace(PACKAGE, domain="cpu", scope="process", modelled=True, wraps_at=None)
    path = sample_path(folder.path, segment, "a", 0)
    facts = {"node": "a", "rate_hz": 10.0, "unavailable": []}
    with_kind = [{**asdict(one), "kind": "test"} for one in (PACKAGE, cpu, MONITOR)]
    writer = SampleWriter(path, with_kind, facts)
    for at in range(500, 3500, 100):
        for channel, raw in enumerate((10**9, 7000 * at, at)):
            writer.put(channel, at * MS, at * MS + 1000, raw)
    writer.close()
    total = folder.ledger().total()
    assert not isinstance(total, Unavailable)
    assert (total.domains, total.energy_uj) == (("cpu on a",), 2900 * 7000)
    live = LiveEnergy(folder.path).read()
    assert live == total.energy_uj / 1e6


def test_a_counter_that_stands_still_for_a_while_says_so(folder: Folder) -> None:
    segment = folder.segment({0: ("a", "")}, 1000)
    writer = SampleWriter(
        sample_path(folder.path, segment, "a", 0),
        [{**asdict(one), "kind": "test"} for one in (PACKAGE, MONITOR)],
        {"node": "a", "rate_hz": 10.0, "unavailable": []},
    )
    for at in range(500, 6500, 100):
        writer.put(0, at * MS, at * MS + 1000, 50_000 * min(at, 3000))
        writer.put(1, at * MS, at * MS + 1000, at)
    writer.close()
    (account,) = folder.ledger().accounts
    assert "the counter stood still for 3.4 s: it may show less than was used" in account.notes


def test_a_card_that_reads_too_little_at_idle_lies_within_its_interval_and_at_load_the_gain_decides(
    tmp_path: Path,
) -> None:
    for power_w, truth_w, most_w in ((56.0, 74.9, 76.0), (300.0, 320.0, 324.0)):
        folder = Folder(tmp_path / f"run{power_w:g}")
        segment = folder.segment({0: ("a", "GPU-42")}, 1000)
        folder.samples(segment, "a", [replace(GPU_POWER, offset_w=20.0)], range(500, 3500, 100), power_w)
        (account,) = folder.ledger().accounts
        assert truth_w * 2.9e6 <= account.high_uj == pytest.approx(most_w * 2.9e6, rel=1e-3)
        for bucket in account.buckets:
            assert bucket.high_uj >= min(truth_w, power_w * 1.08) * bucket.time_ns / 1e3 * 0.999


def test_a_power_sensor_whose_window_is_not_known_may_average_over_a_second(folder: Folder) -> None:
    segment = folder.segment({0: ("a", "GPU-42")}, 1000)
    folder.samples(segment, "a", [GPU_POWER], range(500, 3500, 100), 80.0)
    known = read_samples(sample_path(folder.path, segment, "a"))
    before, after, raw = known.of(0)
    for window_s, memory_s in ((0.025, 0.225), (None, 1.2), (2.0, 2.2)):
        series = join(replace(GPU_POWER, window_s=window_s), [(before, after, raw)], 10.0)
        assert _memory_s(series, 0.1) == pytest.approx(memory_s)


def test_segments_of_an_interrupted_run_are_accounts_of_their_own_and_add_up(folder: Folder) -> None:
    folder.samples(folder.segment({0: ("a", "")}, 1000), "a", [PACKAGE], range(900, 3200, 100), 50)
    folder.samples(folder.segment({0: ("b", "")}, 9000, 21), "b", [PACKAGE], range(8900, 11200, 100), 70)
    folder.samples(folder.segment({0: ("a", "")}, 20000, 41), "a", [PACKAGE], range(19900, 22200, 100), 50)
    ledger = folder.ledger()
    assert [(account.segment, account.node) for account in ledger.accounts] == [(0, "a"), (1, "b"), (2, "a")]
    assert {account.node: account.total_uj for account in ledger.merged()} == {
        "a": pytest.approx(2 * 2.2 * 50e6),
        "b": pytest.approx(2.2 * 70e6),
    }


def test_ranks_are_matched_to_the_node_and_the_device_they_use(folder: Folder) -> None:
    number = folder.segment({0: ("a", "GPU-42"), 1: ("a", "GPU-7"), 2: ("b", "GPU-42")}, 1000)
    other = Sensor("gpu-GPU-7", Form.COUNTER, "gpu", "NVML energy", "µJ", 0.1)
    folder.samples(number, "a", [GPU, other], range(900, 3200, 100), 50)
    folder.samples(number, "b", [GPU], range(900, 3200, 100), 60)
    ledger = folder.ledger()
    assert [(one.node, one.sensor.domain) for one in ledger.accounts] == [
        ("a", "gpu-GPU-42"),
        ("a", "gpu-GPU-7"),
        ("b", "gpu-GPU-42"),
    ]


def test_the_devices_own_timeline_is_used_for_its_energy_where_it_was_recorded(folder: Folder) -> None:
    number = folder.segment({0: ("a", "GPU-42")}, 1000)
    folder.journal(device_event_path(folder.path, number, 0), {"rank": 0, "node": "a"}, 1200, 1)
    folder.samples(number, "a", [PACKAGE, GPU], range(500, 3500, 100), 80)
    ledger = folder.ledger()
    ends = [account.by_step.energy_uj[-1] for account in ledger.accounts]
    assert ends[1] - ends[0] == pytest.approx(0.2 * 80e6, rel=1e-3)


def test_a_damaged_device_timeline_gives_way_to_the_hosts(folder: Folder) -> None:
    number = folder.segment({0: ("a", "GPU-42")}, 1000)
    device_event_path(folder.path, number, 0).write_bytes(b"no journal")
    folder.samples(number, "a", [GPU], range(500, 3500, 100), 80)
    (account,) = folder.ledger().accounts
    assert account.by_step.steps[-1] == 40


def test_a_sampler_that_was_started_again_leaves_an_unknown_span_and_a_whole_counter(folder: Folder) -> None:
    number = folder.segment({0: ("a", "")}, 1000)
    folder.samples(number, "a", [PACKAGE], range(500, 1500, 100), 50)
    folder.samples(number, "a", [PACKAGE], range(2300, 3500, 100), 50, attempt=1)
    (account,) = folder.ledger().accounts
    unknown = account.buckets[-1]
    assert (unknown.name, unknown.time_ns) == ("unknown", 900 * MS)
    assert unknown.energy_uj == 45_000_000
    assert account.total_uj == pytest.approx(2.9 * 50e6)


def test_a_counter_that_stands_still_is_not_believed(folder: Folder) -> None:
    number = folder.segment({0: ("a", "GPU-42")}, 1000)
    path = sample_path(folder.path, number, "a")
    writer = SampleWriter(
        path, [asdict(GPU), asdict(GPU_POWER), asdict(MONITOR)], {"node": "a", "rate_hz": 10.0, "unavailable": []}
    )
    for at in range(500, 3500, 100):
        writer.put(0, at * MS, at * MS + 1000, 777)
        writer.put(1, at * MS, at * MS + 1000, 80_000_000)
    writer.close()
    (account,) = folder.ledger().accounts
    assert account.sensor.form == Form.POWER
    assert account.total_uj == pytest.approx(2.9 * 80e6)
    assert "counter shows 0.00 times the integral of the power" in account.notes[0]


def test_files_that_cannot_be_read_are_said_and_the_others_are_used(folder: Folder) -> None:
    number = folder.segment({0: ("a", "")}, 1000)
    folder.samples(number, "a", [PACKAGE], range(500, 3500, 100), 50)
    sample_path(folder.path, number, "a", 1).write_bytes(b"torn")
    ledger = folder.ledger()
    assert len(ledger.accounts) == 1
    assert any(kind == "samples" and "0000-a-1.bin" in missing.reason for kind, missing in ledger.unavailable)


def test_a_run_without_samples_has_an_empty_ledger(folder: Folder) -> None:
    folder.segment({0: ("a", "")}, 1000)
    assert folder.ledger() == Ledger(())


def test_a_sensor_survives_its_way_through_a_header() -> None:
    assert read_sensor(json.loads(json.dumps({**asdict(GPU_POWER), "kind": "nvidia"}))) == GPU_POWER
