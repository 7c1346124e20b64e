"""Real processes without the seconds that importing torch takes: a server imports it once and forks for each command.

A forked process is one like any other to the kernel: it can be killed, has its own signal handlers, limits and exit
status. The server itself never computes, so that no thread of it can be lost in a fork.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Ended:
    """How a process ended: ``code`` is minus the signal's number if one killed it."""

    code: int
    out: str
    err: str


class Process:
    """A ``perjoule`` command that is under way."""

    def __init__(self, ask: Callable[..., Any], pid: int, folder: Path) -> None:
        self._ask, self.pid, self._folder = ask, pid, folder
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self._code is None:
            self._code = self._ask(poll=self.pid)
        return self._code

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait_for(self, ready: Callable[[], bool], timeout_s: float = 60) -> None:
        """Wait until something has happened; an end of the process is an error."""
        limit = time.monotonic() + timeout_s
        while not ready():
            assert self.poll() is None, f"ended with {self._code} before: {self._read('err')}"
            assert time.monotonic() < limit, "it did not happen in time"
            time.sleep(0.005)

    def end(self, timeout_s: float = 60) -> Ended:
        """Wait for the end; a process that does not end is killed, which fails the test."""
        limit = time.monotonic() + timeout_s
        while self.poll() is None:
            if time.monotonic() > limit:
                self.send(signal.SIGKILL)
            time.sleep(0.005)
        assert self._code is not None
        return Ended(self._code, self._read("out"), self._read("err"))

    def _read(self, name: str) -> str:
        return (self._folder / name).read_text(encoding="utf-8", errors="backslashreplace")


class Forks:
    """Starts commands. Use as ``with Forks() as forks: forks.start(["ls", "models"], tmp_path).end()``."""

    def __enter__(self) -> "Forks":
        command = [sys.executable, str(Path(__file__))]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._server:
            assert self._server.stdin is not None
            self._server.stdin.close()

    def start(
        self,
        arguments: Sequence[str],
        folder: Path,
        largest_file_bytes: int | None = None,
        *,
        environment: Mapping[str, str | None] | None = None,
        working_folder: Path | None = None,
    ) -> Process:
        """Start ``perjoule`` with arguments.

        Args:
            arguments: of the command line.
            folder: takes what it prints, in ``out`` and ``err``.
            largest_file_bytes: writing beyond fails as on a full disk.
            environment: variables to set, or to remove (None).
            working_folder: None: that of the tests.
        """
        folder.mkdir(parents=True, exist_ok=True)
        pid = self._ask(
            arguments=list(arguments),
            folder=str(folder),
            largest_file_bytes=largest_file_bytes,
            environment=dict(environment or {}),
            working_folder=None if working_folder is None else str(working_folder),
        )
        return Process(self._ask, int(pid), folder)

    def _ask(self, **question: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def _serve() -> None:
    """Answer questions until there are no more: start a command and return its pid, or tell how one ended."""
    import perjoule.data.sets.text
    import perjoule.export
    import perjoule.models.transformer
    import perjoule.train.run  # noqa: F401

    started = set()
    for line in sys.stdin:
        question = json.loads(line)
        if "poll" in question:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            started.discard(pid)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork() or _become(**question)
            started.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _become(
    arguments: list[str],
    folder: str,
    largest_file_bytes: int | None,
    environment: dict[str, str | None],
    working_folder: str | None,
) -> int:
    """Be the command, in the forked process."""
    from perjoule.cli import main

    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if working_folder is not None:
        os.chdir(working_folder)

    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if largest_file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, largest_file_bytes))
    code = 1
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
