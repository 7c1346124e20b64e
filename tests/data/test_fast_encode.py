"""tiktoken's ids are the tokenizer's own, or it is not used."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from perjoule.core.errors import DataError
from perjoule.data import fast_encode
from perjoule.data.fast_encode import Encoder
from perjoule.data.tokenizer import TextTokenizer, TokenizerConfig

TEXTS = [
    *(
        "the quick brown fox jumps over the lazy dog",
        "it's we'll I'd  don't 'tis",
        "naïve größer ÅÉ 東京 🚀🚀",
        "a\n\n\n  b\t\tc",
    ),
    *(
        "1234567890 12.5 ٣٤٥ ½",
        "    def f(x):\n        return x ** 2\n",
        "<|bos|> is text here",
        "\u2028\u00a0\u3000 x\u0085y",
    ),
]


@pytest.fixture(scope="module")
def trained() -> TextTokenizer:
    return TokenizerConfig(vocab_size=600).build([*TEXTS * 5, Path(__file__).read_text(encoding="utf-8")])


def changed(tokenizer: TextTokenizer, change: Callable[[dict[str, Any]], object]) -> TextTokenizer:
    """Return the tokenizer with another ``tokenizer.json``."""
    content = json.loads(tokenizer.inner.to_str())
    change(content)
    return TextTokenizer.wrap(type(tokenizer.inner).from_str(json.dumps(content)), "the test")


def encoded(encoder: Encoder, texts: list[str]) -> tuple[list[list[int]], dict[str, int]]:
    counts: Counter[str] = Counter()
    return [ids.tolist() for ids in encoder.encode(texts, counts)], dict(+counts)


def test_ids_are_those_of_the_tokenizer(trained: TextTokenizer) -> None:
    encoder = Encoder(trained, compared_share=1)
    assert encoder.why_not == ""
    ids, counts = encoded(encoder, TEXTS)
    assert ids == trained.encode_batch(TEXTS)
    assert counts == {"tiktoken": len(TEXTS), "compared": len(TEXTS)}
    assert {array.dtype for array in encoder.encode(TEXTS, Counter())} == {np.dtype(np.uint32)}


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=60), max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_text_has_the_tokenizers_ids(trained: TextTokenizer, texts: list[str]) -> None:
    encoder = Encoder(trained, compared_share=0)
    assert encoded(encoder, texts)[0] == trained.encode_batch(texts)


@given(st.text(alphabet="ab ' \n1é", max_size=200))
@settings(max_examples=150, deadline=None)
def test_repetitive_text_has_the_tokenizers_ids(trained: TextTokenizer, text: str) -> None:
    assert encoded(Encoder(trained, compared_share=0), [text])[0] == trained.encode_batch([text])


def test_share_of_the_documents_that_is_compared_is_that_asked_for(trained: TextTokenizer) -> None:
    texts = [f"document number {number}" for number in range(2000)]
    _, counts = encoded(Encoder(trained, compared_share=0.1), texts)
    assert 150 < counts["compared"] < 250
    assert "compared" not in encoded(Encoder(trained, compared_share=0), texts)[1]


@given(st.text(alphabet="ab!'s \t\r\n1é\u2028\u3000", max_size=200))
@settings(max_examples=150, deadline=None)
def test_document_that_is_encoded_piece_by_piece_has_the_tokenizers_ids(trained: TextTokenizer, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_encode, "_PIECE_CHARACTERS", 3)
        assert "".join(fast_encode._pieces(text)) == text
        ids, counts = encoded(Encoder(trained, compared_share=1), [text])
    assert ids == trained.encode_batch([text])
    assert counts == {"tiktoken": 1, "compared": 1}


def test_pieces_of_a_long_document_are_short_and_one_document(trained: TextTokenizer) -> None:
    text = "a word\nof 東京 or it's\n\n " * 20_000
    assert max(map(len, fast_encode._pieces(text))) <= fast_encode._PIECE_CHARACTERS + 24
    assert encoded(Encoder(trained, compared_share=1), [text]) == (
        trained.encode_batch([text]),
        {"tiktoken": 1, "compared": 1},
    )


def test_document_that_tiktoken_gives_up_on_is_encoded_by_tokenizers(trained: TextTokenizer) -> None:
    texts = ["before", "\n" * 1_000_000, "after"]
    ids, counts = encoded(Encoder(trained, compared_share=0), texts)
    assert counts == {"tiktoken": 2, "tokenizers": 1}
    assert ids == trained.encode_batch(texts)


def test_panic_of_an_older_tiktoken_is_a_reason_for_tokenizers_and_ctrl_c_is_not(
    trained: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        pass

    def give_up(error: type[BaseException]) -> Callable[..., object]:
        def encode(*arguments: object, **settings: object) -> object:
            raise error("no room")

        return encode

    monkeypatch.setattr(tiktoken.Encoding, "encode_to_numpy", give_up(PanicException))
    assert encoded(Encoder(trained), TEXTS)[0] == trained.encode_batch(TEXTS)
    monkeypatch.setattr(tiktoken.Encoding, "encode_to_numpy", give_up(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        encoded(Encoder(trained), TEXTS)


def test_document_with_a_character_of_another_class_is_encoded_by_tokenizers(
    trained: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = {bytes([value]): value for value in range(256)}
    probes = dict(fast_encode._probes())
    probes[r"\p{L}"] = tiktoken.Encoding("x", pat_str=r"[\p{L}--é]", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr(fast_encode, "_probes", lambda: probes)
    _, counts = encoded(Encoder(trained, compared_share=0), ["café", "cafe", "größer", "naïvé", "é"])
    assert counts == {"tiktoken": 2, "tokenizers": 3}


def test_all_of_unicode_falls_into_the_same_classes_or_is_known_not_to() -> None:
    same = fast_encode._SameWords()
    points = np.array([point for point in range(0, 0x110000, 7) if not 0xD800 <= point < 0xE000], np.uint32)
    same._look_up(points)
    assert set(np.unique(same._states[points]).tolist()) <= {fast_encode._SAME, fast_encode._UNLIKE}
    assert (same._states[points] == fast_encode._SAME).mean() > 0.99


def test_difference_that_should_not_be_is_an_error_that_says_what_to_do(
    trained: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tiktoken.Encoding.encode_to_numpy
    monkeypatch.setattr(tiktoken.Encoding, "encode_to_numpy", lambda *a, **s: real(*a, **s)[:-1])
    message = (
        r"tiktoken and tokenizers disagree on the document that begins with 'the quick .*'; choose encoder=tokenizers"
    )
    with pytest.raises(DataError, match=message):
        encoded(Encoder(trained, compared_share=1), TEXTS)


def drop_byte(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["unused"] = content["model"]["vocab"].pop("ÿ")


def swap_merges(content: dict[str, Any]) -> None:
    merges = content["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def hide(content: dict[str, Any]) -> None:
    """Add the token ``qzx`` that is never made, since ``zx`` is merged before ``qz``; tiktoken would join ``q zx``."""
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    size = len(vocabulary)
    for number, (left, right) in enumerate([("z", "x"), ("q", "z"), ("qz", "x")]):
        vocabulary[left + right] = size + number
        merges.append([left, right])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.update(normalizer={"type": "NFC"}), "text is normalised (NFC)"),
        (lambda c: c["pre_tokenizer"].update(add_prefix_space=True), "the words are not those of the ByteLevel"),
        (lambda c: c["pre_tokenizer"].update(use_regex=False), "the words are not those of the ByteLevel"),
        (lambda c: c.update(pre_tokenizer=None), "the words are not those of the ByteLevel"),
        (lambda c: c["added_tokens"][1].update(special=False), "added tokens that are not special"),
        (lambda c: c["model"].update(dropout=0.1), "the model has dropout"),
        (lambda c: c["model"].update(ignore_merges=True), "the model has ignore_merges"),
        (drop_byte, "1 of the 256 bytes are no token"),
        (swap_merges, "is not made once, in the order of the ids, from tokens before it"),
        (hide, "the token 'qzx' does not become itself"),
    ],
)
def test_tokenizer_that_cannot_be_proved_the_same_is_left_to_tokenizers(
    change: Callable[[dict[str, Any]], object], reason: str, trained: TextTokenizer
) -> None:
    tokenizer = changed(trained, change)
    encoder = Encoder(tokenizer)
    assert reason in encoder.why_not
    counts: Counter[str] = Counter()
    assert len(encoder.encode(TEXTS, counts)) == len(TEXTS)
    assert +counts == {"tokenizers": len(TEXTS)}


def test_what_is_no_bpe_or_not_asked_for_is_left_to_tokenizers(
    word_tokenizer: Callable[..., Path], trained: TextTokenizer
) -> None:
    words = TextTokenizer.load(word_tokenizer({"[UNK]": 0, "a": 1}, "<s>"))
    assert Encoder(words).why_not == "WordLevel is no BPE"
    assert Encoder(trained, compared_share=None).why_not == "not asked for"


def test_missing_tiktoken_is_left_to_tokenizers(trained: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    encoder = Encoder(trained)
    assert encoder.why_not == "tiktoken is not installed (pip install 'perjoule[data]')"
    assert encoded(encoder, TEXTS) == (trained.encode_batch(TEXTS), {"tokenizers": len(TEXTS)})
