import pytest
import torch

from perjoule.models.layers.norm import RMSNorm


def test_rms_norm_equals_its_formula() -> None:
    norm = RMSNorm(8, eps=0.1).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    expected = x / (x.square().mean(dim=-1, keepdim=True) + 0.1).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rms_norm_of_half_precision_is_formed_in_float32(dtype: torch.dtype) -> None:
    norm = RMSNorm(512, eps=1e-5).to(dtype)
    x = (400 * torch.randn(2, 512)).to(dtype)
    expected = x.float() * x.float().square().mean(dim=-1, keepdim=True).rsqrt()
    if dtype == torch.float16:
        assert x.square().isinf().any()  # what would go wrong
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x).float(), expected, rtol=2**-8, atol=0)
