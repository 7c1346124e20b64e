"""A split of tokenised documents: one stream, kept in shards that are memory-mapped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Shard:
    """A part of a stream: whole documents, each behind a BOS.

    Args:
        tokens: (num_tokens,) ``[BOS, document, BOS, …]``, uint16 or uint32, memory-mapped.
        offsets: (num_documents + 1,) int64, where each document's BOS stands in ``tokens``, then ``num_tokens``.
        num_bytes: of the documents' text in UTF-8.
    """

    tokens: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    num_bytes: int


@dataclass(frozen=True)
class SplitTokens:
    """The stream of a split is that of its shards, one after another.

    Args:
        shards: in order; none if the split is empty.
    """

    shards: tuple[Shard, ...]

    @property
    def num_tokens(self) -> int:
        """Return the tokens, BOS included."""
        return sum(len(shard.tokens) for shard in self.shards)

    @property
    def num_documents(self) -> int:
        """Return the documents."""
        return sum(len(shard.offsets) - 1 for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of the documents' text in UTF-8."""
        return sum(shard.num_bytes for shard in self.shards)

    def stream(self) -> npt.NDArray[Any]:
        """Return the whole stream in memory: for splits that are known to be small."""
        return np.concatenate([shard.tokens for shard in self.shards]) if self.shards else np.empty(0, np.uint16)
