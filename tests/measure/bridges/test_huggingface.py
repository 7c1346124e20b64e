"""The callback in transformers' own Trainer, and in loops that only call its hooks."""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from perjoule.core.errors import MissingExtra, RunFolderError
from perjoule.measure.bridges.huggingface import perjoule_callback
from perjoule.measure.config import EnergyConfig
from perjoule.measure.ledger import Total
from perjoule.measure.session import Measurement
from perjoule.runs.folder import RunFolder
from perjoule.runs.tables import Run, load_run


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, num: int, bad_row: int = -1, error: BaseException | None = None) -> None:
        self.num, self.bad_row, self.error = num, bad_row, error

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        if row == self.bad_row and self.error is not None:
            raise self.error
        return {"x": torch.full((3,), float(row)), "labels": torch.zeros(1)}


class Small(nn.Module):
    def __init__(self, largest_batch: int = 99) -> None:
        super().__init__()
        self.layer, self.largest_batch = nn.Linear(3, 1), largest_batch

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if len(x) > self.largest_batch:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return {"loss": ((self.layer(x / 10) - labels) ** 2).mean()}


class FailsAt(TrainerCallback):
    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise self.error


def measurement(run: Path) -> Measurement:
    return Measurement(run, energy=EnergyConfig(meters=("cpu_time",), sampler="thread"))


def trainer_of(
    tmp_path: Path,
    num_rows: int = 8,
    *,
    model: nn.Module | None = None,
    data: Dataset[Any] | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    kind: type[Trainer] = Trainer,
    callback: TrainerCallback | None = None,
    **options: Any,
) -> Trainer:
    defaults = {"per_device_train_batch_size": 4, "num_train_epochs": 1, "report_to": [], "use_cpu": True}
    quiet = {"disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no", "output_dir": str(tmp_path / "out")}
    arguments = TrainingArguments(**{**defaults, **quiet, **options})
    mine = callback or perjoule_callback(measurement(tmp_path / "run"))
    return kind(
        model=model or Small(),
        args=arguments,
        train_dataset=data or Rows(num_rows),
        eval_dataset=Rows(4),
        callbacks=[mine, *callbacks],
    )


def the_run(tmp_path: Path, name: str = "run") -> Run:
    run = load_run(tmp_path / name)
    assert run.warnings == ()
    return run


def metering_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("perjoule")]


@pytest.mark.parametrize(
    ("num_rows", "accumulation", "seen"), [(10, 1, [4, 4, 2]), (18, 2, [8, 8, 2]), (3, 4, [3]), (8, 1, [4, 4])]
)
def test_samples_are_the_rows_that_were_there(
    tmp_path: Path, num_rows: int, accumulation: int, seen: list[int]
) -> None:
    trainer_of(tmp_path, num_rows, gradient_accumulation_steps=accumulation).train()
    assert the_run(tmp_path).steps.samples.tolist() == seen


def test_batches_of_any_length_are_counted(tmp_path: Path) -> None:
    class Uneven(Trainer):
        def get_train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(Rows(9), batch_sampler=[[0], [1, 2, 3, 4, 5], [6, 7, 8]])

    trainer_of(tmp_path, kind=Uneven, num_train_epochs=2).train()
    assert the_run(tmp_path).steps.samples.tolist() == [1, 5, 3] * 2


