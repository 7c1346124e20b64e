from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from perjoule.models.layers import dilated
from perjoule.models.layers.cache import Past
from perjoule.models.layers.dilated import Pattern, dilated_attention, dilated_recall, document_biases
from perjoule.models.layers.fused import attend_with_total

Heads = tuple[Tensor, Tensor, Tensor]
PATTERNS = [Pattern(4, 1), Pattern(7, 2), Pattern(16, 5)]


def random_heads(num_heads: int, seq_len: int, batch: int = 2) -> Heads:
    q, k, v = torch.randn(3, batch, num_heads, seq_len, 8, dtype=torch.float64)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def attend_one_by_one(
    q: Tensor, k: Tensor, v: Tensor, patterns: list[Pattern], causal: bool, documents: list[int] | None = None
) -> Tensor:
    """Follow the definition: one query of one head at a time, over the keys that each pattern shows.

    Those of other documents than its own are left out.
    """
    num_heads, seq_len, head_dim = q.shape[1:]
    mixed = torch.zeros_like(q)
    for head, t in product(range(num_heads), range(seq_len)):
        outputs, totals = [], []
        for pattern in patterns:
            offset = head // -(-num_heads // pattern.dilation)
            begin = t - t % pattern.segment_length
            shown = range(begin + offset, min(begin + pattern.segment_length, seq_len), pattern.dilation)
            if t in shown:
                keys = [s for s in shown if s <= t or not causal]
                keys = keys if documents is None else [s for s in keys if documents[s] == documents[t]]
                scores = (k[:, head, keys] @ q[:, head, t, :, None]).squeeze(-1) / head_dim**0.5
                outputs.append((scores.softmax(-1).unsqueeze(1) @ v[:, head, keys]).squeeze(1))
                totals.append(scores.logsumexp(-1))
        if outputs:
            weights = torch.stack(totals).detach().softmax(0).unsqueeze(-1)
            mixed[:, head, t] = (weights * torch.stack(outputs)).sum(0)
    return mixed


def assert_same_with_gradients(heads: Heads, one: Callable[..., Tensor], other: Callable[..., Tensor]) -> None:
    expected, actual = one(*heads), other(*heads)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    direction = torch.randn_like(expected)
    for wanted, got in zip(
        torch.autograd.grad((expected * direction).sum(), heads, allow_unused=True, materialize_grads=True),
        torch.autograd.grad((actual * direction).sum(), heads, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("seq_len", [1, 3, 4, 7, 16, 30])
@pytest.mark.parametrize("num_heads", [1, 4, 7])
def test_dilated_attention_equals_the_definition_with_gradients(num_heads: int, seq_len: int, causal: bool) -> None:
    assert_same_with_gradients(
        random_heads(num_heads, seq_len),
        lambda q, k, v: attend_one_by_one(q, k, v, PATTERNS, causal),
        lambda q, k, v: dilated_attention(q, k, v, PATTERNS, causal),
    )


@st.composite
def some_pattern(draw: st.DrawFn) -> Pattern:
    length = draw(st.integers(1, 12))
    return Pattern(length, draw(st.integers(1, length)))


@settings(max_examples=30, deadline=None)
@given(st.lists(some_pattern(), min_size=1, max_size=3), st.integers(1, 5), st.integers(1, 25), st.booleans())
def test_any_patterns_equal_the_definition(patterns: list[Pattern], num_heads: int, seq_len: int, causal: bool) -> None:
    assert_same_with_gradients(
        random_heads(num_heads, seq_len, batch=1),
        lambda q, k, v: attend_one_by_one(q, k, v, patterns, causal),
        lambda q, k, v: dilated_attention(q, k, v, patterns, causal),
    )


@settings(max_examples=30, deadline=None)
@given(
    patterns=st.lists(some_pattern(), min_size=1, max_size=3),
    num_heads=st.integers(1, 5),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_documents_take_away_pairs_of_any_patterns(patterns: list[Pattern], num_heads: int, lengths: list[int]) -> None:
    documents = [number for number, length in enumerate(lengths) for _ in range(length)]
    biases = document_biases(torch.tensor([documents], dtype=torch.int32), patterns, num_heads)
    assert_same_with_gradients(
        random_heads(num_heads, len(documents), batch=1),
        lambda q, k, v: attend_one_by_one(q, k, v, patterns, True, documents),
        lambda q, k, v: dilated_attention(q, k, v, patterns, biases=biases),
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("segment_length", [20, 64])
def test_one_segment_without_dilation_is_dense_attention(segment_length: int, causal: bool) -> None:
    assert_same_with_gradients(
        random_heads(4, 20),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal),
        lambda q, k, v: dilated_attention(q, k, v, [Pattern(segment_length, 1)], causal),
    )


def test_a_pattern_given_twice_changes_nothing() -> None:
    q, k, v = random_heads(4, 20)
    once, twice = (dilated_attention(q, k, v, PATTERNS * times) for times in (1, 2))
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-12)


def test_query_that_no_pattern_has_is_zero_and_harms_no_gradient() -> None:
    q, k, v = random_heads(2, 9)
    mixed = dilated_attention(q, k, v, [Pattern(9, 3), Pattern(6, 3)])
    # Heads 0 and 1 have the offsets 0 and 1: nothing ends up at 2, 5 and 8, and each head has a third of the rest.
    assert (mixed[:, :, 2::3] == 0).all()
    assert (mixed[:, 0, 0::3] != 0).all()
    mixed.sum().backward()  # type: ignore[no-untyped-call]
    assert q.grad is not None
    assert q.grad.isfinite().all()


@settings(max_examples=30, deadline=None)
@given(st.lists(some_pattern(), min_size=1, max_size=3), st.integers(1, 5), st.integers(1, 30))
def test_recalling_one_query_equals_the_last_of_a_whole_sequence(
    patterns: list[Pattern], num_heads: int, seq_len: int
) -> None:
    q, k, v = random_heads(num_heads, seq_len)
    keys, values = (F.pad(x, (0, 0, 0, 3), value=9.0) for x in (k, v))
    past = Past(keys, values, positions=torch.full((2,), seq_len - 1))
    expected = dilated_attention(q, k, v, patterns)[:, :, -1:]
    torch.testing.assert_close(dilated_recall(q[:, :, -1:], past, patterns), expected, rtol=0, atol=1e-6)


def test_bfloat16_stays_close_to_float32() -> None:
    q, k, v = (x.detach().bfloat16() for x in random_heads(4, 40))
    exact = dilated_attention(q.float(), k.float(), v.float(), PATTERNS)
    rough = dilated_attention(q, k, v, PATTERNS)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.03)


@pytest.mark.parametrize("pattern", [Pattern(4, 1), Pattern(7, 2), Pattern(16, 5), Pattern(100, 7)])
def test_number_of_pairs_is_what_the_kernel_is_asked_for(pattern: Pattern, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def count(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        asked.append(q.shape[1] * q.shape[2] * k.shape[2])
        return attend_with_total(q, k, v, *rest)

    monkeypatch.setattr(dilated, "attend_with_total", count)
    dilated_attention(*random_heads(3, 30), [pattern])
    assert sum(asked) == 3 * pattern.num_pairs(30)


def test_pairs_grow_linearly_with_length() -> None:
    pattern = Pattern(64, 4)
    assert pattern.num_pairs(64 * 1000) == 1000 * pattern.num_pairs(64) == 1000 * 16**2
