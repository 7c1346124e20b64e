"""A tokenizer is trained on training documents only, the same ones every time, and says how well it does."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.data.conftest import WORDS

from perjoule.core.errors import DataError
from perjoule.data import train_tokenizer as module
from perjoule.data.split import SPLITS, Fractions
from perjoule.data.tokenizer import TextTokenizer, TokenizerConfig
from perjoule.data.train_tokenizer import TrainedTokenizer, TrainTokenizerConfig, train_tokenizer

ROWS = [
    " ".join(WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(30)) + f" {number}"
    for number in range(200)
]


def write_rows(path: Path, rows: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def train(source: Path, file: Path, **settings: Any) -> TrainedTokenizer:
    return train_tokenizer(source, file, TrainTokenizerConfig(**{"vocab_size": 320, **settings}), lambda line: None)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


def test_bpe_is_the_tokenizer_that_training_on_the_fly_makes(rows: Path, tmp_path: Path) -> None:
    trained = train(rows, tmp_path / "t" / "tokenizer.json", post_processing="none")
    fractions = Fractions()
    on_the_fly = TokenizerConfig(vocab_size=320).build(row for row in ROWS if fractions.split_of(row) == "train")
    assert TextTokenizer.load(trained.file).content_hash == on_the_fly.content_hash == trained.facts["hash"]
    assert trained.vocab_size == 320


def test_split_corpus_gives_its_training_part_and_is_checked_on_its_validation_part(tmp_path: Path) -> None:
    for number, name in enumerate(SPLITS):
        write_rows(tmp_path / "corpus" / name / "a.jsonl", [letter * 9 for letter in ("abc", "xyz", "123")[number]])
    trained = train(tmp_path / "corpus", tmp_path / "tokenizer.json")
    tokenizer = TextTokenizer.load(trained.file)
    assert len(tokenizer.encode("aaaaaaaaa")) == 1
    assert len(tokenizer.encode("xxxxxxxxx")) == len(tokenizer.encode("111111111")) == 9
    assert trained.facts["sample"]["documents"] == 3
    assert (trained.facts["held_out"]["documents"], trained.facts["held_out"]["tokens"]) == (3, 27)


def test_sample_is_chosen_by_hash_and_grows_with_its_size(rows: Path, tmp_path: Path) -> None:
    whole = train(rows, tmp_path / "whole.json").facts["sample"]
    assert whole["documents"] == whole["of_documents"] > 150
    config = TrainTokenizerConfig(sample_bytes=6000)
    source = module.files_source(rows, "text")  # type: ignore[attr-defined]
    some, more, other = (
        list(module._Sample(source, config.model_copy(update=change)).texts())
        for change in ({}, {"sample_bytes": 12_000}, {"seed": 1})
    )
    assert 3000 < sum(map(len, some)) <= 6000
    assert set(some) < set(more)
    assert set(some) != set(other)
    reverse = write_rows(tmp_path / "reverse.jsonl", ROWS[::-1])
    again = list(module._Sample(module.files_source(reverse, "text"), config).texts())  # type: ignore[attr-defined]
    assert sorted(again) == sorted(some)
    facts = train(rows, tmp_path / "some.json", sample_bytes=6000).facts["sample"]
    assert (facts["documents"], facts["of_documents"]) == (len(some), whole["of_documents"])


def test_sample_has_at_least_one_document(rows: Path, tmp_path: Path) -> None:
    assert train(rows, tmp_path / "t.json", sample_bytes=1).facts["sample"]["documents"] == 1


def test_of_a_large_corpus_only_some_units_are_read(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perjoule.data.sources.UNIT_BYTES", 1000)
    sample = train(rows, tmp_path / "t.json", sample_bytes=500).facts["sample"]
    assert sample["units"] in range(4, 6) and sample["of_units"] > 25
    assert sample["of_documents"] < 50


def test_file_is_loaded_by_transformers_with_what_was_asked_for(rows: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    settings = {"eos": "<|end|>", "special_tokens": ["<|user|>"], "model_max_length": 128}
    train(rows, tmp_path / "t" / "tokenizer.json", post_processing="bos_eos", **settings)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert loaded.is_fast
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<|bos|>", "<|end|>", "<|pad|>")
    assert (loaded.bos_token_id, loaded.pad_token_id, loaded.eos_token_id) == (0, 1, 2)
    assert loaded.convert_tokens_to_ids("<|user|>") == 3
    assert loaded.model_max_length == 128
    ids = loaded("the quick brown fox")["input_ids"]
    assert (ids[0], ids[-1]) == (0, 2)
    assert loaded.decode(ids, skip_special_tokens=True) == "the quick brown fox"
    pair = loaded("the", "fox")["input_ids"]
    assert (pair.count(0), pair.count(2)) == (2, 2)
    ours = TextTokenizer.load(tmp_path / "t" / "tokenizer.json")
    assert ours.encode("the quick brown fox") == ids[1:-1], "a store adds its own BOS"
    assert not {0, 3} & set(loaded("<|user|> <|bos|>")["input_ids"][1:]), "text that spells a special token stays text"


@pytest.mark.parametrize(
    ("post_processing", "expected"), [("none", (0, 0)), ("bos", (1, 0)), ("eos", (0, 1)), ("bos_eos", (1, 1))]
)
def test_post_processing_changes_the_file_for_others_and_not_what_a_store_holds(
    rows: Path, tmp_path: Path, post_processing: str, expected: tuple[int, int]
) -> None:
    from tokenizers import Tokenizer

    file = train(rows, tmp_path / "t.json", post_processing=post_processing, eos="</s>").file
    ids = Tokenizer.from_file(str(file)).encode("fox").ids
    assert (ids.count(0), ids.count(2)) == expected
    assert TextTokenizer.load(file).encode("fox") == [id for id in ids if id not in (0, 2)]


def test_unigram_loses_nothing_and_has_no_unknown(rows: Path, tmp_path: Path) -> None:
    trained = train(rows, tmp_path / "t.json", kind="unigram")
    tokenizer = TextTokenizer.load(trained.file)
    for text in ("the  quick\n\tfox", "größer 日本 \U0001f600", "<|bos|>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unk_id is None
    assert trained.facts["held_out"]["unknown_tokens"] == 0
    assert trained.facts["reproducible"] is False
    assert trained.facts["hash"] == tokenizer.content_hash


def test_wordpiece_counts_what_it_cannot_spell(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write_rows(corpus / "train" / "a.jsonl", ROWS)
    write_rows(corpus / "validation" / "a.jsonl", ["the quick 日本 fox", "the lazy dogs"])
    said: list[str] = []
    config = TrainTokenizerConfig(kind="wordpiece", vocab_size=200)
    trained = train_tokenizer(corpus, tmp_path / "t.json", config, said.append)
    tokenizer = TextTokenizer.load(trained.file)
    assert tokenizer.unk_id == 2
    assert tokenizer.encode("日") == [2]
    held_out = trained.facts["held_out"]
    assert held_out["unknown_tokens"] == tokenizer.encode("the quick 日本 fox").count(2) > 0
    assert held_out["documents_that_come_back"] == 1, "the one that the letters of the training part can spell"
    assert any("% of the tokens unknown, 1 documents come back unchanged" in line for line in said)
    assert said[-1].startswith("this kind of training has ties")
    assert json.loads((tmp_path / "t_config.json").read_text())["unk_token"] == "[UNK]"


def test_normalizer_is_applied_in_the_file(rows: Path, tmp_path: Path) -> None:
    file = train(rows, tmp_path / "t.json", normalizer=["nfkc", "lowercase", "strip_accents"]).file
    tokenizer = TextTokenizer.load(file)
    assert tokenizer.decode(tokenizer.encode("QUÍCK ﬁn")) == "quick fin"
    plain = TextTokenizer.load(train(rows, tmp_path / "u.json").file)
    assert plain.decode(plain.encode("QUÍCK ﬁn")) == "QUÍCK ﬁn"
    wordpiece = TextTokenizer.load(
        train(rows, tmp_path / "v.json", kind="wordpiece", vocab_size=200, normalizer=["lowercase"]).file
    )
    assert wordpiece.encode("FOX") == wordpiece.encode("fox")


def test_finished_tokenizer_is_left_alone_and_another_is_not_overwritten(rows: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    first = train(rows, file)
    before = file.stat().st_mtime_ns
    assert train(rows, file) == first
    assert file.stat().st_mtime_ns == before
    for change in ({"vocab_size": 300}, {"seed": 1}):
        with pytest.raises(DataError, match=r"t\.json exists, of other documents or settings; choose another name"):
            train(rows, file, **change)
    other = train(rows, tmp_path / "other.json", vocab_size=300).file
    file.write_bytes(other.read_bytes())
    with pytest.raises(DataError, match=r"t\.json exists, of other documents or settings"):
        train(rows, file)
    (tmp_path / "t_facts.json").unlink()
    with pytest.raises(DataError, match=r"t\.json exists, of other documents or settings"):
        train(rows, file)


def test_training_that_was_killed_before_its_end_is_done_again(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_bytes", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        train(rows, tmp_path / "t.json")
    assert (tmp_path / "t_facts.json").exists() and not (tmp_path / "t.json").exists()
    assert train(rows, tmp_path / "t.json").vocab_size == 320


def test_place_that_cannot_be_written_is_one_line(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot write .*rows\.jsonl/t\.json: (Not a directory|File exists); cho"):
        train(rows, rows / "t.json")
    with pytest.raises(DataError, match=r"tokenizer must end in \.json, as tokenizer\.json does"):
        train(rows, tmp_path / "tokenizer")


def test_source_without_training_documents_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n')
    with pytest.raises(DataError, match=r"no training documents in .* to train a tokenizer on"):
        train(tmp_path / "a.jsonl", tmp_path / "t.json")


def test_corpus_without_validation_documents_is_not_checked(rows: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = TrainTokenizerConfig(vocab_size=300, fractions=Fractions(train=1, validation=0, test=0))
    train_tokenizer(rows, tmp_path / "t.json", config, said.append)
    assert said[-1] == "not checked: there are no validation documents"


def test_settings_that_cannot_be_are_refused() -> None:
    for settings, message in [
        ({"bos": "<start>"}, r"<start> would not be recognised in the file: .*<s>"),
        ({"pad": "[pad]"}, r"\[pad\] would not be recognised in the file: did you mean '\[PAD\]'\?"),
        ({"post_processing": "eos"}, r"post_processing=eos needs the name of the token: eos="),
        ({"special_tokens": ["<|pad|>"]}, r"the special tokens must differ: <\|bos\|>, <\|pad\|>, <\|pad\|>"),
        ({"vocab_size": 257}, r"vocab_size must be at least 258, for 2 special tokens and all bytes"),
    ]:
        with pytest.raises(ValidationError, match=message):
            TrainTokenizerConfig.model_validate(settings)
    assert TrainTokenizerConfig(kind="wordpiece", vocab_size=100).special_names() == ["<|bos|>", "<|pad|>", "[UNK]"]


def test_training_a_tokenizer_imports_no_torch() -> None:
    import subprocess

    script = "import sys, perjoule.data.train_tokenizer; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
