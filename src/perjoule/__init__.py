"""perjoule: train it, and know what it cost.

``perjoule.train(config)`` trains and records one model; ``perjoule.load(recipe, *overrides)`` resolves its
configuration from a file and ``key=value`` strings; ``with perjoule.measure():`` records any other training loop.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perjoule.measure.session import measure as measure
    from perjoule.train.run import train as train

__version__ = "0.1.0"
__all__ = ["__version__", "load", "measure", "train"]


def __getattr__(name: str) -> Any:
    """Import a verb when it is first used, so that ``import perjoule`` costs nothing."""
    if name in {"measure", "train"}:
        return importlib.import_module(f"perjoule.{name}")
    raise AttributeError(f"module 'perjoule' has no attribute {name!r}")


def load(recipe: str | None = None, *overrides: str) -> Any:
    """Resolve a training configuration.

    Args:
        recipe: path of a YAML file, or None for the defaults.
        overrides: ``dotted.key=value`` strings.

    Returns:
        A ``Resolved[TrainConfig]``: the config and the source of each value. :func:`train` takes it as it is.

    Raises:
        ConfigError: listing every mistake.
    """
    from pathlib import Path

    from perjoule.config import resolve
    from perjoule.train.config import TrainConfig

    return resolve.load(TrainConfig, Path(recipe) if recipe is not None else None, overrides)
