"""Tools that replace, hook or move linear layers and embeddings: LoRA, offloading, quantisation, hooks."""

import copy
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload  # type: ignore[import-untyped]
from tests.models.ebt_cases import tiny_ebt
from tests.models.every_model import BUILDS, SEQ_LEN, VOCAB_SIZE, all_logits, retnet, transformer
from torch import Tensor, nn
from torch.nn import functional as F

from perjoule.core.errors import ConfigError
from perjoule.models.ebt_denoiser import EBTDenoiserConfig
from perjoule.models.layers.linear import call_differentiably, is_plain
from perjoule.models.layers.norm import RMSNorm

quantize_dynamic: Any = torch.ao.quantization.quantize_dynamic
NAMES = (
    "transformer-sdpa-grouped",
    "longnet-magneto-rope",
    "retnet-chunkwise-rotation",
    "retnet-recurrent-none",
    "ebt-default-rope",
    "ebt-time_embed-xpos",
    "ebt-adaln-rope",
    "ebt-tied-s2",
)
TIED: dict[str, Callable[[], Any]] = {
    "transformer-tied": transformer(tie_embeddings=True),
    "transformer-tied-chunked": transformer(tie_embeddings=True, loss_chunk_rows=7),
    "retnet-chunked": retnet(loss_chunk_rows=7),
    "ebt-chunked": lambda: tiny_ebt({"step_size": 0.5}, 0.2, SEQ_LEN, loss_chunk_rows=7).double(),
}
CASES = (*NAMES, *TIED)


def build(name: str) -> Any:
    """Return a model in evaluation, the same every time."""
    torch.manual_seed(0)
    return {**BUILDS, **TIED}[name]().train(False)


def batch() -> dict[str, Tensor]:
    input_ids, labels = torch.randint(VOCAB_SIZE, (2, 2, SEQ_LEN), generator=torch.Generator().manual_seed(3))
    labels[:, ::5] = -100
    return {"input_ids": input_ids, "labels": labels}


def results(model: Any) -> list[Tensor]:
    """Return what a model gives in every way that it is used: whole sequences, loss, a prompt, one more token."""
    tensors = batch()
    prompt, cache = model.prefill(tensors["input_ids"][:, :9])
    after, _ = model.decode(tensors["input_ids"][:, 9], cache)
    return [all_logits(model, tensors["input_ids"]), model(tensors).loss.detach(), prompt, after]


def assert_same(found: list[Tensor], expected: list[Tensor], close: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=close, atol=close)


def modules_of(model: nn.Module, *kinds: type[nn.Module]) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


class Adapter(nn.Module):
    """A frozen module and a product of two small matrices, as PEFT puts in its place; it has no weight of its own."""

    def __init__(self, base: nn.Linear | nn.Embedding) -> None:
        super().__init__()
        rows, columns = base.weight.shape
        self.base = base.requires_grad_(False)
        options: dict[str, Any] = {"dtype": base.weight.dtype}
        self.up = nn.Parameter(torch.randn(rows, 2, **options) * 0.1)
        self.down = nn.Parameter(torch.randn(2, columns, **options) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.base, nn.Embedding):
            return self.base(x) + F.embedding(x, self.up) @ self.down  # type: ignore[no-any-return]
        return self.base(x) + x @ self.down.T @ self.up.T  # type: ignore[no-any-return]

    @torch.no_grad()
    def merged(self) -> nn.Module:
        self.base.weight += self.up @ self.down
        return self.base


