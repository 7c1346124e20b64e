"""A mixture of text data sets from recipe to batches."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.stores import FRACTIONS

from perjoule import data
from perjoule.config.base import Component
from perjoule.config.resolve import build_component, load
from perjoule.core.errors import ConfigError, DataError
from perjoule.core.labels import IGNORED
from perjoule.data.sets.mixture import Mixture, MixtureConfig
from perjoule.data.split import SPLITS
from perjoule.train.config import TrainConfig

Part = dict[str, Any]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Short documents of a word that the corpus has not."""
    folder = tmp_path / "code"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.txt").write_text("zzz " * (10 + number))
    return folder


@pytest.fixture
def parts(corpus: Path, code: Path, tokenizer_file: Path) -> list[Part]:
    """Two data sets that are tokenised on the fly with one tokenizer."""
    common = {"kind": "text", "seq_len": 16, "fractions": FRACTIONS, "tokenizer": {"file": str(tokenizer_file)}}
    return [{"path": str(folder), **common} for folder in (corpus, code)]


def built(*components: Part, seed: int = 0) -> Mixture:
    config = build_component(Component(data.SHELF), {"kind": "mixture", "components": list(components)})
    assert isinstance(config, MixtureConfig)
    return config.build(seed)


def is_code(mixture: Mixture, ids: torch.Tensor) -> bool:
    return "zzz" in mixture.tokenizer.decode(ids.tolist())


def test_recipe_of_a_mixture_trains_on_each_in_its_proportion(parts: list[Part]) -> None:
    mixture = built({"data": parts[0], "weight": 3}, {"data": parts[1]})
    assert mixture.shape == {"vocab_size": 280, "seq_len": 16}
    batch = mixture.split("train").batch(0, 1024)
    assert batch.tensors["input_ids"].shape == (1024, 16)
    assert batch.num_useful == int((batch.tensors["labels"] != IGNORED).sum())
    assert sum(is_code(mixture, ids) for ids in batch.tensors["input_ids"]) == pytest.approx(256, abs=30)


def test_command_line_mixes(parts: list[Part], corpus: Path) -> None:
    words = ["data.kind=mixture", f"data.components=[{{data: {json.dumps(parts[0])}, weight: 2}}, {{data: stdlib}}]"]
    resolved = load(TrainConfig, None, words)
    config = resolved.config.data
    assert isinstance(config, MixtureConfig)
    assert [getattr(component.data, "kind", None) for component in config.components] == ["text", "stdlib"]
    assert load(TrainConfig, None, [f"data={config.model_dump_json()}"]).config == resolved.config


