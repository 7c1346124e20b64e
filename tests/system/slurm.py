"""A real Slurm with one node on the loopback, of the Debian packages ``slurm-wlm`` and ``munge``, run as root.

Everything it writes lies in one folder, its ports are free ones, and its three daemons are ended by their own process
ids. Jobs that still run are cancelled first.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
_START_S = 60


def missing() -> str:
    """Return why Slurm cannot be started here, or nothing."""
    absent = [name for name in (*DAEMONS, "sbatch") if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install --no-install-recommends slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Run a cluster of one node with this machine's cores, for as long as the context lasts.

    Args:
        folder: an empty one for configuration, state, logs and sockets.

    Yields:
        The environment with which ``sbatch``, ``squeue`` and ``scancel`` find the cluster.
    """
    munge = _munge_folder(folder)
    config = _write_config(folder, munge / "socket")
    environment = {**os.environ, "SLURM_CONF": str(config)}
    with contextlib.ExitStack() as stack:
        commands: Sequence[Sequence[str]] = (
            ["munged", "--force", "--foreground", *(f"--{name}={munge / file}" for name, file in _MUNGE_FILES.items())],
            ["slurmctld", "-D", "-i"],
            ["slurmd", "-D", "-N", "n1"],
        )
        for command in commands:
            stack.enter_context(_daemon(command, folder / f"{command[0]}.log", environment))
            if command[0] == "munged":
                _wait(munge / "socket")
        _wait_until_idle(environment, folder)
        try:
            yield environment
        finally:
            subprocess.run(["scancel", "--user", "root"], env=environment, check=False, timeout=30)


_MUNGE_FILES = {
    "key-file": "key",
    "socket": "socket",
    "pid-file": "pid",
    "log-file": "log",
    "seed-file": "seed",
}


def _munge_folder(folder: Path) -> Path:
    """Return a folder with a key; all who ask are root, so nobody else has to get in (hence ``--force``)."""
    munge = folder / "munge"
    munge.mkdir()
    key = munge / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    return munge


def _write_config(folder: Path, munge_socket: Path) -> Path:
    """Write ``slurm.conf`` for one node of this machine."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    cores = os.cpu_count() or 1
    ports = _free_ports(2)
    lines = {
        "ClusterName": "test",
        "SlurmctldHost": f"{socket.gethostname()}(127.0.0.1)",
        "SlurmctldPort": ports[0],
        "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={munge_socket}",
        "CredType": "cred/munge",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "MpiDefault": "none",
        "ReturnToService": 2,
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "SchedulerParameters": "batch_sched_delay=0,sched_interval=1",
        "NodeName": f"n1 NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cores} "
        "RealMemory=8000 State=UNKNOWN",
        "PartitionName": "main Nodes=n1 Default=YES MaxTime=INFINITE OverSubscribe=FORCE:4 State=UP",
    }
    path = folder / "slurm.conf"
    path.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    return path


def _free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def _daemon(command: Sequence[str], log: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a program that stays, and end it by its own process id."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(path: Path) -> None:
    """Wait for a file to come.

    Raises:
        TimeoutError: if it does not.
    """
    end = time.monotonic() + _START_S
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path} did not come")
        time.sleep(0.05)


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    """Wait until the node takes jobs.

    Raises:
        TimeoutError: with the daemons' last lines, if it does not.
    """
    end = time.monotonic() + _START_S
    while True:
        asked = subprocess.run(
            ["sinfo", "--noheader", "--format=%t"], env=environment, capture_output=True, text=True, check=False
        )
        if asked.stdout.strip() == "idle":
            return
        if time.monotonic() > end:
            logs = "\n".join((folder / f"{name}.log").read_text()[-1000:] for name in DAEMONS)
            raise TimeoutError(f"Slurm's node is {asked.stdout.strip() or asked.stderr.strip()}:\n{logs}")
        time.sleep(0.1)
