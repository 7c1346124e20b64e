"""Training: the loop, optimizers and schedules, checkpoints, ranks, and how the arithmetic is done.

The package can be called: ``perjoule.train(config)`` runs :func:`perjoule.train.run.train`.
"""

from __future__ import annotations

import sys
import types
from typing import Any


class _Verb(types.ModuleType):
    """A module that is also the verb it is named after."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Train one model and record it; see :func:`perjoule.train.run.train`."""
        from perjoule.train.run import train

        return train(*arguments, **options)


sys.modules[__name__].__class__ = _Verb
