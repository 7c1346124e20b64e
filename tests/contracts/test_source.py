"""The budgets of docs and style, counted in the source; and what may import what."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import perjoule

SOURCE = Path(perjoule.__file__).parent
ROOT = SOURCE.parents[1]
FILES = sorted(SOURCE.rglob("*.py"))
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
WITHOUT_TORCH = (
    "perjoule",
    "perjoule.cli",
    "perjoule.core",
    "perjoule.config",
    "perjoule.runs",
    "perjoule.measure",
    "perjoule.report",
    "perjoule.models",
    "perjoule.data",
)


def _functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function of the source with its place."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}", node


def _run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)


def _modules(*folders: str) -> list[str]:
    """Return the names of all modules in folders of the package; all of the package without any."""
    paths = [path for path in FILES if not folders or path.relative_to(SOURCE).parts[0] in folders]
    names = [".".join(("perjoule", *path.relative_to(SOURCE).with_suffix("").parts)) for path in paths]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def test_files_have_at_most_400_lines() -> None:
    assert FILES
    lengths = {str(path.relative_to(SOURCE)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_functions_have_at_most_60_lines() -> None:
    lengths = {place: (node.end_lineno or 0) - node.lineno + 1 for place, node in _functions()}
    assert {place: length for place, length in lengths.items() if length > 60} == {}


def test_constructors_have_at_most_12_parameters() -> None:
    counts = {
        place: len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) - 1
        for place, node in _functions()
        if node.name in {"__init__", "__new__"}
    }
    assert counts
    assert {place: count for place, count in counts.items() if count > 12} == {}


def test_nothing_is_named_by_what_everything_is() -> None:
    names = {part for path in FILES for part in path.relative_to(SOURCE).with_suffix("").parts}
    assert names & FORBIDDEN_NAMES == set()


def test_import_contracts_are_kept() -> None:
    lint = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert lint.returncode == 0, lint.stdout + lint.stderr


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_import_leaves_torch_alone(module: str) -> None:
    done = _run(f"import sys, {module}; print('torch' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_no_module_of_the_rooms_without_torch_imports_it() -> None:
    rooms = ("cli", "core", "config", "runs", "measure", "report")
    done = _run(f"import sys, {', '.join(_modules(*rooms))}\nprint('torch' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["ls"], ["ls", "models"], ["ls", "data"], ["report", "--help"]])
def test_command_that_trains_nothing_leaves_torch_alone(arguments: list[str]) -> None:
    script = f"""
import sys
from perjoule.cli import main
try:
    code = main({arguments!r})
except SystemExit as end:
    code = end.code
print(code, 'torch' in sys.modules)
"""
    done = _run(script)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


def test_importing_everything_says_nothing_and_starts_nothing() -> None:
    script = f"import threading, {', '.join(_modules())}\nassert threading.active_count() == 1"
    done = _run(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
