"""What follows a repeated key is the value it came with, and nothing else is a label."""

import json
from typing import Any

import pytest
import torch

from perjoule import data
from perjoule.config.base import Component
from perjoule.config.resolve import build_component, load
from perjoule.core.errors import ConfigError
from perjoule.core.labels import IGNORED
from perjoule.data.contract import Batch
from perjoule.data.generated import ALL_SPLITS
from perjoule.data.sets.recall import RecallConfig

SMALL: dict[str, Any] = {
    "seq_len": 50,
    "num_pairs": 5,
    "num_keys": 12,
    "num_values": 4,
    "num_train": 200,
    "num_held_out": 100,
}


def all_rows(split: str, **settings: Any) -> Batch:
    samples = RecallConfig(**(SMALL | settings)).build(0).split(split)
    return samples.batch(0, samples.num_samples)


@pytest.mark.parametrize("split", ALL_SPLITS)
def test_every_label_is_the_value_that_the_key_came_with(split: str) -> None:
    batch = all_rows(split)
    numbers = set()
    for inputs, labels in zip(*(batch.tensors[name].tolist() for name in ("input_ids", "labels")), strict=True):
        pairs: dict[int, int] = {}
        while inputs[2 * len(pairs)] not in {0, *pairs}:
            key, value = inputs[2 * len(pairs) : 2 * len(pairs) + 2]
            assert 1 <= key <= 12
            assert 13 <= value <= 16
            pairs[key] = value
        begin = 2 * len(pairs)
        asked = [(key, label) for key, label in zip(inputs, labels, strict=True) if label != IGNORED]
        assert sorted(asked) == sorted(pairs.items())
        assert labels[:begin] == [IGNORED] * begin
        # Behind the pairs there are keys with their values, and fillers.
        repeated = [token for token in inputs[begin:] if token != 0]
        assert len(repeated) in {2 * len(pairs), 2 * len(pairs) - 1}  # the last value may be a label only
        numbers.add(len(pairs))
    assert numbers == (set(range(6, 11)) if split == "ood" else {3, 4, 5})
    assert batch.num_useful == int((batch.tensors["labels"] != IGNORED).sum())


def test_keys_are_asked_for_in_another_order_and_all_over_the_row() -> None:
    batch = all_rows("train")
    inputs, useful = batch.tensors["input_ids"], batch.tensors["labels"] != IGNORED
    same_order = 0
    for row in range(200):
        asked = inputs[row, useful[row]]
        same_order += int(torch.equal(asked, inputs[row, 0 : 2 * len(asked) : 2]))
    assert 0 < same_order < 40
    places = useful.nonzero()[:, 1]
    assert places.min() < 12
    assert places.max() == 49


def test_the_fullest_row_fits_exactly() -> None:
    batch = all_rows("ood", seq_len=39)
    full = (batch.tensors["labels"] != IGNORED).sum(1) == 10
    assert full.any()
    assert (batch.tensors["input_ids"][full] != 0).all()


def test_recipe_section_builds_a_data_set_with_facts() -> None:
    config = build_component(Component(data.SHELF), {"kind": "recall", **SMALL})
    assert isinstance(config, RecallConfig)
    data_set = config.build(0)
    assert data_set.shape == {"vocab_size": 17, "seq_len": 50}
    facts = json.loads(json.dumps(data_set.facts))
    assert facts["kind"] == "recall"
    assert facts["task"]["num_pairs"] == [3, 5]
    assert facts["task"]["ood_num_pairs"] == [6, 10]


def test_defaults_fit_together() -> None:
    batch = RecallConfig().build(0).split("ood").batch(0, 4)
    assert batch.tensors["input_ids"].shape == (4, 128)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seq_len=100"], "num_pairs: seq_len 100 has no room .* at most 12, or a seq_len of at least 127"),
        (["num_keys=31"], "num_keys: 31 keys are too few for the 32 pairs of ood; accepted: that or more"),
        (["num_values=0"], "num_values: must be greater than 0, not 0"),
    ],
)
def test_mistake_in_the_config_is_one_clear_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(RecallConfig, overrides=overrides)
