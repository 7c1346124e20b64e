"""The past of a run while it happens, in bounded memory: steps, evaluations, checkpoints, joules."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_MOST = 512


class BoundedSeries:
    """A series of any length as the means of at most some hundred equal blocks.

    Args:
        most: blocks; when there are as many, two and two become one.
    """

    def __init__(self, most: int = _MOST) -> None:
        self.block = 1
        self._most = most
        self._means: list[float] = []
        self._sum, self._num = 0.0, 0

    def add(self, value: float) -> None:
        """Append a value."""
        self._sum += value
        self._num += 1
        if self._num == self.block:
            self._means.append(self._sum / self._num)
            self._sum, self._num = 0.0, 0
            if len(self._means) == self._most:
                self._means = self.means.reshape(-1, 2).mean(axis=1).tolist()
                self.block *= 2

    @property
    def means(self) -> Floats:
        """Return the (num_blocks,) means of the blocks that are complete."""
        return np.array(self._means, dtype=np.float64)
