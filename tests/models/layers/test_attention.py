import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perjoule.models.layers.attention import KERNELS, Attention, Kernel, Places, blocked, sdpa
from perjoule.models.layers.documents import hiding, visible_tokens
from perjoule.models.layers.glu import GLU
from perjoule.models.layers.rope import RotaryTable


def random_heads(num_heads: int, num_kv_heads: int, seq_len: int) -> tuple[Tensor, Tensor, Tensor]:
    def heads(number: int) -> Tensor:
        return torch.randn(2, number, seq_len, 8).requires_grad_()

    return heads(num_heads), heads(num_kv_heads), heads(num_kv_heads)


def some_bias(seq_len: int) -> Tensor:
    """Return a bias that hides other documents in two rows: they begin anywhere, and at the last token."""
    begins = torch.rand(2, seq_len) < 0.2
    begins[:, -1] = True
    return hiding(visible_tokens(begins.cumsum(1, dtype=torch.int32))).unsqueeze(1)


def attend_one_by_one(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Follow the definition: one query at a time, over the keys up to its own."""
    mixed = torch.empty_like(q)
    bias = torch.zeros(1, 1, q.shape[2], q.shape[2]) if bias is None else bias
    for head in range(q.shape[1]):
        shared = head // (q.shape[1] // k.shape[1])
        for t in range(q.shape[2]):
            scores = (k[:, shared, : t + 1] @ q[:, head, t, :, None]).squeeze(-1) / math.sqrt(q.shape[-1])
            scores = scores + bias[:, 0, t, : t + 1]
            mixed[:, head, t] = (scores.softmax(dim=-1)[:, None] @ v[:, shared, : t + 1]).squeeze(1)
    return mixed


@pytest.mark.parametrize("kernel", get_args(Kernel))
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_kernel_equals_the_definition(kernel: Kernel, num_heads: int, num_kv_heads: int) -> None:
    heads = random_heads(num_heads, num_kv_heads, seq_len=11)
    with torch.no_grad():
        for bias in (None, some_bias(11)):
            expected = attend_one_by_one(*heads, bias)
            torch.testing.assert_close(KERNELS[kernel](*heads, bias), expected, rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seq_len=st.integers(1, 70), num_kv_heads=st.integers(1, 3), group=st.integers(1, 3), apart=st.booleans())
def test_blocked_equals_sdpa_with_gradients_at_any_length(
    seq_len: int, num_kv_heads: int, group: int, apart: bool
) -> None:
    heads = random_heads(num_kv_heads * group, num_kv_heads, seq_len)
    direction, bias = torch.randn_like(heads[0]), some_bias(seq_len) if apart else None
    outputs, gradients = [], []
    for kernel in (sdpa, blocked):
        outputs.append(kernel(*heads, bias))
        gradients.append(torch.autograd.grad((outputs[-1] * direction).sum(), heads))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-5)
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kernel", get_args(Kernel))
def test_kernel_keeps_bfloat16_and_stays_close_to_float32(kernel: Kernel) -> None:
    heads = [tensor.detach().bfloat16() for tensor in random_heads(4, 2, seq_len=37)]
    q, k, v = (tensor.float() for tensor in heads)
    exact = sdpa(q, k, v)
    rough = KERNELS[kernel](*heads)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.03)


@pytest.mark.parametrize("kernel", get_args(Kernel))
def test_kernel_has_the_same_shapes_where_there_is_no_cpu(kernel: Kernel) -> None:
    heads = [tensor.detach().to("meta").bfloat16() for tensor in random_heads(4, 2, seq_len=11)]
    mixed = KERNELS[kernel](*heads, some_bias(11).to("meta"))
    assert (mixed.shape, mixed.dtype) == (heads[0].shape, torch.bfloat16)


@pytest.mark.parametrize("num_kv_heads", [4, 1])
def test_attention_projects_rows_in_the_order_query_key_value(num_kv_heads: int) -> None:
    layer = Attention(dim=32, num_heads=4, num_kv_heads=num_kv_heads, kernel="sdpa")
    x, places = torch.randn(2, 1, 32), Places(RotaryTable(1, 8, 1e4)(1))
    value_rows = layer.qkv.weight[32 + 8 * num_kv_heads :].view(num_kv_heads, 8, 32)
    # A sequence of one token attends to itself, so that the output is its value, repeated for each group of heads.
    values = torch.einsum("hrd,bsd->bshr", value_rows, x).repeat_interleave(4 // num_kv_heads, dim=2)
    torch.testing.assert_close(layer(x, places), layer.output(values.flatten(2)), rtol=0, atol=1e-6)


def test_swiglu_equals_its_formula() -> None:
    layer = GLU(dim=6, ffn_dim=10)
    x = torch.randn(4, 6)
    gate, up = x @ layer.gate_up.weight[:10].T, x @ layer.gate_up.weight[10:].T
    expected = (gate * torch.sigmoid(gate) * up) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)
