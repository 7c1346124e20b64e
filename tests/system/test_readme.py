"""`make demo` does what the README says, and `.ci/run` runs the README's test command; its blocks: test_pages.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = ["stop.steps=3", "evaluate.every_steps=2", "evaluate.batches=1", "model.dim=32", "backend=plain"]


def run(command: list[str], folder: Path, cache: Path) -> str:
    environment = {**os.environ, "PERJOULE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_make_demo_trains_the_default_recipe_and_writes_a_report(tmp_path: Path, cache: Path) -> None:
    if not (ROOT / ".venv" / "base").exists():
        pytest.skip("make's own environment .venv is not there; CI always has it")
    output = run(["make", "demo", f"RUNS={tmp_path}", f"ARGUMENTS={' '.join(SHORT)}"], ROOT, cache)
    assert "finished: reached 3 steps" in output
    (page,) = tmp_path.glob("demo-*/report.html")
    assert str(page) in output.replace("\n", "")
    assert "<svg" in page.read_text(encoding="utf-8")


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make check" in script.splitlines()
    assert "export CI=true" in script.splitlines()
