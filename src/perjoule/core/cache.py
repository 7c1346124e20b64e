"""Where things are kept that can be made again: prepared data, measurements of the machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(configured: Path | None = None) -> Path:
    """Return where stores live: as configured, else $PERJOULE_CACHE, $XDG_CACHE_HOME/perjoule or ~/.cache/perjoule."""
    if configured is not None:
        return configured.expanduser()
    if own := os.environ.get("PERJOULE_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "perjoule"
