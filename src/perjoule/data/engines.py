"""Who does units of work: this process, processes of this machine, or a Dask cluster. What is written is the same."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

from pydantic import Field

from perjoule.config import Config
from perjoule.core.limits import num_cores
from perjoule.data.engine import Job, Report, Work, run_here, run_pool

_ALONE_CORES = 4
"""Up to here, processes of their own cost more than they bring unless they are asked for."""


class EngineConfig(Config):
    """Who does the work."""

    engine: Literal["pool", "dask"] = "pool"
    """Processes of this machine, or a Dask cluster."""
    workers: int | None = Field(default=None, ge=0)
    """Processes, or Slurm jobs; 0: this process alone. Unless given, one for every two cores; up to four cores, this
    process alone."""
    scheduler: str = "local"
    """With dask: ``tcp://host:port`` of one that runs, ``local``, or ``slurm`` (through dask-jobqueue)."""
    cluster: dict[str, Any] = Field(default_factory=dict)
    """With dask: options of LocalCluster or SLURMCluster, such as ``{queue: long, cores: 8, memory: 16GB}``."""


class Engine(ExitStack):
    """Does units of work as a configuration says; a cluster of its own ends with the context.

    Args:
        config: who does it.
    """

    def __init__(self, config: EngineConfig) -> None:
        super().__init__()
        self._config = config
        self._client: Any = None

    def run(
        self, work: Work, jobs: Sequence[Job], report: Report, here: Work | None = None, most_threads: int = 1
    ) -> None:
        """Do all units.

        Args:
            work: what is done; it can be pickled.
            jobs: the units.
            report: is told of every finished unit, in this process.
            here: what is done in this process, if not ``work``.
            most_threads: that one unit can use in this process.

        Raises:
            PerjouleError: from the work.
            DataError: if a process or a cluster is lost.
            MissingExtra: without Dask, for ``engine=dask``.
        """
        config, cores = self._config, num_cores()
        if not jobs:
            return
        if config.engine == "dask":
            from perjoule.data.engine_dask import connected, run_dask

            if self._client is None:  # jobs of a queue may have to wait: they are asked for once
                self._client = self.enter_context(connected(config.scheduler, config.workers or cores, config.cluster))
            run_dask(self._client, work, jobs, report)
            return
        workers = config.workers
        if workers is None:
            workers = cores // 2 if cores > _ALONE_CORES and len(jobs) > 1 else 0
        if workers == 0:
            run_here(here or work, jobs, report, min(cores, most_threads))
        else:
            run_pool(work, jobs, report, workers, max(1, cores // workers))


WHO_DOES_IT = frozenset(EngineConfig.model_fields)
"""Settings that change nothing in what is written."""
