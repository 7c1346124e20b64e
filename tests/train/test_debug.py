"""The aids for finding mistakes do what they say, and leave the training as it is."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import pytest
import torch
from tests.system.tiny import SEQ_LEN, VOCAB_SIZE, Tiny, losses, metrics, run_of
from torch import nn

import perjoule
import perjoule.models
from perjoule.config import Config
from perjoule.core.errors import CheckpointError, TrainingDiverged
from perjoule.models.contract import Output
from perjoule.models.layers.loss import next_token_loss
from perjoule.runs.folder import CHECKPOINTS, RunFolder
from perjoule.runs.tables import load_run
from perjoule.train.gradients import BlockGradients, block_of
from perjoule.train.job import StepRecord
from perjoule.train.run import train


def test_gradients_of_every_block_are_journaled_before_clipping_and_change_nothing(tiny: Tiny) -> None:
    aids = ("debug.gradients=true", "debug.rehearsal=true", "batch.accumulation=2", "optimizer.clip_norm=0.01")
    run = run_of(tiny.train(*aids))
    steps, lines = metrics(run, "step"), metrics(run, "gradients")
    assert [line["step"] for line in lines] == [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    for step, line in zip(steps, lines, strict=True):
        blocks = line["blocks"]
        assert {"embedding", "blocks.0", "norm", "output"} <= blocks.keys()
        assert math.hypot(*[norm for norm, _ in blocks.values()]) == pytest.approx(step["grad_norm"], rel=1e-4)
        assert all(0 < largest <= norm for norm, largest in blocks.values())
    without = run_of(tiny.train(*aids[1:]))
    assert losses(without) == losses(run) and not metrics(without, "gradients")
    assert not load_run(run).warnings


def test_the_gradient_of_a_block_that_is_not_finite_is_told_and_one_without_is_left_out() -> None:
    module = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in ("sound", "broken", "unheard")})
    gradients = BlockGradients(module)
    module["sound"].weight.grad, module["broken"].weight.grad = torch.tensor([[-3.0]]), torch.tensor([[math.nan]])
    gradients.measure()
    written: list[dict[str, object]] = []
    handed_on: list[StepRecord] = []

    class Folder:
        def append_event(self, kind: str, **facts: object) -> None:
            written.append({"kind": kind, **facts})

    record = StepRecord(7, 1.0, math.nan, 0.1, 1, 1, 1)
    gradients.before(handed_on.append, cast("RunFolder", Folder()))(record)
    blocks = {"sound": [3.0, 3.0], "broken": [None, None]}
    assert written == [{"kind": "gradients", "step": 7, "blocks": blocks}]
    assert handed_on == [record]


def test_blocks_are_named_by_their_first_number_or_their_module() -> None:
    names = ["blocks.3.ffn.down.weight", "model.layers.10.0.w", "output.weight", "a.norm.bias", "scale", "0.weight"]
    assert [block_of(name) for name in names] == ["blocks.3", "model.layers.10", "output", "a.norm", "scale", "0"]


class DeafConfig(Config):
    """A model with a layer that nobody listens to."""

    kind: Literal["deaf"] = "deaf"
    root_of_zero: bool = False
    """Take a root whose slope is infinite."""

    def build(self, shape: Mapping[str, int]) -> "Deaf":
        return Deaf(self, shape["vocab_size"])


class Deaf(nn.Module):
    def __init__(self, config: DeafConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size, 16)
        self.unheard = nn.Linear(16, 16)
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.output = nn.Linear(16, vocab_size)

    def forward(self, tensors: Mapping[str, torch.Tensor]) -> Output:
        hidden = self.embedding(tensors["input_ids"])
        if self.config.root_of_zero:
            hidden = (hidden * 0).sqrt()
        return Output(next_token_loss(self.output(hidden).flatten(0, 1), tensors["labels"].flatten()))


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the model on the shelf: one line."""
    monkeypatch.setitem(perjoule.models.SHELF.entries, "deaf", f"{__name__}:DeafConfig")


