"""Processes that are forked from one that has imported torch."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.forks import Forks


@pytest.fixture(scope="package")
def forks(own_cache: Path) -> Iterator[Forks]:
    with Forks() as server:
        yield server
