"""Which split a document belongs to: a pure function of the document's own key; or which part of a document does.

The key is hashed to a point of the unit interval, the splits are sections of the interval. A document therefore never
moves when others are added or removed, on any machine and with any seed: runs that are compared are compared on the
same held-out documents.

A handful of documents would leave a split empty. Then each of them is cut instead: its beginning is for training, what
follows for validation, its end for the test.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, model_validator

from perjoule.config import Config
from perjoule.core.errors import DataError

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")

Fraction = Annotated[float, Field(ge=0, le=1)]


_LONGEST_LINE = 1000
"""Characters that are looked through for the end of a line, where a document is cut."""


class EmptySplit(DataError):
    """A split has no documents, because it was given none: what needs it can be left out."""


class Fractions(Config):
    """The share of the documents that each split gets on average; they add up to 1.

    What is not given follows from what is: the training split is the rest, and the others share the rest of it.
    """

    train: Annotated[float, Field(gt=0, le=1)] = 0.9
    validation: Fraction = 0.05
    test: Fraction = 0.05

    @model_validator(mode="before")
    @classmethod
    def _fill_up(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not all(isinstance(value, int | float) for value in data.values()):
            return data
        if TRAIN in data:
            missing = [name for name in (VALIDATION, TEST) if name not in data]
            left = max(0.0, 1.0 - sum(data.get(name, 0.0) for name in SPLITS))
            return {**data, **{name: round(left / len(missing), 12) for name in missing}}
        others = sum(data.get(name, cls.model_fields[name].default) for name in (VALIDATION, TEST))
        return {**data, TRAIN: round(1.0 - others, 12)} if data and others < 1 else data

    @model_validator(mode="after")
    def _adds_up(self) -> Fractions:
        total = self.train + self.validation + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"train + validation + test must be 1, not {total:.6g}")
        return self

    def cut(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield the split and the text of each part of a document; no part is blank.

        Cuts are after the end of a line, if one is near, or else after a blank.
        """
        begin, share = 0, 0.0
        for split in SPLITS:
            share += getattr(self, split)
            end = len(text) if split == SPLITS[-1] or share > 1 - 1e-9 else _after_line(text, round(share * len(text)))
            part = text[begin:end]
            if part and not part.isspace():
                yield split, part
            begin = max(begin, end)

    def split_of(self, key: str) -> str:
        """Return the split of the document with this key.

        The sections lie in the order test, validation, train, so that enlarging the validation split takes documents
        from the training split only.
        """
        point = unit_interval(key)
        if point < self.test:
            return TEST
        return VALIDATION if point < self.test + self.validation else TRAIN


def _after_line(text: str, position: int) -> int:
    """Return the place behind the next line's end, or else blank, from a position on; the position if none is near."""
    for mark in ("\n", " "):
        found = text.find(mark, position, position + _LONGEST_LINE)
        if found >= 0:
            return found + 1
    return position


def unit_interval(key: str) -> float:
    """Return a number in [0, 1) that depends on ``key`` only, uniform over keys (53 bits of BLAKE2b)."""
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)
