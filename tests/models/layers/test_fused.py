import pytest
import torch
from torch import Tensor

from perjoule.models.layers import fused
from perjoule.models.layers.documents import hiding, visible_tokens
from perjoule.models.layers.fused import attend_with_total


def random_heads(seq_len: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, 2, 3, seq_len, 8, dtype=torch.float64)
    return q, k, v


def some_bias(seq_len: int) -> Tensor:
    """Return a bias of float32 that hides all but the own document, of about ten tokens, and the future."""
    return hiding(visible_tokens((torch.rand(2, seq_len) < 0.1).int().cumsum(1, dtype=torch.int32))).unsqueeze(1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("form", [attend_with_total, fused._in_the_open])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seq_len", [40, 300])  # some of the kernel's code is for long rows only
def test_every_form_returns_the_log_sum_exp_of_scores_with_and_without_a_bias(
    form: object, causal: bool, dtype: torch.dtype, seq_len: int
) -> None:
    assert callable(form)
    heads = random_heads(seq_len)
    scores = heads[0] @ heads[1].transpose(-1, -2) / 8**0.5
    if causal:
        scores = scores + torch.full((seq_len, seq_len), float("-inf")).triu(1)
    for bias in (None, some_bias(seq_len)):
        output, total = form(*(part.to(dtype).requires_grad_() for part in heads), causal, bias)
        hidden = scores if bias is None else scores + bias
        assert not total.requires_grad
        torch.testing.assert_close(total, hidden.logsumexp(-1), rtol=0, atol=1e-5, check_dtype=False)
        torch.testing.assert_close(output, (hidden.softmax(-1) @ heads[2]).to(dtype), rtol=0, atol=1e-5)


def test_kernel_of_gpus_has_the_shapes_of_the_others() -> None:
    q, k, v = (torch.empty(2, 3, 40, 64, device="meta").requires_grad_() for _ in range(3))
    output, total = fused._fused_on_cuda(q, k, v, causal=True)
    assert output.shape == q.shape
    assert total.shape == q.shape[:3]
    assert torch.autograd.grad(output.sum(), q)[0].shape == q.shape
