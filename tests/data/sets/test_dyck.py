"""Brackets nest, and only what is determined is a label."""

import json
from typing import Any

import pytest
import torch

from perjoule import data
from perjoule.config.base import Component
from perjoule.config.resolve import build_component, load
from perjoule.core.errors import ConfigError, DataError
from perjoule.core.labels import IGNORED
from perjoule.data.contract import Batch, DataSet
from perjoule.data.generated import ALL_SPLITS, Generated
from perjoule.data.sets.dyck import DyckConfig

SMALL: dict[str, Any] = {"seq_len": 40, "num_kinds": 3, "depth": 4, "num_train": 50, "num_held_out": 20}


def built(seed: int = 0, **settings: Any) -> Generated:
    return DyckConfig(**(SMALL | settings)).build(seed)


def all_rows(split: str, seed: int = 0, **settings: Any) -> Batch:
    samples = built(seed, **settings).split(split)
    return samples.batch(0, samples.num_samples)


def replay(inputs: list[int], labels: list[int], num_kinds: int) -> list[tuple[int, int, int | None]]:
    """Return, for every token after the first, the depth before it, its label, and what a closing bracket must be."""
    still_open: list[int] = []
    seen = []
    for token, label in zip([*inputs[1:], None], labels, strict=True):
        must_be = num_kinds + still_open[-1] if still_open else None
        seen.append((len(still_open), label, must_be))
        if token is None:
            break
        if token <= num_kinds:
            still_open.append(token)
        else:
            assert token == must_be
            still_open.pop()
    return seen


@pytest.mark.parametrize("split", ALL_SPLITS)
def test_every_label_is_the_bracket_that_must_close(split: str) -> None:
    batch = all_rows(split)
    inputs, labels = batch.tensors["input_ids"], batch.tensors["labels"]
    assert (inputs[:, 0] == 0).all()
    assert inputs.max() <= 6
    num_labels, deepest = 0, 0
    for row in range(len(inputs)):
        for depth, label, must_be in replay(inputs[row].tolist(), labels[row].tolist(), 3):
            deepest = max(deepest, depth)
            if label != IGNORED:
                num_labels += 1
                assert label == must_be
                assert depth > 4 if split == "ood" else depth <= 4
    assert num_labels == batch.num_useful == int((labels != IGNORED).sum())
    assert batch.num_tokens == labels.numel()
    assert deepest == (8 if split == "ood" else 4)


def test_every_row_has_labels_and_every_closing_bracket_of_a_training_row_is_one() -> None:
    for split in ALL_SPLITS:
        assert (all_rows(split).tensors["labels"] != IGNORED).any(dim=1).all()
    batch = all_rows("validation")
    following = batch.tensors["input_ids"][:, 1:]
    closing = following > 3
    assert torch.equal(batch.tensors["labels"][:, :-1][closing], following[closing])
    assert (batch.tensors["labels"][:, :-1][~closing] == IGNORED).all()


def test_last_open_bracket_is_needed_and_enough() -> None:
    """A guess without the stack is right for one of three kinds; the bracket just before is often the wrong one."""
    batch = all_rows("train", num_train=300)
    inputs, labels = batch.tensors["input_ids"], batch.tensors["labels"]
    useful = labels != IGNORED
    by_last_token = (inputs[useful] + 3 == labels[useful]).double().mean()
    assert 0.3 < by_last_token < 0.8
    kinds = labels[useful].bincount(minlength=7)[4:] / useful.sum()
    torch.testing.assert_close(kinds, torch.full((3,), 1 / 3), rtol=0, atol=0.05)


def test_seed_orders_training_and_changes_no_sample() -> None:
    one, two = all_rows("train", seed=1).tensors["input_ids"], all_rows("train", seed=2).tensors["input_ids"]
    assert not torch.equal(one, two)
    assert sorted(one.tolist()) == sorted(two.tolist())
    for split in ("validation", "test", "ood"):
        assert torch.equal(all_rows(split, seed=1).tensors["labels"], all_rows(split, seed=2).tensors["labels"])


def test_splits_share_no_row() -> None:
    rows = [tuple(row) for split in ALL_SPLITS for row in all_rows(split).tensors["input_ids"].tolist()]
    assert len(set(rows)) == 50 + 3 * 20


def test_batches_are_a_function_of_the_position() -> None:
    samples = built().split("train")
    whole = samples.batch(40, 20)
    parts = [samples.batch(40, 7), samples.batch(47, 13)]
    for name, tensor in whole.tensors.items():
        assert torch.equal(torch.cat([part.tensors[name] for part in parts]), tensor)
        assert tensor.dtype == torch.int64
    assert sum(part.num_useful for part in parts) == whole.num_useful


def test_recipe_section_builds_a_data_set_with_facts() -> None:
    config = build_component(Component(data.SHELF), {"kind": "dyck", **SMALL})
    assert isinstance(config, DyckConfig)
    data_set: DataSet = config.build(0)
    assert data_set.shape == {"vocab_size": 7, "seq_len": 40}
    facts = json.loads(json.dumps(data_set.facts))
    assert facts["kind"] == "dyck"
    assert facts["task"]["ood_depth"] == [5, 8]
    assert facts["splits"]["train"] == {"num_samples": 50, "num_labels": 2000}
    assert facts["splits"]["ood"]["num_samples"] == data_set.split("ood").num_samples == 20


def test_identity_changes_with_the_task_and_not_with_the_seed() -> None:
    identities = [
        built(seed, **settings).facts["identity"]
        for seed, settings in ((0, {}), (1, {}), (0, {"depth": 5}), (0, {"num_train": 51}))
    ]
    assert identities[0] == identities[1]
    assert len(set(identities)) == 3


def test_unknown_split_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no split 'validaton': did you mean 'validation'\?"):
        built().split("validaton")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seq_len=16"], "depth: seq_len 16 has no room for the 16 brackets .* at most 7, or a seq_len of at least 17"),
        (["depth=0"], "depth: must be greater than 0, not 0"),
        (["num_kind=2"], r"num_kind: unknown key.* did you mean 'num_kinds'\?"),
    ],
)
def test_mistake_in_the_config_is_one_clear_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(DyckConfig, overrides=overrides)


def test_smallest_room_is_enough() -> None:
    labels = all_rows("ood", seq_len=9).tensors["labels"]
    assert (labels != IGNORED).any(dim=1).all()
