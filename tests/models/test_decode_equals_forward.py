"""Decoding token by token is the forward pass: every architecture, form, variant and kind of positions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.every_model import (
    BUILDS,
    SEQ_LEN,
    VOCAB_SIZE,
    LanguageDecoder,
    all_logits,
    built,
    longnet,
    on_the_right,
    retnet,
)
from tests.models.test_causality import patterns
from torch import Tensor

from perjoule.core.errors import ConfigError
from perjoule.models.contract import Decoder

FIRST = torch.zeros(1, dtype=torch.int64)
LIMITED = ("transformer-rope", "transformer-xpos", "longnet-rope", "longnet-xpos", "ebt-default-rope", "ebt-adaln-xpos")
UNLIMITED = ("transformer-none", "longnet-none", "retnet-chunkwise-rotation", "retnet-chunkwise-none", "ebt-adaln-none")


def assert_decoding_equals_forward(
    model: LanguageDecoder, lengths: list[int], padding: int, steps: int, seed: int
) -> None:
    """Read prompts behind padding, then their continuations; compare with each row's own whole sequence."""
    torch.manual_seed(seed)
    tokens = torch.randint(VOCAB_SIZE, (len(lengths), SEQ_LEN))
    rows, ends = torch.arange(len(lengths)), torch.tensor(lengths)
    expected = all_logits(model, tokens[:, : max(lengths) + steps])
    close = 1e-9 if expected.dtype == torch.float64 else 1e-5
    logits, cache = model.prefill(*on_the_right(tokens, lengths, max(lengths) + padding))
    for step in range(steps):
        torch.testing.assert_close(logits, expected[rows, ends + step - 1], rtol=close, atol=close)
        logits, cache = model.decode(tokens[rows, ends + step], cache)
    torch.testing.assert_close(logits, expected[rows, ends + steps - 1], rtol=close, atol=close)


@pytest.mark.parametrize("name", BUILDS)
@settings(max_examples=6, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=3),
    padding=st.integers(0, 12),
    steps=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_decoding_behind_padding_equals_the_forward_pass(
    name: str, lengths: list[int], padding: int, steps: int, seed: int
) -> None:
    assert_decoding_equals_forward(built(name), lengths, padding, steps, seed)


@settings(max_examples=25, deadline=None)
@given(
    pattern=patterns(),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    steps=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_longnet_decodes_with_any_patterns(
    pattern: dict[str, tuple[int, ...]], lengths: list[int], steps: int, seed: int
) -> None:
    assert_decoding_equals_forward(longnet(**pattern)(), lengths, 0, steps, seed)


@settings(max_examples=25, deadline=None)
@given(
    chunk_len=st.integers(1, 30),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    steps=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_retnet_decodes_with_any_chunk(chunk_len: int, lengths: list[int], steps: int, seed: int) -> None:
    assert_decoding_equals_forward(retnet(chunk_len=chunk_len)(), lengths, 0, steps, seed)


@pytest.mark.parametrize("name", BUILDS)
def test_model_is_a_decoder_that_keeps_no_graph(name: str) -> None:
    model = built(name)
    assert isinstance(model, Decoder)
    logits, cache = model.prefill(torch.zeros(1, 3, dtype=torch.int64))
    after, _ = model.decode(FIRST, cache)
    assert not logits.requires_grad
    assert not after.requires_grad


@pytest.mark.parametrize("name", BUILDS)
def test_a_mask_that_hides_nothing_changes_nothing(name: str) -> None:
    model, tokens = built(name), torch.randint(VOCAB_SIZE, (2, 9))
    torch.testing.assert_close(model.prefill(tokens, torch.ones(2, 9).bool())[0], model.prefill(tokens)[0])


def greedy(model: LanguageDecoder, prompt: Tensor, steps: int) -> Tensor:
    """Return the prompt with the most likely tokens behind it, decoded."""
    logits, cache = model.prefill(prompt)
    written = [prompt]
    for _ in range(steps):
        written.append(logits.argmax(-1, keepdim=True))
        logits, cache = model.decode(written[-1][:, 0], cache)
    return torch.cat(written, dim=1)


@pytest.mark.parametrize("name", ["transformer-rope", "longnet-rope", "retnet-chunkwise-rotation", "ebt-default-rope"])
def test_greedy_text_is_the_one_of_recomputing_everything(name: str) -> None:
    prompt = recomputed = torch.randint(VOCAB_SIZE, (2, 5))
    for _ in range(15):
        recomputed = torch.cat((recomputed, all_logits(built(name), recomputed)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(greedy(built(name), prompt, 15), recomputed)


@pytest.mark.parametrize("name", ["transformer-rope", "longnet-rope", "retnet-chunkwise-rotation", "ebt-default-rope"])
def test_bfloat16_weights_decode_in_float32_logits(name: str) -> None:
    model = BUILDS[name]().bfloat16()  # type: ignore[attr-defined]
    logits, cache = model.prefill(torch.zeros(1, 3, dtype=torch.int64))
    again, _ = model.decode(FIRST, cache)
    assert logits.dtype == again.dtype == torch.float32


@pytest.mark.parametrize("name", LIMITED)
def test_prompt_and_text_longer_than_the_positions_are_refused(name: str) -> None:
    message = "a sequence of 25 tokens does not fit the model, which was built for seq_len 24; accepted: 1 to 24 tokens"
    with pytest.raises(ConfigError, match=message):
        built(name).prefill(torch.zeros(1, 25, dtype=torch.int64))
    with pytest.raises(ConfigError, match=message):
        all_logits(built(name), torch.zeros(1, 25, dtype=torch.int64))
    _, cache = built(name).prefill(torch.zeros(1, 24, dtype=torch.int64))
    with pytest.raises(ConfigError, match=message):
        built(name).decode(FIRST, cache)


@pytest.mark.parametrize("name", LIMITED)
def test_padding_does_not_count_as_length(name: str) -> None:
    tokens = torch.randint(VOCAB_SIZE, (1, 30))
    behind, _ = built(name).prefill(tokens, torch.arange(30)[None] >= 20)
    torch.testing.assert_close(behind, built(name).prefill(tokens[:, 20:])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", UNLIMITED)
def test_without_a_table_of_positions_a_text_may_be_longer_than_the_data(name: str) -> None:
    tokens = torch.randint(VOCAB_SIZE, (1, 40))
    logits, cache = built(name).prefill(tokens[:, :30])
    for position in range(30, 40):
        logits, cache = built(name).decode(tokens[:, position], cache)
    torch.testing.assert_close(logits, all_logits(built(name), tokens)[:, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["transformer-rope", "retnet-chunkwise-rotation", "ebt-default-rope"])
@pytest.mark.parametrize("row", [[True, True, False], [True, False, True], [False, False, False]])
def test_prompt_that_is_not_padded_on_the_left_is_refused(name: str, row: list[bool]) -> None:
    mask = torch.tensor([[True, True, True], row])
    with pytest.raises(ConfigError, match="prompt 1 of 2 is not padded on the left"):
        built(name).prefill(torch.zeros(2, 3, dtype=torch.int64), mask)
