"""Where things are kept that can be made again: prepared data, measurements of the machine. Paths given by people."""

from __future__ import annotations

import os
from pathlib import Path

from perjoule.core.errors import ConfigError


def cache_folder(configured: Path | None = None) -> Path:
    """Return where stores live: as configured, else $PERJOULE_CACHE, $XDG_CACHE_HOME/perjoule or ~/.cache/perjoule.

    Raises:
        ConfigError: if none of these is given and the user has no home folder.
    """
    if configured is not None:
        return expand_home(configured)
    if own := os.environ.get("PERJOULE_CACHE"):
        return expand_home(Path(own))
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "perjoule"
    try:
        return Path.home() / ".cache" / "perjoule"
    except RuntimeError as error:
        raise ConfigError(
            "this user has no home folder to keep prepared data in; set PERJOULE_CACHE to a folder that may be written"
        ) from error


def expand_home(path: Path) -> Path:
    """Return the path with a leading ``~`` or ``~user`` replaced by that home folder.

    Raises:
        ConfigError: if there is no such home folder.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{path}: the home folder that {path.parts[0]} stands for is not known; write the path in full"
        ) from error
