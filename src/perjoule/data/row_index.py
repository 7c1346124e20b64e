"""Where the rows of padded documents are, in an index that is small next to the documents' offsets.

Documents have as many rows as their lengths ask for, so the place of a row depends on all documents before it. The
index keeps one number for each 256 documents, how many rows come before them: 31 MB for a billion documents. A row is
found by a binary search over these, and then by counting the rows of the 256 documents from their offsets, which are
two kilobytes of a memory-mapped file.

Making the index reads all offsets once, piece by piece. For a large split it is kept beside the stores in the cache.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from perjoule.core.errors import RunFolderError
from perjoule.data.shards import SplitTokens
from perjoule.runs.files import write_atomically

Integers = npt.NDArray[np.int64]
LongDocuments = Literal["split", "truncate"]

_FORMAT = 1
_BLOCK = 256
_PIECE = 1024 * _BLOCK
"""Documents whose offsets are in memory at a time while the index is made; a split with fewer is not worth a file."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowIndex:
    """The rows of a split, in the order of its documents.

    Args:
        split: the documents.
        seq_len: most transitions in a row.
        long_documents: ``split`` continues a document that is too long in further rows, which overlap by one token, so
            that every transition is in exactly one row; ``truncate`` keeps its first row only.
        rows_before: (num_blocks + 1,) rows before each block of 256 documents, then all. No block spans two shards.
        first_blocks: (num_shards,) the first block of each shard.
        num_transitions: of the documents.
        num_useful: of these, how many are in a row.
    """

    split: SplitTokens
    seq_len: int
    long_documents: LongDocuments
    rows_before: Integers
    first_blocks: Integers
    num_transitions: int
    num_useful: int

    @property
    def num_rows(self) -> int:
        """Return how many rows there are."""
        return int(self.rows_before[-1])

    def find(self, rows: Integers) -> Integers:
        """Return where rows are.

        Args:
            rows: (n,) their numbers.

        Returns:
            (n, 3): the shard, the place of the row's first token in it, and the number of transitions from there on.
        """
        blocks = np.searchsorted(self.rows_before, rows, side="right") - 1
        shards = np.searchsorted(self.first_blocks, blocks, side="right") - 1
        offsets = self._offsets(shards, blocks)
        transitions = np.maximum(np.diff(offsets) - 1, 0)
        ends = np.cumsum(_num_rows(transitions, self.seq_len, self.long_documents), axis=1)
        wanted = rows - self.rows_before[blocks]
        document = (ends <= wanted[:, None]).sum(axis=1)
        at = np.arange(len(rows))
        skipped = (wanted - np.where(document > 0, ends[at, document - 1], 0)) * self.seq_len
        count = np.minimum(transitions[at, document] - skipped, self.seq_len)
        return np.stack([shards, offsets[at, document] + skipped, count], axis=1)

    def _offsets(self, shards: Integers, blocks: Integers) -> Integers:
        """Return the offsets of blocks: (n, 257), the last repeated where a block has fewer documents."""
        begins = ((blocks - self.first_blocks[shards]) * _BLOCK).tolist()
        offsets = np.empty((len(blocks), _BLOCK + 1), np.int64)
        for row, shard, begin in zip(offsets, shards.tolist(), begins, strict=True):
            found = self.split.shards[shard].offsets[begin : begin + _BLOCK + 1]
            row[: len(found)], row[len(found) :] = found, found[-1]
        return offsets


def row_index(
    split: SplitTokens, seq_len: int, long_documents: LongDocuments, identity: str, cache: Path | None
) -> RowIndex:
    """Make the index of a split, or find it made.

    Args:
        split: the documents.
        seq_len: most transitions in a row.
        long_documents: what becomes of those that have more.
        identity: of the split's content, and of nothing else.
        cache: the folder for the indices of large splits; None keeps none.
    """
    num_blocks = [-(-(len(shard.offsets) - 1) // _BLOCK) for shard in split.shards]
    file = None
    if cache is not None and split.num_documents >= _PIECE:
        recipe = repr((_FORMAT, identity, split.num_documents, seq_len, long_documents))
        file = cache / f"rows-{hashlib.blake2b(recipe.encode(), digest_size=12).hexdigest()}.bin"
    counts = _read(file, sum(num_blocks) + 2) if file is not None else None
    if counts is None:
        counts = _count(split, seq_len, long_documents)
        if file is not None:
            _write(file, counts)
    rows_before = np.concatenate([[0], np.cumsum(counts[2:])])
    first_blocks = np.cumsum([0, *num_blocks[:-1]])
    return RowIndex(split, seq_len, long_documents, rows_before, first_blocks, int(counts[0]), int(counts[1]))


def _num_rows(transitions: Integers, seq_len: int, long_documents: LongDocuments) -> Integers:
    """Return how many rows documents with so many transitions have."""
    rows = -(-transitions // seq_len)
    return np.minimum(rows, 1) if long_documents == "truncate" else rows


def _count(split: SplitTokens, seq_len: int, long_documents: LongDocuments) -> Integers:
    """Return the transitions, how many of them are in a row, and then the rows of each block."""
    num_transitions, num_useful = 0, 0
    parts = [np.empty(0, np.int64)]
    for transitions in _transitions(split):
        rows = _num_rows(transitions, seq_len, long_documents)
        num_transitions += int(transitions.sum())
        num_useful += int(np.minimum(transitions, rows * seq_len).sum())
        parts.append(np.add.reduceat(rows, np.arange(0, len(rows), _BLOCK)))
    return np.concatenate([[num_transitions, num_useful], *parts])


def _transitions(split: SplitTokens) -> Iterator[Integers]:
    """Yield the transitions of each document, a piece of whole blocks of one shard at a time."""
    for shard in split.shards:
        for begin in range(0, len(shard.offsets) - 1, _PIECE):
            yield np.diff(shard.offsets[begin : begin + _PIECE + 1]) - 1


def _read(file: Path, length: int) -> Integers | None:
    """Return the numbers kept in a file, or None if it is not there or is not whole."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    content, digest = data[:-16], data[-16:]
    if len(content) != 8 * length or hashlib.blake2b(content, digest_size=16).digest() != digest:
        _log.warning("the row index %s is damaged: making it again", file)
        return None
    return np.frombuffer(content, "<i8").astype(np.int64)


def _write(file: Path, counts: Integers) -> None:
    """Keep numbers in a file; a cache that cannot be written costs only the time to count again."""
    content = counts.astype("<i8").tobytes()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content + hashlib.blake2b(content, digest_size=16).digest())
    except (OSError, RunFolderError) as error:
        _log.warning("the row index is not kept: %s", error)
