from collections.abc import Callable
from typing import get_args

import pytest
import torch
from tests.models.every_model import loss_and_gradients
from torch import Tensor

from perjoule.core.errors import ConfigError
from perjoule.models.layers.attention import Attention, Kernel
from perjoule.models.transformer import Transformer

Tiny = Callable[..., Transformer]
Tensors = dict[str, Tensor]
KERNELS = get_args(Kernel)


def kernels_in_use(model: Transformer) -> list[str]:
    return [module.kernel for module in model.modules() if isinstance(module, Attention)]


def test_kernels_compute_the_same_model(tiny: Tiny, batch: Tensors) -> None:
    model = tiny(num_kv_heads=2)
    batch = {name: tensor[:, :23] for name, tensor in batch.items()}
    results = []
    for kernel in KERNELS:
        model.set_attention(kernel)
        assert kernels_in_use(model) == [kernel, kernel]
        results.append(loss_and_gradients(model, batch))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("setting", "kernel"), [("auto", "sdpa"), ("sdpa", "sdpa"), ("blocked", "blocked")])
def test_configured_attention_is_the_one_in_use(tiny: Tiny, setting: str, kernel: str) -> None:
    assert kernels_in_use(tiny(attention=setting)) == [kernel, kernel]


def test_unknown_attention_kernel_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="unknown attention kernel 'block': did you mean 'blocked'"):
        tiny().set_attention("block")


def test_attention_probe_offers_every_kernel_at_the_shape_it_would_see(tiny: Tiny, batch: Tensors) -> None:
    kernels, shape = tiny().attention_probe(rows=3)
    assert shape == (3, 4, 24, 8)
    q, k, v = torch.randn(3, *shape)
    assert list(kernels) == list(KERNELS)
    for kernel in kernels.values():
        assert kernel(q, k, v).shape == shape


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_autocast_stays_close_to_float32(tiny: Tiny, batch: Tensors, kernel: str) -> None:
    model = tiny(attention=kernel, num_kv_heads=2)
    exact_loss, exact = loss_and_gradients(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch, with_logits=True)
        loss, rough = loss_and_gradients(model, batch)
    assert output.logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert abs(loss - exact_loss) < 1e-3
    for name, gradient in exact.items():
        similarity = torch.cosine_similarity(gradient.flatten(), rough[name].flatten(), dim=0)
        assert similarity > 0.999, name


def test_bfloat16_weights_train(tiny: Tiny, batch: Tensors) -> None:
    model = tiny().bfloat16()
    loss, gradients = loss_and_gradients(model, batch)
    assert loss.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients.values()} == {torch.bfloat16}
