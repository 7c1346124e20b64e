"""The guide's example is real: it becomes a file and a line, and works."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from perjoule import data
from perjoule.config.base import Component
from perjoule.config.resolve import build_component
from perjoule.core.registry import Shelf
from perjoule.data import sets
from perjoule.data.sets.stdlib import StdlibConfig
from perjoule.data.sets.text import TextConfig
from perjoule.data.sources import files_source

GUIDE = Path(__file__).parents[2] / "docs" / "add_a_data_set.md"
FILE, LINE, METHOD = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    (tmp_path / "counting.py").write_text(FILE, encoding="utf-8")
    monkeypatch.setattr(sets, "__path__", [*sets.__path__, str(tmp_path)])
    yield Shelf("data", {**data.SHELF.entries, **ast.literal_eval(f"{{{LINE}}}")})
    sys.modules.pop("perjoule.data.sets.counting", None)


def test_guide_example_is_a_data_set_on_the_shelf(shelf: Shelf) -> None:
    assert shelf.describe("counting").startswith("Runs of consecutive numbers")
    config = build_component(Component(shelf), {"kind": "counting", "vocab_size": 10, "seq_len": 4})
    data_set = config.build(3)  # type: ignore[attr-defined]
    samples = data_set.split("train")
    batch = samples.batch(7, 9)
    inputs, labels = batch.tensors["input_ids"], batch.tensors["labels"]
    assert torch.equal((inputs + 1) % 10, labels)
    assert inputs.shape == (9, 4)
    assert batch.num_useful == 36
    assert sorted(samples.batch(0, 10).tensors["input_ids"][:, 0].tolist()) == list(range(10))
    assert torch.equal(samples.batch(12, 4).tensors["labels"], labels[5:])


def test_guide_text_method_is_all_that_a_text_set_needs(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("To be, or not to be. " * 50)
    namespace = {"Source": object, "Path": lambda name: tmp_path, "files_source": files_source}
    exec(METHOD, namespace)
    plays = type("PlaysConfig", (TextConfig,), {"source": namespace["source"], "__module__": __name__})
    data_set = plays(kind="plays", seq_len=8, fractions={"train": 1, "validation": 0, "test": 0}).build(0)
    assert data_set.facts["splits"]["train"]["documents"] == 1
    assert TextConfig.__abstractmethods__ == {"source"}
    assert "source" in vars(StdlibConfig)
