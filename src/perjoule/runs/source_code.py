"""Which code a run was made with: the commit of the repository that its working folder lies in."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

_PATIENCE_S = 5.0


def source_code(folder: Path) -> dict[str, Any]:
    """Return ``{"commit": …, "changed": …}``, or ``{"unavailable": …}`` with the reason. Nothing is changed or fetched.

    Args:
        folder: in which a run was started.
    """
    try:
        commit = _ask(folder, "rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_ask(folder, "status", "--porcelain", "--untracked-files=no"))}
    except FileNotFoundError:
        return {"unavailable": "git is not installed"}
    except subprocess.TimeoutExpired:
        return {"unavailable": f"git did not answer within {_PATIENCE_S:g} s"}
    except (OSError, subprocess.CalledProcessError):
        return {"unavailable": "the working folder is in no git repository with a commit"}


def _ask(folder: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_PATIENCE_S, check=True)
    return done.stdout.decode("utf-8", "replace").strip()
