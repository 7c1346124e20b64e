"""Tokens are made once, found again, and made again when they are not whole."""

import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perjoule.core.errors import DataError
from perjoule.data import engines, manifest, tokenize_unit
from perjoule.data import store as store_module
from perjoule.data.engine import run_here
from perjoule.data.sources import files_source
from perjoule.data.split import SPLITS, Fractions
from perjoule.data.store import Store, prepare
from perjoule.data.tokenizer import TokenizerConfig

SMALL = TokenizerConfig(vocab_size=280)
ALL_TRAIN = Fractions(train=1, validation=0, test=0)
EVEN = Fractions(train=0.6, validation=0.2, test=0.2)


def store_of(corpus: Path, cache: Path, tokenizer: TokenizerConfig = SMALL, fractions: Fractions = EVEN) -> Store:
    return prepare(files_source(corpus, "text"), tokenizer, fractions, cache)


def documents(store: Store, split: str) -> list[str]:
    """Read a split back to text, checking that each document begins with its only BOS."""
    texts = []
    for part in store.splits[split].shards:
        for begin, end in zip(part.offsets[:-1], part.offsets[1:], strict=True):
            ids = part.tokens[begin:end].tolist()
            assert ids[0] == store.tokenizer.bos_id
            assert store.tokenizer.bos_id not in ids[1:]
            texts.append(store.tokenizer.decode(ids[1:]))
        assert part.offsets[-1] == len(part.tokens)
    return texts


def test_stream_holds_every_document_once_after_its_bos(corpus: Path, cache: Path) -> None:
    store = store_of(corpus, cache)
    expected: dict[str, list[str]] = {split: [] for split in SPLITS}
    for path in sorted(corpus.iterdir()):
        expected[EVEN.split_of(path.name)].append(path.read_text())
    assert {split: documents(store, split) for split in SPLITS} == expected
    assert all(expected.values())
    for split in SPLITS:
        assert store.splits[split].num_bytes == sum(len(text.encode()) for text in expected[split])


