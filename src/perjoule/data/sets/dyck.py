"""Dyck language: nested brackets of several kinds; the kind of a closing bracket depends on the whole row before it.

A row begins with token 0 and goes on with the beginning of a bracket word: kinds 1 … num_kinds open, and num_kinds + k
closes kind k. At each step a bracket is closed if ``depth`` are open, opened if none is, and otherwise either, by a
toss of a coin. Labels are the closing brackets only, because only they are determined: by the last bracket that is
still open, which may lie as far back as the row is long.

``ood`` is deeper: a row first opens ``depth + 1`` to ``2·depth`` brackets, that many (instead of ``depth``) are the
bound from there on, and the labels are the closing brackets of a depth that training rows never have. A model that
counts or keeps a stack extrapolates; one that learned a circuit for each depth does not.

Hewitt et al., RNNs Can Generate Bounded Hierarchical Languages with Optimal Memory, 2020: a recurrent state of
depth·log(num_kinds) bits is enough; Hahn, Theoretical Limitations of Self-Attention in Neural Sequence Models, 2020:
attention of fixed size cannot be right at any length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from perjoule.data.generated import GeneratedConfig, Row


class DyckConfig(GeneratedConfig):
    """How many kinds of brackets there are, and how deep they nest."""

    kind: Literal["dyck"] = "dyck"
    num_kinds: PositiveInt = 8
    """Kinds of brackets; the vocabulary has twice as many tokens and one more."""
    depth: PositiveInt = Field(8, validate_default=True)
    """Most brackets open at a time; twice as many in ``ood``."""

    @field_validator("depth")
    @classmethod
    def _check_depth(cls, depth: int, info: ValidationInfo) -> int:
        seq_len = info.data.get("seq_len")  # absent if it was refused itself
        if seq_len is not None and seq_len < 2 * depth + 1:
            raise ValueError(
                f"seq_len {seq_len} has no room for the {2 * depth} brackets of ood and one that closes; "
                f"accepted: at most {max((seq_len - 1) // 2, 1)}, or a seq_len of at least {2 * depth + 1}"
            )
        return depth

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens."""
        return 2 * self.num_kinds + 1

    @property
    def task(self) -> Mapping[str, Any]:
        """Return what the rows depend on, and what is different in ``ood`` (JSON)."""
        ood_depth = [self.depth + 1, 2 * self.depth]
        return {"num_kinds": self.num_kinds, "depth": self.depth, "ood_depth": ood_depth}

    def draw(self, chance: np.random.Generator, ood: bool) -> Row:
        """Draw a row.

        Args:
            chance: its own generator.
            ood: whether deeper.
        """
        bound = int(chance.integers(self.depth + 1, 2 * self.depth + 1)) if ood else self.depth
        kinds = chance.integers(1, self.num_kinds + 1, size=self.seq_len).tolist()
        heads = (chance.random(self.seq_len) < 0.5).tolist()
        tokens, determined = [0], [False]
        still_open: list[int] = []
        climbing = ood
        for kind, head in zip(kinds, heads, strict=True):
            depth = len(still_open)
            climbing = climbing and depth < bound
            if climbing or depth == 0 or (head and depth < bound):
                still_open.append(kind)
                tokens.append(kind)
                determined.append(False)
            else:
                tokens.append(self.num_kinds + still_open.pop())
                determined.append(not ood or depth > self.depth)
        return Row(np.array(tokens, dtype=np.int64), np.array(determined))
