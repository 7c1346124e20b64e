"""From a stored token stream to batches: packed rows, or one document a row.

Packed. The stream ``D = [BOS, document 0, BOS, document 1, …]`` is cut into rows. Row ``k`` reads the ``S + 1`` tokens
``D[kS] … D[kS + S]``: the first ``S`` are the inputs, the last ``S`` the labels. Rows advance by ``S``, so the last
label of a row is the first input of the next and every transition is trained exactly once. A label is ignored where
the *input* is BOS (what follows is the first token of an unrelated document), not where the label is BOS (that a
document ends can be learned). Only the rest of fewer than ``S`` transitions at the end of an epoch is left out.
Attention is not masked at document boundaries: a packed row can look back into the document before.

Padded. A row is ``[BOS, document]`` and padding. BOS predicts its own document's first token here and is trained. The
labels of the padding are ignored by position, whatever the padding's id.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from perjoule.core.errors import DataError
from perjoule.core.labels import IGNORED
from perjoule.data.contract import Batch, Samples
from perjoule.data.order import Order

Array = npt.NDArray[Any]
LongDocuments = Literal["split", "truncate"]


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
    """A split of text that knows what it covers."""

    coverage: Coverage


class PackedSamples(TextSamples):
    """Rows cut from the stream; every row is full.

    Args:
        tokens: (num_tokens,) the stream, unsigned integers.
        offsets: (num_documents + 1,) where each document's BOS stands, then ``num_tokens``.
        seq_len: inputs per row.
        bos_id: occurs in the stream at the offsets and nowhere else.
        seed: of the shuffle; None for stream order.

    Raises:
        DataError: if the stream is shorter than one row.
    """

    def __init__(self, tokens: Array, offsets: Array, seq_len: int, bos_id: int, seed: int | None) -> None:
        num_samples = max(len(tokens) - 1, 0) // seq_len
        if num_samples == 0:
            fit = f"seq_len of at most {len(tokens) - 1} fits" if len(tokens) > 1 else "it needs documents"
            raise DataError(f"{len(tokens)} tokens are too few for one row of seq_len={seq_len} + 1: {fit}")
        self._order = Order(num_samples, seed)
        self._bos_id = bos_id
        # Overlapping rows of S + 1 tokens as a view: choosing rows copies each of them once, without an index matrix.
        self._rows = np.lib.stride_tricks.sliding_window_view(tokens, seq_len + 1)[::seq_len]
        num_labels = num_samples * seq_len
        num_bos = int(np.searchsorted(offsets[:-1], num_labels))
        self.coverage = Coverage(num_samples, num_labels, num_labels - num_bos, len(tokens) - 1 - num_labels)

    @property
    def num_samples(self) -> int:
        """Return the rows of one epoch."""
        return self.coverage.num_samples

    def batch(self, start: int, rows: int) -> Batch:
        """Return the rows at the global positions ``start … start + rows - 1``."""
        chosen = self._rows[self._order.samples(start, rows)]
        inputs, labels = chosen[:, :-1].astype(np.int64), chosen[:, 1:].astype(np.int64)
        ignored = inputs == self._bos_id
        labels[ignored] = IGNORED
        return _to_batch(inputs, labels, labels.size - int(np.count_nonzero(ignored)))


class PaddedSamples(TextSamples):
    """One document a row, or a piece of one.

    Args:
        tokens: (num_tokens,) the stream, unsigned integers.
        offsets: (num_documents + 1,) where each document's BOS stands, then ``num_tokens``.
        seq_len: inputs per row.
        pad_id: fills the rest of a row.
        long_documents: ``split`` continues a document that is too long in further rows, which overlap by one token, so
            that every transition is trained exactly once; ``truncate`` keeps its first row only.
        seed: of the shuffle; None for stream order.

    Raises:
        DataError: if there is no document.
    """

    def __init__(
        self,
        tokens: Array,
        offsets: Array,
        seq_len: int,
        pad_id: int,
        long_documents: LongDocuments,
        seed: int | None,
    ) -> None:
        if len(offsets) < 2:
            raise DataError("0 documents are too few for one padded row: it needs documents")
        self._tokens, self._offsets, self._seq_len, self._pad_id = tokens, offsets, seq_len, pad_id
        self._transitions = np.diff(offsets) - 1
        pieces = -(-self._transitions // seq_len)
        if long_documents == "truncate":
            pieces = np.minimum(pieces, 1)
        self._first_row = np.concatenate([[0], np.cumsum(pieces)])
        num_samples = int(self._first_row[-1])
        self._order = Order(num_samples, seed)
        num_useful = int(np.minimum(self._transitions, pieces * seq_len).sum())
        num_dropped = int(self._transitions.sum()) - num_useful
        self.coverage = Coverage(num_samples, num_samples * seq_len, num_useful, num_dropped)

    @property
    def num_samples(self) -> int:
        """Return the rows of one epoch."""
        return self.coverage.num_samples

    def batch(self, start: int, rows: int) -> Batch:
        """Return the rows at the global positions ``start … start + rows - 1``."""
        row = self._order.samples(start, rows)
        document = np.searchsorted(self._first_row, row, side="right") - 1
        skipped = (row - self._first_row[document]) * self._seq_len
        count = np.minimum(self._transitions[document] - skipped, self._seq_len)[:, None]
        position = np.arange(self._seq_len + 1)
        first = (self._offsets[document] + skipped)[:, None]
        # Beyond the document's end the last token is read again instead of a neighbour's, and then covered.
        chosen = self._tokens[first + np.minimum(position, count)].astype(np.int64)
        inputs = np.where(position[:-1] <= count, chosen[:, :-1], self._pad_id)
        labels = np.where(position[:-1] < count, chosen[:, 1:], IGNORED)
        return _to_batch(inputs, labels, int(count.sum()))


def _to_batch(inputs: Array, labels: Array, num_useful: int) -> Batch:
    """Wrap two int64 arrays of shape (rows, seq_len) that share no memory."""
    tensors = {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}
    return Batch(tensors, num_samples=len(inputs), num_tokens=labels.size, num_useful=num_useful)
