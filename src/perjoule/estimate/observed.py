"""Epochs that an online estimator may look at."""

from __future__ import annotations

from perjoule.core.errors import ConfigError
from perjoule.estimate.contract import Epoch, Job


def observed(job: Job, kind: str, at_least: int) -> tuple[Epoch, ...]:
    """Return the epochs measured so far.

    Raises:
        ConfigError: if there are fewer than ``at_least``.
    """
    if len(job.observed) < at_least:
        raise ConfigError(f"{kind} needs {at_least} measured epochs of the run, and there are {len(job.observed)}")
    return job.observed
