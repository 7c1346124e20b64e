"""Seven hundred bad inputs: no traceback, no abort, no hang, one line and a documented exit code."""

import hashlib
import shutil
import time
from pathlib import Path

import pytest
from tests.system.bad_inputs import Case, cases
from tests.system.forks import Forks
from tests.system.tiny import Tiny, run_of, write_corpus

from perjoule.cli import INTERNAL_ERROR

CASES = cases()
DOCUMENTED = {1, 2, 3, 4, 5, 6, 7, 8, 9}
LIMIT_S = 10.0
GROUP = 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    return run_of(Tiny(write_corpus(folder / "corpus"), folder / "runs").train("name=run"))


def _contents(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path.relative_to(folder)).encode("utf-8", "surrogateescape"))
        if path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


def _fault(case: Case, forks: Forks, here: Path, corpus: Path, trained: Path) -> str | None:
    """Run a case and return what is wrong with how it ended."""
    run = here / "copies" / "run"
    if any("@RUN" in word for word in case.arguments) or case.name.split(" ")[0] in {"report", "ls"}:
        shutil.copytree(trained, run)
    here.mkdir(parents=True, exist_ok=True)
    own = here / "corpus"
    shutil.copytree(corpus, own)
    if case.prepare is not None:
        case.prepare(here)
    words = [
        word.replace("@CORPUS", str(own)).replace("@RUN", str(run)).replace("@HERE", str(here))
        for word in case.arguments
    ]
    before = _contents(own)
    begin = time.monotonic()
    process = forks.start(words, here / "printed", environment=case.environment, working_folder=here)
    ended = process.end(timeout_s=3 * LIMIT_S)
    took_s = time.monotonic() - begin
    if "Traceback (most recent call last)" in ended.err or "Traceback (most recent call last)" in ended.out:
        return f"traceback: {ended.err[-1500:]}"
    if ended.code < 0:
        return f"ended by signal {-ended.code}: {ended.err[-500:]}"
    if ended.code == INTERNAL_ERROR:
        return f"not foreseen: {ended.err[-500:]}"
    if took_s > LIMIT_S:
        return f"took {took_s:.0f} s"
    if "\x1b" in ended.out + ended.err:
        return f"an escape sequence reached the output: {(ended.out + ended.err)[-300:]!r}"
    if _contents(own) != before:
        return "changed its input"
    if case.refused and ended.code not in DOCUMENTED:
        return f"exit code {ended.code}, not refused: {(ended.out + ended.err)[-300:]}"
    lines = [line for line in ended.err.splitlines() if line.startswith(("perjoule: ", "usage: ", "perjoule "))]
    if ended.code in DOCUMENTED and not lines:
        return f"exit code {ended.code} without a line: {ended.err[-300:]}"
    if len(ended.err) > 8000:
        return f"{len(ended.err)} characters of errors: {ended.err[:300]}"
    return None


def test_there_are_at_least_six_hundred() -> None:
    assert sum(map(len, CASES.values())) >= 600


@pytest.mark.parametrize(
    ("kind", "start"), [(kind, start) for kind, found in CASES.items() for start in range(0, len(found), GROUP)]
)
def test_bad_input_ends_in_one_line(
    kind: str, start: int, forks: Forks, corpus: Path, trained: Path, tmp_path: Path
) -> None:
    faults = {}
    for number, case in enumerate(CASES[kind][start : start + GROUP]):
        if fault := _fault(case, forks, tmp_path / str(number), corpus, trained):
            faults[f"{case.name}: {' '.join(case.arguments)[:150]}"] = fault
    assert not faults, "\n\n".join(f"{name}\n    {fault}" for name, fault in faults.items())
