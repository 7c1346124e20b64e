"""From a stored token stream to batches: packed rows, or one document a row.

Packed. The stream ``D = [BOS, document 0, BOS, document 1, …]`` is cut into rows, whatever shards it is kept in. Row
``k`` reads the ``S + 1`` tokens ``D[kS] … D[kS + S]``: the first ``S`` are the inputs, the last ``S`` the labels. Rows
advance by ``S``, so the last label of a row is the first input of the next and every transition is trained exactly
once. A label is ignored where the *input* is BOS (what follows is the first token of an unrelated document), not where
the label is BOS (that a document ends can be learned). Only the rest of fewer than ``S`` transitions at the end of an
epoch is left out. A packed row can look back into the document before, unless ``mask_documents`` tells the model not
to: then the tensor ``documents`` (rows, S) numbers the documents within each row from 0, one more at each BOS behind
the first column. Labels are the same with and without.

Padded. A row is ``[BOS, document]`` and padding. BOS predicts its own document's first token here and is trained. The
labels of the padding are ignored by position, whatever the padding's id.

Nothing in memory grows with the number of tokens. Packed rows are found by arithmetic; padded rows through an index
that is small next to the offsets (:mod:`perjoule.data.row_index`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import PositiveInt, ValidationInfo, field_validator

from perjoule.config import Config
from perjoule.core.cache import cache_folder
from perjoule.core.errors import DataError
from perjoule.core.labels import IGNORED
from perjoule.data.contract import Batch, Samples
from perjoule.data.order import Indices, Order
from perjoule.data.row_index import LongDocuments, RowIndex, row_index
from perjoule.data.shards import SplitTokens
from perjoule.data.tokenizer import TextTokenizer

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Coverage:
    """What one epoch of a split trains on.

    Args:
        num_samples: rows.
        num_labels: label positions: rows times ``seq_len``.
        num_useful: label positions that are trained on.
        num_dropped: transitions of the split that no row has: the rest at the end, or what truncation cut off.
    """

    num_samples: int
    num_labels: int
    num_useful: int
    num_dropped: int

    def as_json(self) -> dict[str, Any]:
        """Return the counts and the ignored fraction for the manifest."""
        return {**asdict(self), "ignored_fraction": 1 - self.num_useful / self.num_labels}


class TextSamples(Samples, Protocol):
    """A split of text that knows what it covers.

    ``in_order`` says whether each row goes on where the one before it ended, or with the next document.
    """

    coverage: Coverage
    in_order: bool


class RowsConfig(Config, ABC):
    """How a stream of documents is cut into rows, and in which order they come."""

    kind: str
    seq_len: PositiveInt = 256
    """Inputs per row."""
    batching: Literal["packed", "padded"] = "packed"
    """``packed`` fills every row from the stream of documents; ``padded`` has one document a row."""
    long_documents: LongDocuments = "split"
    """With ``padded``, a document longer than ``seq_len``: continued in further rows, or cut off."""
    shuffle: bool = True
    """Whether each epoch of the training split has its own order; the other splits are never shuffled."""
    mask_documents: bool = False
    """With ``packed``, whether no position sees the documents before its own; for architectures that allow it."""
    cache: Path | None = None
    """Where what is prepared is kept; unless given, $PERJOULE_CACHE, $XDG_CACHE_HOME/perjoule or ~/.cache/perjoule."""

    @field_validator("mask_documents")
    @classmethod
    def _only_packed(cls, mask_documents: bool, info: ValidationInfo) -> bool:
        if mask_documents and info.data.get("batching") == "padded":
            raise ValueError("needs batching=packed: a padded row has one document")
        return mask_documents

    @abstractmethod
    def whence(self, split: str) -> str:
        """Return what decides how long a split is, for the message that it is too short."""

    def samples(self, split: SplitTokens, tokenizer: TextTokenizer, identity: str, seed: int | None) -> TextSamples:
        """Return the rows of a split.

        Args:
            split: the stream.
            tokenizer: what made it.
            identity: of the split's content.
            seed: of the shuffle; None for stream order.

        Raises:
            DataError: if it is shorter than one row.
        """
        if self.batching == "packed":
            return PackedSamples(split, self.seq_len, tokenizer.bos_id, seed, self.mask_documents)
        index = row_index(split, self.seq_len, self.long_documents, identity, cache_folder(self.cache))
        return PaddedSamples(split, index, tokenizer.pad_id, seed)


class PackedSamples(TextSamples):
    """Rows cut from the stream; every row is full.

    Args:
        split: the stream.
        seq_len: inputs per row.
        bos_id: occurs in the stream at the documents' beginnings and nowhere else.
        seed: of the shuffle; None for stream order.
        mask_documents: whether batches have ``documents``, int32.

    Raises:
        DataError: if the stream is shorter than one row.
    """

    def __init__(
        self, split: SplitTokens, seq_len: int, bos_id: int, seed: int | None, mask_documents: bool = False
    ) -> None:
        num_tokens = split.num_tokens
        num_samples = max(num_tokens - 1, 0) // seq_len
        if num_samples == 0:
            fit = f"seq_len of at most {num_tokens - 1} fits" if num_tokens > 1 else "it needs documents"
            raise DataError(f"{num_tokens} tokens are too few for one row of seq_len={seq_len} + 1: {fit}")
        self._order, self.in_order = Order(num_samples, seed), seed is None
        self._rows = _Rows(split, seq_len)
        self._mask_documents = mask_documents
        self._bos_id = self._rows.dtype.type(bos_id)  # a Python int would widen each comparison
        num_labels = num_samples * seq_len
        num_useful = num_labels - _documents_before(split, num_labels)
        self.coverage = Coverage(num_samples, num_labels, num_useful, num_tokens - 1 - num_labels)

    @property
    def num_samples(self) -> int:
        """Return the rows of one epoch."""
        return self.coverage.num_samples

    def batch(self, start: int, rows: int) -> Batch:
        """Return the rows at the global positions ``start … start + rows - 1``."""
        tokens = self._rows.read(self._order.samples(start, rows))
        inputs, labels = tokens[:, :-1].astype(np.int64), tokens[:, 1:].astype(np.int64)
        begins = (tokens == self._bos_id)[:, :-1]
        np.copyto(labels, IGNORED, where=begins)
        batch = _to_batch(inputs, labels, labels.size - int(np.count_nonzero(begins)))
        if self._mask_documents:
            begins[:, 0] = False  # whatever a row begins with is its document 0
            batch.tensors["documents"] = torch.from_numpy(begins).cumsum(1, dtype=torch.int32)
        return batch


class PaddedSamples(TextSamples):
    """One document a row, or a piece of one.

    Args:
        split: the documents.
        index: where their rows begin.
        pad_id: fills the rest of a row.
        seed: of the shuffle; None for the order of the documents.

    Raises:
        DataError: if there is no document.
    """

    def __init__(self, split: SplitTokens, index: RowIndex, pad_id: int, seed: int | None) -> None:
        if index.num_rows == 0:
            raise DataError("0 documents are too few for one padded row: it needs documents")
        self._split, self._index, self._pad_id = split, index, pad_id
        self._order, self.in_order = Order(index.num_rows, seed), seed is None
        num_labels = index.num_rows * index.seq_len
        self.coverage = Coverage(index.num_rows, num_labels, index.num_useful, index.num_transitions - index.num_useful)

    @property
    def num_samples(self) -> int:
        """Return the rows of one epoch."""
        return self.coverage.num_samples

    def batch(self, start: int, rows: int) -> Batch:
        """Return the rows at the global positions ``start … start + rows - 1``."""
        places = self._index.find(self._order.samples(start, rows))
        inputs = np.full((rows, self._index.seq_len), self._pad_id, np.int64)
        labels = np.full((rows, self._index.seq_len), IGNORED, np.int64)
        for row, (shard, first, count) in enumerate(places.tolist()):
            piece = self._split.shards[shard].tokens[first : first + count + 1]
            # A document that ends in this row has its last token as an input too, where there is room.
            inputs[row, : count + 1] = piece[: self._index.seq_len]
            labels[row, :count] = piece[1:]
        return _to_batch(inputs, labels, int(places[:, 2].sum()))


class _Rows:
    """Rows of ``seq_len + 1`` neighbouring tokens of a stream, the last of each being the first of the next.

    The rows that lie in one shard are a view of it in which neighbours overlap, so that taking one is a single copy.
    """

    def __init__(self, split: SplitTokens, seq_len: int) -> None:
        self._shards = [shard.tokens for shard in split.shards if len(shard.tokens)]
        self._starts = np.cumsum([0, *map(len, self._shards[:-1])]).tolist()
        self._first_rows = [-(-start // seq_len) for start in self._starts]
        self._views = [
            _overlapping(tokens[row * seq_len - start :], seq_len)
            for tokens, start, row in zip(self._shards, self._starts, self._first_rows, strict=True)
        ]
        self._seq_len = seq_len
        self.dtype: np.dtype[Any] = self._shards[0].dtype

    def read(self, numbers: Indices) -> Array:
        """Return the rows with these numbers: (rows, seq_len + 1), of the stream's type."""
        if len(self._views) == 1:
            chosen: Array = self._views[0][numbers]
            return chosen
        # Rows of a shuffled batch are seldom of one shard: a loop is faster than sorting them by shard. Joining their
        # bytes is no slower, but only numpy's copies let other threads run while a page is read from disk.
        rows, first_rows, views = [], self._first_rows, self._views
        for number in numbers.tolist():
            shard = bisect_right(first_rows, number) - 1
            try:
                rows.append(views[shard][number - first_rows[shard]])
            except IndexError:
                rows.append(self._across(shard, number))
        return np.array(rows)

    def _across(self, shard: int, number: int) -> Array:
        """Return a row that begins in a shard and ends in another."""
        begin, missing = number * self._seq_len - self._starts[shard], self._seq_len + 1
        pieces = []
        while missing:
            pieces.append(self._shards[shard][begin : begin + missing])
            missing -= len(pieces[-1])
            shard, begin = shard + 1, 0
        return np.concatenate(pieces)


def _overlapping(tokens: Array, seq_len: int) -> Array:
    """Return every whole row as a view: (rows, seq_len + 1), each beginning with the last token of the one before."""
    if len(tokens) <= seq_len:
        return np.empty((0, seq_len + 1), tokens.dtype)
    return np.lib.stride_tricks.sliding_window_view(tokens, seq_len + 1)[::seq_len]


def _documents_before(split: SplitTokens, num_tokens: int) -> int:
    """Return how many documents begin within the first tokens of a stream."""
    documents = 0
    for shard in split.shards:
        if num_tokens < len(shard.tokens):
            return documents + int(np.searchsorted(shard.offsets[:-1], num_tokens))
        documents, num_tokens = documents + len(shard.offsets) - 1, num_tokens - len(shard.tokens)
    return documents


def _to_batch(inputs: Array, labels: Array, num_useful: int) -> Batch:
    """Wrap two int64 arrays of shape (rows, seq_len) that share no element."""
    tensors = {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}
    return Batch(tensors, num_samples=len(inputs), num_tokens=labels.size, num_useful=num_useful)
