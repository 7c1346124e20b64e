"""Prompts are read from files and the command line, completions go to the terminal or a file."""

import csv
import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.system.tiny import SEQ_LEN, Tiny, run_of

import perjoule
from perjoule.config import resolve
from perjoule.core.errors import CheckpointError, ConfigError, DataError, RunFolderError
from perjoule.evaluate import write as module
from perjoule.evaluate.generate import Completion, Piece, generate
from perjoule.evaluate.trained import load_trained
from perjoule.evaluate.write import COLUMNS, Output, WriteConfig, read_prompts, write
from perjoule.train.run import train


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(Tiny(corpus, tmp_path_factory.mktemp("runs")).train("checkpoint.every_steps=3"))


@pytest.fixture(scope="module")
def brackets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on tokens without text: eight kinds of brackets, 17 tokens."""
    words = ["model=retnet", "model.dim=32", "model.num_layers=1", "data=dyck", "batch.size=2", "stop.steps=2"]
    plain = ["backend=plain", "backend.threads=1", "energy.sampler=off", "evaluate.batches=1"]
    return run_of(train(perjoule.load(None, *words, *plain, f"runs={tmp_path_factory.mktemp('brackets')}")))


def written(
    run: Path, *prompts: str, file: Path | None = None, output: Path | Output | None = None, **settings: Any
) -> str:
    output = Output(output) if isinstance(output, Path) else output
    return "".join(write(run, WriteConfig(**settings), prompts, file, output))


def completed(run: Path, *prompts: str, **settings: Any) -> list[Completion]:
    """Return what the functions below `write` make of prompts."""
    trained, config = load_trained(run), WriteConfig(**settings)
    tokenizer = trained.tokenizer
    tokens = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    return generate(trained.decoder, tokens, config, end_id=tokenizer.bos_id, decode=tokenizer.decode)


def test_a_single_prompt_is_continued_as_it_is_written(run: Path) -> None:
    pieces = list(write(run, WriteConfig(max_new_tokens=6), ["the quick"], None, None))
    (one,) = completed(run, "the quick", max_new_tokens=6)
    assert one.num_prompt == 1 + len(load_trained(run).tokenizer.encode("the quick"))
    assert pieces[0] == "the quick"
    assert "".join(pieces[:-1]) == f"the quick{one.text}"
    assert len(pieces) >= 2 + len(one.tokens)
    assert pieces[-1].startswith(f"\n[{len(one.tokens)} tokens in ")
    assert pieces[-1].endswith(": max_new_tokens]\n")


def test_several_prompts_come_in_blocks_in_their_order(run: Path) -> None:
    prompts = ["the quick brown fox", "", "the"]
    blocks = list(write(run, WriteConfig(max_new_tokens=3, batch_size=1), prompts, None, None))
    for number, (block, one) in enumerate(zip(blocks, completed(run, *prompts, max_new_tokens=3), strict=True)):
        head, text = block.split("\n", 1)
        assert head == f"[{number + 1} of 3]"
        assert text.startswith(f"{prompts[number]}{one.text}\n[3 tokens in ")
        assert text.endswith(": max_new_tokens]\n\n")


def test_end_of_positions_and_stop_are_told(run: Path) -> None:
    assert written(run, "", max_new_tokens=99).endswith(": the model has no position left]\n")
    assert f"[{SEQ_LEN} tokens in " in written(run, "", max_new_tokens=99)
    (one,) = completed(run, "the", max_new_tokens=8)
    text = written(run, "the", max_new_tokens=8, stop=[one.text[2:4]])
    assert text.startswith(f"the{one.text[: one.text.index(one.text[2:4])]}\n[")
    assert text.endswith(": a stop text came]\n")


def test_end_of_the_document_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end_at_once(*_: Any, end_id: int, **__: Any) -> Iterator[Piece | Completion]:
        assert end_id == load_trained(run).tokenizer.bos_id
        yield Completion(0, (), "", "end", 2, 0.5)

    monkeypatch.setattr(module, "stream", end_at_once)
    assert written(run, "x") == "x\n[0 tokens in 500 ms: the document ended]\n"


def test_jsonl_has_texts_tokens_and_what_wrote_them(run: Path, tmp_path: Path) -> None:
    path, prompts = tmp_path / "out.jsonl", ["the quick", "fox, “jumps”\nover", ""]
    settings: dict[str, Any] = {"max_new_tokens": 4, "temperature": 1.0, "seed": 3}
    assert written(run, *prompts, output=path, **settings) == f"{path}\n"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for prompt, record, one in zip(prompts, records, completed(run, *prompts, **settings), strict=True):
        assert sorted(record) == sorted([*COLUMNS, "tokens"])
        assert (record["prompt"], record["text"], record["tokens"]) == (prompt, one.text, list(one.tokens))
        assert (record["finish"], record["prompt_tokens"]) == (one.finish, one.num_prompt)
        assert record["new_tokens"] == len(one.tokens)
        assert (record["run"], record["step"], record["model"]) == (str(run), 5, "transformer")
        assert record["seconds"] > 0
        assert WriteConfig(**record["settings"]) == WriteConfig(**settings)


def test_csv_has_the_same_as_jsonl_and_both_can_be_read_as_prompts(run: Path, tmp_path: Path) -> None:
    prompts = ["the quick", 'fox, "jumps"\nover', ""]
    for name in ("out.csv", "out.jsonl"):
        written(run, *prompts, output=tmp_path / name, max_new_tokens=2)
        assert read_prompts(tmp_path / name) == prompts
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    for row, record in zip(rows, records, strict=True):
        assert tuple(row) == COLUMNS
        assert row["log_probs"] == ""
        for column in set(COLUMNS) - {"seconds", "settings", "written", "log_probs"}:
            assert row[column] == str(record[column])
        assert json.loads(row["settings"]) == record["settings"]


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_a_file_that_is_there_is_kept_unless_one_says_what_to_do(run: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    written(run, "the", output=path, max_new_tokens=1)
    first = path.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{name} exists already; accepted: --append, --overwrite or another file"):
        written(run, "fox", output=path)
    written(run, "fox", output=Output(path, append=True), max_new_tokens=1)
    assert path.read_text(encoding="utf-8").startswith(first)
    assert read_prompts(path) == ["the", "fox"]
    if name == "out.csv":
        with path.open(encoding="utf-8", newline="") as file:
            moments = [datetime.fromisoformat(row["written"]) for row in csv.DictReader(file)]
        assert all(moment.tzinfo is not None for moment in moments)
    written(run, "dogs", output=Output(path, overwrite=True), max_new_tokens=1)
    assert read_prompts(path) == ["dogs"]
    for output in (Output(path), Output(path, append=True), Output(path, overwrite=True)):
        with pytest.raises(ConfigError, match="the prompts come from there"):
            written(run, file=path, output=output)
    (tmp_path / "other.csv").write_text("prompt,text\nthe,x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"cannot append to .*other\.csv: its columns are not written, prompt, text"):
        written(run, "the", output=Output(tmp_path / "other.csv", append=True))


def test_log_probabilities_are_those_of_the_model_and_echo_adds_the_prompts(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    settings: dict[str, Any] = {"max_new_tokens": 4, "temperature": 0.7, "top_k": 5, "log_probs": True}
    said = written(run, "the quick", **settings)
    written(run, "the quick", "fox", output=path, echo=True, **settings)
    record = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    trained = load_trained(run)
    tokens = torch.tensor([record["tokens"]])
    logits = trained.model({"input_ids": tokens, "labels": tokens}, with_logits=True).logits[0, :-1]
    expected = logits.log_softmax(-1).gather(1, tokens[0, 1:, None]).squeeze(1).tolist()
    assert record["text"].startswith("the quick")
    assert record["log_probs"][0] is None
    assert record["log_probs"][1:] == pytest.approx(expected, abs=1e-4)
    total = sum(record["log_probs"][-4:])
    shown = re.search(r"log-probability (-[\d.]+), (-[\d.]+) per token\]", said)
    assert shown is not None
    assert (float(shown[1]), float(shown[2])) == pytest.approx((total, total / 4), abs=1e-3)


def test_prompts_come_from_the_command_line_first_and_then_from_a_file(run: Path, tmp_path: Path) -> None:
    file, output = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    file.write_text("lazy dogs\n\nseven", encoding="utf-8")
    written(run, "the", file=file, output=output, max_new_tokens=1)
    assert read_prompts(output) == ["the", "lazy dogs", "", "seven"]


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.txt", "one\r\ntwo \n", ["one", "two "]),
        ("a.jsonl", '{"prompt": "one", "more": 1}\n\n{"prompt": ""}\n', ["one", ""]),
        ("a.csv", '\ufeffid,prompt\n1,one\n2,"t,w\no"\n3,\n', ["one", "t,w\no", ""]),
        ("a.csv", "id,prompt\r\n1,a \u2028line\r\n", ["a \u2028line"]),
    ],
)
def test_files_of_prompts(tmp_path: Path, name: str, content: str, prompts: list[str]) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read_prompts(tmp_path / name) == prompts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt holds no prompt"),
        ("a.txt", b"\xff", r"cannot read the prompts .*a.txt: byte 0 \(line 1\) is 0xff"),
        ("a.txt", None, "cannot read the prompts .*a.txt: No such file or directory"),
        ("a.jsonl", b'{"prompt": "x"}\n["x"]', "a.jsonl: line 2 is not an object with a text in the field 'prompt'"),
        ("a.jsonl", b'{"prompt": 5}', "a.jsonl: line 1 is not an object"),
        ("a.jsonl", b"{", "a.jsonl: Expecting property name"),
        ("a.csv", b"text,id\nx,1\n", "a.csv: no column 'prompt': .*id, text"),
        ("a.csv", b"", "a.csv: no column 'prompt': it is empty"),
        ("a.csv", b"id,prompt\n1,one\n2\n", "a.csv: line 3: 1 cells, and 2 columns"),
        ("a.csv", b'id,prompt\n1,"one\n2,two\n', "a.csv: line 3: unexpected end of data; the row begins in line 2"),
        ("a.csv", b'id,prompt\n1,"one\n2,two\n3,"three"\n', "a.csv: line 4: .*the row begins in line 2"),
        ("a.csv", b'id,prompt\n"1\n2",two,\n', "a.csv: line 3: 3 cells, and 2 columns, with a quote .* since line 2"),
        ("a.csv", b"prompt\n" + b"x" * 200_000, "a.csv: line 2: field larger than field limit"),
    ],
)
def test_file_without_prompts_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / name)


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    message = r"^cannot tell what .*a\.xml holds; accepted: \.txt with a prompt per line, or \.jsonl or \.csv with a "
    with pytest.raises(ConfigError, match=message + "field or column 'prompt'$"):
        read_prompts(tmp_path / "a.xml")


def test_mistakes_are_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    nowhere = tmp_path / "no-run"
    message = "^there is no prompt; accepted: --prompt TEXT, once or more, '' to begin a document, or --prompts FILE$"
    with pytest.raises(ConfigError, match=message):
        written(nowhere)
    with pytest.raises(ConfigError, match=r"^prompt 2 of 2 is not UTF-8: surrogates not allowed$"):
        written(nowhere, "a", "\udcff")
    with pytest.raises(ConfigError, match=r"^cannot write completions to .*x\.txt; accepted: a file \.jsonl or \.csv$"):
        written(nowhere, "a", output=tmp_path / "x.txt")
    with pytest.raises(ConfigError, match=r"^cannot write completions to .*x\.csv: there is no folder .*none$"):
        written(nowhere, "a", output=tmp_path / "none" / "x.csv")
    with pytest.raises(RunFolderError, match=r"^no run folder"):
        written(nowhere, "a")


def test_model_without_text_reads_and_writes_token_ids(brackets: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    written(brackets, "0 1 2", output=output, max_new_tokens=3)
    record = json.loads(output.read_text(encoding="utf-8"))
    assert record["prompt_tokens"] == 3
    assert record["text"].split() == [str(token) for token in record["tokens"]]
    assert written(brackets, "0 1 2", max_new_tokens=3).startswith(f"0 1 2{record['text']}\n[3 tokens in ")
    assert record["text"].startswith(" ")


@pytest.mark.parametrize(
    ("prompt", "found"), [("0 17", "'17' in it"), ("the", "'the' in it"), ("-1", "'-1' in it"), (" ", "no token")]
)
def test_prompt_that_is_no_token_ids_is_refused(brackets: Path, prompt: str, found: str) -> None:
    message = (
        f"^prompt 2 of 2 has {found}, and this model was not trained on text; accepted: token ids from 0 to 16 with "
        "spaces between them$"
    )
    with pytest.raises(ConfigError, match=message):
        written(brackets, "0", prompt)


def test_prompt_too_long_for_the_model_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"^prompt 1 of 1 has \d+ tokens, .* has positions for 16; accepted: 1 to 16"):
        written(run, "over lazy dogs " * 20)


def test_a_checkpoint_and_a_device_may_be_chosen(run: Path) -> None:
    assert "\n[1 token in " in written(run, "the", max_new_tokens=1, checkpoint=3)
    with pytest.raises(CheckpointError, match="has no checkpoint of step 4; it has: 3, 5"):
        written(run, "the", checkpoint=4)
    with pytest.raises(ConfigError, match=r"^device cuda:77 does not exist here"):
        written(run, "the", device="cuda:77")
    assert resolve.load(WriteConfig, None, ["checkpoint=best"]).config.checkpoint == "best"
    with pytest.raises(ConfigError, match=r"^checkpoint: must be last or best or a number"):
        resolve.load(WriteConfig, None, ["checkpoint=newest"])


def test_special_tokens_in_a_prompt_are_text(run: Path) -> None:
    (one,) = completed(run, "<|bos|>", max_new_tokens=1)
    assert one.num_prompt > 2
