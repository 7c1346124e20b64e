"""A model on one page: what is counted, what is alike, what is tied, and what is not known yet."""

from pathlib import Path

import pytest
import torch
from tests.system.tiny import VOCAB_SIZE, Tiny
from torch import nn

from perjoule.cli import main
from perjoule.config import resolve
from perjoule.core.errors import ConfigError
from perjoule.models.contract import count_parameters
from perjoule.train.config import TrainConfig
from perjoule.train.outline import Row, outline, rows_of, tied_parameters


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)])
        self.quiet = nn.ReLU()
        self.head = nn.Linear(4, 10)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones(3))


def test_modules_are_counted_once_and_neighbours_that_are_alike_are_one_row() -> None:
    assert list(rows_of(Shared())) == [
        Row(0, "model", "Shared", 40 + 3 * 20 + 16 + 10 + 3),
        Row(1, "embedding", "Embedding", 40),
        Row(1, "blocks", "ModuleList", 76),
        Row(2, "0-2", "Linear", 20, 3),
        Row(2, "3", "Linear", 16),
        Row(1, "head", "Linear", 10),
    ]
    assert tied_parameters(Shared()) == ["head.weight"]


@pytest.mark.parametrize("kind", ["transformer", "retnet", "longnet", "ebt"])
def test_the_sum_is_what_the_model_has(kind: str) -> None:
    config = resolve.load(TrainConfig, None, [f"model={kind}", "data=dyck"]).config
    shape = {"vocab_size": config.data.vocab_size, "seq_len": config.data.seq_len}  # type: ignore[attr-defined]
    parameters = count_parameters(config.model.build(shape))  # type: ignore[attr-defined]
    assert f" {parameters:,} " in outline(config)[1]


def test_the_command_line_prints_it_without_data_and_without_memory(capsys: pytest.CaptureFixture[str]) -> None:
    huge = ["model.dim=16384", "model.num_heads=128", "model.num_layers=96", "model.vocab_size=100000"]
    assert main(["train", "--dry-run", "--model", *huge]) == 0
    shown = capsys.readouterr().out
    assert "vocab_size 100,000" in shown and "(96 alike, each)" in shown


def test_what_is_not_known_before_the_data_is_prepared_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"stdlib.*model\.vocab_size"):
        outline(resolve.load(TrainConfig, None, []).config)


def test_a_file_tells_the_vocabulary(tiny: Tiny) -> None:
    run = tiny.train("stop.steps=1").run
    assert run is not None
    found = outline(resolve.load(TrainConfig, None, [f"data.tokenizer.file={run / 'tokenizer.json'}"]).config)
    assert f"vocab_size {VOCAB_SIZE}," in found[0]


def test_it_never_trains(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "--model", f"runs={tmp_path}"]) == 2
    assert "--dry-run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
