"""The toolkit's trainer records a perjoule run, and what comes out is what a run of our own has."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perjoule.core.errors import RunFolderError
from perjoule.measure.bridges.perjoule_stats import PerjouleStats
from perjoule.measure.bridges.trainer_stats import find_hooks
from perjoule.measure.config import EnergyConfig
from perjoule.measure.ledger import Total
from perjoule.measure.session import Measurement
from perjoule.runs.folder import RunFolder
from perjoule.runs.tables import load_run


def train(stats: object, steps: int, save_every: int = 2, log: bool = True) -> None:
    """Do what the toolkit's trainer does, in its order."""
    hooks = find_hooks(stats)
    hooks["start_train"]()
    for number in range(1, steps + 1):
        hooks["start_step"]()
        for what in ("forward", "backward", "optimizer_step"):
            hooks[f"start_{what}"]()
            sum(range(20_000))
            hooks[f"stop_{what}"]()
        hooks["stop_step"]()
        if number % save_every == 0:
            hooks["start_save_checkpoint"]()
            hooks["stop_save_checkpoint"]()
        if log:
            hooks["log_loss"](1 / number)
            hooks["log_step"]()
    hooks["stop_train"]()
    hooks["log_stats"]()


def measurement(run: Path) -> Measurement:
    return Measurement(run, energy=EnergyConfig(meters=("cpu_time",), sampler="thread"))


def test_their_trainer_leaves_a_run_with_steps_phases_losses_and_energy(tmp_path: Path) -> None:
    lines: list[str] = []
    stats = PerjouleStats(measurement(tmp_path / "run"), samples=8, say=lines.append)
    train(stats, steps=6)
    run = load_run(tmp_path / "run")
    assert run.status == "finished" and run.warnings == ()
    assert run.steps.step.tolist() == [1, 2, 3, 4, 5, 6] and run.steps.samples.tolist() == [8] * 6
    assert run.steps.loss.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6])
    assert run.segments[0].phases is not None
    assert run.segments[0].phases.phases[-4:] == ["forward", "backward", "optimizer", "checkpoint"]
    total = stats.measurement.ledger().total()
    assert isinstance(total, Total) and total.energy_uj > 0 and total.modelled
    assert [line.split()[0] for line in lines] == ["task", "Step", "Forward", "Backward", "Optimisation"]
    assert len(list((tmp_path / "run" / "codecarbon").glob("run_1_cc_*_rank_cpu*.csv"))) == 3


def test_a_trainer_that_never_logs_its_steps_loses_only_the_losses(tmp_path: Path) -> None:
    train(PerjouleStats(measurement(tmp_path / "run"), say=lambda _: None), steps=3, log=False)
    run = load_run(tmp_path / "run")
    assert run.steps.step.tolist() == [1, 2, 3] and run.warnings == ()


def test_a_second_training_is_a_run_of_its_own_and_a_run_that_exists_is_not_written_over(tmp_path: Path) -> None:
    stats = PerjouleStats(measurement(tmp_path / "run"), say=lambda _: None)
    train(stats, steps=2)
    train(stats, steps=3)
    train(PerjouleStats(measurement(tmp_path / "run"), say=lambda _: None), steps=1)
    assert [len(load_run(tmp_path / name).steps) for name in ("run", "run-2", "run-3")] == [2, 3, 1]


def test_the_rows_of_a_counted_loader_are_the_samples(tmp_path: Path) -> None:
    stats = PerjouleStats(measurement(tmp_path / "run"), say=lambda _: None)
    rows = {"mask": None, "input_ids": np.zeros((4, 9)), "labels": np.zeros(4)}
    loader = stats.counted([rows, (np.zeros((3, 2)), np.zeros(3)), [np.float64(1), np.zeros(2)], {"text": ["a", "b"]}])
    stats.start_train()
    for _ in loader:
        stats.start_step()
        stats.stop_step()
        stats.log_step()
    stats.stop_train()
    assert load_run(tmp_path / "run").steps.samples.tolist() == [4, 3, 2, 0] and len(loader) == 4


def test_hooks_in_any_order_leave_a_sound_run(tmp_path: Path) -> None:
    stats = PerjouleStats(measurement(tmp_path / "run"), say=lambda _: None)
    for hook in (
        *("stop_step", "stop_forward", "log_step", "start_forward", "start_train", "stop_backward", "start_step"),
        *("start_forward", "start_forward", "start_backward", "stop_forward", "stop_backward", "stop_backward"),
        *("stop_step", "start_step", "start_optimizer_step", "stop_train", "stop_train", "stop_optimizer_step"),
    ):
        getattr(stats, hook)()
    run = load_run(tmp_path / "run")
    assert run.status == "finished" and run.warnings == () and run.steps.step.tolist() == [1], "the other had no end"


def test_an_error_in_their_loop_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loop(stats: PerjouleStats, fan_out: Callable[[str], None]) -> None:
        fan_out("start_train")
        fan_out("start_step")
        time.sleep(0.5)  # longer than two looks: a helper between loop and hook is not the loop
        fan_out("stop_step")
        fan_out("start_step")
        raise ValueError("a shape is wrong")

    def status_of(name: str) -> tuple[str, str]:
        until_s = time.monotonic() + 10
        while (run := load_run(tmp_path / name)).status not in ("failed", "stopped") and time.monotonic() < until_s:
            time.sleep(0.05)
        return run.status, run.reason

    for name in ("caught", "last"):
        stats = PerjouleStats(measurement(tmp_path / name))
        try:
            loop(stats, lambda hook, stats=stats: getattr(stats, hook)())  # type: ignore[misc]
        except ValueError as error:
            if name == "last":  # what a notebook or the end of the program does with an error that nobody caught
                monkeypatch.setattr("sys.last_value", error, raising=False)
            status, reason = status_of(name)
        assert status == "failed" and len(load_run(tmp_path / name).steps) == 1
        assert reason.endswith(
            "loop was left before the training had ended" if name == "caught" else "a shape is wrong"
        )
    with pytest.raises(KeyboardInterrupt), PerjouleStats(measurement(tmp_path / "with")) as stats:
        stats.start_train()
        raise KeyboardInterrupt
    assert status_of("with") == ("stopped", "KeyboardInterrupt: ")


def test_what_fails_in_a_hook_is_said_once_and_their_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RunFolderError("the disk is full")

    monkeypatch.setattr(RunFolder, "append", refuse)
    with caplog.at_level(logging.WARNING, logger="perjoule"):
        train(PerjouleStats(measurement(tmp_path / "run"), say=lambda _: None), steps=3)
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["the disk is full"]
    assert load_run(tmp_path / "run").status == "failed"


def test_the_toolkit_finds_and_builds_them_by_a_module_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    exec("from perjoule.measure.bridges.perjoule_stats import *", found)
    monkeypatch.chdir(tmp_path)
    stats = found["construct_trainer_stats"](object(), device="cuda:1", num_train_steps=3)
    assert found["trainer_stats_name"] == "perjoule" and stats.measurement.run.parent == Path("runs")
    assert find_hooks(stats)
