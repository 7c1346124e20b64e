"""A handful of documents is shared out by cutting each; training without validation."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perjoule.config import resolve
from perjoule.core.errors import DataError
from perjoule.data.inspect import InspectConfig, inspect_source
from perjoule.data.sets.text import TextFilesConfig
from perjoule.data.sources import files_source
from perjoule.data.split import SPLITS, EmptySplit, Fractions
from perjoule.data.splitting import SplitConfig, split
from perjoule.data.tokenize import TokenizeConfig, tokenize_files
from perjoule.data.train_tokenizer import TrainTokenizerConfig, train_tokenizer

LINES = [f"line {number} of a book, and what it says.\n" for number in range(3000)]


def books(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.txt").write_text("".join(f"{number}: {line}" for line in LINES))
    return folder


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_split_of_a_few_books_has_its_share_in_training(tmp_path: Path, count: int) -> None:
    config = TextFilesConfig(path=books(tmp_path / "books", count), cache=tmp_path / "cache", seq_len=64)
    data = config.build(0)
    sizes = {name: facts["bytes"] for name, facts in data.facts["splits"].items()}
    assert sizes["validation"] / sum(sizes.values()) == pytest.approx(0.05, abs=0.005)
    for name in SPLITS:
        assert data.split(name).num_samples > 0
    assert config.build(0).facts["store"]["state"] == "reused"


def test_steps_of_the_pipeline_cut_the_same_books_alike(tmp_path: Path) -> None:
    said: list[str] = []
    corpus = books(tmp_path / "books", 2)
    small = TrainTokenizerConfig(vocab_size=300)
    direct = train_tokenizer(corpus, tmp_path / "a.json", small, said.append)
    assert any("each is cut" in line for line in said)
    split(corpus, tmp_path / "split", SplitConfig(), said.append)
    by_split = train_tokenizer(
        tmp_path / "split", tmp_path / "b.json", TrainTokenizerConfig(vocab_size=300), said.append
    )
    assert direct.file.read_bytes() == by_split.file.read_bytes()
    config = TokenizeConfig(tokenizer=tmp_path / "a.json")
    whole = tokenize_files(corpus, tmp_path / "s1", config, said.append).manifest
    parts = tokenize_files(tmp_path / "split", tmp_path / "s2", config, said.append).manifest
    for name in SPLITS:
        assert whole.count(name, "tokens") == parts.count(name, "tokens") > 0
    assert whole.made_from["fractions"]["within_documents"] is True


def test_many_documents_are_never_cut_and_short_ones_neither(tmp_path: Path) -> None:
    assert not files_source(books(tmp_path / "many", 200), "text").divided_by(Fractions()).within
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "a.txt").write_text("short " * 100)
    assert not files_source(tmp_path / "short", "text").divided_by(Fractions()).within
    everything = Fractions(train=1, validation=0, test=0)
    assert not files_source(books(tmp_path / "one", 1), "text").divided_by(everything).within


@given(st.text(alphabet="ab \n", max_size=300), st.floats(0, 0.4), st.floats(0, 0.4))
def test_parts_of_a_document_are_its_text_without_what_is_blank(text: str, validation: float, test: float) -> None:
    parts = list(Fractions(validation=validation, test=test).cut(text))
    assert [split for split, _ in parts] == [split for split in SPLITS if split in dict(parts)]
    joined = "".join(part for _, part in parts)
    assert Counter(joined.split()) == Counter(text.split()) or "".join(joined.split()) == "".join(text.split())
    if validation == 0:
        assert "validation" not in dict(parts)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({}, (0.9, 0.05, 0.05)),
        ({"train": 1, "validation": 0}, (1, 0, 0)),
        ({"train": 1}, (1, 0, 0)),
        ({"train": 0.8}, (0.8, 0.1, 0.1)),
        ({"train": 0.8, "validation": 0.2}, (0.8, 0.2, 0)),
        ({"validation": 0.2}, (0.75, 0.2, 0.05)),
        ({"validation": 0, "test": 0}, (1, 0, 0)),
    ],
)
def test_fractions_that_are_not_given_follow_from_the_others(
    given_: dict[str, float], expected: tuple[float, float, float]
) -> None:
    fractions = Fractions(**given_)
    assert (fractions.train, fractions.validation, fractions.test) == pytest.approx(expected)
    overrides = [f"fractions.{name}={value}" for name, value in given_.items()]
    assert resolve.load(SplitConfig, None, overrides).config.fractions == fractions


def test_fractions_that_cannot_be_are_still_refused() -> None:
    for wrong in ({"train": 0.5, "validation": 0.6}, {"validation": 0.6, "test": 0.6}, {"train": 0}, {"train": "x"}):
        with pytest.raises(ValueError, match="train"):
            Fractions(**wrong)


def test_empty_splits_are_said_and_only_they_can_be_trained_without(tmp_path: Path) -> None:
    said: list[str] = []
    corpus = books(tmp_path / "books", 2)
    split(corpus, tmp_path / "split", SplitConfig(fractions=Fractions(train=1)), said.append)
    assert "the validation split is empty: training on this measures no held-out loss" in said
    data = TextFilesConfig(path=corpus, cache=tmp_path / "cache", fractions=Fractions(train=1)).build(0)
    with pytest.raises(EmptySplit, match=r"the validation split \(data\.fractions\.validation=0\) has no documents"):
        data.split("validation")
    short = TextFilesConfig(path=corpus, cache=tmp_path / "cache", seq_len=20_000).build(0)
    with pytest.raises(DataError, match="too few") as caught:
        short.split("validation")
    assert not isinstance(caught.value, EmptySplit)
    json.dumps(inspect_source(corpus, InspectConfig()).as_json())
