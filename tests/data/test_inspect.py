"""What is said of a corpus before training is what the reader then does with it."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perjoule.core.errors import DataError
from perjoule.data import inspect as module
from perjoule.data import lengths as lengths_module
from perjoule.data.inspect import InspectConfig, Inspection, inspect, inspect_source
from perjoule.data.lengths import Lengths
from perjoule.data.reader import PackedSamples, PaddedSamples
from perjoule.data.row_index import row_index
from perjoule.data.shards import Shard, SplitTokens
from perjoule.data.sources import files_source
from perjoule.data.split import SPLITS, Fractions
from perjoule.data.store import open_store
from perjoule.data.tokenize import TokenizeConfig, tokenize, tokenize_files
from perjoule.data.tokenizer import TextTokenizer, TokenizerConfig

ROWS = [f"document {number} " * (1 + number % 40) for number in range(300)]


def look(path: Path, **settings: Any) -> Inspection:
    return inspect(path, InspectConfig(**settings), lambda line: None)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    file = tmp_path / "tokenizer.json"
    file.write_text(TokenizerConfig(vocab_size=300).build(ROWS).inner.to_str())
    return file


@pytest.fixture
def store(tmp_path: Path, tokenizer: Path) -> Path:
    source = files_source(write_rows(tmp_path / "rows.jsonl", [*ROWS, None, " "]), "text")
    config = TokenizeConfig(tokenizer=tokenizer, fractions=Fractions(train=0.8, validation=0.1, test=0.1), workers=0)
    tokenize(source, TextTokenizer.load(tokenizer), tmp_path / "store", config, lambda line: None)
    return tmp_path / "store"


def test_source_is_counted_in_bytes_without_a_tokenizer(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [*ROWS, None, " ", 3, ROWS[0], ROWS[1]])
    found = look(path)
    assert found.kind == "source"
    assert dict(found.skipped) == {"null": 1, "blank": 1, "not_text": 1, "duplicate": 2}
    (split,) = found.splits.values()
    sizes = sorted(len(row.encode()) for row in [*ROWS, ROWS[0], ROWS[1]])
    assert split.num_bytes == sum(sizes) == split.lengths.total
    assert split.num_tokens is None
    assert split.lengths.quantiles([0.5, 1.0]) == {"50%": sizes[150], "100%": sizes[-1]}
    assert split.lengths.waste() == []
    assert "duplicate" not in look(path, duplicates=False).skipped


def test_source_is_counted_in_tokens_with_a_tokenizer(tmp_path: Path, tokenizer: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    (split,) = look(path, tokenizer=tokenizer, seq_len=[16]).splits.values()
    encoded = TextTokenizer.load(tokenizer).encode_batch(ROWS)
    assert split.num_tokens == sum(map(len, encoded))
    assert split.lengths.longest == max(map(len, encoded))
    assert split.num_unknown is None
    assert [waste.seq_len for waste in split.lengths.waste()] == [16, 16, 16]


def test_store_says_what_its_source_said_and_what_was_left_out(tmp_path: Path, store: Path, tokenizer: Path) -> None:
    of_store = look(store)
    of_source = look(tmp_path / "rows.jsonl", tokenizer=tokenizer)
    assert of_store.kind == "store"
    assert dict(of_store.skipped) == {"null": 1, "blank": 1}
    assert list(of_store.splits) == list(SPLITS)
    (source,) = of_source.splits.values()
    assert sum(split.num_tokens or 0 for split in of_store.splits.values()) == source.num_tokens
    assert sum(split.num_bytes for split in of_store.splits.values()) == source.num_bytes
    assert of_store.facts["vocab_size"] == 300


def test_samples_are_documents_and_the_same_every_time(tmp_path: Path, store: Path) -> None:
    first, again, other = (look(store, seed=seed).splits["train"].samples for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 3
    assert all(any(row.startswith(sample) for row in ROWS) for sample in first)
    short = look(store, sample_characters=4, samples=1).splits["train"].samples
    assert short == ("docu",)
    path = tmp_path / "rows.jsonl"
    (one,) = look(path).splits.values()
    (two,) = look(write_rows(tmp_path / "b.jsonl", ROWS[::-1])).splits.values()
    assert one.samples == two.samples, "wherever they lie"
    assert look(store, samples=0).splits["train"].samples == ()
    assert len(look(store, samples=1000).splits["test"].samples) == look(store).splits["test"].lengths.num_documents


def test_split_corpus_is_counted_by_split(tmp_path: Path) -> None:
    for number, name in enumerate(SPLITS, start=1):
        write_rows(tmp_path / "corpus" / name / "a.jsonl", ROWS[: 10 * number])
    found = look(tmp_path / "corpus")
    assert {name: split.lengths.num_documents for name, split in found.splits.items()} == {
        "train": 10,
        "validation": 20,
        "test": 30,
    }
    assert found.skipped == {"duplicate": 30}, "copies across splits are what one wants to know of"


def test_unknown_tokens_are_counted_in_source_and_store(tmp_path: Path, word_tokenizer: Any) -> None:
    tokenizer = word_tokenizer({"[UNK]": 0, "a": 1}, "<s>")
    path = write_rows(tmp_path / "a.jsonl", ["a b a", "c", "a"])
    (split,) = look(path, tokenizer=tokenizer).splits.values()
    assert (split.num_unknown, split.num_tokens) == (2, 5)
    config = TokenizeConfig(tokenizer=tokenizer, fractions=Fractions(train=1, validation=0, test=0), workers=0)
    tokenize(files_source(path, "text"), TextTokenizer.load(tokenizer), tmp_path / "store", config, lambda line: None)
    found = look(tmp_path / "store")
    assert found.splits["train"].num_unknown == 2
    assert any("40.000% unknown" in line for line in found.lines())


def test_text_has_a_bar_for_each_power_of_two_and_a_row_for_each_way_of_batching(store: Path) -> None:
    said: list[str] = []
    found = inspect(store, InspectConfig(seq_len=[16, 64]), said.append)
    assert said == list(found.lines())
    assert said[0] == f"store {store}"
    train = found.splits["train"]
    assert sum("▇" in line for line in said) == sum(count > 0 for count in train.lengths.histogram().values())
    assert sum(line.lstrip().startswith(("16 p", "64 p")) for line in said) == 6
    assert any(re.fullmatch(r"left out +1 (null|blank), 1 (null|blank)", line) for line in said)
    assert {"packed", "padded"} <= {word for line in said for word in line.split()}
    assert all(line == line.rstrip() for line in said)


def test_everything_is_json(store: Path, tmp_path: Path) -> None:
    of_store = json.loads(json.dumps(look(store).as_json()))
    assert set(of_store["splits"]["train"]) == {
        "bytes",
        "tokens",
        "tokens_per_byte",
        "unknown_tokens",
        "lengths",
        "samples",
    }
    assert of_store["splits"]["train"]["lengths"]["unit"] == "tokens"
    of_source = json.loads(json.dumps(look(tmp_path / "rows.jsonl").as_json()))
    assert of_source["splits"]["all"]["lengths"]["unit"] == "bytes"
    histogram = of_source["splits"]["all"]["lengths"]["histogram"]
    assert sum(histogram.values()) == 300


def test_empty_split_is_shown_as_empty(tmp_path: Path, tokenizer: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS[:3])
    config = TokenizeConfig(tokenizer=tokenizer, fractions=Fractions(train=1, validation=0, test=0), workers=0)
    tokenize(files_source(path, "text"), TextTokenizer.load(tokenizer), tmp_path / "store", config, lambda line: None)
    found = look(tmp_path / "store")
    assert found.as_json()["splits"]["test"]["lengths"] == {"unit": "tokens", "documents": 0}
    assert any(line.startswith("test") and " 0 documents" in line for line in found.lines())


def test_what_cannot_be_inspected_is_an_error(tmp_path: Path, store: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder .*nothing"):
        look(tmp_path / "nothing")
    (tmp_path / "half" / ".unfinished").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no token store at .*half: it is unfinished"):
        look(tmp_path / "half")
    (store / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"the token store .* is damaged"):
        look(store)


def test_manifest_of_another_step_does_not_make_a_store(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", ["x"])
    for content in ('{"kind": "split"}', "[]", "{cut"):
        (tmp_path / "manifest.json").write_text(content)
        assert look(tmp_path).kind == "source"


def test_batches_in_which_documents_are_counted_make_no_difference(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    whole = look(path, tokenizer=tokenizer).as_json()
    of_store = look(store).as_json()
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 50)
    monkeypatch.setattr(module, "_DOCUMENTS_AT_ONCE", 7)
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", 5)
    assert look(path, tokenizer=tokenizer).as_json() == whole
    assert look(store).as_json() == of_store


def stream(lengths: list[int]) -> SplitTokens:
    """Return documents of these lengths, in one shard."""
    tokens = np.concatenate([[0, *[1] * length] for length in lengths]).astype(np.uint16)
    offsets = np.cumsum([0, *(length + 1 for length in lengths)])
    return SplitTokens((Shard(tokens, offsets, num_bytes=1),))


@given(st.lists(st.integers(1, 70), min_size=1, max_size=30), st.integers(1, 40), st.integers(1, 9))
def test_waste_is_that_of_the_reader(sizes: list[int], seq_len: int, at_once: int) -> None:
    lengths = Lengths([seq_len, 3])
    for begin in range(0, len(sizes), at_once):
        lengths.add(np.array(sizes[begin : begin + at_once]))
    found = {waste.batching: waste for waste in lengths.waste() if waste.seq_len == seq_len}
    split = stream(sizes)
    num_transitions = split.num_tokens - 1
    if num_transitions >= seq_len:
        coverage = PackedSamples(split, seq_len, bos_id=0, seed=None).coverage
        packed = found["packed"]
        assert packed.rows == coverage.num_samples
        assert packed.useful == pytest.approx(coverage.num_useful / coverage.num_labels)
        assert packed.ignored == pytest.approx(1 - packed.useful)
        assert packed.dropped * split.num_tokens == pytest.approx(coverage.num_dropped)
    else:
        assert "packed" not in found
    for name, long_documents in (("padded split", "split"), ("padded truncate", "truncate")):
        coverage = padded(split, seq_len, long_documents).coverage
        waste = found[name]  # type: ignore[index]
        assert waste.rows == coverage.num_samples
        assert waste.useful == pytest.approx(coverage.num_useful / coverage.num_labels)
        assert waste.padding == pytest.approx(1 - waste.useful)
        assert waste.dropped * sum(sizes) == pytest.approx(coverage.num_dropped)


def padded(split: SplitTokens, seq_len: int, long_documents: Any) -> PaddedSamples:
    return PaddedSamples(split, row_index(split, seq_len, long_documents, "", None), pad_id=0, seed=None)


def test_quantiles_of_very_long_documents_are_close() -> None:
    generator = np.random.default_rng(0)
    sizes = np.exp(generator.uniform(np.log(10), np.log(1e9), 5000)).astype(np.int64)
    lengths = Lengths()
    lengths.add(sizes)
    assert (lengths.num_documents, lengths.total, lengths.longest) == (5000, sizes.sum(), sizes.max())
    exact = np.sort(sizes)
    for name, value in lengths.quantiles().items():
        true = exact[int(np.ceil(float(name[:-1]) / 100 * 5000)) - 1]
        assert value == true if true < 65_536 else value == pytest.approx(true, rel=0.006)
    powers = Counter(1 << (int(size).bit_length() - 1) for size in sizes)
    found = lengths.histogram()
    assert sum(found.values()) == 5000
    assert all(abs(found[power] - powers[power]) <= 5 for power in found)
    assert all(found[power] == powers[power] for power in found if power < 32_768)


def test_counting_takes_no_more_memory_with_more_documents() -> None:
    lengths = Lengths([1024])
    for _ in range(50):
        lengths.add(np.full(100_000, 30))
    held = sum(value.nbytes for value in vars(lengths).values() if isinstance(value, np.ndarray))
    assert held < 1 << 20
    assert lengths.num_documents == 5_000_000
    (packed, *_) = lengths.waste()
    assert packed.rows == 151_367
    assert packed.dropped < 1e-5
    assert packed.ignored == pytest.approx(1 / 31, rel=1e-4)
    assert lengths_module._EXACT == 65_536, "as the docstrings say"


def test_damaged_store_is_not_taken_for_a_source(store: Path) -> None:
    open_store(store)
    (path,) = store.glob("train-00000.tokens.bin")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match="damaged"):
        look(store)


def test_chosen_documents_of_a_store_are_shown_with_exact_counts(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(80):
        (corpus / f"{number:02d}.txt").write_text(f"document {number} " * 40)
    tokenizer = TokenizerConfig(vocab_size=260).build(["a"])
    (tmp_path / "t.json").write_text(tokenizer.inner.to_str())
    tokenize_files(corpus, tmp_path / "store", TokenizeConfig(tokenizer=tmp_path / "t.json"), lambda line: None)
    said: list[str] = []
    inspect(tmp_path / "store", InspectConfig(documents="1:3", tokens=12), said.append)
    shown = [line for line in said if line.startswith("train document")]
    train = [n for n in range(80) if Fractions().split_of(f"{n:02d}.txt") == "train"]
    texts = [f"document {number} " * 40 for number in train[1:3]]
    assert shown == [
        f"train document {place}: first 12 of {len(tokenizer.encode(text)):,} tokens: {text[:12]!r}"
        for place, text in enumerate(texts, 1)
    ]
    with pytest.raises(ValueError, match="documents"):
        InspectConfig(documents="x")
    with pytest.raises(DataError, match="shows documents of a token store"):
        inspect(corpus, InspectConfig(documents="0:1"), said.append)


def test_full_or_missing_temporary_folder_names_tmpdir_and_what_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("a")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(DataError, match=r"TMPDIR .*duplicates=false"):
        inspect_source(tmp_path, InspectConfig())
    assert inspect_source(tmp_path, InspectConfig(duplicates=False)).splits
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def full(text: str) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("perjoule.data.duplicates.content_hash", full)
    with pytest.raises(DataError, match=r"No space left on device; set TMPDIR .*duplicates=false"):
        inspect_source(tmp_path, InspectConfig())
