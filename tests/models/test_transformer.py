import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from perjoule.core.errors import ConfigError
from perjoule.models.contract import Trainable
from perjoule.models.layers.attention import Attention, Kernel
from perjoule.models.transformer import Transformer, TransformerConfig

Tiny = Callable[..., Transformer]
Tensors = dict[str, Tensor]
KERNELS = get_args(Kernel)


def loss_and_gradients(model: Transformer, batch: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(batch).loss
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    return loss.detach(), {name: gradient.clone() for name, gradient in gradients.items()}


def kernels_in_use(model: Transformer) -> list[str]:
    return [module.kernel for module in model.modules() if isinstance(module, Attention)]


def test_transformer_meets_the_contract_of_the_loop(tiny: Tiny) -> None:
    assert isinstance(tiny(), Trainable)


def test_logits_are_returned_only_when_asked(tiny: Tiny, batch: Tensors) -> None:
    model = tiny()
    silent, spoken = model(batch), model(batch, with_logits=True)
    assert silent.logits is None
    assert spoken.logits.shape == (3, 24, 48)
    assert torch.equal(silent.loss, spoken.loss)
    by_hand = torch.nn.functional.cross_entropy(spoken.logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(spoken.loss, by_hand)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("changed", [0, 1, 6, 7, 13, 23])
def test_changing_a_token_changes_no_earlier_logit(tiny: Tiny, batch: Tensors, kernel: str, changed: int) -> None:
    model = tiny(attention=kernel, num_kv_heads=2, init_std=0.3)
    before = model(batch, with_logits=True).logits
    batch["input_ids"][:, changed] = (batch["input_ids"][:, changed] + 1) % 48
    after = model(batch, with_logits=True).logits
    torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=0, atol=1e-6)
    assert ((after - before).abs().amax(dim=-1) > 1e-4)[:, changed:].all()


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


def test_longer_sequence_than_built_for_is_refused(tiny: Tiny) -> None:
    tokens = torch.zeros(1, 25, dtype=torch.int64)
    with pytest.raises(ConfigError, match="25 tokens does not fit the model, which was built for seq_len 24"):
        tiny()({"input_ids": tokens, "labels": tokens})


def test_attention_probe_offers_every_kernel_at_the_shape_it_would_see(tiny: Tiny, batch: Tensors) -> None:
    kernels, shape = tiny().attention_probe(rows=3)
    assert shape == (3, 4, 24, 8)
    q, k, v = torch.randn(3, *shape)
    assert list(kernels) == list(KERNELS)
    for kernel in kernels.values():
        assert kernel(q, k, v).shape == shape


@pytest.mark.parametrize("option", [{"activation_checkpointing": True}, {"loss_chunk_rows": 7}])
def test_memory_saving_option_changes_neither_loss_nor_gradients(
    tiny: Tiny, batch: Tensors, option: dict[str, Any]
) -> None:
    plain, saving = tiny(), tiny(**option)
    saving.load_state_dict(plain.state_dict())
    torch.testing.assert_close(
        loss_and_gradients(saving, batch), loss_and_gradients(plain, batch), rtol=1e-5, atol=1e-7
    )


def test_activation_checkpointing_keeps_fewer_numbers_for_the_backward_pass(tiny: Tiny, batch: Tensors) -> None:
    def kept(model: Transformer) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(batch)
        return sum(sizes)

    assert kept(tiny(activation_checkpointing=True)) < 0.5 * kept(tiny())


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


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_initial_loss_is_near_the_logarithm_of_the_vocabulary(tie_embeddings: bool) -> None:
    model = TransformerConfig(tie_embeddings=tie_embeddings).build({"vocab_size": 4096, "seq_len": 32})
    input_ids, labels = torch.randint(4096, (2, 8, 32))
    loss = model({"input_ids": input_ids, "labels": labels}).loss.item()
    spread = 0.02 * math.sqrt(256)
    assert loss == pytest.approx(math.log(4096) + spread**2 / 2, abs=0.05)


def test_initial_weights_have_the_documented_spread() -> None:
    model = TransformerConfig(num_layers=8).build({"vocab_size": 1000, "seq_len": 8})
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            assert torch.equal(weight, torch.ones(256))
        else:
            adds_to_residual = name.endswith(("attention.output.weight", "ffn.down.weight"))
            spread = 0.02 / math.sqrt(2 * 8) if adds_to_residual else 0.02
            assert weight.std().item() == pytest.approx(spread, rel=0.03), name


def test_weights_depend_on_the_seed_only(tiny: Tiny) -> None:
    def build(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return tiny().state_dict()

    first, again, other = build(1), build(1), build(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_model_from_the_meta_device_equals_one_built_in_memory(
    tiny: Tiny, batch: Tensors, tie_embeddings: bool
) -> None:
    with torch.device("meta"):
        late = tiny(tie_embeddings=tie_embeddings)
    early = tiny(tie_embeddings=tie_embeddings)
    late.to_empty(device="cpu")
    for model in (early, late):
        torch.manual_seed(3)
        model.reset_parameters()
    assert late.state_dict().keys() == early.state_dict().keys()
    assert torch.equal(late(batch).loss, early(batch).loss)


def test_state_holds_weights_only_and_a_tied_matrix_once(tiny: Tiny) -> None:
    untied, tied = tiny(), tiny(tie_embeddings=True)
    assert set(untied.state_dict()) == {name for name, _ in untied.named_parameters()}
    assert set(untied.state_dict()) - set(tied.state_dict()) == {"output.weight"}
    assert tied.output_weight is tied.embedding.weight


def test_parameter_groups_decay_all_matrices_and_no_norm(tiny: Tiny) -> None:
    model = tiny()
    decayed, spared = model.parameter_groups()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] is True
    assert spared["weight_decay"] is False
    assert {names[id(parameter)] for parameter in spared["params"]} == {n for n in names.values() if "norm" in n}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_a_few_steps_learn_a_constant_batch(tiny: Tiny, batch: Tensors) -> None:
    model = tiny(tie_embeddings=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss, _ = loss_and_gradients(model, batch)
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 3.5
    assert losses[-1] < 0.1
