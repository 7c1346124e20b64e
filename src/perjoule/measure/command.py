"""Meter any program: start it and measure it and all that it starts, or follow processes that run already.

::

    perjoule measure name=server -- python -m http.server
    perjoule measure --pid 4711

The program is not touched: standard input, output and error, the terminal and the folder are its own. Signals that are
sent to perjoule alone are passed on; those of the terminal (Ctrl-C) reach the program by themselves. Processes that it
leaves behind are adopted while it runs, so that their CPU time is counted whoever started them. When the program ends,
so does the measurement.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import Field

from perjoule.config import Config
from perjoule.core.errors import ConfigError, PerjouleError
from perjoule.measure.blocked import FORWARDED
from perjoule.measure.carbon import CarbonConfig
from perjoule.measure.config import EnergyConfig
from perjoule.measure.contract import Site
from perjoule.measure.machine_load import MachineLoad
from perjoule.measure.meters.nvidia import NvidiaConfig
from perjoule.measure.meters.sysfs import text
from perjoule.measure.process_tree import CpuClocks, descendants
from perjoule.measure.sampler import SamplerState
from perjoule.measure.session import WATCH_EVERY_S, Measurement
from perjoule.runs import folder
from perjoule.runs.journal import BEGIN, END

PHASE = "command"
_ENDING = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT))
_LOOK_EVERY_S = 0.1
"""How often it is looked whether a process that is not our child still runs."""
_PR_SET_CHILD_SUBREAPER = 36


class CommandError(PerjouleError):
    """A command cannot be started."""

    exit_code = 127


class NotExecutable(CommandError):
    """A command is there and is no program."""

    exit_code = 126


class MeasureConfig(Config):
    """What ``perjoule measure`` leaves, and what it reads."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
    """Name of the run folder; made of the command and the time if not given."""
    runs: Path = Path("runs")
    """The folder of the run folders."""
    energy: EnergyConfig = Field(default_factory=EnergyConfig)
    """Meters."""
    carbon: CarbonConfig = Field(default_factory=CarbonConfig)
    """Where the electricity is from."""


@dataclass(frozen=True)
class Followed:
    """How a program ended.

    Args:
        run: the run folder.
        exit_code: that of the program, 128 plus the number of the signal that ended it; of processes that were
            followed 0, because only a parent is told.
        seconds: how long it was measured.
    """

    run: Path
    exit_code: int
    seconds: float


def measure_command(command: Sequence[str], config: MeasureConfig, append: bool = False) -> Followed:
    """Run a program and measure it. To be called within :func:`perjoule.measure.blocked.blocked_signals`.

    Args:
        command: the program and its arguments.
        config: name, meters, carbon.
        append: add a segment to the run folder if it exists.

    Raises:
        CommandError: if there is no such program; nothing was written then.
        RunFolderError: if the folder exists or cannot be written.
    """
    path = shutil.which(command[0])
    if path is None:
        there = "/" in command[0] and Path(command[0]).exists()
        error = NotExecutable if there else CommandError
        raise error(f"cannot run {command[0]}: {'it is not an executable file' if there else 'no such program'}")
    program = _Program(Path(command[0]).name, config, append, command=tuple(command))
    with program, _adopted_orphans():
        return program.run_command(path)


def follow(pids: Sequence[int], config: MeasureConfig, append: bool = False) -> Followed:
    """Measure processes that run already until they end, or a signal ends the measurement.

    Args:
        pids: the processes; what they start is included.
        config: name, meters, carbon.
        append: add a segment to the run folder if it exists.

    Raises:
        ConfigError: if one of them does not run, or is this process.
        RunFolderError: if the folder exists or cannot be written.
    """
    for pid in pids:
        if pid == os.getpid() or not Path(f"/proc/{pid}/stat").is_file():
            raise ConfigError(f"--pid {pid}: {'that is this process' if pid == os.getpid() else 'no such process'}")
    program = _Program(f"pid{pids[0]}", config, append, pids=tuple(pids))
    with program:
        return program.wait_for_others()


