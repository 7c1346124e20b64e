"""Rows of several splits in one stream, in given proportions.

The stream is cut into periods of 4,096 rows. In each, a component has a fixed number of rows: its share of the weights,
rounded by the largest remainder, so that proportions are exact over every period and never drift. Within a period each
component's rows are spread evenly, so that any 64 rows in a line have nearly the right proportions; those 64 are in an
order that depends on the seed and on their place, so that no component falls into step with the ranks or the batches.

The row at a global position is found without the rows before it: the period's number says how many rows each component
has had until then, a table of the period the rest. Each component counts rows of its own and so has its own epochs: a
small one is read several times while a large one is read once. The state of a mixture is the position.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from perjoule.core.seeding import derive
from perjoule.data.contract import Batch, Samples
from perjoule.data.order import Indices, Order, hashed

PERIOD = 4096
_WINDOW = 64


class Places(NamedTuple):
    """Where rows are to be read.

    Args:
        components: (rows,) numbers of components.
        indices: (rows,) global positions, each within its component.
    """

    components: Indices
    indices: Indices


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Return how many of the rows of a period each component has, by the largest remainder.

    Args:
        weights: positive, in any unit.
    """
    exact = np.array(weights, dtype=np.float64) / np.sum(weights) * PERIOD
    whole = np.floor(exact)
    missing = PERIOD - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
    return tuple(int(count) for count in whole)


@dataclass(frozen=True)
class Mix:
    """Which component a global position reads, and where in it.

    Args:
        shares: rows of each component in a period, together ``PERIOD``.
        seed: of the order within 64 neighbouring rows.
    """

    shares: tuple[int, ...]
    seed: int

    def places(self, start: int, rows: int) -> Places:
        """Return what stands at the global positions ``start … start + rows - 1``.

        The indices of one component are consecutive numbers.
        """
        components, indices = [], []
        while rows > 0:
            number, offset = divmod(start, PERIOD)
            period = _period(self.shares, self.seed, number)
            part = slice(offset, offset + rows)
            components.append(period.components[part])
            indices.append(period.indices[part])
            start, rows = start + len(components[-1]), rows - len(components[-1])
        return Places(np.concatenate(components), np.concatenate(indices))


@functools.lru_cache(maxsize=16)
def _period(counts: tuple[int, ...], seed: int, number: int) -> Places:
    """Return the places of a period."""
    positions = number * PERIOD + np.arange(PERIOD, dtype=np.int64)
    order = np.argsort(hashed(positions, derive(seed, "mix")).reshape(-1, _WINDOW), axis=1, kind="stable")
    components = np.take_along_axis(_spread(counts).reshape(-1, _WINDOW), order, axis=1).reshape(-1)
    indices = np.empty(PERIOD, np.int64)
    for component, count in enumerate(counts):
        indices[components == component] = number * count + np.arange(count)
    for array in (components, indices):
        array.flags.writeable = False
    return Places(components, indices)


def _spread(counts: tuple[int, ...]) -> Indices:
    """Return the components of a period, each spread evenly: its j-th row is due at (j + 1/2) / count."""
    due = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return np.repeat(np.arange(len(counts)), counts)[np.argsort(due, kind="stable")]


class MixedSamples:
    """The training rows of a mixture.

    Args:
        parts: the components' rows, with batches of the same tensors.
        mix: which of them stands where.
    """

    def __init__(self, parts: Sequence[Samples], mix: Mix) -> None:
        self._parts, self._mix = parts, mix

    @property
    def num_samples(self) -> int:
        """Return the rows of one epoch: as many as the components have together, whatever their shares."""
        return sum(part.num_samples for part in self._parts)

    @property
    def epochs(self) -> tuple[float, ...]:
        """Return how many times each component is read in one epoch of the mixture."""
        rows = zip(self._parts, self._mix.shares, strict=True)
        return tuple(self.num_samples * share / PERIOD / part.num_samples for part, share in rows)

    def batch(self, start: int, rows: int) -> Batch:
        """Return the rows at the global positions ``start … start + rows - 1``."""
        places = self._mix.places(start, rows)
        by_component = np.argsort(places.components, kind="stable")
        batches, done = [], 0
        for component, count in enumerate(np.bincount(places.components).tolist()):
            if count:
                first = int(places.indices[by_component[done]])
                batches.append(self._parts[component].batch(first, count))
                done += count
        return _joined(batches, np.argsort(by_component))


class JoinedSamples:
    """The held-out rows of a mixture: all rows of all components, each once an epoch.

    They come in one fixed order, the same for every run and seed, in which the components are well mixed, so that the
    first batches are a sample of the whole.

    Args:
        parts: the components' rows, with batches of the same tensors.
    """

    def __init__(self, parts: Sequence[Samples]) -> None:
        self._parts = parts
        self._ends = np.cumsum([part.num_samples for part in parts])
        self._order = Order(int(self._ends[-1]), derive(0, "held out"))

    @property
    def num_samples(self) -> int:
        """Return the rows of all components."""
        return self._order.num_samples

    def batch(self, start: int, rows: int) -> Batch:
        """Return the rows at the global positions ``start … start + rows - 1``."""
        epoch, chosen = np.arange(start, start + rows) // self.num_samples, self._order.samples(start, rows)
        components = np.searchsorted(self._ends, chosen, side="right")
        batches = []
        for row, (component, number) in enumerate(zip(components.tolist(), chosen.tolist(), strict=True)):
            part = self._parts[component]
            index = number - (int(self._ends[component]) - part.num_samples)
            batches.append(part.batch(int(epoch[row]) * part.num_samples + index, 1))
        return _joined(batches, None)


def _joined(batches: Sequence[Batch], order: Indices | None) -> Batch:
    """Return the rows of batches as one.

    Args:
        batches: with the same tensors.
        order: which of the rows, counted over all batches, is the first, second and so on; None: as they come.
    """
    tensors = {name: torch.cat([batch.tensors[name] for batch in batches]) for name in batches[0].tensors}
    if order is not None:
        places = torch.from_numpy(order)
        tensors = {name: tensor.index_select(0, places) for name, tensor in tensors.items()}
    counts = [(batch.num_samples, batch.num_tokens, batch.num_useful) for batch in batches]
    return Batch(tensors, *map(sum, zip(*counts, strict=True)))