def test_rows_count_for_every_rank_that_sees_other_ones(tmp_path: Path) -> None:
    class Loop:
        args = SimpleNamespace(world_size=8)
        accelerator = SimpleNamespace(backward=lambda loss: None)

        def get_tp_size(self) -> int:
            return 2

        def training_step(self, model: object, inputs: object) -> None:
            self.compute_loss()
            self.accelerator.backward(1)

        def compute_loss(self) -> None: ...

    hooks, loop = HookCaller(perjoule_callback(measurement(tmp_path / "run"))), Loop()
    with hooks.callback.training_of(loop):
        hooks.train(2, lambda: loop.training_step(None, [torch.zeros(3, 5), torch.zeros(3)]))
    run = the_run(tmp_path)
    assert run.steps.samples.tolist() == [3 * 8 // 2] * 2
    assert not set(vars(loop)) and "backward" in vars(loop.accelerator), "nothing of ours stays behind"


def test_phases_loss_and_learning_rate_are_recorded(tmp_path: Path) -> None:
    strategies: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 3}
    callback = perjoule_callback(measurement(tmp_path / "run"))
    trainer = trainer_of(tmp_path, 24, callback=callback, logging_strategy="steps", logging_steps=2, **strategies)
    trainer.train()
    run = the_run(tmp_path)
    table = run.segments[0].phases
    assert run.status == "finished" and run.steps.step.tolist() == [1, 2, 3, 4, 5, 6] and table is not None
    for name in ("forward", "backward", "optimizer"):
        assert (table.wall_ns[name] > 0).all(), name
    for name, steps in (("evaluate", [2, 4, 6]), ("checkpoint", [3, 6])):
        assert [step for step, spent in zip(table.steps, table.wall_ns[name], strict=True) if spent] == steps
    logged = {one["step"]: one["loss"] for one in trainer.state.log_history if "loss" in one}
    recorded = dict(zip(run.steps.step.tolist(), run.steps.loss.tolist(), strict=True))
    assert {step: loss for step, loss in recorded.items() if loss == loss} == pytest.approx(logged, abs=1e-4)
    assert run.steps.lr.tolist()[1] == pytest.approx(trainer.state.log_history[0]["learning_rate"], abs=1e-9)
    assert list(logged) == [2, 4, 6], "the others are not logged, which is not the same as not finite"
    total = callback.measurement.ledger().total()
    assert isinstance(total, Total) and total.energy_uj > 0


@pytest.mark.parametrize(
    ("where", "error", "status", "steps"),
    [
        ("callback", ValueError("a shape"), "failed", 2),
        ("data", OSError("the disk"), "failed", 1),
        ("model", RuntimeError("CUDA out of memory. Tried to allocate"), "failed", 0),
        ("callback", KeyboardInterrupt(), "stopped", 2),
        ("data", SystemExit(3), "failed", 1),
    ],
)
def test_a_training_that_an_error_ends_is_no_longer_metered(
    tmp_path: Path, where: str, error: BaseException, status: str, steps: int
) -> None:
    trainer = trainer_of(
        tmp_path,
        data=Rows(40, 10 if where == "data" else -1, error),
        model=Small(2 if where == "model" else 99),
        callbacks=(FailsAt(2, error),) if where == "callback" else (),
        data_seed=0,
        train_sampling_strategy="sequential",
    )
    with pytest.raises(type(error)):
        trainer.train()
    run = the_run(tmp_path)
    assert run.status == status and str(error) in run.reason
    assert len(run.steps) == steps and metering_threads() == []
    assert not {"training_step", "compute_loss"} & set(vars(trainer)), "nothing of ours stays behind"


def test_every_training_has_a_run_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=1)
    assert trainer.train().global_step == trainer.train().global_step == 2
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    names = ("run", "run-2", "run-3")
    assert [len(the_run(tmp_path, name).steps) for name in names] == [2, 2, 1]
    assert {the_run(tmp_path, name).status for name in names} == {"finished"}
    assert [record.getMessage().rpartition("/")[2] for record in caplog.records if record.name == "perjoule"] == [
        "run-2",
        "run-3",
    ]


def test_trainings_of_a_measurement_that_appends_are_segments_of_one_run(tmp_path: Path) -> None:
    whole = Measurement(tmp_path / "run", energy=EnergyConfig(meters=("cpu_time",), sampler="thread"), append=True)
    caller = HookCaller(perjoule_callback(whole))
    for steps in (2, 3):
        caller.train(steps)
    HookCaller(perjoule_callback(whole.again(tmp_path / "run"))).train(1)
    run = the_run(tmp_path)
    assert [one.number for one in run.segments] == [0, 1, 2] and run.steps.kept.step.tolist() == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "run-2").exists() and run.status == "finished"