class _Program(Measurement):
    """The measurement of a program that is not perjoule's."""

    _how_to_add = "add to it with --append"

    def __init__(
        self, stem: str, config: MeasureConfig, append: bool, command: tuple[str, ...] = (), pids: tuple[int, ...] = ()
    ) -> None:
        devices, self._remark = _devices(pids[0] if pids else None)
        energy = config.energy
        if devices is None:
            energy = energy.model_copy(update={"meters": tuple(map(_all_gpus, energy.meters))})
        run = config.runs / (config.name or folder.new_run_id(stem))
        super().__init__(run, append=append, energy=energy, carbon=config.carbon, devices=devices or ())
        self._command, self._pids = command, pids
        self._clocks: CpuClocks | None = None
        self._ending: signal.Signals | None = None
        self._outcome: tuple[str, str] | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the run folder with how the program ended."""
        if error is not None or self._outcome is None:
            super().__exit__(kind, error, trace)
        else:
            self.end(*self._outcome)

    def _segment_facts(self) -> dict[str, Any]:
        names = [text(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip() for pid in self._pids]
        return {"followed": {"command": list(self._command), "pids": list(self._pids), "names": names}}

    def _site(self, devices: tuple[str, ...]) -> Site:
        return Site(self._pids, devices, 0 if self._pids else os.getpid())

    def _watch_load(self) -> MachineLoad:
        return MachineLoad((*self._pids, os.getpid()))

    def _cpu_ns(self) -> int:
        if self._clocks is None:
            sampler = () if self._sampler.pid is None else (self._sampler.pid,)
            self._clocks = CpuClocks(self._pids, 0 if self._pids else os.getpid(), without=sampler)
        return self._clocks.spent_ns()

    def _mark(self, kind: int) -> None:
        if PHASE not in self._journal.phases:
            self._journal.add_phase(PHASE)
        self._journal.put(time.monotonic_ns(), self._cpu_ns(), 0, self._journal.code(PHASE, kind))

    def _note(self, remark: str) -> None:
        self._folder.append_event("note", step=0, text=remark)

    def run_command(self, path: str) -> Followed:
        """Start the program and wait for its end."""
        begun_s = time.monotonic()
        others = descendants((os.getpid(),))  # the sampler, and what a caller of this function had started
        self._mark(BEGIN)
        try:
            pid = os.posix_spawn(path, self._command, os.environ, setsigmask=(), setsigdef=(signal.SIGPIPE,))
        except OSError as error:
            raise NotExecutable(f"cannot run {path}: {error.strerror}") from error
        code: int | None = None
        while code is None:
            self._handle(signal.sigtimedwait({*FORWARDED, signal.SIGCHLD}, WATCH_EVERY_S), (pid,))
            self._reap_orphans(pid)
            ended, status = os.waitpid(pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if ended else None
        self._reap_orphans(pid)  # those that the program itself had not waited for
        self._mark(END)
        if left := descendants((os.getpid(),)) - others:
            self._note(f"{len(left)} processes that the command started still run: what they use now is not metered")
        name = f"{signal.Signals(-code).name} ended it" if code < 0 else f"exit code {code}"
        how = folder.FINISHED if code == 0 else folder.FAILED
        if self._ending is not None:
            how, name = folder.STOPPED, f"after {self._ending.name}: {name}"
        return self._ended(how, f"the command ended: {name}", 128 - code if code < 0 else code, begun_s)

    def wait_for_others(self) -> Followed:
        """Wait for the end of the processes that are followed, or for a signal."""
        begun_s = time.monotonic()
        self._mark(BEGIN)
        self._note("followed from outside: what the processes used before is not counted")
        started = {pid: _started(pid) for pid in self._pids}
        while self._ending is None and any(began and _started(pid) == began for pid, began in started.items()):
            self._handle(signal.sigtimedwait(FORWARDED, _LOOK_EVERY_S), ())
        self._mark(END)
        if self._ending is not None:
            reason = f"{self._ending.name} ended the measurement; the processes were left alone"
            return self._ended(folder.STOPPED, reason, 128 + self._ending, begun_s)
        return self._ended(folder.FINISHED, "the processes ended", 0, begun_s)

    def _handle(self, info: signal.struct_siginfo | None, pids: Sequence[int]) -> None:
        """Pass a signal on, and look after the sampler about once a second."""
        if (now_s := time.monotonic()) >= self._watched_s:
            self._watched_s = now_s + WATCH_EVERY_S
            if note := self._sampler.watch():
                self._note(f"energy: {note}")
                if self._clocks is not None and self._sampler.pid is not None:
                    self._clocks.leave_out(self._sampler.pid)
        if info is None or info.si_signo == signal.SIGCHLD:
            return
        if info.si_signo in _ENDING:
            self._ending = signal.Signals(info.si_signo)
        if info.si_code <= 0:  # sent by a process; the kernel, for a terminal, tells the whole group itself
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, info.si_signo)

    def _reap_orphans(self, program: int) -> None:
        """Wait for adopted processes that have ended, so that their time is counted and none stays a zombie."""
        for path in Path("/proc/self/task").glob("*/children"):
            for pid in map(int, text(path).split()):
                if pid not in (program, self._sampler.pid):
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)

    def _ended(self, status: str, reason: str, exit_code: int, begun_s: float) -> Followed:
        if self._remark and isinstance(self.metered, SamplerState) and _has_gpus(self.metered):
            self._note(self._remark)
        self._outcome = status, reason
        self._folder.update_segment(exit_code=exit_code, cpu_s=round(self._cpu_ns() / 1e9, 6))
        return Followed(self.run, exit_code, time.monotonic() - begun_s)


def _started(pid: int) -> str:
    """Return when a process was started, in ticks; "" if it has ended. With its number this names it for good."""
    words = text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return words[19] if len(words) > 19 and words[0] not in "ZX" else ""


@contextlib.contextmanager
def _adopted_orphans() -> Iterator[None]:
    """Be the parent of processes whose parent ends; without it, their time is lost from when that happens."""

    def adopt(whether: int) -> None:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, whether, 0, 0, 0)

    adopt(1)
    try:
        yield
    finally:
        adopt(0)


def _devices(pid: int | None) -> tuple[tuple[str, ...] | None, str]:
    """Return the GPUs that a program may see, None for all, and what a reader must know of that.

    Args:
        pid: of a process that runs already; None for one that inherits this process's environment.
    """
    environment = dict(os.environ)
    if pid is not None:
        pairs = text(Path(f"/proc/{pid}/environ")).split("\0")
        environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None, "all GPUs of the machine are metered, whole, whether the program uses them or not"
    return tuple(word.strip() for word in visible.split(",") if word.strip() not in ("", "-1")), ""


def _has_gpus(state: SamplerState) -> bool:
    return any(channel["kind"] == "nvidia" for channel in state.channels)


def _all_gpus(meter: Config) -> Config:
    return meter.model_copy(update={"all": True}) if isinstance(meter, NvidiaConfig) and not meter.devices else meter
