"""How long documents are, and what padding or packing them into rows would waste.

Counting takes a megabyte of memory, however many documents there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

_EXACT = 1 << 16
_STEPS = 128
"""Lengths below the first are counted one by one; above, in so many steps for each doubling: within 0.6 %."""


@dataclass(frozen=True)
class Waste:
    """What becomes of one epoch with a way of batching.

    Args:
        batching: ``packed``; or ``padded``, one document a row, with long documents continued or cut off.
        seq_len: label positions per row.
        rows: of the epoch.
        useful: the share of label positions that are trained on.
        padding: the share of label positions behind the end of a document.
        ignored: the share of label positions that stand behind another document's end.
        dropped: the share of the documents' tokens that no row has.
    """

    batching: Literal["packed", "padded split", "padded truncate"]
    seq_len: int
    rows: int
    useful: float
    padding: float
    ignored: float
    dropped: float


class Lengths:
    """Takes the lengths of documents, and knows their distribution.

    Args:
        seq_lens: the row lengths to know the waste of.
    """

    def __init__(self, seq_lens: Sequence[int] = ()) -> None:
        self.num_documents = 0
        self.total = 0
        self.longest = 0
        self._counts = np.zeros(_EXACT + 48 * _STEPS, np.int64)
        self._seq_lens = tuple(dict.fromkeys(seq_lens))
        self._rows = dict.fromkeys(self._seq_lens, 0)
        self._within = dict.fromkeys(self._seq_lens, 0)
        self._last_starts: Counts = np.zeros(0, np.int64)

    def add(self, lengths: Counts) -> None:
        """Take note of documents, in their order.

        Args:
            lengths: (documents,) in bytes or in tokens, BOS not counted; none is 0.
        """
        if not len(lengths):
            return
        starts = self.total + self.num_documents + np.concatenate([[0], np.cumsum(lengths[:-1] + 1)])
        self.num_documents += len(lengths)
        self.total += int(lengths.sum())
        self.longest = max(self.longest, int(lengths.max()))
        self._counts += np.bincount(_bin(lengths), minlength=len(self._counts))
        for seq_len in self._seq_lens:
            self._rows[seq_len] += int((-(-lengths // seq_len)).sum())
            self._within[seq_len] += int(np.minimum(lengths, seq_len).sum())
        starts = np.concatenate([self._last_starts, starts])
        reach = self.total + self.num_documents - max(self._seq_lens, default=0) - 1
        self._last_starts = starts[starts >= reach]

    def quantiles(self, points: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)) -> dict[str, int]:
        """Return lengths that shares of the documents do not exceed; exact below 65,536, else within 0.6 %."""
        reached = np.cumsum(self._counts)
        found = np.searchsorted(reached, [np.ceil(point * self.num_documents) for point in points])
        return {f"{point:.0%}": min(_value(int(bin_)), self.longest) for point, bin_ in zip(points, found, strict=True)}

    def histogram(self) -> dict[int, int]:
        """Return the number of documents from each power of two (the key) to the next."""
        if not self.num_documents:
            return {}
        bins = np.flatnonzero(self._counts)
        powers = np.array([_value(int(bin_)).bit_length() - 1 for bin_ in bins])
        summed = np.bincount(powers, weights=self._counts[bins]).astype(np.int64)
        return {1 << power: int(summed[power]) for power in range(int(powers.min()), len(summed))}

    def waste(self) -> list[Waste]:
        """Return what each way of batching would do, for each row length that has a row."""
        found = []
        num_stream = self.total + self.num_documents
        for seq_len in self._seq_lens:
            rows = max(num_stream - 1, 0) // seq_len
            positions = rows * seq_len
            if rows:
                num_bos = self.num_documents - int(np.count_nonzero(self._last_starts >= positions))
                ignored, dropped = num_bos / positions, (num_stream - 1 - positions) / num_stream
                found.append(Waste("packed", seq_len, rows, 1 - ignored, 0.0, ignored, dropped))
            if self.num_documents:
                rows, kept = self._rows[seq_len], self._within[seq_len]
                useful = self.total / (rows * seq_len)
                found.append(Waste("padded split", seq_len, rows, useful, 1 - useful, 0.0, 0.0))
                useful = kept / (self.num_documents * seq_len)
                lost = 1 - kept / self.total
                found.append(Waste("padded truncate", seq_len, self.num_documents, useful, 1 - useful, 0.0, lost))
        return found

    def as_json(self) -> dict[str, Any]:
        """Return all of it (JSON)."""
        if not self.num_documents:
            return {"documents": 0}
        return {
            "documents": self.num_documents,
            "total": self.total,
            "mean": self.total / self.num_documents,
            "longest": self.longest,
            "quantiles": self.quantiles(),
            "histogram": {str(low): count for low, count in self.histogram().items()},
            "batching": [asdict(waste) for waste in self.waste()],
        }


def _bin(lengths: Counts) -> Counts:
    """Return where each length is counted."""
    steps = np.floor((np.log2(np.maximum(lengths, _EXACT)) - np.log2(_EXACT)) * _STEPS).astype(np.int64)
    return np.where(lengths < _EXACT, lengths, _EXACT + steps)


def _value(bin_: int) -> int:
    """Return the smallest length that is counted in a bin."""
    return bin_ if bin_ < _EXACT else int(np.ceil(_EXACT * 2 ** ((bin_ - _EXACT) / _STEPS)))
