"""Killed at chosen operations on files and in the middle of a pool's work, a store ends up with the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.system.tiny import WORDS

from perjoule.data.tokenizer import TokenizerConfig

SCRIPT = """
import os, shutil, signal, sys
from pathlib import Path
from perjoule.config import resolve
from perjoule.data import tokenize_unit
from perjoule.data.tokenize import TokenizeConfig, tokenize_files

left = int(sys.argv[1])

def deadly(function):
    def call(*arguments, **settings):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **settings)
    return call

if left:
    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir"), (shutil, "rmtree")):
        setattr(owner, name, deadly(getattr(owner, name)))
tokenize_unit._SMALLEST_UNIT_BYTES = 1
config = resolve.load(TokenizeConfig, None, sys.argv[4:]).config
print(tokenize_files(Path(sys.argv[2]), Path(sys.argv[3]), config, lambda line: None).state, left)
"""
NUM_UNITS = 16
KILLS = (1, 2, 4, 9, 12, 17, 30)
"""The operation before which each of the runs is killed; each run begins where the one before it was killed."""
POOL_KILLS = 3


def start(folder: Path, kill_at: int, out: str, *overrides: str) -> subprocess.Popen[str]:
    arguments = [str(kill_at), str(folder / "rows"), str(folder / out), f"tokenizer={folder / 'tokenizer.json'}"]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments, *overrides], stdout=subprocess.PIPE, text=True, env=os.environ
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def finish(folder: Path, out: str, kill_at: int = 0) -> tuple[str, int]:
    """Let a run end by itself; return the state of its store, and the operations that were left until its death."""
    output, _ = start(folder, kill_at, out, "workers=0").communicate(timeout=60)
    state, left = output.split()
    return state, int(left)


def kill(folder: Path, out: str, kill_at: int) -> None:
    """Let a run be killed before one of its operations."""
    process = start(folder, kill_at, out, "workers=0")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, "a run that was not killed proves nothing"


def write_rows(folder: Path, num_documents: int) -> None:
    generator = random.Random(0)
    (folder / "rows").mkdir()
    for number in range(NUM_UNITS):
        rows = ({"text": " ".join(generator.choices(WORDS, k=200))} for _ in range(num_documents))
        (folder / "rows" / f"{number}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer = TokenizerConfig(vocab_size=300).build([" ".join(WORDS)])
    (folder / "tokenizer.json").write_text(tokenizer.inner.to_str(), encoding="utf-8")


def test_store_of_a_run_that_was_killed_ten_times_has_the_same_bytes(tmp_path: Path) -> None:
    write_rows(tmp_path, num_documents=300)
    assert finish(tmp_path, "whole")[0] == "built"
    finished = -1
    for kill_at in KILLS:
        kill(tmp_path, "killed", kill_at)
        lines = len(list((tmp_path / "killed" / ".unfinished").glob("[0-9]*.json")))
        assert lines >= finished, "what was finished stays finished"
        finished = lines
    assert 0 < finished < NUM_UNITS
    for _ in range(POOL_KILLS):
        process = start(tmp_path, 0, "killed", "workers=2")
        while not list((tmp_path / "killed" / ".unfinished").glob("*.bin.*")) and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    assert finish(tmp_path, "killed")[0] in {"continued", "reused"}
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_run_that_is_killed_at_the_very_end_is_finished_by_the_next(tmp_path: Path) -> None:
    write_rows(tmp_path, num_documents=3)
    enough = 1_000_000
    num_operations = enough - finish(tmp_path, "whole", kill_at=enough)[1]
    states = []
    for before_the_end in range(3):  # before the manifest is flushed, gets its name, and .unfinished goes
        out = f"killed-{before_the_end}"
        kill(tmp_path, out, num_operations - before_the_end)
        states.append(finish(tmp_path, out)[0])
        assert files(tmp_path / out) == files(tmp_path / "whole")
    assert states == ["reused", "continued", "continued"]
