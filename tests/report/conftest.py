"""Runs that the tests of the report share. They are read only."""

from pathlib import Path

import pytest
from tests.runs.synthetic import finished_run, interrupted_and_resumed_run

from perjoule.runs.tables import Run, load_run


@pytest.fixture
def finished(tmp_path: Path) -> Run:
    return load_run(finished_run(tmp_path / "finished"))


@pytest.fixture
def resumed(tmp_path: Path) -> Run:
    return load_run(interrupted_and_resumed_run(tmp_path / "resumed"))
