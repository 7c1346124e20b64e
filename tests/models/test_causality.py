"""Changing a token changes no earlier logit: every architecture, form, variant and kind of positions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.every_model import BUILDS, SEQ_LEN, VOCAB_SIZE, LanguageDecoder, all_logits, built, longnet, retnet


def assert_causal(model: LanguageDecoder, seq_len: int, changed: int, seed: int) -> None:
    """Change one token; the same draws before and after, where training draws anything."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB_SIZE, (2, seq_len), generator=generator)
    others = tokens.clone()
    others[:, changed] = (others[:, changed] + 1) % VOCAB_SIZE
    logits = []
    for input_ids in (tokens, others):
        torch.manual_seed(seed)
        logits.append(all_logits(model, input_ids))
    difference = (logits[1] - logits[0]).abs().amax(-1)
    assert difference[:, :changed].sum() <= 1e-5
    assert (difference[:, changed] > 1e-5).all()


@st.composite
def lengths_and_places(draw: st.DrawFn) -> tuple[int, int]:
    """Draw a length and a place in it."""
    seq_len = draw(st.integers(1, SEQ_LEN))
    return seq_len, draw(st.integers(0, seq_len - 1))


@pytest.mark.parametrize("name", BUILDS)
@settings(max_examples=8, deadline=None)
@given(place=lengths_and_places(), training=st.booleans(), seed=st.integers(0, 99))
def test_changing_a_token_changes_no_earlier_logit(
    name: str, place: tuple[int, int], training: bool, seed: int
) -> None:
    model = built(name)
    model.train(training)
    try:
        assert_causal(model, *place, seed)
    finally:
        model.train(False)


@st.composite
def patterns(draw: st.DrawFn) -> dict[str, tuple[int, ...]]:
    """Draw segment lengths, and for each a dilation that it allows."""
    segment_lengths = tuple(draw(st.lists(st.integers(1, 30), min_size=1, max_size=3)))
    return {
        "segment_lengths": segment_lengths,
        "dilations": tuple(draw(st.integers(1, length)) for length in segment_lengths),
    }


@settings(max_examples=25, deadline=None)
@given(pattern=patterns(), place=lengths_and_places(), seed=st.integers(0, 99))
def test_longnet_is_causal_with_any_patterns(
    pattern: dict[str, tuple[int, ...]], place: tuple[int, int], seed: int
) -> None:
    assert_causal(longnet(**pattern)(), *place, seed)


@settings(max_examples=25, deadline=None)
@given(chunk_len=st.integers(1, 30), place=lengths_and_places(), seed=st.integers(0, 99))
def test_retnet_is_causal_with_any_chunk(chunk_len: int, place: tuple[int, int], seed: int) -> None:
    assert_causal(retnet(chunk_len=chunk_len)(), *place, seed)


@pytest.mark.parametrize("name", [name for name in BUILDS if not name.startswith("longnet")])
def test_the_first_token_is_seen_by_every_later_one(name: str) -> None:
    tokens = torch.randint(VOCAB_SIZE, (2, SEQ_LEN))
    before = all_logits(built(name), tokens)
    tokens[:, 0] = (tokens[:, 0] + 1) % VOCAB_SIZE
    assert ((all_logits(built(name), tokens) - before).abs().amax(-1) > 1e-6).all()
