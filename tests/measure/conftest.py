"""Starts programs, and sees to their end."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.measure.programs import Start


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Python programs that end with the test at the latest."""
    started: list[subprocess.Popen[bytes]] = []

    def start_(program: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-S", "-c", program]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return started[-1]

    yield start_
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
