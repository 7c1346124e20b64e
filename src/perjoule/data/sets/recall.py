"""Associative recall: pairs of a key and a value, then keys again; what follows each is the value it came with.

A row begins with its pairs, ``key value key value …``, all keys different. Behind them each key stands once more with
its value, in random order, at random places; everything else is token 0. Labels are the values behind the repeated
keys, because only they are determined. Keys are the tokens 1 … num_keys, values the ``num_values`` tokens after them.

A row has half of ``num_pairs`` to ``num_pairs`` pairs; in ``ood`` it has more, up to twice as many. A recurrent state
of fixed size must hold all pairs at once, and loses some when they become more; attention looks them up.

Arora et al., Zoology: Measuring and Improving Recall in Efficient Language Models, 2023 (multi-query associative
recall, there with power-law distances and without fillers of their own).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from perjoule.data.generated import GeneratedConfig, Row


class RecallConfig(GeneratedConfig):
    """How many pairs a row has, and of how many keys and values."""

    kind: Literal["recall"] = "recall"
    num_pairs: PositiveInt = Field(16, validate_default=True)
    """Most pairs in a row; twice as many in ``ood``."""
    num_keys: PositiveInt = Field(64, validate_default=True)
    """Tokens that are keys."""
    num_values: PositiveInt = 64
    """Tokens that are values."""

    @field_validator("num_pairs")
    @classmethod
    def _check_pairs(cls, num_pairs: int, info: ValidationInfo) -> int:
        seq_len = info.data.get("seq_len")  # absent if it was refused itself
        if seq_len is not None and seq_len + 1 < 8 * num_pairs:
            raise ValueError(
                f"seq_len {seq_len} has no room for the {2 * num_pairs} pairs of ood and their repetition; "
                f"accepted: at most {max((seq_len + 1) // 8, 1)}, or a seq_len of at least {8 * num_pairs - 1}"
            )
        return num_pairs

    @field_validator("num_keys")
    @classmethod
    def _check_keys(cls, num_keys: int, info: ValidationInfo) -> int:
        num_pairs = info.data.get("num_pairs")
        if num_pairs is not None and num_keys < 2 * num_pairs:
            raise ValueError(
                f"{num_keys} keys are too few for the {2 * num_pairs} pairs of ood; accepted: that or more"
            )
        return num_keys

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens."""
        return 1 + self.num_keys + self.num_values

    @property
    def task(self) -> Mapping[str, Any]:
        """Return what the rows depend on, and what is different in ``ood`` (JSON)."""
        return {
            "num_keys": self.num_keys,
            "num_values": self.num_values,
            "num_pairs": self._fewest_and_most(ood=False),
            "ood_num_pairs": self._fewest_and_most(ood=True),
        }

    def draw(self, chance: np.random.Generator, ood: bool) -> Row:
        """Draw a row.

        Args:
            chance: its own generator.
            ood: whether with more pairs.
        """
        fewest, most = self._fewest_and_most(ood)
        number = int(chance.integers(fewest, most + 1))
        keys = 1 + chance.choice(self.num_keys, size=number, replace=False)
        values = 1 + self.num_keys + chance.integers(self.num_values, size=number)
        tokens = np.zeros(self.seq_len + 1, dtype=np.int64)
        tokens[0 : 2 * number : 2], tokens[1 : 2 * number : 2] = keys, values
        # A place among those that are left when each repeated pair counts as one, plus one for each pair before it.
        places = np.sort(chance.choice(len(tokens) - 3 * number, size=number, replace=False))
        asked = 2 * number + places + np.arange(number)
        shuffled = chance.permutation(number)
        tokens[asked], tokens[asked + 1] = keys[shuffled], values[shuffled]
        determined = np.zeros(len(tokens), dtype=np.bool_)
        determined[asked + 1] = True
        return Row(tokens, determined)

    def _fewest_and_most(self, ood: bool) -> list[int]:
        """Return the bounds of the number of pairs, both included."""
        return [self.num_pairs + 1, 2 * self.num_pairs] if ood else [(self.num_pairs + 1) // 2, self.num_pairs]
