"""Every block of every page works, word for word and in order, in a folder with nothing but the recipes in it.

What a page needs, it makes or says where to get. Languages of blocks:

    sh, console    commands (after ``$`` in a console), which end with exit code 0
    python         runs, unless the line before the block ends in `a/path.py`: then it is that file
    yaml, json     the file whose `path` ends the line before the block
    text, toml     to be read

``recipes/default.yaml`` is a small recipe of the same shape here, and the standard library a few of its files, so that
the pages' own words can be run in time.
"""

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from perjoule.cli import main

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")))
TESTED_ELSEWHERE = {
    "docs/add_a_data_set.md": "tests/data/test_add_a_data_set.py",
    "docs/add_a_meter.md": "tests/system/test_project.py",
    "docs/add_a_model.md": "tests/models/test_add_a_model.py",
}
"""Pages whose blocks are parts of one program, and the test that puts them together."""
COMMANDS, FILES, READ = ("sh", "console"), ("yaml", "json", "jsonl", "csv"), ("text", "toml")
SMALL = """# The default, smaller.
model: {kind: transformer, dim: 32, num_layers: 2}
data: {kind: stdlib, seq_len: 256, tokenizer: {vocab_size: 500}}
batch: {size: 4}
stop: {steps: 4}
evaluate: {every_steps: 2, batches: 1}
checkpoint: {every_steps: 2}
backend: plain
"""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: its file.
        line: of the fence.
        language: behind the fence.
        body: between the fences.
        before: the last line of text before it.
    """

    page: str
    line: int
    language: str
    body: str
    before: str

    @property
    def path(self) -> str | None:
        """Return the name that the text before gives to it."""
        named = re.search(r"`([\w./-]+\.\w+)`[^`]*:$", self.before)
        return named[1] if named else None

    def commands(self) -> Iterator[str]:
        """Yield the commands, each on one line."""
        lines = re.sub(r"\\\n\s*", "", self.body).splitlines()
        for line in lines:
            if self.language == "sh" and line.strip():
                yield line
            elif line.startswith("$ "):
                yield line.removeprefix("$ ")


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(.*)\n((?:.*\n)*?)^```$", text, re.MULTILINE):
        above = text[: match.start()]
        found.append(Block(page, above.count("\n") + 1, match[1], match[2], above.rstrip().rpartition("\n")[2]))
    return found


def run_command(command: str) -> None:
    """Run a command of a page: ours in this process, with the page's words; all others by the shell."""
    words = shlex.split(command, comments=True)
    if words[0] == "make":  # the targets themselves: test_readme.py, and the study by its figures
        command = f"make --dry-run -C {ROOT} {' '.join(words[1:])}"
    elif words[0] == "perjoule" and not set(words) & {"|", ">", "&", "&&"}:
        try:
            code = main(words[1:])
        except SystemExit as refused:  # by argparse
            code = int(refused.code or 0)
        assert code == 0, command
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("PATH", str(Path(sys.executable).parent), prepend=":")
        done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def follow(block: Block) -> None:
    """Do what a reader does with a block."""
    if block.path is not None and block.language not in COMMANDS:
        Path(block.path).parent.mkdir(parents=True, exist_ok=True)
        Path(block.path).write_text(block.body, encoding="utf-8")
    elif block.language == "python":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(block.body, f"{block.page}:{block.line}", "exec"), {"__name__": "__main__"})
    else:
        for command in block.commands():
            run_command(command)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A standard library of 60 modules."""
    folder = tmp_path_factory.mktemp("library")
    files = sorted(
        path for path in Path(sysconfig.get_path("stdlib")).glob("*.py") if 2000 < path.stat().st_size < 15000
    )
    for path in files[:60]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone, as far as its readers need it, and what README asks them to bring: a folder of their own text."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "recipes" / "default.yaml").write_text(SMALL, encoding="utf-8")
    (tmp_path / "books").mkdir()
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for number in range(100):
        (tmp_path / "books" / f"{number}.txt").write_text(text[100 * number :][:4000] or text, encoding="utf-8")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(library))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if page not in TESTED_ELSEWHERE and blocks(page)])
def test_page_can_be_followed_word_for_word(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(page):
        try:
            follow(block)
        except BaseException as error:
            said = capsys.readouterr()
            pytest.fail(f"{page}:{block.line}: {error}\n{said.out[-2000:]}\n{said.err[-2000:]}")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_blocks_say_what_they_are(page: str) -> None:
    for block in blocks(page):
        place = f"{page}:{block.line}"
        assert block.language in (*COMMANDS, *FILES, *READ, "python"), place
        assert block.language not in FILES or block.path is not None, f"{place} is a file without a name"
        assert block.language != "console" or list(block.commands()), f"{place} has no command"
        if block.language in READ:
            assert not re.search(r"^(\$ |perjoule |make |pip |python )", block.body, re.MULTILINE), place


def test_pages_whose_blocks_are_put_together_elsewhere_are_named_there() -> None:
    for page, test in TESTED_ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")


def test_small_recipe_has_the_sections_of_the_default() -> None:
    from perjoule.config import yaml

    default = yaml.load((ROOT / "recipes" / "default.yaml").read_text(encoding="utf-8"), "default.yaml").data
    small = yaml.load(SMALL, "small").data
    assert set(default) - set(small) <= {"optimizer", "schedule"}
    assert all(default[name]["kind"] == small[name]["kind"] for name in ("data",))