def test_components_keep_their_rows_and_get_orders_of_their_own(parts: list[Part], store: Callable[[], Path]) -> None:
    same = {"kind": "store", "path": str(store()), "seq_len": 16}
    mixture = built({"data": same}, {"data": same}, seed=4)
    first, second = (part.split("train") for part in mixture._parts)
    rows = first.num_samples
    one, other = (samples.batch(0, rows).tensors["input_ids"].tolist() for samples in (first, second))
    assert one != other
    assert sorted(one) == sorted(other)
    mixed = mixture.split("train").batch(0, 2 * rows).tensors["input_ids"].tolist()
    for own in (one, other):
        places = iter(mixed)
        kept = [row for row in own[: rows // 2] if row in places]
        assert kept == own[: rows // 2], "in their own order"


def test_held_out_splits_have_every_row_of_every_component_once(parts: list[Part]) -> None:
    mixture = built({"data": parts[0], "weight": 9}, {"data": parts[1]})
    for name in ("validation", "test"):
        joined = mixture.split(name)
        rows = joined.batch(0, joined.num_samples).tensors["input_ids"].tolist()
        own = []
        for number in range(2):
            samples = mixture.split(f"{name}.{number}")
            own += samples.batch(0, samples.num_samples).tensors["input_ids"].tolist()
        assert sorted(rows) == sorted(own)
        assert mixture.split(name).batch(0, 5).tensors["input_ids"].tolist() == rows[:5]


def test_a_component_without_held_out_rows_leaves_them_to_the_others(parts: list[Part]) -> None:
    short = {**parts[1], "fractions": {"train": 1, "validation": 0, "test": 0}}
    mixture = built({"data": parts[0]}, {"data": short})
    assert mixture.split("test").num_samples == mixture.split("test.0").num_samples
    assert "has no documents" in mixture.facts["components"]["1"]["splits"]["test"]["unavailable"]
    alone = built({"data": short})
    with pytest.raises(
        DataError, match=r"^data\.components\[0\]: the test split \(data\.fractions\.test=0\) has no documents"
    ):
        alone.split("test")
    assert "has no documents" in alone.facts["splits"]["test"]["unavailable"]


def test_facts_say_what_is_mixed_and_how_often_each_is_read(parts: list[Part]) -> None:
    mixture = built({"data": parts[0], "weight": 1}, {"data": parts[1], "weight": 1})
    facts = json.loads(json.dumps(mixture.facts))
    assert [facts["mix"][name]["share"] for name in "01"] == [0.5, 0.5]
    sizes = [mixture.split(f"train.{number}").num_samples for number in range(2)]
    assert facts["mix"]["1"]["epochs_per_epoch"] == pytest.approx(sum(sizes) / 2 / sizes[1])
    assert facts["splits"]["train"]["num_samples"] == sum(sizes)
    assert facts["splits"]["train"]["num_labels"] == 16 * sum(sizes)
    for name in SPLITS:
        for count in ("documents", "bytes", "tokens"):
            parts_of = [facts["components"][number]["splits"][name][count] for number in "01"]
            assert facts["splits"][name][count] == sum(parts_of)
    assert facts["tokenizer"]["hash"] == mixture.tokenizer.content_hash


def test_identity_is_that_of_the_components_and_their_shares(parts: list[Part], code: Path) -> None:
    def identity(*weights: float) -> object:
        return built(*({"data": part, "weight": w} for part, w in zip(parts, weights, strict=True))).facts["identity"]

    first = identity(1, 2)
    assert identity(2, 4) == first
    assert identity(1, 3) != first
    (code / "0.txt").write_text("another text")
    assert identity(1, 2) != first


def test_a_mixture_may_be_a_component(parts: list[Part]) -> None:
    inner = {"kind": "mixture", "components": [{"data": parts[0]}, {"data": parts[1]}]}
    mixture = built({"data": inner, "weight": 1}, {"data": parts[1], "weight": 1})
    ids = mixture.split("train").batch(0, 1024).tensors["input_ids"]
    assert sum(is_code(mixture, row) for row in ids) == pytest.approx(768, abs=60)
    assert mixture.facts["splits"]["train"]["documents"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tokenizer": {"vocab_size": 290}},
            r"^data\.components\[1\] has tokenizer \w+, but data\.components\[0\] has \w+; give all the same",
        ),
        ({"seq_len": 8}, r"^data\.components\[1\] has seq_len 8, but data\.components\[0\] has 16; give all the same"),
        (
            {"mask_documents": True},
            r"\[1\] has tensors documents, input_ids, labels, but .* has input_ids, labels; mask documents",
        ),
        ({"seq_len": 99999}, r"^data\.components\[1\]: the train split \(data\.fractions\.train=0\.6\): \d+ tokens"),
    ],
)
def test_components_that_do_not_fit_are_refused(parts: list[Part], change: Part, message: str) -> None:
    with pytest.raises(DataError, match=message):
        built({"data": parts[0]}, {"data": {**parts[1], **change}})


def test_a_component_that_is_no_text_is_refused(parts: list[Part]) -> None:
    with pytest.raises(
        DataError, match=r"^data\.components\[1\]: a mixture is of text data sets, and 'dyck' has no tok"
    ):
        built({"data": parts[0]}, {"data": "dyck"})


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ("[]", r"data\.components: "),
        ("[{data: txt}]", r"data\.components\[0\]\.data: .*unknown data kind 'txt': did you mean 'text'\?"),
        (
            "[{data: {kind: stdlib, seq_ln: 3}}]",
            r"data\.components\[0\]\.data: .*unknown key: did you mean 'seq_len'\?",
        ),
        ("[{data: stdlib, weight: 0}]", r"data\.components\[0\]\.weight: "),
        (
            "[{data: stdlib}, {data: stdlib, weight: 1e-5}]",
            r"data\.components: the weight of component 1 is less than one row in 4096: 0\.000244 is one",
        ),
    ],
)
def test_mistakes_in_the_recipe_are_placed(components: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(TrainConfig, None, ["data.kind=mixture", f"data.components={components}"])
