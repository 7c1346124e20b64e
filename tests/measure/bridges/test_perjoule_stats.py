"""The toolkit's trainer records a perjoule run, and what comes out is what a run of our own has."""

from pathlib import Path

import pytest

from perjoule.core.errors import RunFolderError
from perjoule.measure.bridges.perjoule_stats import PerjouleStats
from perjoule.measure.bridges.trainer_stats import find_hooks
from perjoule.measure.config import EnergyConfig
from perjoule.measure.ledger import Total
from perjoule.measure.session import Measurement
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


def test_a_run_that_exists_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="exists already"):
        PerjouleStats(tmp_path).start_train()
