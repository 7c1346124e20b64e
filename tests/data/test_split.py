"""A document's split depends on the document alone."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from perjoule.data.split import SPLITS, Fractions, unit_interval


def test_fractions_are_met_on_average() -> None:
    fractions = Fractions(train=0.7, validation=0.2, test=0.1)
    counts = Counter(fractions.split_of(f"document {number}") for number in range(10_000))
    for split in SPLITS:
        assert counts[split] / 10_000 == pytest.approx(getattr(fractions, split), abs=0.015)


def test_split_is_the_same_on_every_machine() -> None:
    assert unit_interval("ast.py") == 0.4982924962956078


def test_enlarging_validation_moves_training_documents_only() -> None:
    small, large = Fractions(), Fractions(train=0.8, validation=0.15)
    moved = {(small.split_of(name), large.split_of(name)) for name in map(str, range(2000))}
    assert moved == {("test", "test"), ("validation", "validation"), ("train", "train"), ("train", "validation")}


def test_empty_split_gets_no_document() -> None:
    fractions = Fractions(train=1.0, validation=0, test=0)
    assert {fractions.split_of(str(number)) for number in range(2000)} == {"train"}


@given(st.text())
def test_unit_interval_excludes_one(key: str) -> None:
    assert 0 <= unit_interval(key) < 1


def test_fractions_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"train \+ validation \+ test must be 1, not 0\.95"):
        Fractions(train=0.9, validation=0.05, test=0.0)
    with pytest.raises(ValidationError, match="greater than 0"):
        Fractions(train=0.0, validation=0.5, test=0.5)
    assert Fractions(train=0.1, validation=0.2, test=0.7).test == 0.7
