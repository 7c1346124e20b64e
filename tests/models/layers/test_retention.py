import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perjoule.models.layers.retention import (
    Memory,
    Retention,
    Timeline,
    chunkwise,
    even_chunk,
    final_state,
    log_decays,
    parallel,
    recurrent,
    timeline,
)

HEADS, HEAD_DIM, VALUE_DIM = 3, 4, 6

FORMS: dict[str, Callable[..., Tensor]] = {
    "parallel": parallel,
    "recurrent": recurrent,
    "chunkwise, 1": lambda q, k, v, decay, documents=None: chunkwise(q, k, v, decay, 1, documents),
    "chunkwise, 7": lambda q, k, v, decay, documents=None: chunkwise(q, k, v, decay, 7, documents),
    "chunkwise, 256": lambda q, k, v, decay, documents=None: chunkwise(q, k, v, decay, 256, documents),
}


def times_of(seq_len: int, dtype: torch.dtype = torch.float64, heads: int = HEADS, **settings: Any) -> Timeline:
    positions = torch.arange(seq_len)
    decays = decays_of(heads, dtype)
    settings = {"count": positions[None] + 1, "theta": None} | settings
    return timeline(decays, positions, head_dim=HEAD_DIM, **settings)


def decays_of(heads: int = HEADS, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(log_decays(heads, "halving"), dtype=dtype)


def heads_of(seq_len: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    q, k = torch.randn(2, 2, HEADS, seq_len, HEAD_DIM, dtype=dtype)
    return q, k, torch.randn(2, HEADS, seq_len, VALUE_DIM, dtype=dtype)


def by_definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Sum the formula term by term."""
    mixed = torch.zeros_like(v)
    for head in range(HEADS):
        gamma = 1 - 2.0 ** -(5 + head)
        for n in range(q.shape[2]):
            for m in range(n + 1):
                weight = gamma ** (n - m) * (q[:, head, n] * k[:, head, m]).sum(-1, keepdim=True)
                mixed[:, head, n] += weight * v[:, head, m]
    return mixed


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seq_len", [1, 2, 7, 8, 21, 23])
def test_every_form_is_the_formula_at_any_length(form: str, seq_len: int) -> None:
    q, k, v = heads_of(seq_len)
    torch.testing.assert_close(FORMS[form](q, k, v, decays_of()), by_definition(q, k, v), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_every_form_retains_documents_of_any_length_by_themselves(form: str, lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    inputs = [tensor.requires_grad_() for tensor in heads_of(sum(lengths))]
    documents = torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int32), torch.tensor(lengths))
    # The second row is one document, whatever happens in the first.
    rows = torch.stack((documents, torch.zeros_like(documents)))
    alone = zip(*(torch.split(part[:1], lengths, dim=2) for part in inputs), strict=True)
    first = torch.cat([parallel(q, k, v, decays_of()) for q, k, v in alone], dim=2)
    q, k, v = (part[1:] for part in inputs)
    expected = torch.cat((first, parallel(q, k, v, decays_of())))
    found = FORMS[form](*inputs, decays_of(), rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((mixed * weights).sum(), inputs) for mixed in (expected, found)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_float32_is_within_1e_5_of_float64(form: str) -> None:
    q, k, v = heads_of(300)
    exact = parallel(q, k, v, decays_of())
    rough = FORMS[form](q.float(), k.float(), v.float(), decays_of(dtype=torch.float32))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.double(), exact, rtol=1e-5, atol=1e-4)  # the numbers reach 60


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_gradients(form: str) -> None:
    inputs = [tensor.requires_grad_() for tensor in heads_of(19)]
    weights = torch.randn(2, HEADS, 19, VALUE_DIM, dtype=torch.float64)
    expected = torch.autograd.grad((parallel(inputs[0], inputs[1], inputs[2], decays_of()) * weights).sum(), inputs)
    found = torch.autograd.grad((FORMS[form](inputs[0], inputs[1], inputs[2], decays_of()) * weights).sum(), inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_gradient_of_the_chunkwise_form_is_that_of_finite_differences() -> None:
    inputs = [tensor.requires_grad_() for tensor in heads_of(5)]
    assert torch.autograd.gradcheck(lambda q, k, v: chunkwise(q, k, v, decays_of(), 2), inputs)


@pytest.mark.parametrize("form", FORMS)
def test_padding_on_the_left_changes_nothing_for_what_follows(form: str) -> None:
    q, k, v = heads_of(20)
    k[:, :, :8] = 0
    alone = FORMS[form](q[:, :, 8:], k[:, :, 8:], v[:, :, 8:], decays_of())
    padded = FORMS[form](q, k, v, decays_of())
    torch.testing.assert_close(padded[:, :, 8:], alone, rtol=0, atol=1e-12)
    assert padded[:, :, :8].abs().max() == 0


def test_layer_leaves_padded_keys_out_and_counts_from_the_first_real_token() -> None:
    layer = Retention(HEADS * HEAD_DIM, HEADS * VALUE_DIM, HEADS, 1e-2, "chunkwise", 4).double()
    x = torch.randn(2, 20, HEADS * HEAD_DIM, dtype=torch.float64)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, :8] = False
    padded = layer(x, times_of(20, count=mask.cumsum(1), mask=mask))
    torch.testing.assert_close(padded[0], layer(x[:1], times_of(20))[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(padded[1, 8:], layer(x[1:, 8:], times_of(12))[0], rtol=0, atol=1e-12)


def test_final_state_is_what_the_recurrence_ends_with() -> None:
    _, k, v = heads_of(30)
    state = torch.zeros(2, HEADS, HEAD_DIM, VALUE_DIM, dtype=torch.float64)
    gamma = torch.tensor([1 - 2.0 ** -(5 + head) for head in range(HEADS)], dtype=torch.float64)
    for n in range(30):
        state = gamma[:, None, None] * state + k[:, :, n, :, None] * v[:, :, n, None]
    torch.testing.assert_close(final_state(k, v, decays_of()), state, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("seq_len", "chunk_len", "chunk"), [(1, 256, 1), (1000, 256, 250), (1024, 256, 256), (7, 3, 3)]
)
def test_chunks_are_equally_long(seq_len: int, chunk_len: int, chunk: int) -> None:
    assert even_chunk(seq_len, chunk_len) == chunk


@pytest.mark.parametrize("chunk_len", [1, 3, 64, 256])
def test_fewer_positions_are_padded_than_there_are_chunks(chunk_len: int) -> None:
    for seq_len in range(1, 600):
        chunk = even_chunk(seq_len, chunk_len)
        num_chunks = -(-seq_len // chunk)
        assert chunk <= chunk_len
        assert 0 <= num_chunks * chunk - seq_len < num_chunks


@pytest.mark.parametrize("chunk_len", [32, 256, 512])
def test_fastest_head_neither_overflows_nor_loses_digits_in_long_sequences(chunk_len: int) -> None:
    q, k, v = heads_of(2000)
    exact = parallel(q, k, v, decays_of())
    rough = chunkwise(q.float(), k.float(), v.float(), decays_of(dtype=torch.float32), chunk_len)
    torch.testing.assert_close(rough.double(), exact, rtol=1e-5, atol=1e-4)  # the numbers reach 150


def numbers_kept(form: Callable[..., Tensor], seq_len: int) -> int:
    """Return how many numbers the backward pass is given."""
    inputs = [tensor.requires_grad_() for tensor in heads_of(seq_len)]
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        form(inputs[0], inputs[1], inputs[2], decays_of())
    return sum(kept.values())


def test_memory_of_the_chunkwise_form_is_linear_and_that_of_the_parallel_one_is_not() -> None:
    assert numbers_kept(FORMS["chunkwise, 7"], 700) < 2.05 * numbers_kept(FORMS["chunkwise, 7"], 350)
    assert numbers_kept(parallel, 700) > 3.5 * numbers_kept(parallel, 350)


def test_decays_are_those_of_the_published_code_and_of_the_papers_experiments() -> None:
    halving = [1 - 2.0**-5, 1 - 2.0**-6, 1 - 2.0**-7, 1 - 2.0**-8]
    assert [math.exp(value) for value in log_decays(4, "halving")] == pytest.approx(halving, rel=1e-15)
    spread = torch.linspace(math.log(1 / 32), math.log(1 / 512), 6, dtype=torch.float64).exp()
    assert [1 - math.exp(value) for value in log_decays(6, "geometric")] == pytest.approx(spread.tolist(), rel=1e-9)
    assert log_decays(1, "geometric") == log_decays(1, "halving")


def test_a_head_that_hardly_forgets_counts_its_tokens_exactly() -> None:
    counted = times_of(1000, torch.float32, heads=32).weight[0].double() / HEAD_DIM
    torch.testing.assert_close(counted[-1], torch.arange(1, 1001).double(), rtol=1e-6, atol=0)
    first = sum((1 - 2.0**-5) ** n for n in range(1000))
    assert counted[0, -1].item() == pytest.approx(first, rel=1e-6)


def test_rotation_has_the_published_angles_and_sees_distances_only() -> None:
    times = times_of(9, theta=1e4)
    assert times.rotation is not None
    cos, sin = times.rotation
    for position in range(9):
        for pair, frequency in enumerate((1.0, 1e-4)):
            assert cos[position, pair].item() == pytest.approx(math.cos(position * frequency), abs=1e-12)
            assert sin[position, pair].item() == pytest.approx(math.sin(position * frequency), abs=1e-12)
    layer = Retention(8, 12, 2, 1e-6, "parallel", 4).double()
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    decays, count = decays_of(2), torch.arange(9)[None] + 1
    here, there = (timeline(decays, torch.arange(9) + start, count, HEAD_DIM, 100.0) for start in (0, 1000))
    still = timeline(decays, torch.arange(9), count, HEAD_DIM, None)
    torch.testing.assert_close(layer(x, here), layer(x, there), rtol=0, atol=1e-12)
    assert not torch.allclose(layer(x, here), layer(x, still), atol=1e-3)


@pytest.mark.parametrize("form", ["parallel", "recurrent", "chunkwise"])
def test_layer_decodes_to_what_it_computes_at_once(form: Any) -> None:
    layer = Retention(HEADS * HEAD_DIM, HEADS * VALUE_DIM, HEADS, 1e-6, form, 4).double()
    x = torch.randn(2, 11, HEADS * HEAD_DIM, dtype=torch.float64)
    whole = layer(x, times_of(11))
    memory = Memory()
    begun = layer(x[:, :5], times_of(5), memory)
    torch.testing.assert_close(begun, whole[:, :5], rtol=0, atol=1e-12)
    for n in range(5, 11):
        now = torch.tensor([n])
        step = layer(x[:, n : n + 1], times_of(1, count=now[None] + 1), memory)
        torch.testing.assert_close(step, whole[:, n : n + 1], rtol=0, atol=1e-12)


def test_layer_is_the_published_formula() -> None:
    layer = Retention(8, 12, 2, 1e-6, "chunkwise", 4).double()
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    decays = decays_of(2)
    times = timeline(decays, torch.arange(6), torch.arange(6)[None] + 1, HEAD_DIM, None)
    q, k, v, g = (x @ rows.T for rows in torch.split(layer.qkvg.weight, [8, 8, 12, 12]))
    columns = []
    for head, gamma in enumerate((1 - 2.0**-5, 1 - 2.0**-6)):
        part, wide = slice(4 * head, 4 * head + 4), slice(6 * head, 6 * head + 6)
        for n in range(6):
            ages = torch.arange(n, -1, -1, dtype=torch.float64)
            weights = (q[0, n, part] @ k[0, : n + 1, part].T) * gamma**ages / (gamma**ages).sum().sqrt() / 2
            mixed = weights @ v[0, : n + 1, wide]
            mixed = mixed / (mixed.square().mean() + 1e-6).sqrt()
            columns.append(torch.nn.functional.silu(g[0, n, wide]) * mixed)
    gated = torch.stack(columns).view(2, 6, 6).transpose(0, 1).flatten(1)
    torch.testing.assert_close(layer(x, times)[0], gated @ layer.output.weight.T, rtol=0, atol=1e-12)
