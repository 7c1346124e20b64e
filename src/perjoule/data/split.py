"""Which split a document belongs to: a pure function of the document's own key.

The key is hashed to a point of the unit interval, the splits are sections of the interval. A document therefore never
moves when others are added or removed, on any machine and with any seed: runs that are compared are compared on the
same held-out documents.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated

from pydantic import Field, model_validator

from perjoule.config import Config

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")

Fraction = Annotated[float, Field(ge=0, le=1)]


class Fractions(Config):
    """The share of the documents that each split gets on average; they add up to 1."""

    train: Annotated[float, Field(gt=0, le=1)] = 0.9
    validation: Fraction = 0.05
    test: Fraction = 0.05

    @model_validator(mode="after")
    def _adds_up(self) -> Fractions:
        total = self.train + self.validation + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"train + validation + test must be 1, not {total:.6g}")
        return self

    def split_of(self, key: str) -> str:
        """Return the split of the document with this key.

        The sections lie in the order test, validation, train, so that enlarging the validation split takes documents
        from the training split only.
        """
        point = unit_interval(key)
        if point < self.test:
            return TEST
        return VALIDATION if point < self.test + self.validation else TRAIN


def unit_interval(key: str) -> float:
    """Return a number in [0, 1) that depends on ``key`` only, uniform over keys (53 bits of BLAKE2b)."""
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)
