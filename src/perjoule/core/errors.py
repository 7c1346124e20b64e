"""Every error perjoule raises on purpose.

::

    PerjouleError (1)            one clear line: what, where, what would be accepted
    ├── ConfigError (2)          change the recipe or the override
    │   ├── UnknownComponent     pick a name that exists on the shelf
    │   └── BrokenComponent      update or remove the package that adds it
    ├── MissingExtra (3)         install the named extra
    ├── MeterUnavailable (4)     give access to the device, or train without this meter
    ├── RunFolderError (5)       choose or repair a run folder
    ├── DataError (6)            change or repair the data
    ├── CheckpointError (7)      choose another checkpoint
    ├── TrainingDiverged (8)     change the learning rate, the precision or the data
    └── OutOfMemory (9)          make the batch or the model smaller

The number is the exit code of the command line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_NEAR = 0.67
"""Twice the letters in common over all letters of two names: "fp32" and "fp16" (0.5) are not near, "lerning" is."""


class PerjouleError(Exception):
    """Root of all deliberate errors; the command line prints its message without a traceback."""

    exit_code = 1


class ConfigError(PerjouleError):
    """A recipe, an override or an argument cannot be accepted."""

    exit_code = 2


class UnknownComponent(ConfigError):
    """A name is not on its shelf."""


class BrokenComponent(ConfigError):
    """A name on a shelf belongs to an installed package that cannot be imported."""


class MissingExtra(PerjouleError):
    """An optional dependency is needed; the message says which extra installs it."""

    exit_code = 3


class MeterUnavailable(PerjouleError):
    """A meter was asked for and cannot be read."""

    exit_code = 4


class RunFolderError(PerjouleError):
    """A run folder exists already, is not one, or cannot be written."""

    exit_code = 5


class DataError(PerjouleError):
    """The data is missing, empty, unreadable or unfit for the recipe."""

    exit_code = 6


class CheckpointError(PerjouleError):
    """A checkpoint is missing, damaged, or of another configuration."""

    exit_code = 7


class TrainingDiverged(PerjouleError):
    """The loss or the gradient is no longer finite."""

    exit_code = 8


class OutOfMemory(PerjouleError):
    """The host or the device has no more memory."""

    exit_code = 9


_ALIKE = 3
"""Letters by which names that are alike may differ in length, where there are very many."""
_MOST_COMPARISONS = 1_000_000
_MOST_NAMES = 100


def nearest(name: str, accepted: Iterable[str]) -> str | None:
    """Return the accepted name that ``name`` most likely means, or None if none is near: no hint misleads less.

    Case and the marks between words do not count. Near is a name that has ``name`` among its words (``size`` in
    ``batch_size``), or most letters in the same order.
    """
    plain = _plain(name)
    candidates = {_plain(candidate): candidate for candidate in accepted}
    if plain in candidates:
        return candidates[plain]
    anagrams = [candidate for one, candidate in candidates.items() if sorted(one) == sorted(plain)]
    if len(anagrams) == 1:
        return anagrams[0]  # two letters that changed places, as in "dmi"
    within = [candidate for candidate in candidates.values() if plain in re.split(r"[\W_]+", candidate.lower())]
    if len(within) == 1:
        return within[0]
    if len(plain) * sum(map(len, candidates)) > _MOST_COMPARISONS:  # difflib takes the product, and more
        # Of thousands of names, those that begin alike and are about as long: a mistake is rarely in the first letter.
        candidates = {
            one: name
            for one, name in candidates.items()
            if one[:2] == plain[:2] and abs(len(one) - len(plain)) <= _ALIKE
        }
    if len(plain) * sum(map(len, candidates)) > _MOST_COMPARISONS:
        return None
    matches = difflib.get_close_matches(plain, candidates, n=1, cutoff=_NEAR)
    return candidates[matches[0]] if matches else None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower()) or name


def suggestion(name: str, accepted: Iterable[str]) -> str:
    """Return "did you mean 'x'? Accepted: …", or only the accepted names if none is alike."""
    names = sorted(accepted)
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    listing = f"accepted: {', '.join(names[:_MOST_NAMES])}{more}" if names else "there are none"
    near = nearest(name, names)
    return f"did you mean {near!r}? ({listing})" if near else listing
