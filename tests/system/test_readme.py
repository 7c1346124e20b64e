"""Every block of the README is run, and `.ci/run` runs the README's test command."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
SHELL = [line for language, body in BLOCKS if language == "sh" for line in body.splitlines()]
ENERGY = re.findall(
    r"^```(\w+)\n(.*?)^```", (ROOT / "docs" / "energy.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
HUGGINGFACE = re.findall(
    r"^```(\w+)\n(.*?)^```", (ROOT / "docs" / "huggingface.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
DATA = re.findall(
    r"^```sh\n(.*?)^```", (ROOT / "docs" / "data.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
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


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what the commands need, so that runs do not land in the real checkout."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "books").mkdir()
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for number in range(100):
        (tmp_path / "books" / f"{number}.txt").write_text(text[100 * number :][:4000] or text, encoding="utf-8")
    return tmp_path


def test_readme_has_only_blocks_that_are_run_here() -> None:
    assert [language for language, _ in BLOCKS] == ["sh", "sh", "sh", "python"]
    assert SHELL[:2] == ["make demo", "make check"]
    assert all(line.startswith("perjoule ") for line in SHELL[2:])


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


def test_commands_of_the_readme_work(checkout: Path, cache: Path) -> None:
    outputs = [
        run([*line.split(), *(SHORT if " train " in line else [])], checkout, cache)
        for line in SHELL
        if line.startswith("perjoule ")
    ]
    assert "matmul" in outputs[0]
    assert "finished: reached 3 steps" in outputs[1]
    assert "finished" in outputs[2]


def test_commands_of_the_energy_page_work_and_its_python_prints_a_ledger(checkout: Path, cache: Path) -> None:
    for language, body in ENERGY:
        if language == "sh":
            for line in body.splitlines():
                words = shlex.split(line)
                output = run([*words, *(SHORT if "train" in words else [])], checkout, cache)
                assert "finished: reached 3 steps" in output or "synchronised energy" in output
    (code,) = (body for language, body in ENERGY if language == "python")
    printed = run([sys.executable, "-c", code], checkout, cache).splitlines()
    assert {line.split()[1] for line in printed} >= {"forward", "backward", "outside"}
    assert all(line.endswith("J modelled") for line in printed)
    assert "calibrate" in run(["perjoule", "report", "runs/calibrated"], checkout, cache)
    assert "energy" in run(["perjoule", "report", "runs/mine"], checkout, cache).lower()


def test_python_of_the_readme_works(checkout: Path, cache: Path) -> None:
    code = BLOCKS[-1][1].replace('"stop.steps=20"', ", ".join(repr(word) for word in SHORT))
    output = run([sys.executable, "-c", code], checkout, cache)
    path, loss = output.splitlines()[-1].split()
    assert (checkout / path / "manifest.json").is_file()
    assert 0 < float(loss) < 10


def test_commands_and_python_of_the_hugging_face_page_work(checkout: Path, cache: Path) -> None:
    printed = []
    for language, body in HUGGINGFACE:
        if language == "python":
            printed.append(run([sys.executable, "-c", body], checkout, cache))
            continue
        for line in body.splitlines():
            words = shlex.split(line)
            printed.append(run([*words, *(SHORT if "train" in words else [])], checkout, cache))
    assert "finished: reached 3 steps" in printed[0]
    assert "exported/model.safetensors" in printed[1].splitlines()
    assert printed[2][2:].startswith("The energy of")  # behind a bracket and a quotation mark of either kind
    assert printed[3].split()[0] == "64"


def test_five_steps_of_the_data_page_end_in_a_trained_model(checkout: Path, cache: Path) -> None:
    (block,) = DATA
    printed = []
    for line in block.splitlines():
        words = shlex.split(line)
        printed.append(run([*words, *(SHORT if words[1] == "train" else [])], checkout, cache))
    assert [words.split()[2] for words in block.splitlines()[:5]] == [
        "download",
        "split",
        "tokenizer",
        "tokenize",
        "inspect",
    ]
    assert "train: " in printed[3]
    assert "padded" in printed[4]
    assert "finished: reached 3 steps" in printed[5]
