"""`perjoule generate` from the command line."""

import json
import re
from pathlib import Path

import pytest
from tests.system.forks import Forks
from tests.system.tiny import SEQ_LEN, Tiny, run_of

from perjoule.cli import main
from perjoule.core.printable import printable
from perjoule.evaluate.trained import load_trained


@pytest.mark.parametrize("kind", ["transformer", "retnet", "longnet", "ebt"])
def test_every_architecture_writes_and_the_file_holds_what_the_terminal_shows(
    kind: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = run_of(tiny.train(f"model.kind={kind}")), tmp_path / "out.jsonl"
    capsys.readouterr()
    words = ["generate", str(run), "--prompt", "the quick", "max_new_tokens=5", "temperature=0.7", "seed=2"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert main([*words, "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    (record,) = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    assert (record["model"], record["step"], record["settings"]["seed"]) == (kind, 5, 2)
    assert len(record["tokens"]) == 5
    assert load_trained(run).tokenizer.decode(record["tokens"]) == record["text"]
    assert shown.startswith(printable(f"the quick{record['text']}\n[5 tokens in "))


def test_a_real_process_streams_and_ends_where_the_positions_end(tiny: Tiny, tmp_path: Path, forks: Forks) -> None:
    run = run_of(tiny.train())
    ended = forks.start(["generate", str(run), "--prompt", ""], tmp_path / "a").end()
    assert (ended.code, ended.err) == (0, "")
    assert re.search(rf"\n\[{SEQ_LEN} tokens in .*: the model has no position left\]\n$", ended.out)


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        ([], "there is no prompt; accepted: --prompt TEXT", 2),
        (["--prompt", "x", "temprature=1"], "temprature: unknown key: did you mean 'temperature'?", 2),
        (["--prompt", "x", "top_k=4"], "top_k: chooses among draws, and temperature 0 draws nothing", 2),
        (["--prompt", "x", "thinking.steps=4"], "thinking is for models that think (ebt), and Transformer does not", 2),
        (["--prompts", "none.txt"], "cannot read the prompts none.txt: No such file or directory", 6),
        (["--prompt", "x", "checkpoint=77"], "has no checkpoint of step 77; it has: 5", 7),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(
    words: list[str], message: str, code: int, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tiny.train())
    capsys.readouterr()
    assert main(["generate", str(run), *words]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("perjoule: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
