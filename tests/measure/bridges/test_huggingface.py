"""The callback, driven by transformers' own handler in the order of its Trainer."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perjoule.core.errors import MissingExtra
from perjoule.measure.bridges.huggingface import perjoule_callback
from perjoule.measure.config import EnergyConfig
from perjoule.measure.ledger import Total
from perjoule.measure.session import Measurement
from perjoule.runs.phase_table import PhaseTable
from perjoule.runs.tables import Run, load_run


class FakeTrainer:
    """Raises the events that transformers 5 raises, through its handler and its default callback."""

    def __init__(self, callback: object, evaluate_every: int = 0, save_every: int = 0, rank: int = 0) -> None:
        from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerControl, TrainerState

        handler: Any = CallbackHandler
        self.handler = handler([DefaultFlowCallback(), callback], None, None, None, None)
        self.args = SimpleNamespace(
            **{"train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_first_step": False},
            **{"logging_strategy": "no", "eval_delay": 0, "enable_jit_checkpoint": False},
            eval_strategy="steps" if evaluate_every else "no",
            save_strategy="steps" if save_every else "no",
        )
        self.state = TrainerState(is_world_process_zero=rank == 0, is_local_process_zero=rank == 0, max_steps=10**6)
        self.state.eval_steps, self.state.save_steps = evaluate_every, save_every
        self.control = TrainerControl()

    def raise_event(self, event: str, **options: Any) -> None:
        self.control = getattr(self.handler, event)(self.args, self.state, self.control, **options)

    def train(self, steps: int, epochs: int = 1) -> None:
        self.raise_event("on_train_begin")
        for _ in range(epochs):
            self.raise_event("on_epoch_begin")
            for _ in range(steps):
                self.step()
            self.raise_event("on_epoch_end")
        self.raise_event("on_train_end")

    def step(self) -> None:
        self.raise_event("on_step_begin")
        self.raise_event("on_substep_end")
        self.raise_event("on_pre_optimizer_step")
        self.raise_event("on_optimizer_step")
        self.state.global_step += 1
        self.raise_event("on_step_end")
        if self.control.should_evaluate:
            self.raise_event("on_prediction_step")
            self.raise_event("on_evaluate", metrics={})
        if self.control.should_save:
            self.raise_event("on_save")


def recorded(tmp_path: Path, steps: int, epochs: int = 1, **options: int) -> tuple[Run, PhaseTable]:
    measurement = Measurement(tmp_path / "run", energy=EnergyConfig(meters=("cpu_time",), sampler="thread"))
    FakeTrainer(perjoule_callback(measurement), **options).train(steps, epochs)
    run = load_run(tmp_path / "run")
    assert run.status == "finished" and run.warnings == ()
    assert run.segments[0].phases is not None
    return run, run.segments[0].phases


def test_steps_have_computation_and_optimizer_told_apart(tmp_path: Path) -> None:
    run, table = recorded(tmp_path, steps=3, epochs=2)
    assert run.steps.step.tolist() == [1, 2, 3, 4, 5, 6]
    assert run.steps.samples.tolist() == [8] * 6, "batch times accumulation"
    assert {"compute", "optimizer"} <= set(table.phases) and "forward" not in table.phases
    assert (table.wall_ns["compute"] > 0).all() and (table.wall_ns["optimizer"] > 0).all()


def test_an_evaluation_and_a_checkpoint_are_phases_of_the_step_they_follow(tmp_path: Path) -> None:
    _, table = recorded(tmp_path, steps=6, evaluate_every=2, save_every=3)
    assert [step for step, spent in zip(table.steps, table.wall_ns["evaluate"], strict=True) if spent] == [2, 4, 6]
    assert [step for step, spent in zip(table.steps, table.wall_ns["checkpoint"], strict=True) if spent] == [3, 6]


def test_the_run_has_a_ledger(tmp_path: Path) -> None:
    measurement = Measurement(tmp_path / "run", energy=EnergyConfig(meters=("cpu_time",), sampler="thread"))
    FakeTrainer(perjoule_callback(measurement)).train(3)
    total = measurement.ledger().total()
    assert isinstance(total, Total) and total.energy_uj > 0


def test_other_ranks_record_nothing(tmp_path: Path) -> None:
    FakeTrainer(perjoule_callback(tmp_path / "run"), evaluate_every=1, rank=1).train(2)
    assert not (tmp_path / "run").exists()


def test_the_callback_is_a_trainer_callback() -> None:
    from transformers import TrainerCallback

    assert isinstance(perjoule_callback("runs/unused"), TrainerCallback)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'perjoule\[huggingface\]'"):
        perjoule_callback("runs/unused")


def test_an_evaluation_before_training_is_no_step(tmp_path: Path) -> None:
    trainer = FakeTrainer(perjoule_callback(tmp_path / "run"))
    trainer.raise_event("on_evaluate", metrics={})
    assert not (tmp_path / "run").exists()
