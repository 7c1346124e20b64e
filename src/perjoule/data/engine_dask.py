"""Runs units of work on a Dask cluster: one that is there, one on this machine, or one that Slurm gives.

The workers must see the same folders as this process, under the same names.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from perjoule.core.errors import DataError, MissingExtra, PerjouleError
from perjoule.core.files import temporary_folder
from perjoule.core.printable import one_line
from perjoule.data.engine import Amount, Job, Report, Work, as_one_line

LOCAL, SLURM = "local", "slurm"
"""Schedulers that are started for the work and ended after it; any other is the address of one that runs."""

_CONNECT_S = 60
_ANSWER_S = 20
_AHEAD = 3
"""Units handed to the scheduler for each thread of the cluster: enough to never wait, little to take back."""


def _check_listener(address: str) -> None:
    """Raise an OSError at once where nothing listens: Dask tries again for a minute, and for two as it gives up."""
    place = urlsplit(address)
    if place.scheme in {"tcp", "tls"} and place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=_ANSWER_S / 4).close()


def run_dask(client: Any, work: Work, jobs: Sequence[Job], report: Report) -> None:
    """Do all units on a cluster.

    Args:
        client: of :func:`connected`.
        work: what is done.
        jobs: the units.
        report: is told of every finished unit, in this process.

    Raises:
        PerjouleError: from the work.
        DataError: if the cluster loses workers again and again.
    """
    left, completed = iter(jobs), _distributed().as_completed(loop=client.loop)

    def submit() -> None:
        """Hand over as many units as keep the workers busy that are there by now; jobs of a queue come one by one."""
        ahead = _AHEAD * max(sum(client.nthreads().values()), 1)
        for job in islice(left, max(0, ahead - completed.count())):
            completed.add(client.submit(_do, work, job, pure=False))  # a lost worker does not lose its unit

    submit()
    try:
        for future in completed:
            report(_result(future))
            submit()
    finally:
        client.cancel(list(completed.futures))


def _do(work: Work, job: Job) -> Amount:
    """Do one unit in a worker of the cluster."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Dask has a thread for every core already
    done = [Amount()]
    try:
        work(job, 1, done.append)
    except PerjouleError:
        raise
    except Exception as error:
        raise as_one_line(job.name, error) from error
    return sum(done[1:], done[0])


def _result(future: Any) -> Amount:
    """Return what a unit did, or raise its error as one line."""
    try:
        amount: Amount = future.result()
    except PerjouleError:
        raise
    except Exception as error:
        raise DataError(f"the Dask cluster failed: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    return amount


@contextlib.contextmanager
def connected(scheduler: str, workers: int, options: Mapping[str, Any]) -> Iterator[Any]:
    """Connect to a cluster that has a worker, starting it if it is one of ours; return its client.

    Args:
        scheduler: an address such as ``tcp://host:8786``, ``local`` or ``slurm``.
        workers: processes on this machine, or Slurm jobs; a cluster that runs has its own.
        options: for ``distributed.LocalCluster`` or ``dask_jobqueue.SLURMCluster``.

    Raises:
        DataError: if the cluster cannot be reached or has no workers.
        MissingExtra: without Dask.
    """
    distributed = _distributed()
    with contextlib.ExitStack() as closing:
        try:
            if scheduler == LOCAL:
                cluster = closing.enter_context(local_cluster(workers, options))
            elif scheduler == SLURM:
                cluster = closing.enter_context(slurm_cluster(options))
                check_submission(cluster.job_script())
                cluster.scale(jobs=workers)
            else:
                _check_listener(scheduler)
                cluster = scheduler
            client = closing.enter_context(distributed.Client(cluster, timeout=_CONNECT_S, set_as_default=False))
        except (OSError, ValueError, TypeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DataError(
                f"cannot use the Dask scheduler {scheduler}: {reason}; accepted: an address such as "
                f"tcp://host:8786, {LOCAL} or {SLURM}, and cluster={{…}} for the last two"
            ) from error
        try:  # Slurm may let its jobs wait for days; a cluster that is there has workers or never will
            client.wait_for_workers(1, timeout=None if scheduler == SLURM else _CONNECT_S)
        except TimeoutError as error:
            raise DataError(
                f"the Dask scheduler {scheduler} has no workers; start some (dask worker ADDRESS)"
            ) from error
        yield client


def local_cluster(workers: int, options: Mapping[str, Any]) -> Any:
    """Return a started cluster of processes on this machine, with its dashboard at any free port."""
    ours = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    return _distributed().LocalCluster(**{**ours, **options})


def slurm_cluster(options: Mapping[str, Any]) -> Any:
    """Return a cluster whose workers are Slurm jobs, none of them submitted yet.

    Args:
        options: such as ``queue``, ``account``, ``cores``, ``memory``, ``walltime``, ``job_extra_directives``.
    """
    return _imported("dask_jobqueue").SLURMCluster(**options)


def check_submission(script: str) -> None:
    """Let Slurm check a job script without submitting it: dask-jobqueue would try for ever, with a traceback each time.

    Args:
        script: of a worker.

    Raises:
        DataError: if there is no Slurm, its controller does not answer, or it would refuse the job.
    """
    with temporary_folder() as folder:
        path = folder / "worker.sh"
        path.write_text(script, encoding="utf-8")
        try:
            subprocess.run(["sbatch", "--test-only", str(path)], capture_output=True, timeout=_ANSWER_S, check=True)
        except FileNotFoundError as error:
            raise DataError("scheduler=slurm needs Slurm's commands, and there is no sbatch on PATH") from error
        except subprocess.TimeoutExpired as error:
            raise DataError(f"Slurm's controller does not answer: sbatch took more than {_ANSWER_S} s") from error
        except subprocess.CalledProcessError as error:
            said = one_line(error.stderr.decode(errors="replace")) or f"exit code {error.returncode}"
            raise DataError(f"Slurm does not accept jobs: {said}") from error


def _distributed() -> Any:
    """Return Dask's library of clusters."""
    return _imported("distributed")


def _imported(name: str) -> Any:
    """Import a library of the extra ``dask``; none of them has types.

    dask-jobqueue takes SIGINT for itself as it is imported, and ends the process with code 0: our handler is put back.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(f"engine=dask needs {name}; install it with pip install 'perjoule[dask]'") from error
    finally:
        if signal.getsignal(signal.SIGINT) is not before and before is not None:
            signal.signal(signal.SIGINT, before)