@pytest.mark.parametrize("name", CASES)
def test_adapters_give_what_their_merged_weights_give_and_each_of_them_learns(name: str) -> None:
    model = build(name)
    for path, module in modules_of(model, nn.Linear, nn.Embedding).items():
        replace(model, path, Adapter(module))
    adapters = modules_of(model, Adapter)
    found = results(model)
    model.train()
    torch.manual_seed(5)
    loss = model(batch()).loss
    loss.backward()
    for path, adapter in adapters.items():
        assert adapter.up.grad is not None, path
        assert adapter.up.grad.abs().max() > 0, path
    for path, adapter in adapters.items():
        replace(model, path, adapter.merged())
    torch.manual_seed(5)
    torch.testing.assert_close(model(batch()).loss, loss, rtol=1e-5, atol=1e-5)
    assert_same(found, results(model.eval()), 1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_models_give_what_they_gave_before(name: str, where: str, tmp_path: Path) -> None:
    model = build(name)
    expected = results(model)
    if where == "cpu":
        cpu_offload(model, torch.device("cpu"), offload_buffers=True)
    else:
        disk_offload(model, str(tmp_path), torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert_same(results(model), expected, 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_quantised_linear_layers_give_nearly_the_same(name: str) -> None:
    model = build(name).float()
    with torch.no_grad():
        for module in modules_of(model, nn.Linear).values():
            module.weight *= 0.4  # small enough that thinking does not amplify what is rounded
    expected = results(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        quantised = quantize_dynamic(model, {nn.Linear}, torch.qint8)
    assert not modules_of(quantised, nn.Linear)
    for one, other in zip(results(quantised), expected, strict=True):
        similarity = F.cosine_similarity(one.flatten(), other.flatten(), dim=0)
        assert similarity > 0.99, (name, similarity)


@pytest.mark.parametrize("name", CASES)
def test_hooks_of_every_layer_fire_in_forward_decoding_and_training(name: str) -> None:
    model, fired = build(name), Counter[str]()
    layers = modules_of(model, nn.Linear, nn.Embedding, nn.LayerNorm, RMSNorm)
    blocks = getattr(model, "blocks", None) or model.body.blocks
    layers |= {f"block {number}": block for number, block in enumerate(blocks)}
    for path, module in layers.items():
        module.register_forward_hook(lambda *_, path=path: fired.update([path]))
    tokens = batch()["input_ids"]
    _, cache = model.prefill(tokens[:, :9])

    def decode() -> None:
        """Read one more token; a landscape's vector in front of the text is not read again."""
        model.eval().decode(tokens[:, 9], cache)

    for use in (lambda: model(batch()), lambda: model.train()(batch()).loss.backward(), decode):
        fired.clear()
        use()
        kept = set(layers) - set(fired)
        assert kept <= ({"body.landscapes"} if use is decode else set()), kept


@pytest.mark.parametrize("name", CASES)
def test_hooks_change_no_number(name: str) -> None:
    model, hooked = build(name), build(name)
    for module in modules_of(hooked, nn.Linear, nn.Embedding).values():
        module.register_forward_hook(lambda *_: None)
    assert_same(results(hooked), results(model), 1e-6)
    gradients = []
    for one in (model, hooked):
        torch.manual_seed(5)
        one.train()(batch()).loss.backward()
        gradients.append([parameter.grad for parameter in one.parameters() if parameter.grad is not None])
    assert_same(gradients[0], gradients[1], 1e-5)


def test_denoiser_with_adapters_and_quantised_layers() -> None:
    model = EBTDenoiserConfig(dim=16, num_layers=2).build({"image_size": 8, "num_channels": 3})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    images = {"noisy": torch.randn(2, 3, 8, 8), "clean": torch.randn(2, 3, 8, 8)}
    expected = model(images).loss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        quantised = quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)
    with torch.no_grad():
        torch.testing.assert_close(quantised(images).loss, expected, rtol=0.05, atol=0.0)
    for path, module in modules_of(model, nn.Linear).items():
        replace(model, path, Adapter(module))
    found = model(images).loss
    for path, adapter in modules_of(model, Adapter).items():
        replace(model, path, adapter.merged())
    torch.testing.assert_close(model(images).loss, found, rtol=1e-5, atol=1e-5)


def test_a_layer_is_plain_only_where_nothing_stands_between_its_weight_and_the_call() -> None:
    assert is_plain(nn.Linear(2, 3, bias=False), nn.Linear)
    assert not is_plain(nn.Linear(2, 3), nn.Linear)
    hooked, parametrised, wrapped = (nn.Linear(2, 3, bias=False) for _ in range(3))
    hooked.register_full_backward_hook(lambda *_: None)
    nn.utils.parametrizations.weight_norm(parametrised)
    vars(wrapped)["forward"] = lambda x: x  # as accelerate does
    assert not any(is_plain(layer, nn.Linear) for layer in (hooked, parametrised, wrapped))


def test_a_layer_without_any_derivative_is_refused_by_name() -> None:
    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    with pytest.raises(ConfigError, match="Opaque"):
        call_differentiably(Opaque(), torch.ones(2, requires_grad=True))
