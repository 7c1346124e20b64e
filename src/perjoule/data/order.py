"""The order of the samples: a keyed permutation that is computed, not stored.

Each epoch visits every sample once, in an order that depends on the seed and the epoch. The position of a sample is
found without the positions before it, so seeking costs O(1), resuming needs no state, and no array of the size of the
data set is kept.

The permutation is a Feistel network over mixed radices: an index below ``a·b`` is a pair ``(x, y)`` with ``x < a``,
``y < b``; adding a hash of one half to the other, modulo its radix, can be undone, whatever the hash. With ``a`` and
``b`` next to the root of ``n``, the square is barely larger than ``n``; an index that lands outside is sent through
again, which a permutation of the square always brings back inside (cycle walking).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perjoule.core.seeding import derive

Indices = npt.NDArray[np.int64]
_ROUNDS = 6
_BLOCK = 4096
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2 = np.uint64(30), np.uint64(27)
_KEPT = np.uint64(33)


def permute(indices: Indices, num_samples: int, key: int) -> Indices:
    """Return where a keyed permutation of ``0 … num_samples - 1`` sends each of ``indices``.

    Args:
        indices: (n,) in ``[0, num_samples)``.
        num_samples: at least 1.
        key: chooses the permutation; 64 bits.
    """
    a = math.isqrt(num_samples - 1) + 1
    b = -(-num_samples // a)
    keys = [derive(key, "round", number) for number in range(_ROUNDS)]
    image = _feistel(indices, a, b, keys)
    while (outside := image >= num_samples).any():
        image[outside] = _feistel(image[outside], a, b, keys)
    return image


def _feistel(indices: Indices, a: int, b: int, keys: list[int]) -> Indices:
    """Permute ``0 … a·b - 1``."""
    x, y = np.divmod(indices, b)
    for number, key in enumerate(keys):
        if number % 2:
            y += hashed(x, key)
            y %= b
        else:
            x += hashed(y, key)
            x %= a
    return x * b + y


def hashed(values: Indices, key: int) -> Indices:
    """Return a hash of each value, of 31 bits so that sums stay within int64 (the finalizer of SplitMix64).

    Args:
        values: (n,) not negative.
        key: chooses the hash; 64 bits.
    """
    bits = values.view(np.uint64) ^ np.uint64(key)
    bits ^= bits >> _SHIFT_1
    bits *= _MIX_1
    bits ^= bits >> _SHIFT_2
    bits *= _MIX_2
    bits >>= _KEPT
    return bits.view(np.int64)


@dataclass(frozen=True)
class Order:
    """Which sample stands at a global position.

    Args:
        num_samples: samples of one epoch, at least 1.
        seed: of the shuffle; None for the order of the stream, epoch after epoch.
    """

    num_samples: int
    seed: int | None

    def samples(self, start: int, rows: int) -> Indices:
        """Return the sample indices at the global positions ``start … start + rows - 1``; epochs join seamlessly."""
        assert start >= 0 and rows >= 1, f"positions {start} + {rows} are before the first sample or none"
        if self.seed is None:
            return np.arange(start, start + rows, dtype=np.int64) % self.num_samples
        parts = []
        while rows > 0:
            epoch, index = divmod(start, self.num_samples)
            block, offset = divmod(index, _BLOCK)
            part = _block(self.num_samples, self.seed, epoch, block)[offset : offset + rows]
            parts.append(part)
            start, rows = start + len(part), rows - len(part)
        return parts[0].copy() if len(parts) == 1 else np.concatenate(parts)


@functools.lru_cache(maxsize=64)
def _block(num_samples: int, seed: int, epoch: int, block: int) -> Indices:
    """Permute a block of neighbouring positions at once: numpy costs the same for 1,024 indices as for 8."""
    indices = np.arange(block * _BLOCK, min((block + 1) * _BLOCK, num_samples), dtype=np.int64)
    image = permute(indices, num_samples, derive(seed, "order", epoch))
    image.flags.writeable = False
    return image
