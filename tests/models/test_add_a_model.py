"""The documentation's example is run as a reader would: one file, one line."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import perjoule.models
from perjoule.core.registry import Shelf
from perjoule.models import SHELF
from perjoule.models.contract import Decoder, Trainable, count_parameters
from perjoule.models.ebt import EBT
from perjoule.models.layers import language, sizes
from perjoule.models.layers.attention import SelfAttention

PAGE = (Path(__file__).parents[2] / "docs" / "add_a_model.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (only,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return str(only)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """Return the shelf with the page's line added, and the page's file where the line says."""
    (tmp_path / "bigram.py").write_text(block("python"), encoding="utf-8")
    monkeypatch.setattr(perjoule.models, "__path__", [*perjoule.models.__path__, str(tmp_path)])
    found = re.fullmatch(r'"(.+)": "(.+)",\n', block("text"))
    assert found is not None
    yield Shelf("models", {**SHELF.entries, found[1]: found[2]})
    sys.modules.pop(found[2].partition(":")[0])


def test_documented_model_is_listed_and_trains(shelf: Shelf) -> None:
    assert shelf.describe("bigram").startswith("Bigram model: the next token")
    model = shelf.load("bigram")().build({"vocab_size": 20, "seq_len": 8})
    assert isinstance(model, Trainable)
    assert isinstance(model, torch.nn.Module)
    assert count_parameters(model) == 2 * 20 * 32
    assert model.flops_per_token(8).full == 6 * 20 * 32

    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    tokens = torch.arange(9).repeat(4, 1)
    batch = {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}
    losses = []
    for _ in range(20):
        loss = model(batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > 2
    assert losses[-1] < 0.1

    assert isinstance(model, Decoder)
    logits, cache = model.prefill(tokens[:, :3])
    assert logits.argmax(-1).tolist() == [3] * 4
    assert model.decode(logits.argmax(-1), cache)[0].argmax(-1).tolist() == [4] * 4


def test_page_names_what_exists() -> None:
    """Every file, class and attribute that the page mentions beside the example."""
    root = Path(__file__).parents[2]
    for name in re.findall(r"`((?:models|tests)/[\w/]+\.py)`", PAGE):
        assert (root / name).is_file() or (root / "src" / "perjoule" / name).is_file(), name
    assert {"LanguageConfig", "AttentionConfig"} <= vars(sizes).keys()
    assert {"LanguageModel", "AttentionModel"} <= vars(language).keys()
    assert all(hasattr(language.LanguageModel, name) for name in ("places", "parameter_groups", "reset_parameters"))
    assert all(hasattr(SelfAttention, name) for name in ("attend", "look_back"))
    assert EBT.compilable is False


def test_documented_entry_point_has_the_group_that_the_shelf_reads() -> None:
    assert block("toml").startswith(f'[project.entry-points."perjoule.{SHELF.name}"]\n')