def train_deaf(tiny: Tiny, *overrides: str) -> Path:
    """Train it on the tiny recipe, without the keys of the Transformer."""
    arguments = [argument for argument in tiny.arguments() if not argument.startswith("model.")]
    return run_of(train(perjoule.load(None, "model=deaf", *arguments, *overrides)))


def test_a_model_of_one_file_and_one_line_trains_end_to_end(tiny: Tiny, deaf: None) -> None:
    course = losses(train_deaf(tiny, "stop.steps=40", "optimizer.lr=0.02"))
    assert course[-1] < course[0] - 0.5


def test_parameters_without_a_gradient_are_listed(tiny: Tiny, deaf: None, capsys: pytest.CaptureFixture[str]) -> None:
    train_deaf(tiny, "debug.unused_parameters=true")
    assert "parameters without a gradient: unheard.weight, unheard.bias\n" in capsys.readouterr().out
    without = tiny.losses_of()
    assert tiny.losses_of("debug.unused_parameters=true") == without
    assert "parameters without a gradient: none\n" in capsys.readouterr().out


def test_anomaly_detection_names_the_operation(tiny: Tiny, deaf: None) -> None:
    fault = "model.root_of_zero=true"
    with pytest.raises(TrainingDiverged, match=r"step 1: loss 5\.\d+, gradient norm nan"):
        train_deaf(tiny, fault)
    with (
        pytest.warns(UserWarning, match="Error detected in SqrtBackward0"),
        pytest.raises(RuntimeError, match="nan values"),
    ):
        train_deaf(tiny, fault, "debug.anomaly_detection=true")
    assert not torch.is_anomaly_enabled()


def test_overfitting_one_batch_drives_the_loss_to_nothing(tiny: Tiny) -> None:
    course = tiny.losses_of("debug.overfit_batches=1", "stop.steps=150", "optimizer.lr=0.02", "schedule.warmup_steps=0")
    assert course[0] > 5
    assert course[-1] < 0.1


def test_limited_batches_shorten_the_epoch(tiny: Tiny) -> None:
    limited = tiny.train("debug.limit_batches=3", "stop={epochs: 2}")
    assert (limited.step, limited.reason) == (6, "reached 2 epochs")
    assert losses(run_of(limited))[:3] == tiny.losses_of("stop.steps=3")


def test_a_rehearsal_leaves_losses_bit_identical(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    rehearsed = run_of(tiny.train("debug.rehearsal=true"))
    shown = capsys.readouterr().out
    found = re.search(r"went well \(loss (\S+), (\S+) held out\); starting over", shown)
    assert found is not None
    course = tiny.losses_of()
    assert losses(rehearsed) == course
    assert float(found[1]) == pytest.approx(course[0], abs=1e-4)
    assert float(found[2]) == pytest.approx(math.log(VOCAB_SIZE), abs=0.3)
    assert sorted(path.name for path in (rehearsed / CHECKPOINTS).iterdir()) == ["00000005", "best.json"]


def test_a_rehearsal_notices_a_checkpoint_that_loses_something(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def restore(path: Path, module: nn.Module, optimizer: object, rank: int) -> None:
        nn.init.zeros_(module.get_parameter("norm.weight"))

    monkeypatch.setattr("perjoule.train.debug.restore", restore)
    with pytest.raises(CheckpointError, match=r"rehearsal: norm\.weight came back .* with other values"):
        tiny.train("debug.rehearsal=true")


def test_data_only_prints_what_batches_are_made_of_and_makes_no_run(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tiny.train("debug.data_only=true", "data.batching=padded", "batch.accumulation=2")
    assert (result.run, result.step) == (None, 0)
    assert not tiny.runs.exists()
    shown = capsys.readouterr().out
    assert re.fullmatch(
        r"data: 20 samples \(0\.\d\d epochs\), 320 tokens, \d+\.\d\d% of the labels ignored, [\d.]+ [kM]?tok/s\n", shown
    )
    assert SEQ_LEN * 20 == 320 == VOCAB_SIZE
