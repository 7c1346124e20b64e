"""Any loop can be measured, and what it leaves is an ordinary run."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import perjoule
from perjoule.core.errors import ConfigError, MissingExtra, RunFolderError
from perjoule.core.phases import STEP
from perjoule.measure import SHELF, session
from perjoule.measure.carbon import CarbonConfig
from perjoule.measure.config import EnergyConfig
from perjoule.measure.contract import Unavailable
from perjoule.measure.ledger import Total
from perjoule.measure.sampler import Sampler, SamplerState
from perjoule.measure.session import Measurement, devices_in_use
from perjoule.runs.folder import RunFolder, is_live, read_manifest
from perjoule.runs.journal import JournalWriter, read_journal
from perjoule.runs.samples import read_samples, sample_files
from perjoule.runs.tables import load_run

THREAD = EnergyConfig(meters=("cpu_time",), sampler="thread")
OFF = EnergyConfig(meters=("cpu_time",), sampler="off")


def measured(run: Path, **options: Any) -> Measurement:
    return Measurement(run, **{"energy": OFF, **options})


def phases(run: Path) -> list[str]:
    """Return the phases that began, in order, each with its step."""
    journal = read_journal(run / "events" / "0000-rank0.bin")
    begun = journal.records[(journal.records["kind"] == 0)]
    return [
        f"{row['step']} {journal.phases[row['phase']]}" for row in begun if journal.phases[row["phase"]] != "measure"
    ]


def test_a_loop_leaves_an_ordinary_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with perjoule.measure(run, energy=THREAD, warmup_steps=1, facts={"model": {"kind": "mine"}}) as one:
        assert isinstance(one.metered, SamplerState)
        for number in range(1, 4):
            with one.step(samples=8, tokens=2048, lr=0.1) as step:
                with one.phase("forward"):
                    with one.phase("attention"):
                        time.sleep(0.002)
                    time.sleep(0.001)
                with one.phase("backward"):
                    time.sleep(0.001)
                step.loss = 1 / number
    found = load_run(run)
    assert (found.status, found.reason, found.warnings) == ("finished", "the measured block ended", ())
    assert found.fact("model", "kind") == "mine"
    assert found.steps.step.tolist() == [1, 2, 3]
    assert found.steps.loss.tolist() == pytest.approx([1, 1 / 2, 1 / 3])
    assert found.steps.samples.tolist() == [8] * 3
    assert found.steps.tokens.tolist() == found.steps.useful.tolist() == [2048] * 3
    assert found.steps.lr.tolist() == [0.1] * 3
    assert found.steps.in_window.tolist() == [False, True, True]
    table = found.segments[0].phases
    assert table is not None
    assert table.phases == ["forward", "forward/attention", "backward"]
    assert (table.exclusive_s("forward/attention") >= 0.002).all()
    assert (table.wall_s("forward") >= 0.003).all()
    ledger = one.ledger()
    buckets = {bucket.name: bucket for bucket in ledger.accounts[0].buckets}
    assert {"forward", "forward/attention", "backward", "outside"} <= set(buckets)
    total = ledger.total()
    assert isinstance(total, Total)
    assert total.energy_uj == sum(bucket.energy_uj for bucket in buckets.values()) > 0
    assert ledger.accounts[0].window_steps == 2
    assert not is_live(run)


def test_a_block_without_steps_has_its_energy_outside(tmp_path: Path) -> None:
    with perjoule.measure(tmp_path / "run", energy=THREAD) as one:
        time.sleep(0.05)
        live = one.ledger().total()
        assert isinstance(live, Total) or "no meter" in live.reason
    (account,) = one.ledger().accounts
    assert [bucket.name for bucket in account.buckets] == ["outside"]
    assert account.buckets[0].time_ns > 50e6
    assert account.total_uj == account.buckets[0].energy_uj > 0
    assert account.unread_s < 0.05
    assert load_run(one.run).steps.step.tolist() == []


def test_phases_need_no_step(tmp_path: Path) -> None:
    with measured(tmp_path / "run") as one:
        with one.phase("load"):
            pass
        with one.step(), one.phase("load"):
            pass
        with one.phase("save"), one.phase("flush"):
            pass
    assert phases(one.run) == ["0 load", "1 step", "1 load", "1 save", "1 save/flush"]
    table = load_run(one.run).segments[0].phases
    assert table is not None
    assert set(table.before_ns) == {"load"}
    assert set(table.after_ns) == {"save", "save/flush"}


def test_a_phase_is_nested_where_it_is_entered(tmp_path: Path) -> None:
    with measured(tmp_path / "run") as one:
        norm = one.phase("norm")
        for outer in ("forward", "backward"):
            with one.phase(outer):
                with norm:
                    pass
                with norm, one.phase("norm"):
                    pass
                with one.phase(f"{outer}/norm"):
                    pass
        with norm:
            pass
    expected = [
        f"0 {outer}{inner}"
        for outer in ("forward", "backward")
        for inner in ("", *["/norm"] * 2, "/norm/norm", "/norm")
    ]
    assert phases(one.run) == [*expected, "0 norm"]


@pytest.mark.parametrize("name", ["", "step", "outside", "monitor", "a//b", "a/", " ", "calibrate"])
def test_some_names_are_taken(tmp_path: Path, name: str) -> None:
    with measured(tmp_path / "run") as one:
        with pytest.raises(
            ConfigError, match=r"cannot be the name of a phase; take any words but step, other, measure"
        ):
            one.phase(name).__enter__()
        with one.step(), one.phase("forward"):
            pass
    assert phases(one.run) == ["1 step", "1 forward"]


def test_a_nested_name_out_of_place_is_an_error(tmp_path: Path) -> None:
    with measured(tmp_path / "run") as one:
        with pytest.raises(ConfigError, match=r"phase 'forward/think' lies in 'forward', which is not open here"):
            one.phase("forward/think").__enter__()
        with one.phase("forward"), pytest.raises(ConfigError, match=r"'forward/a/b' lies in 'forward/a', which is not"):
            one.phase("a/b").__enter__()


def test_steps_do_not_overlap(tmp_path: Path) -> None:
    with measured(tmp_path / "run") as one:
        with one.step(), pytest.raises(ConfigError, match="a step cannot begin within another step: end that first"):
            one.step().__enter__()
        with one.phase("epoch"), pytest.raises(ConfigError, match="a step cannot begin within the phase 'epoch'"):
            one.step().__enter__()
        with one.step():
            pass
    assert load_run(one.run).steps.step.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("loss", "kept"),
    [
        (None, math.nan),
        (math.nan, math.inf),
        (-math.inf, math.inf),
        ("2.5", 2.5),
        (torch.ones((), requires_grad=True), 1),
    ],
)
def test_a_loss_that_is_not_logged_is_told_from_one_that_is_not_finite(tmp_path: Path, loss: Any, kept: float) -> None:
    with measured(tmp_path / "run") as one, one.step(tokens=10, useful=7, loss=loss):
        pass
    steps = load_run(one.run).steps
    assert steps.loss.tolist() == pytest.approx([kept], nan_ok=True)
    assert (steps.tokens.tolist(), steps.useful.tolist()) == ([10], [7])


def test_a_loop_within_a_generator_that_is_closed_is_stopped(tmp_path: Path) -> None:
    def losses() -> Generator[float]:
        with measured(tmp_path / "run") as one:
            for loss in (3.0, 2.0, 1.0):
                with one.step(loss=loss):
                    pass
                yield loss

    for loss in (loops := losses()):
        if loss < 3:
            loops.close()
    found = load_run(tmp_path / "run")
    assert (found.status, found.steps.loss.tolist()) == ("stopped", [3, 2]) and "generator" in found.reason


@pytest.mark.parametrize(("code", "status"), [(None, "finished"), (0, "finished"), (2, "failed"), ("why", "failed")])
def test_a_program_that_ends_itself_within_the_block_failed_only_if_its_exit_code_says_so(
    tmp_path: Path, code: int | str | None, status: str
) -> None:
    with pytest.raises(SystemExit), measured(tmp_path / "run"):
        sys.exit(code)
    found = load_run(tmp_path / "run")
    assert found.status == status and (status == "finished" or str(code) in found.reason)


def test_an_interrupt_while_the_first_readings_are_awaited_ends_the_metering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    stopped: list[bool] = []
    monkeypatch.setattr(Sampler, "ready", interrupt)
    monkeypatch.setattr(Sampler, "stop", lambda *_: stopped.append(True))
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path / "run").__enter__()
    assert stopped and load_run(tmp_path / "run").status == "stopped"


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("a shape is wrong"), "failed"), (KeyboardInterrupt(), "stopped")]
)
def test_an_error_of_the_block_is_written_down_and_goes_on(tmp_path: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), measured(tmp_path / "run") as one:
        with one.step(loss=1):
            pass
        with one.step(loss=2), one.phase("forward"):
            raise error
    found = load_run(tmp_path / "run")
    assert (found.status, found.reason) == (status, f"{type(error).__name__}: {error}")
    assert found.steps.step.tolist() == [1]
    assert found.warnings == ()


@pytest.mark.parametrize("own", [True, False])
def test_the_blocks_own_error_matters_more_than_one_of_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RunFolderError("the disk is full")

    monkeypatch.setattr(RunFolder, "end", refuse)
    with pytest.raises(ValueError if own else RunFolderError, match="mine" if own else "the disk is full"):
        with measured(tmp_path / "run"):
            if own:
                raise ValueError("mine")
    assert not is_live(tmp_path / "run")


def test_a_measurement_that_cannot_begin_holds_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RunFolderError("the disk is full")

    monkeypatch.setattr(JournalWriter, "__init__", refuse)
    with pytest.raises(RunFolderError, match="the disk is full"):
        measured(tmp_path / "run").__enter__()
    assert not is_live(tmp_path / "run")


def test_the_fence_is_called_at_every_edge(tmp_path: Path) -> None:
    calls: list[None] = []
    with measured(tmp_path / "run", fence=lambda: calls.append(None)) as one:
        with one.step(), one.phase("forward"):
            pass
    assert len(calls) == 4
    assert read_manifest(one.run)["segments"][0]["fence"] == "edge"


def test_without_a_fence_nobody_waits(tmp_path: Path) -> None:
    with measured(tmp_path / "run") as one:
        pass
    assert read_manifest(one.run)["segments"][0]["fence"] == "none"


def test_what_is_chosen_is_written_down(tmp_path: Path) -> None:
    carbon = CarbonConfig(intensity_g_per_kwh=100.0)
    meters = [{"kind": "cpu_time", "active_w_per_core": 9}, "memory"]
    with Measurement(tmp_path / "run", meters=meters, carbon=carbon) as one:
        assert isinstance(one.metered, SamplerState)
        assert [channel["kind"] for channel in one.metered.channels] == ["cpu_time", "memory", "monitor"]
    assert one.metered.mode == "process"
    facts = read_manifest(one.run)["segments"][0]
    assert facts["energy"]["config"]["meters"][0]["active_w_per_core"] == 9
    assert facts["carbon"]["g_per_kwh"] == 100
    resolved = load_run(one.run).resolved
    assert resolved["energy.rate_hz"] == {"value": 10.0, "source": "perjoule.measure"}
    assert resolved["carbon.intensity_g_per_kwh"]["value"] == 100


def test_meters_and_energy_exclude_one_another() -> None:
    with pytest.raises(ConfigError, match=r"give perjoule\.measure either meters or energy"):
        perjoule.measure(meters=["cpu_time"], energy=OFF)
    with pytest.raises(ConfigError, match="unknown measure kind 'rapel': did you mean 'rapl'"):
        perjoule.measure(meters=["rapel"])


def test_an_existing_folder_is_not_written_to(tmp_path: Path) -> None:
    with measured(tmp_path / "run"):
        pass
    with pytest.raises(RunFolderError, match=r"exists already: add to it with append=True, or choose another name"):
        measured(tmp_path / "run").__enter__()


def test_appended_measurements_are_segments_whose_steps_go_on_counting(tmp_path: Path) -> None:
    for number in range(3):
        with measured(tmp_path / "run", append=True, energy=THREAD) as one:
            for _ in range(2):
                with one.step(tokens=10, loss=number):
                    time.sleep(0.01)
    found = load_run(one.run)
    assert [segment.facts["first_step"] for segment in found.segments] == [1, 3, 5]
    assert found.steps.step.tolist() == [1, 2, 3, 4, 5, 6] and found.steps.loss.tolist() == [0, 0, 1, 1, 2, 2]
    assert not found.steps.superseded.any() and found.steps.in_window.all() and found.warnings == ()
    accounts = one.ledger().accounts
    total = one.ledger().total()
    assert isinstance(total, Total) and [account.segment for account in accounts] == [0, 1, 2]
    assert total.energy_uj == sum(account.total_uj for account in accounts)


def test_a_measurement_is_appended_after_one_that_failed_or_was_killed(tmp_path: Path) -> None:
    with pytest.raises(ValueError), measured(tmp_path / "run") as one, one.step():
        raise ValueError
    script = (
        "import os, signal, sys; from perjoule.measure.session import Measurement\n"
        "with Measurement(sys.argv[1], append=True, meters=[]) as one:\n"
        "    with one.step(): pass\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(one.run)], check=False).returncode == -signal.SIGKILL
    with measured(tmp_path / "run", append=True) as last, last.step():
        pass
    found = load_run(one.run)
    assert found.status == "finished" and found.steps.step.tolist() == [1, 2]
    assert [segment.facts["status"] for segment in found.segments] == ["failed", "running", "finished"]


def test_nothing_is_appended_to_a_run_that_was_trained_or_to_another_folder(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "trained", "", {}, {"recipe": "default"}).close()
    with pytest.raises(RunFolderError, match="is not a measurement's run folder: choose another name"):
        measured(tmp_path / "trained", append=True).__enter__()
    (tmp_path / "other").mkdir()
    with pytest.raises(RunFolderError, match="is not a run folder"):
        measured(tmp_path / "other", append=True).__enter__()


def test_a_missing_extra_is_noticed_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perjoule.measure.carbon.codecarbon_tables.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install"):
        measured(tmp_path / "run", carbon=CarbonConfig(source="codecarbon", location="DEU")).__enter__()
    assert not (tmp_path / "run").exists()


def test_without_a_name_there_is_a_new_folder_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with perjoule.measure(energy=OFF) as one:
            assert one.metered == Unavailable("no meter is read (energy.sampler=off)")
    assert len(list((tmp_path / "runs").glob("measure-*"))) == 2
    assert perjoule.measure().metered == Unavailable("the measurement has not begun")


def test_a_sampler_that_died_is_noted_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "WATCH_EVERY_S", 0.0)
    with Measurement(tmp_path / "run", meters=["cpu_time"]) as one:
        assert isinstance(one.metered, SamplerState)
        os.kill(read_samples(one.metered.path).header["pid"], signal.SIGKILL)
        while one._sampler.alive():
            time.sleep(0.001)
        with one.step():
            pass
        assert isinstance(one._sampler.ready(10), SamplerState)
    (note,) = load_run(one.run).notes
    assert note.text == "energy: the sampler ended (signal 9) and was started again: energy in between is unknown"
    assert (note.segment, note.step) == (0, 1)
    assert [path.name[-5] for path in sample_files(one.run, 0)] == ["0", "1"]


def fake_torch(initialized: bool, reserved: tuple[int, ...] = (), uuids: tuple[str, ...] = ()) -> SimpleNamespace:
    cuda = SimpleNamespace(
        is_initialized=lambda: initialized,
        device_count=lambda: len(reserved),
        memory_reserved=lambda index: reserved[index],
        get_device_properties=lambda index: SimpleNamespace(uuid=uuids[index]) if uuids else SimpleNamespace(),
    )
    return SimpleNamespace(cuda=cuda)


@pytest.mark.parametrize(
    ("torch", "visible", "devices"),
    [
        (None, None, ()),
        (None, "", ()),
        (None, "2, GPU-ab", ("2", "GPU-ab")),
        (fake_torch(False), "3", ("3",)),
        (fake_torch(True, (0, 5, 7)), None, ("1", "2")),
        (fake_torch(True, (5, 0, 7)), "6,4,GPU-x", ("6", "GPU-x")),
        (fake_torch(True, (1, 0), ("ab-1", "ab-2")), None, ("GPU-ab-1",)),
        (fake_torch(True, (0,)), "6", ()),
    ],
)
def test_metered_are_the_devices_in_use(
    monkeypatch: pytest.MonkeyPatch, torch: Any, visible: str | None, devices: tuple[str, ...]
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if torch is not None:
        monkeypatch.setitem(sys.modules, "torch", torch)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices_in_use() == devices


def test_devices_that_are_given_are_those_that_are_metered(tmp_path: Path) -> None:
    with measured(tmp_path / "run", devices=["GPU-ab"]) as one:
        pass
    assert read_manifest(one.run)["segments"][0]["device"] == "GPU-ab"


def test_the_verb_is_the_package_and_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, perjoule\n"
        "with perjoule.measure(sys.argv[1], meters=['cpu_time']) as one:\n"
        "    with one.step(): pass\n"
        "print(one.ledger().total().modelled, 'torch' in sys.modules, perjoule.measure.SHELF.name)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, check=True)
    assert run.stdout.decode().split() == ["True", "False", "measure"]
    assert SHELF is perjoule.measure.SHELF  # type: ignore[attr-defined]
    assert STEP in session.RESERVED
