"""Text comes in whole characters, adds up to the text of all tokens, and stops where it should."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from perjoule.data.tokenizer import TextTokenizer, TokenizerConfig
from perjoule.evaluate.detokenize import TextStream

BYTES: TextTokenizer = TokenizerConfig(vocab_size=258).build(iter(["a"]))
TEXT = "naïve café — 10 € for 🧪🧪, 日本語 a\n\nb"


def streamed(tokens: Sequence[int], decode: TextStream) -> list[str]:
    pieces = []
    for token in tokens:
        pieces.append(decode.add(token))
        if decode.stopped:
            break
    return [*pieces, decode.end()]


def test_characters_of_several_tokens_come_whole() -> None:
    tokens = BYTES.encode(TEXT)
    assert len(tokens) == len(TEXT.encode())
    pieces = streamed(tokens, TextStream(BYTES.decode))
    assert [piece for piece in pieces if piece] == list(TEXT)


@given(st.lists(st.integers(0, BYTES.vocab_size - 1), max_size=40))
def test_pieces_of_any_tokens_add_up_to_their_text(tokens: list[int]) -> None:
    assert "".join(streamed(tokens, TextStream(BYTES.decode))) == BYTES.decode(tokens)


@given(st.text(max_size=5), st.lists(st.integers(2, 257), max_size=20))
def test_the_prompt_is_no_part_of_the_text(prompt: str, tokens: list[int]) -> None:
    before = [BYTES.bos_id, *BYTES.encode(prompt)]
    text = "".join(streamed(tokens, TextStream(BYTES.decode, prompt=before)))
    assert prompt + text == BYTES.decode([*before, *tokens])


@given(st.lists(st.sampled_from("ab"), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_text_is_cut_at_the_first_stop_that_is_complete(letters: list[str], stops: list[str]) -> None:
    tokens = [ord(letter) for letter in letters]
    stream = TextStream(lambda ids: "".join(map(chr, ids)), stops)
    text = "".join(streamed(tokens, stream))
    whole = "".join(letters)
    ends = [length for length in range(len(whole) + 1) if any(whole[:length].endswith(stop) for stop in stops)]
    if ends:  # of the stops that end there, the one that begins first
        whole = whole[: ends[0] - max(len(stop) for stop in stops if whole[: ends[0]].endswith(stop))]
    assert text == whole
    assert stream.stopped == bool(ends)


def test_a_character_that_never_comes_whole_is_given_at_the_end() -> None:
    tokens = BYTES.encode("a€")[:-1]
    assert streamed(tokens, TextStream(BYTES.decode)) == ["a", "", "", "\N{REPLACEMENT CHARACTER}"]


def test_stop_before_an_incomplete_character_in_the_same_token_is_seen_at_once() -> None:
    texts = {(1,): "a", (2,): "\n\N{REPLACEMENT CHARACTER}", (1, 2): "a\n\N{REPLACEMENT CHARACTER}"}
    stream = TextStream(lambda ids: texts.get(tuple(ids), ""), ["\n"])
    assert (stream.add(1), stream.add(2), stream.stopped, stream.end()) == ("a", "", True, "")


@pytest.mark.parametrize("words", [["one", "two"], ["one", "two", "one", "one", "two", "two", "one"]])
def test_spaces_that_only_the_first_token_loses_are_kept_between_words(words: list[str]) -> None:
    inner = Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1, "?": 2}, unk_token="?"))
    inner.decoder = decoders.Metaspace()
    tokens = [{"one": 0, "two": 1}[word] for word in words]
    pieces = streamed(tokens, TextStream(inner.decode))
    assert pieces == [words[0], *[f" {word}" for word in words[1:]], ""]
    behind = streamed(tokens, TextStream(inner.decode, prompt=[1, 0, 0, 0, 1, 1]))
    assert behind == [*[f" {word}" for word in words], ""]


def test_a_token_costs_the_same_however_long_the_text_is() -> None:
    lengths = []

    def decode(tokens: Sequence[int]) -> str:
        lengths.append(len(tokens))
        return "x" * len(tokens)

    streamed([0] * 500, TextStream(decode))
    assert max(lengths) <= 2


def test_special_tokens_have_no_text() -> None:
    tokens = [*BYTES.encode("a"), BYTES.pad_id, BYTES.pad_id, *BYTES.encode("b")]
    assert streamed(tokens, TextStream(BYTES.decode)) == ["a", "", "", "b", ""]