def test_order_of_documents_does_not_depend_on_the_batches_they_are_encoded_in(
    corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = store_of(corpus, cache)
    monkeypatch.setattr(tokenize_unit, "_BATCH_CHARACTERS", 1000)
    pieces = store_of(corpus, cache / "other")
    for split in SPLITS:
        assert np.array_equal(whole.splits[split].stream(), pieces.splits[split].stream())


def test_tokenizer_is_trained_on_the_training_split_only(corpus: Path, cache: Path) -> None:
    first = store_of(corpus, cache)
    held_out = next(path for path in sorted(corpus.iterdir()) if EVEN.split_of(path.name) != "train")
    held_out.write_text("zyxwvu " * 500)
    second = store_of(corpus, cache)
    assert second.path != first.path
    assert second.tokenizer.content_hash == first.tokenizer.content_hash


def test_second_start_reuses_the_store(corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store_of(corpus, cache)
    monkeypatch.setattr(store_module, "_build", None)
    second = store_of(corpus, cache)
    assert (first.state, second.state) == ("built", "reused")
    assert second.path == first.path
    assert second.tokenizer.content_hash == first.tokenizer.content_hash
    for split in SPLITS:
        assert np.array_equal(first.splits[split].stream(), second.splits[split].stream())


def test_every_setting_and_every_document_has_its_own_store(corpus: Path, cache: Path) -> None:
    stores = [
        store_of(corpus, cache),
        store_of(corpus, cache, TokenizerConfig(vocab_size=281)),
        store_of(corpus, cache, fractions=Fractions()),
    ]
    (corpus / "new.txt").write_text("one more")
    stores.append(store_of(corpus, cache))
    assert len({store.path for store in stores}) == 4
    assert {store.state for store in stores} == {"built"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("train-00000.tokens.bin", cut, r"train-00000\.tokens\.bin has \d+ bytes instead of \d+"),
        ("train-00000.tokens.bin", flip, r"train-00000\.tokens\.bin was changed"),
        ("validation-00000.offsets.bin", flip, r"validation-00000\.offsets\.bin was changed"),
        ("tokenizer.json", Path.unlink, r"tokenizer\.json: No such file"),
        ("manifest.json", Path.unlink, r"manifest\.json: No such file"),
        ("manifest.json", cut, r"manifest\.json cannot be read"),
        ("manifest.json", lambda path: path.write_text("[]"), r"manifest\.json cannot be read"),
        (
            "manifest.json",
            lambda path: path.write_text(path.read_text().replace('"tokens": ', '"tokens": 1')),
            r"manifest\.json was changed",
        ),
    ],
)
def test_damaged_store_is_built_again_and_says_why(
    name: str,
    damage: Callable[[Path], object],
    reason: str,
    corpus: Path,
    cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = store_of(corpus, cache)
    tokens = whole.splits["train"].stream()
    damage(whole.path / name)
    again = store_of(corpus, cache)
    assert again.state.startswith("rebuilt: ")
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert re.search(rf"token store .* is damaged \({reason}.*\): building it again", caplog.text)
    assert np.array_equal(again.splits["train"].stream(), tokens)
    assert store_of(corpus, cache).state == "reused"


def test_large_files_are_checked_by_size_only(corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "CHECKED_BYTES", 10)
    whole = store_of(corpus, cache)
    flip(whole.path / "train-00000.tokens.bin")
    assert store_of(corpus, cache).state == "reused"
    cut(whole.path / "train-00000.tokens.bin")
    assert store_of(corpus, cache).state.startswith("rebuilt")


def test_processes_that_start_together_build_once(corpus: Path, cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:  # a lock belongs to an open file, so threads contend as processes do
        stores = list(pool.map(lambda _: store_of(corpus, cache), range(4)))
    assert sorted(store.state for store in stores) == ["built", "reused", "reused", "reused"]
    assert len({store.splits["train"].stream().tobytes() for store in stores}) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from perjoule.data import store, tokenize_unit
from perjoule.data.sources import files_source
from perjoule.data.split import Fractions
from perjoule.data.tokenizer import TokenizerConfig

tokenize_unit.write_json = lambda path, value: os.kill(os.getpid(), signal.SIGKILL)
fractions = Fractions(train=0.6, validation=0.2, test=0.2)
store.prepare(files_source(Path(sys.argv[1]), "text"), TokenizerConfig(vocab_size=280), fractions, Path(sys.argv[2]))
"""


def test_killed_build_leaves_no_store_and_no_lock(corpus: Path, cache: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(corpus), str(cache)], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not list(cache.glob("tokens-*/")), "nothing that looks like a store"
    assert list(cache.glob(".tokens-*/train-00000.tokens.bin")), "the kill came late enough to leave something"
    assert store_of(corpus, cache).state == "built"
    assert not list(cache.glob(".tokens-*"))


def test_what_a_killed_build_of_another_tokenizer_left_is_replaced(corpus: Path, cache: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(corpus), str(cache)], env=os.environ, check=False)
    (plan,) = cache.glob(".tokens-*/.unfinished/plan.json")
    plan.write_text(plan.read_text().replace('"tokenizer": "', '"tokenizer": "x'))
    assert store_of(corpus, cache).state == "built"


def test_failed_build_leaves_nothing(corpus: Path, cache: Path) -> None:
    (corpus / "z.jsonl").write_text('{"text": "fine"}\n{broken\n')
    with pytest.raises(DataError, match=r"z\.jsonl:2 cannot be read"):
        store_of(corpus, cache)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_documents_that_change_while_they_are_tokenised_are_not_kept(
    corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_and_change(*arguments: Any) -> None:
        run_here(*arguments)
        (corpus / "00.txt").write_text("another text")

    monkeypatch.setattr(engines, "run_here", run_and_change)
    with pytest.raises(DataError, match=r"the documents in .*corpus changed while they were tokenised; start again"):
        store_of(corpus, cache)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_full_disk_is_one_line_and_leaves_nothing(corpus: Path, cache: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # as a full disk, but only for this process
    try:
        with pytest.raises(DataError, match=r"cannot write the data cache .*: File too large; choose another"):
            store_of(corpus, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_skipped_documents_are_counted_once(tmp_path: Path, cache: Path) -> None:
    rows = [{"text": "one two three"}, {"text": None}, {"text": ""}, {"text": 3}, {"text": "four"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    store = store_of(tmp_path / "a.jsonl", cache)
    assert dict(store.skipped) == {"null": 1, "empty": 1, "not_text": 1}
    assert sorted(text for split in SPLITS for text in documents(store, split)) == ["four", "one two three"]


def test_no_documents_is_an_error_that_says_what_was_skipped(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": ""}\n{"text": null}\n')
    with pytest.raises(DataError, match=r"no documents in 1 files of .*; skipped: 1 empty, 2 null$"):
        store_of(tmp_path / "a.jsonl", cache)
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match=r"no documents in 1 files of .*; skipped: none$"):
        store_of(tmp_path / "a.jsonl", cache)


NO_TILDE = {"type": "Replace", "pattern": {"String": "~"}, "content": ""}
WriteTokenizer = Callable[[Mapping[str, int], str], Path]


def test_tokenizer_that_adds_its_own_bos_does_not_double_it(
    tmp_path: Path, cache: Path, word_tokenizer: WriteTokenizer
) -> None:
    (tmp_path / "a.txt").write_text("a b a b a b a b a b")
    config = TokenizerConfig(file=word_tokenizer({"[UNK]": 0, "a": 1, "b": 2}, "<s>"))
    assert config.build([]).inner.encode("a").ids == [3, 1], "left alone, it would"
    store = store_of(tmp_path / "a.txt", cache, config, ALL_TRAIN)
    assert store.splits["train"].stream().tolist() == [3, *[1, 2] * 5]


def test_text_that_becomes_bos_is_an_error(tmp_path: Path, cache: Path, word_tokenizer: WriteTokenizer) -> None:
    (tmp_path / "a.txt").write_text("a <s> b")
    config = TokenizerConfig(file=word_tokenizer({"[UNK]": 0, "a": 1, "<s>": 2}, "<s>"))
    with pytest.raises(DataError, match=r"the tokenizer turns text of a\.txt into its BOS token; use another one"):
        store_of(tmp_path / "a.txt", cache, config)


def test_document_that_vanishes_in_the_tokenizer_is_counted(
    tmp_path: Path, cache: Path, word_tokenizer: WriteTokenizer
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "~"}\n{"text": "a"}\n')
    path = word_tokenizer({"[UNK]": 0, "a": 1}, "<s>")
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": NO_TILDE}))
    store = store_of(tmp_path / "a.jsonl", cache, TokenizerConfig(file=path), ALL_TRAIN)
    assert dict(store.skipped) == {"no_tokens": 1}
    assert store.splits["train"].stream().tolist() == [2, 1]
    assert store.splits["test"].shards == ()


@pytest.mark.parametrize(("num_words", "dtype"), [(65_535, "<u2"), (65_536, "<u4")])
def test_tokens_take_two_bytes_up_to_65536_ids(
    num_words: int, dtype: str, tmp_path: Path, cache: Path, word_tokenizer: WriteTokenizer
) -> None:
    vocabulary = {"[UNK]": 0, **{f"w{number}": number for number in range(1, num_words)}}
    (tmp_path / "a.txt").write_text(f"w1 w{num_words - 1}")
    config = TokenizerConfig(file=word_tokenizer(vocabulary, "<s>"))
    store = store_of(tmp_path / "a.txt", cache, config, ALL_TRAIN)
    assert store.tokenizer.vocab_size == num_words + 1
    assert store.splits["train"].shards[0].tokens.dtype == np.dtype(dtype)
    assert store.splits["train"].stream().tolist() == [num_words, 1, num_words - 1]


def test_cache_that_cannot_be_written_says_how_to_choose_another(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = r"cannot write the data cache .*/file/cache: Not a directory; choose another with data\.cache=FOLDER"
    with pytest.raises(DataError, match=message):
        store_of(corpus, tmp_path / "file" / "cache")
