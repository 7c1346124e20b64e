"""The sampler: reads the meters of one node while the trainer trains, in a process of its own.

The process imports neither torch nor numpy, so that it is small and quick to start. It ends when the trainer asks, when
the trainer's end of its standard input closes, when it has another parent. The kernel kills it when the
thread that started it dies (``PR_SET_PDEATHSIG``; only if that is the main thread, because other threads may end before
the trainer does). Signals that a terminal or a scheduler sends to all processes of a job are left to the trainer: its
last steps are metered as well.

A sampler that fails costs readings, never training: it is started anew, and what lies between is ``unknown`` energy.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from perjoule.core.errors import RunFolderError
from perjoule.measure.contract import Site, Unavailable
from perjoule.measure.polling import Job, revive, sample
from perjoule.runs.mapped import read_header
from perjoule.runs.sample_writer import MAGIC, NOUN, attempt_path

if TYPE_CHECKING:
    from perjoule.measure.config import EnergyConfig

MAX_RESTARTS = 3
_THREAD_RATE_HZ = 10.0
"""A thread takes turns with the trainer: more readings would cost more than a percent of a step."""
_PR_SET_PDEATHSIG = 1
_GONE_S = 1.0
"""How long a killed process may take to be gone; one that the kernel holds in a driver is given up."""


@dataclass(frozen=True)
class SamplerState:
    """What a sampler reads.

    Args:
        path: of its sample file.
        mode: ``process`` or ``thread``.
        channels: what is known of each sensor, with the ``kind`` of its meter; the last one is the sampler itself.
        unavailable: (kind of meter, why it is not read).
    """

    path: Path
    mode: str
    channels: tuple[Mapping[str, Any], ...]
    unavailable: tuple[tuple[str, Unavailable], ...]


class Sampler:
    """Starts whoever reads the meters, watches over it, and ends it. Nothing here raises into training.

    Use :meth:`start`.
    """

    def __init__(self, path: Path, config: EnergyConfig, site: Site, facts: Mapping[str, Any]) -> None:
        self._first_path, self._config, self._site, self._facts = path, config, site, facts
        self._num_started = 0
        self._worker: _Worker | None = None
        self._given_up = config.sampler == "off"

    @classmethod
    def start(
        cls, path: Path, config: EnergyConfig, site: Site, node: str, facts: Mapping[str, Any] | None = None
    ) -> Sampler:
        """Start sampling, without waiting for the first reading.

        Args:
            path: the sample file of attempt 0, as :func:`perjoule.runs.folder.sample_path` names it.
            config: meters, mode and rate.
            site: the processes and devices of the run on this node.
            node: name of the machine.
            facts: more JSON for the header of the file.
        """
        boot_id = ""
        with contextlib.suppress(OSError):
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        sampler = cls(path, config, site, {**(facts or {}), "node": node, "boot_id": boot_id})
        if not sampler._given_up:
            sampler._begin()
        return sampler

    @property
    def path(self) -> Path:
        """Return the file that is written now."""
        return attempt_path(self._first_path, max(self._num_started - 1, 0))

    def ready(self, timeout_s: float) -> SamplerState | Unavailable:
        """Wait until the first readings are written, and return what is read, or why nothing is."""
        if self._worker is None:
            return Unavailable("no meter is read (energy.sampler=off)")
        missing = self._worker.ready(timeout_s)
        if missing is not None:
            return missing
        try:
            header, _ = read_header(self.path, MAGIC, NOUN, "channels")
        except RunFolderError as error:
            return Unavailable(str(error))
        unavailable = [(one["kind"], Unavailable(one["reason"], one["remedy"])) for one in header["unavailable"]]
        return SamplerState(self.path, header["mode"], tuple(header["channels"]), tuple(unavailable))

    @property
    def pid(self) -> int | None:
        """Return the process that reads the meters; None if it is this one, or nobody reads them."""
        return self._worker.pid if isinstance(self._worker, _Process) else None

    def alive(self) -> bool:
        """Return whether the meters are being read."""
        return self._worker is not None and self._worker.alive()

    def watch(self) -> str | None:
        """Start the sampler anew if it has died, and say so. To be called about once a second; costs microseconds."""
        if self._given_up or self._worker is None or self._worker.alive():
            return None
        reason = self._worker.why_ended()
        self._worker.stop(0.0)
        if self._num_started > MAX_RESTARTS:
            self._given_up = True
            return f"the sampler ended ({reason}) and is not started again: energy from here on is unknown"
        self._begin()
        return f"the sampler ended ({reason}) and was started again: energy in between is unknown"

    def stop(self, timeout_s: float = 2.0) -> None:
        """Ask for a last reading, wait for the end, and enforce it if it takes longer. May be called twice."""
        self._given_up = True
        if self._worker is not None:
            self._worker.stop(timeout_s)

    def _begin(self) -> None:
        """Start a worker that writes the next file."""
        self._num_started += 1
        with contextlib.suppress(OSError):  # if there is no such folder, the worker will say so
            self.path.parent.mkdir(exist_ok=True)
        if self._config.sampler == "process":
            try:
                self._worker = _Process(self._job("process"))
                return
            except OSError as error:
                self._facts = {**self._facts, "remark": f"read by a thread: no process could be started ({error})"}
        self._worker = _Thread(self._job("thread"))

    def _job(self, mode: str) -> Job:
        rate_hz = self._config.rate_hz if mode == "process" else min(self._config.rate_hz, _THREAD_RATE_HZ)
        facts = {**self._facts, "processes": list(self._site.pids), "rate_hz": rate_hz, "mode": mode}
        return Job(self.path, self._config.meters, self._site, rate_hz, facts)


class _Worker(Protocol):
    """Who reads the meters."""

    def ready(self, timeout_s: float) -> Unavailable | None:
        """Wait for the first readings; return why there are none."""

    def alive(self) -> bool:
        """Return whether it reads."""

    def why_ended(self) -> str:
        """Return why it does not any more."""

    def stop(self, timeout_s: float) -> None:
        """End it."""


class _Process:
    """A sampler in a process of its own; :func:`main` is its other side.

    Args:
        job: what to do.

    Raises:
        OSError: if no process can be started.
    """

    def __init__(self, job: Job) -> None:
        self._started = False
        self._errors = tempfile.TemporaryFile()
        # The child finds what the parent finds, third parties' meters among it, but not what lies in the folder it
        # happens to be in.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "perjoule.measure.sampler"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
                start_new_session=True,
            )
        except OSError:
            self._errors.close()
            raise
        self.pid = self._process.pid
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._tell(json.dumps(_as_json(job)).encode() + b"\n")

    def _tell(self, line: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has died, or its input is closed
            self._input.write(line)
            self._input.flush()

    def ready(self, timeout_s: float) -> Unavailable | None:
        if not self._started:
            if self._output.closed:
                return Unavailable("the sampler was stopped before it gave a reading")
            if not select.select([self._output], [], [], timeout_s)[0]:
                return Unavailable(f"the sampler gave no reading within {timeout_s:g} s")
            self._started = bool(self._output.readline())
        return None if self._started else Unavailable(f"the sampler ended: {self.why_ended()}")

    def alive(self) -> bool:
        return self._process.poll() is None

    def why_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GONE_S)
        code = self._process.returncode
        if code is not None and code < 0:
            return f"signal {-code}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        return lines[-1] if lines else f"exit code {code}"

    def stop(self, timeout_s: float) -> None:
        self._tell(b"stop\n")  # a process that the trainer forked may hold the pipe open
        with contextlib.suppress(OSError):
            self._input.close()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GONE_S)
        self._output.close()
        self._errors.close()


class _Thread:
    """A sampler in this process, where no other can be started.

    Args:
        job: what to do.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._started, self._asked = threading.Event(), threading.Event()
        self._reason = "it was stopped"
        self._thread = threading.Thread(target=self._run, name="perjoule-sampler", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            sample(self._job, self._asked.wait, self._started.set, time.thread_time_ns)
        except Exception as error:
            self._reason = str(error)

    def ready(self, timeout_s: float) -> Unavailable | None:
        end_s = time.monotonic() + timeout_s
        while not self._started.wait(min(0.05, max(0.0, end_s - time.monotonic()))):
            if not self._thread.is_alive() and not self._started.is_set():
                return Unavailable(f"the sampler ended: {self._reason}")
            if time.monotonic() >= end_s:
                return Unavailable(f"the sampler gave no reading within {timeout_s:g} s")
        return None

    def alive(self) -> bool:
        return self._thread.is_alive()

    def why_ended(self) -> str:
        return self._reason

    def stop(self, timeout_s: float) -> None:
        self._asked.set()
        self._thread.join(timeout_s)


def _as_json(job: Job) -> dict[str, Any]:
    """Return what :func:`main` needs to know."""
    return {
        "path": str(job.path.absolute()),
        "meters": [meter.model_dump(mode="json") for meter in job.meters if not isinstance(meter, tuple)],
        "site": asdict(job.site),
        "rate_hz": job.rate_hz,
        "facts": dict(job.facts),
        "parent": os.getpid(),
        "from_main_thread": threading.current_thread() is threading.main_thread(),
    }


def main() -> int:
    """Be the sampler's process: take one line of JSON from standard input, read until it closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with open(0, "rb", buffering=0, closefd=False) as unbuffered:
        told = json.loads(unbuffered.readline())
    parent = told["parent"]
    if told["from_main_thread"]:
        with contextlib.suppress(OSError, AttributeError):  # systems without it
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def wait(seconds: float) -> bool:
        heard = select.select([0], [], [], max(seconds, 0.0))[0]
        return bool(heard) or os.getppid() != parent

    def started() -> None:
        with contextlib.suppress(OSError):
            os.write(1, b"reading\n")

    site = Site(tuple(told["site"]["pids"]), tuple(told["site"]["devices"]), told["site"].get("parent", 0))
    job = Job(Path(told["path"]), [revive(meter) for meter in told["meters"]], site, told["rate_hz"], told["facts"])
    try:
        sample(job, wait, started, time.process_time_ns)
    except RunFolderError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
