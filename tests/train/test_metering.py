"""What a run is metered with: from start-up to behind the last checkpoint, in every way a run can end."""

import os
import platform
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.system.tiny import Tiny, metrics, resume, run_of, segments

from perjoule.core.errors import ConfigError, MeterUnavailable, TrainingDiverged
from perjoule.core.units import si
from perjoule.measure.contract import Unavailable
from perjoule.measure.live import LiveEnergy
from perjoule.measure.sampler import Sampler
from perjoule.runs.folder import CHECKPOINTS, SAMPLES, event_path, read_manifest
from perjoule.runs.journal import read_journal
from perjoule.runs.samples import Samples, read_samples, sample_files
from perjoule.train.budget import Emitted
from perjoule.train.metering import Place

THREAD = ("energy.sampler=thread", "energy.meters=cpu_time")


@pytest.fixture
def replay(tmp_path: Path) -> str:
    """Return the override for a meter that shows 100 W."""
    series = tmp_path / "series.csv"
    series.write_text("time_s,power_w\n" + "".join(f"{second / 10},100\n" for second in range(100)))
    return f"energy={{sampler: thread, rate_hz: 20, meters: {{kind: replay, path: {series}, scope: gpu}}}}"


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[Sampler]:
    """Note every sampler that is stopped."""
    seen: list[Sampler] = []
    stop = Sampler.stop

    def noted(sampler: Sampler, timeout_s: float = 2.0) -> None:
        stop(sampler, timeout_s)
        assert not sampler.alive()
        seen.append(sampler)

    monkeypatch.setattr(Sampler, "stop", noted)
    return seen


def samples_of(run: Path, segment: int = 0) -> Samples:
    (path,) = sample_files(run, segment)
    return read_samples(path)


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_run_is_metered_by_another_process_until_its_last_record(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tiny.train("energy.sampler=process"))
    samples = samples_of(run)
    node = platform.node()
    assert samples.header["processes"] == [os.getpid()]
    assert (samples.header["node"], samples.header["mode"]) == (node, "process")
    assert samples.header["pid"] != os.getpid()
    assert not is_running(samples.header["pid"])
    domains = [channel["domain"] for channel in samples.channels]
    assert domains[-3:] == ["cpu", "ram", "monitor"]
    before_ns, _, energy_uj = samples.of(len(domains) - 3)
    records = read_journal(event_path(run, 0, 0)).records
    assert before_ns[0] < records["t_ns"][0], "before the first step"
    assert before_ns[-1] > records["t_ns"][-1], "behind the last checkpoint"
    assert energy_uj[-1] > energy_uj[0]
    facts = segments(run)[0]
    assert facts["energy"]["nodes"] == [node]
    assert facts["energy"]["config"]["meters"][2]["kind"] == "cpu_time"
    assert facts["carbon"]["unavailable"].startswith("no location given")
    header = read_journal(event_path(run, 0, 0)).header
    assert (header["node"], header["pid"], header["device"]) == (node, os.getpid(), "")
    shown = capsys.readouterr().out
    assert re.search(r"^energy: .*modelled: cpu ram$", shown, re.MULTILINE)
    assert re.search(r"^not available: .*nvidia.* \(why: perjoule doctor\)$", shown, re.MULTILINE)


def test_metering_changes_no_loss(tiny: Tiny) -> None:
    assert tiny.losses_of(*THREAD) == tiny.losses_of()


@pytest.mark.parametrize("override", ["energy.sampler=off", "energy={sampler: process, meters: []}"])
def test_nothing_is_started_where_nothing_is_to_be_metered(
    tiny: Tiny, override: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Sampler, "start", None)
    run = run_of(tiny.train(override))
    assert list((run / SAMPLES).iterdir()) == []
    assert "energy:" not in capsys.readouterr().out


