"""A store that was written before training reads like documents that are tokenised for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.stores import FRACTIONS

from perjoule import data
from perjoule.config.base import Component
from perjoule.config.resolve import build_component
from perjoule.core.errors import DataError
from perjoule.data.sets.store import StoreConfig
from perjoule.data.sets.text import TextDataSet, TextFilesConfig
from perjoule.data.split import SPLITS
from perjoule.data.store import open_store

Write = Callable[[], Path]


def opened(path: Path, seed: int = 0, **settings: Any) -> TextDataSet:
    return StoreConfig(path=path, **{"seq_len": 16, **settings}).build(seed)


def test_recipe_section_opens_a_store(store: Write) -> None:
    config = build_component(Component(data.SHELF), {"kind": "store", "path": str(store()), "seq_len": 32})
    assert isinstance(config, StoreConfig)
    data_set = config.build(0)
    assert data_set.shape == {"vocab_size": 280, "seq_len": 32}
    assert len(open_store(config.path).splits["train"].shards) > 3


@pytest.mark.parametrize("settings", [{}, {"shuffle": False}, {"batching": "padded"}, {"mask_documents": True}])
def test_store_gives_the_batches_that_tokenising_on_the_fly_gives(
    store: Write, corpus: Path, tokenizer_file: Path, settings: dict[str, Any]
) -> None:
    fly = TextFilesConfig(
        path=corpus, seq_len=16, fractions=FRACTIONS, tokenizer={"file": tokenizer_file}, **settings
    ).build(3)
    kept = opened(store(), 3, **settings)
    for name in SPLITS:
        one, other = fly.split(name), kept.split(name)
        assert one.coverage == other.coverage
        rows = 2 * one.num_samples + 1
        expected, found = one.batch(5, rows).tensors, other.batch(5, rows).tensors
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_facts_name_the_store_by_its_content(store: Write, corpus: Path, tmp_path: Path) -> None:
    path = store()
    facts = json.loads(json.dumps(opened(path).facts))
    assert facts["kind"] == "store"
    assert facts["identity"] == open_store(path).identity
    assert facts["store"] == {"path": str(path), "state": "opened"}
    assert facts["made_from"]["fractions"] == FRACTIONS
    assert sum(facts["splits"][name]["documents"] for name in SPLITS) == 40
    moved = path.rename(tmp_path / "moved")
    assert opened(moved).facts["identity"] == facts["identity"]
    (corpus / "more.txt").write_text("more")
    assert opened(store()).facts["identity"] != facts["identity"]


def test_a_store_that_cannot_be_used_is_one_line(store: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^no token store at .*nothing: it does not exist$"):
        opened(tmp_path / "nothing")
    path = store()
    shard = sorted(path.glob("train-*.tokens.bin"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-2])
    with pytest.raises(DataError, match=rf"^the token store {path} is damaged \({shard.name} has \d+ bytes instead of"):
        opened(path)
    shard.write_bytes(whole)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(DataError, match=r"has format 3, this perjoule reads up to 2: upgrade perjoule$"):
        opened(path)


def test_split_that_is_too_short_names_the_store(store: Write) -> None:
    path = store()
    with pytest.raises(DataError, match=rf"^the train split \(data\.path={path}\): \d+ tokens are too few for one row"):
        opened(path, seq_len=99999)
