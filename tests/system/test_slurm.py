"""Slurm jobs do what processes of this machine do, on a real Slurm."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system import slurm

from perjoule.data.tokenizer import TokenizerConfig


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if reason := slurm.missing():
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    with slurm.running(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def tokenize(folder: Path, out: str, environment: dict[str, str], *overrides: str) -> dict[str, bytes]:
    """Tokenize the documents; return the store's files."""
    words = [str(folder / "rows"), str(folder / out), f"tokenizer={folder / 'tokenizer.json'}", *overrides]
    command = [sys.executable, "-m", "perjoule", "data", "tokenize", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in (folder / out).iterdir()}


def test_slurm_jobs_write_the_bytes_of_a_process_pool(cluster: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    for file in range(4):
        texts = [f"{file} {number} " + "jobs of a queue, words of a text; " * (number % 7) for number in range(50)]
        (tmp_path / "rows" / f"{file}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = TokenizerConfig(vocab_size=300).build(["words of a text; jobs of a queue"])
    (tmp_path / "tokenizer.json").write_text(tokenizer.inner.to_str(), encoding="utf-8")

    options = {
        "cores": 1,
        "memory": "1GB",
        "interface": "lo",
        "walltime": "00:05:00",
        "scheduler_options": {"dashboard_address": ":0"},
        "log_directory": str(tmp_path / "logs"),
    }
    jobs = ["engine=dask", "scheduler=slurm", "workers=2", f"cluster={json.dumps(options)}"]
    assert tokenize(tmp_path, "jobs", cluster, *jobs) == tokenize(tmp_path, "pool", dict(os.environ), "workers=2")
    assert len(list((tmp_path / "logs").glob("*.err"))) == 2, "each job has a log"
