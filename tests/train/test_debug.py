"""The aids for finding mistakes do what they say, and leave the training as it is."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch
from tests.system.tiny import SEQ_LEN, VOCAB_SIZE, Tiny, losses, run_of
from torch import nn

import perjoule
import perjoule.models
from perjoule.config import Config
from perjoule.core.errors import CheckpointError, TrainingDiverged
from perjoule.models.contract import Output
from perjoule.models.layers.loss import next_token_loss
from perjoule.runs.folder import CHECKPOINTS
from perjoule.train.run import train


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
