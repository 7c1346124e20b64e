"""Text goes through a tokenizer unchanged, and only the stream adds BOS."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from perjoule.core.errors import DataError
from perjoule.data.tokenizer import BOS, PAD, TextTokenizer, TokenizerConfig

TEXTS = [f"def add_{n}(a, b):\n    return a + b + {n}  # the sum of a, b and {n}\n" for n in range(60)]
TRAINED = TokenizerConfig(vocab_size=300).build(TEXTS)


@given(st.text())
def test_any_text_survives_encoding_and_decoding(text: str) -> None:
    assert TRAINED.decode(TRAINED.encode(text)) == text


def test_trained_vocabulary_has_the_size_asked_for_and_both_special_tokens() -> None:
    assert TRAINED.vocab_size == 300
    assert (TRAINED.bos_id, TRAINED.pad_id) == (0, 1)
    assert TokenizerConfig(vocab_size=258).build(TEXTS).vocab_size == 258


def test_small_corpus_yields_the_vocabulary_it_can() -> None:
    assert TokenizerConfig(vocab_size=4096).build(["ab ab ab"]).vocab_size == 258 + 2  # "ab" and " ab"


def test_training_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TokenizerConfig(vocab_size=300).build(TEXTS).content_hash == TRAINED.content_hash
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert TokenizerConfig(vocab_size=300).build(TEXTS).content_hash == TRAINED.content_hash
    assert TokenizerConfig(vocab_size=301).build(TEXTS).content_hash != TRAINED.content_hash


def test_text_that_spells_a_special_token_stays_text() -> None:
    ids = TRAINED.encode(f"a {BOS} b {PAD}")
    assert not {TRAINED.bos_id, TRAINED.pad_id} & set(ids)
    assert TRAINED.decode(ids) == f"a {BOS} b {PAD}"


def test_batch_encoding_equals_encoding_one_by_one() -> None:
    texts = [*TEXTS, BOS, " ", "ünïcödé"]
    assert TRAINED.encode_batch(texts) == [TRAINED.encode(text) for text in texts]


def test_error_of_the_documents_surfaces_from_training() -> None:
    def texts() -> object:
        yield "fine"
        raise DataError("a.jsonl:7 is broken")

    with pytest.raises(DataError, match=r"a\.jsonl:7 is broken"):
        TokenizerConfig().build(texts())  # type: ignore[arg-type]


def test_file_adds_no_bos_and_neither_truncates_nor_pads(
    word_tokenizer: Callable[[Mapping[str, int], str], Path],
) -> None:
    config = TokenizerConfig(file=word_tokenizer({"[UNK]": 0, "a": 1, "b": 2}, "<s>"))
    tokenizer = config.build([])
    assert tokenizer.encode("a b a b a b a b x") == [1, 2] * 4 + [0]
    assert tokenizer.encode_batch(["a", "b a"]) == [[1], [2, 1]]
    assert (tokenizer.bos_id, tokenizer.vocab_size) == (3, 4)
    assert tokenizer.pad_id == tokenizer.bos_id, "padding is masked by position, so any id will do"


def test_file_of_a_trained_tokenizer_is_the_same_tokenizer(tmp_path: Path) -> None:
    TRAINED.inner.save(str(tmp_path / "tokenizer.json"))
    loaded = TokenizerConfig(file=tmp_path / "tokenizer.json").build([])
    assert (loaded.content_hash, loaded.vocab_size) == (TRAINED.content_hash, TRAINED.vocab_size)
    assert loaded.encode(TEXTS[0]) == TRAINED.encode(TEXTS[0])


def test_identity_follows_the_content_of_the_file(
    tmp_path: Path, word_tokenizer: Callable[[Mapping[str, int], str], Path]
) -> None:
    file = word_tokenizer({"[UNK]": 0, "a": 1}, "<s>")
    first = TokenizerConfig(file=file).identity()
    file = file.rename(tmp_path / "renamed.json")
    assert TokenizerConfig(file=file).identity() == first
    file.write_text(file.read_text().replace('"a"', '"b"'))
    assert TokenizerConfig(file=file).identity() != first
    assert TokenizerConfig(vocab_size=300).identity() != TokenizerConfig(vocab_size=301).identity()


def test_file_without_bos_says_what_is_accepted(tmp_path: Path) -> None:
    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1}, unk_token="[UNK]"))  # "<s>" is an ordinary word here
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(["[MASK]"])
    inner.add_tokens([AddedToken("<bos>", special=False)])  # text may contain it, so it marks no beginning
    inner.save(str(tmp_path / "t.json"))
    message = r"t\.json has no special token that begins a document; accepted: <\|bos\|>, <s>, .*; it has: \[MASK\]"
    with pytest.raises(DataError, match=message):
        TextTokenizer.load(tmp_path / "t.json")


def test_missing_or_foreign_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"vocab": 3}')
    with pytest.raises(DataError, match=r"no tokenizer file .*tokeniser\.json; did you mean 'tokenizer\.json'\?"):
        TokenizerConfig(file=tmp_path / "tokeniser.json").identity()
    with pytest.raises(DataError, match=r"tokenizer\.json is not a Hugging Face tokenizers file"):
        TokenizerConfig(file=tmp_path / "tokenizer.json").identity()


def test_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(ValidationError, match=re.escape("must be at least 258 (256 bytes and 2 special tokens)")):
        TokenizerConfig(vocab_size=257)


def test_unknown_token_is_known_where_there_is_one(
    word_tokenizer: Callable[[Mapping[str, int], str], Path],
) -> None:
    assert TRAINED.unk_id is None
    assert TextTokenizer.load(word_tokenizer({"a": 0, "[UNK]": 1}, "<s>")).unk_id == 1
    unigram = Tokenizer(models.Unigram([("<s>", 0.0), ("a", -1.0), ("<unk>", -9.0)], unk_id=2))
    unigram.add_special_tokens(["<s>"])
    assert TextTokenizer.wrap(unigram, "a test").unk_id == 2