def test_meters_chosen_by_hand_say_what_is_missing(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.train("energy.sampler=thread", "energy.meters=[nvidia, cpu_time]")
    shown = capsys.readouterr().out
    assert "energy: modelled: cpu\n" in shown
    assert "not available: nvidia: the run uses no CUDA device" in shown


def test_a_sampler_that_gives_no_reading_costs_the_energy_and_not_the_run(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Sampler, "ready", lambda sampler, timeout_s: Unavailable("the sampler ended: signal 9"))
    assert tiny.train(*THREAD).status == "finished"
    assert "energy: not metered: the sampler ended: signal 9\n" in capsys.readouterr().out


def test_a_sampler_is_looked_after_about_once_a_second(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(range(10**6))
    monkeypatch.setattr("perjoule.train.metering.time", SimpleNamespace(monotonic=lambda: next(now) * 0.4))
    monkeypatch.setattr(Sampler, "watch", lambda sampler: "the sampler ended (signal 9) and was started again")
    tiny.train(*THREAD, "stop.steps=10")
    assert capsys.readouterr().out.count("energy: the sampler ended (signal 9) and was started again\n") == 4


def test_the_sampler_ends_with_a_run_that_fails(tiny: Tiny, stopped: list[Sampler]) -> None:
    with pytest.raises(TrainingDiverged):
        tiny.train(*THREAD, "optimizer.lr=1e30", "optimizer.clip_norm=null", "stop.steps=50")
    assert stopped


@pytest.mark.parametrize("where", ["perjoule.train.run.Loop.run", "perjoule.train.run._Assembly._called"])
@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "stopped"), (ZeroDivisionError, "failed")])
def test_the_sampler_ends_with_an_interrupt_or_a_mistake(
    tiny: Tiny, stopped: list[Sampler], monkeypatch: pytest.MonkeyPatch, where: str, error: type[Exception], status: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(where, fail)
    with pytest.raises(error):
        tiny.train(*THREAD, "name=broken")
    assert stopped
    assert read_manifest(tiny.runs / "broken")["status"] == status
    monkeypatch.undo()
    # What failed before it had chosen a backend can be continued, and is metered anew.
    assert resume(tiny.runs / "broken").status == "finished"
    assert len(samples_of(tiny.runs / "broken", 1).records) > 0


def test_an_energy_budget_ends_a_run_in_good_order(
    tiny: Tiny, replay: str, stopped: list[Sampler], capsys: pytest.CaptureFixture[str]
) -> None:
    result = tiny.train("stop={energy: 300 J}", replay)
    assert (result.status, result.signal) == ("finished", None)
    assert result.reason in {
        "300 J leave no room for another step (measured: replay)",
        "reached 300 J (measured: replay)",  # on a machine that was busy for a moment
    }
    run = run_of(result)
    assert read_manifest(run)["reason"] == result.reason
    assert (run / CHECKPOINTS / f"{result.step:08d}").is_dir()
    shown = capsys.readouterr().out
    assert f"finished: {result.reason}, at step {result.step}\n" in shown
    evaluated = [line["step"] for line in metrics(run, "evaluate")]
    assert evaluated == ([] if "loss: not measured: the budget leaves no room" in shown else [result.step])


def test_a_resumed_run_counts_the_energy_of_all_segments(tiny: Tiny, replay: str) -> None:
    run = run_of(tiny.train("stop={energy: 120 J}", replay))
    first_j = LiveEnergy(run).read()
    assert isinstance(first_j, float)
    again = resume(run, f"stop.energy={first_j + 20:.0f}")
    assert f"{si(round(first_j + 20), 'J')}" in again.reason
    before_ns, _, _ = samples_of(run, 1).of(0)
    assert (before_ns[-1] - before_ns[0]) / 1e9 * 100 < 120, "only what the first segment had left was used"


def test_a_resumed_run_counts_the_carbon_of_earlier_segments_at_their_own_intensity(
    tiny: Tiny, replay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tiny.train("stop={steps: 5}", replay, "carbon={intensity_g_per_kwh: 900, pue: 2}"))
    seen: list[Emitted] = []

    def noted(*arguments: Any) -> Emitted:
        seen.append(Emitted(*arguments))
        return seen[-1]

    first_j = LiveEnergy(run).read()
    assert isinstance(first_j, float)
    monkeypatch.setattr("perjoule.train.metering.Emitted", noted)
    resume(run, "stop={steps: 6, carbon: 10 kg}", "carbon={intensity_g_per_kwh: 9, pue: 1}")
    (emitted,) = seen
    later_g = (emitted.before_j - first_j) / 3.6e6 * 9
    assert emitted.before_g == pytest.approx(first_j / 3.6e6 * 1800 + later_g)


def test_a_carbon_budget_counts_intensity_and_pue(tiny: Tiny, replay: str) -> None:
    # 300 J at 900 g/kWh and a PUE of 2 are 150 mg.
    given = "carbon={intensity_g_per_kwh: 900, pue: 2}"
    result = tiny.train("stop={carbon: 150 mg}", replay, given)
    assert "150 mgCO2e" in result.reason and result.reason.endswith("(measured: replay; given by the user)")
    facts = segments(run_of(result))[0]["carbon"]
    assert (facts["g_per_kwh"], facts["pue"], facts["source"]) == (900, 2, "given by the user")
    before_ns, _, _ = samples_of(run_of(result)).of(0)
    assert 20 < (before_ns[-1] - before_ns[0]) / 1e9 * 100 < 600


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("stop={energy: 20 J}", "energy={sampler: thread, meters: [nvidia, memory]}"),
            "stop.energy needs a meter that gives energy, and there is none: nvidia: the run uses no CUDA device",
        ),
        (
            ("stop={carbon: 1 g}", "carbon={source: electricity_maps, zone: DE}", *THREAD),
            "stop.carbon needs the carbon intensity of the grid: Electricity Maps needs a token",
        ),
    ],
    ids=["energy", "carbon"],
)
def test_a_budget_without_a_meter_fails_before_the_first_step(
    tiny: Tiny, stopped: list[Sampler], overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(MeterUnavailable) as refused:
        tiny.train(*overrides, "name=unmetered")
    assert str(refused.value) == message
    manifest = read_manifest(tiny.runs / "unmetered")
    assert (manifest["status"], manifest["reason"]) == ("failed", message)
    assert metrics(tiny.runs / "unmetered", "step") == []
    assert stopped


def test_a_budget_without_a_sampler_says_why_it_has_none(
    tiny: Tiny, stopped: list[Sampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sampler, "ready", lambda sampler, timeout_s: Unavailable("the sampler ended: signal 9"))
    expected = "stop.energy needs a meter, but nothing is metered: the sampler ended: signal 9"
    with pytest.raises(MeterUnavailable, match=expected):
        tiny.train("stop={energy: 20 J}", *THREAD)
    assert stopped


def test_codecarbon_meters_the_whole_segment_besides_when_asked(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    trace: list[object] = []

    class Referee:
        @classmethod
        def start(cls, location: str | None) -> "Referee":
            trace.append(location)
            return cls()

        def stop(self, run: Path, segment: int, node: str) -> None:
            trace.append((run.name, segment, node, (run / CHECKPOINTS / "00000005").is_dir()))

    monkeypatch.setattr("perjoule.train.metering.Referee", Referee)
    tiny.train("name=checked", *THREAD, "energy.cross_check=codecarbon", "carbon.location=DEU")
    assert trace == ["DEU", ("checked", 0, platform.node(), True)]


def test_a_place_that_carbon_does_not_know_ends_the_sampler_too(
    tiny: Tiny, stopped: list[Sampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(config: object) -> None:
        raise ConfigError("no such place")

    monkeypatch.setattr("perjoule.measure.carbon.CarbonConfig.resolve", refuse)
    with pytest.raises(ConfigError, match="no such place"):
        tiny.train(*THREAD)
    assert stopped


def test_the_place_of_a_rank_names_its_device_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(uuid="0a1b-2c")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert Place.here(torch.device("cuda", 1)) == (platform.node(), os.getpid(), "GPU-0a1b-2c")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())
    assert Place.here(torch.device("cuda", 1)).device == "1"
    assert Place.here(torch.device("cpu")).device == ""