def test_smaller_batches_after_running_out_of_memory_are_a_run_of_their_own(tmp_path: Path) -> None:
    trained = trainer_of(tmp_path, model=Small(3), auto_find_batch_size=True).train().global_step
    names = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("run"))
    first, last = the_run(tmp_path), the_run(tmp_path, names[-1])
    assert first.status == "failed" and "CUDA out of memory" in first.reason and len(first.steps) == 0
    assert last.status == "finished" and len(last.steps) == trained and sum(last.steps.samples) == 8


@pytest.mark.parametrize("fails", ["create", "append", "end"])
def test_measuring_that_fails_is_reported_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RunFolderError("the disk is full")

    monkeypatch.setattr(RunFolder, fails, refuse)
    assert trainer_of(tmp_path, 16).train().global_step == 4
    said = [record.getMessage() for record in caplog.records if record.name == "perjoule"]
    assert len(said) == 1 and "the disk is full" in said[0] and metering_threads() == []


class HookCaller:
    """A loop of another's: calls the hooks through transformers' own handler, in the order of its Trainer."""

    def __init__(self, callback: Any, rank: int = 0) -> None:
        from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerControl, TrainerState

        self.callback = callback
        handler: Any = CallbackHandler
        self.handler = handler([DefaultFlowCallback(), callback], None, None, None, None)
        self.args = SimpleNamespace(
            **{"logging_first_step": False, "logging_strategy": "no", "eval_delay": 0, "enable_jit_checkpoint": False},
            **{"eval_strategy": "no", "save_strategy": "no"},
        )
        self.state = TrainerState(is_world_process_zero=rank == 0, is_local_process_zero=rank == 0, max_steps=10**6)
        self.control = TrainerControl()

    def raise_event(self, event: str, **options: Any) -> None:
        self.control = getattr(self.handler, event)(self.args, self.state, self.control, **options)

    def train(self, steps: int, micro_batch: Callable[[], None] = lambda: None, end: bool = True) -> None:
        self.raise_event("on_train_begin")
        self.raise_event("on_epoch_begin")
        for _ in range(steps):
            self.raise_event("on_step_begin")
            micro_batch()
            self.raise_event("on_pre_optimizer_step")
            self.raise_event("on_optimizer_step")
            self.state.global_step += 1
            self.raise_event("on_step_end")
        self.raise_event("on_epoch_end")
        if end:
            self.raise_event("on_train_end")


def test_a_loop_that_only_calls_the_hooks_has_computation_and_update_told_apart(tmp_path: Path) -> None:
    HookCaller(perjoule_callback(measurement(tmp_path / "run"))).train(3)
    run = the_run(tmp_path)
    table = run.segments[0].phases
    assert table is not None and {"compute", "optimizer"} <= set(table.phases) and "forward" not in table.phases
    assert run.steps.samples.tolist() == [0, 0, 0], "no batch was seen: a planned size is none that was measured"


def test_a_loop_that_is_left_without_its_last_hook_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        HookCaller(perjoule_callback(measurement(tmp_path / "run"))).train(2, lambda: print(1 / 0))
    until_s = time.monotonic() + 10
    while json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "running":
        assert time.monotonic() < until_s
        time.sleep(0.05)
    run = the_run(tmp_path)
    assert run.status == "failed" and "HookCaller.train was left" in run.reason


def test_a_loop_in_a_with_block_ends_with_its_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), perjoule_callback(measurement(tmp_path / "run")) as callback:
        HookCaller(callback).train(2, lambda: print(1 / 0))
    assert the_run(tmp_path).reason == "ZeroDivisionError: division by zero"
    with perjoule_callback(measurement(tmp_path / "ended")) as callback:
        HookCaller(callback).train(2, end=False)
    assert the_run(tmp_path, "ended").status == "finished" and metering_threads() == []


def test_other_ranks_record_nothing(tmp_path: Path) -> None:
    HookCaller(perjoule_callback(tmp_path / "run"), rank=1).train(2)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_before_training_is_no_step(tmp_path: Path) -> None:
    HookCaller(perjoule_callback(tmp_path / "run")).raise_event("on_evaluate", metrics={})
    assert not (tmp_path / "run").exists()


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'perjoule\[huggingface\]'"):
        perjoule_callback("runs/unused")
