import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from perjoule.core.errors import ConfigError
from perjoule.models.contract import Decoder, FlopsPerToken, Trainable
from perjoule.models.retnet import RetNet, RetNetCache, RetNetConfig

VOCAB_SIZE, SEQ_LEN = 48, 24
FORMS = ("parallel", "recurrent", "chunkwise")
Tensors = dict[str, Tensor]


def tiny(**overrides: Any) -> RetNet:
    sizes: dict[str, Any] = {"dim": 32, "num_layers": 2, "num_heads": 4, "value_dim": 40, "chunk_len": 7}
    return RetNetConfig(**(sizes | overrides)).build({"vocab_size": VOCAB_SIZE, "seq_len": SEQ_LEN})


def on_meta(vocab_size: int = 500, **settings: Any) -> RetNet:
    with torch.device("meta"):
        return RetNetConfig(**settings).build({"vocab_size": vocab_size, "seq_len": 16})


def loss_and_gradients(model: RetNet, batch: Tensors) -> tuple[Tensor, Tensors]:
    model.zero_grad()
    loss = model(batch).loss
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    return loss.detach(), {name: gradient.clone() for name, gradient in gradients.items()}


def all_logits(model: RetNet, input_ids: Tensor) -> Tensor:
    logits: Tensor | None = model({"input_ids": input_ids, "labels": input_ids}, with_logits=True).logits
    assert logits is not None
    return logits.detach()


def test_retnet_meets_the_contracts_of_the_loop_and_of_generation() -> None:
    assert isinstance(tiny(), Trainable)
    assert isinstance(tiny(), Decoder)


def test_logits_are_returned_only_when_asked(batch: Tensors) -> None:
    model = tiny()
    silent, spoken = model(batch), model(batch, with_logits=True)
    assert silent.logits is None
    assert spoken.logits.shape == (3, 24, 48)
    assert torch.equal(silent.loss, spoken.loss)
    by_hand = torch.nn.functional.cross_entropy(spoken.logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(spoken.loss, by_hand)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("changed", [0, 1, 6, 7, 13, 14, 23])
def test_changing_a_token_changes_no_earlier_logit(batch: Tensors, form: str, changed: int) -> None:
    model = tiny(retention=form, init_std=0.3)
    before = all_logits(model, batch["input_ids"])
    batch["input_ids"][:, changed] = (batch["input_ids"][:, changed] + 1) % 48
    after = all_logits(model, batch["input_ids"])
    torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=0, atol=1e-6)
    assert ((after - before).abs().amax(dim=-1) > 1e-5)[:, changed:].all()


@pytest.mark.parametrize("decay", ["halving", "geometric"])
@pytest.mark.parametrize("positions", ["rotation", "none"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("seq_len", [1, 7, 14, 23])
def test_forms_are_the_same_model(
    batch: Tensors, decay: str, positions: str, dtype: torch.dtype, tolerance: float, seq_len: int
) -> None:
    batch = {name: tensor[:, :seq_len] for name, tensor in batch.items()}
    results = []
    for form in FORMS:
        torch.manual_seed(1)
        model = tiny(retention=form, decay=decay, positions=positions).to(dtype)
        results.append((all_logits(model, batch["input_ids"]), loss_and_gradients(model, batch)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=tolerance)


def test_options_are_different_models(batch: Tensors) -> None:
    losses = set()
    for settings in ({}, {"decay": "geometric"}, {"positions": "none"}, {"activation": "gelu"}):
        torch.manual_seed(1)
        losses.add(tiny(**settings, init_std=0.3)(batch).loss.item())
    assert len(losses) == 4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prompt", [1, 7, 12])
def test_decoding_token_by_token_equals_the_full_forward(batch: Tensors, form: str, prompt: int) -> None:
    model = tiny(retention=form, init_std=0.3)
    whole = all_logits(model, batch["input_ids"])
    logits, cache = model.prefill(batch["input_ids"][:, :prompt])
    for n in range(prompt, SEQ_LEN):
        torch.testing.assert_close(logits, whole[:, n - 1], rtol=0, atol=1e-5)
        logits, cache = model.decode(batch["input_ids"][:, n], cache)
    torch.testing.assert_close(logits, whole[:, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", ["rotation", "none"])
def test_prompts_padded_on_the_left_continue_as_if_alone(batch: Tensors, positions: str) -> None:
    model = tiny(positions=positions, init_std=0.3)
    lengths, longest = (3, 12, 9), 12
    padded = torch.randint(VOCAB_SIZE, (3, longest))
    mask = torch.zeros(3, longest, dtype=torch.bool)
    for row, length in enumerate(lengths):
        padded[row, longest - length :] = batch["input_ids"][row, :length]
        mask[row, longest - length :] = True
    logits, cache = model.prefill(padded, mask)
    assert cache.num_read.tolist() == list(lengths)
    for step in range(8):
        for row, length in enumerate(lengths):
            alone = all_logits(model, batch["input_ids"][row : row + 1, : length + step])[0, -1]
            torch.testing.assert_close(logits[row], alone, rtol=0, atol=1e-5)
        token = torch.stack([batch["input_ids"][row, length + step] for row, length in enumerate(lengths)])
        logits, cache = model.decode(token, cache)


def test_prompt_without_padding_needs_no_mask(batch: Tensors) -> None:
    model = tiny()
    tokens = batch["input_ids"]
    torch.testing.assert_close(model.prefill(tokens)[0], model.prefill(tokens, torch.ones_like(tokens).bool())[0])


@pytest.mark.parametrize("row", [[True, True, False], [True, False, True], [False, False, False]])
def test_prompt_that_is_not_padded_on_the_left_is_refused(row: list[bool]) -> None:
    mask = torch.tensor([[True, True, True], row])
    with pytest.raises(ConfigError, match="prompt 1 of 2 is not padded on the left"):
        tiny().prefill(torch.zeros(2, 3, dtype=torch.int64), mask)


def test_cache_does_not_grow_and_nothing_is_too_long(batch: Tensors) -> None:
    model = tiny()

    def size(cache: RetNetCache) -> int:
        return sum(state.numel() for state in cache.states) + cache.num_read.numel() + cache.num_steps.numel()

    _, cache = model.prefill(batch["input_ids"][:, :2])
    sizes = {size(cache)}
    _, cache = model.prefill(batch["input_ids"].repeat(1, 5))
    for n in range(SEQ_LEN):
        logits, cache = model.decode(batch["input_ids"][:, n], cache)
        sizes.add(size(cache))
    whole = all_logits(model, batch["input_ids"].repeat(1, 6))
    torch.testing.assert_close(logits, whole[:, -1], rtol=0, atol=1e-5)
    assert sizes == {2 * 3 * 4 * 8 * 10 + 3 + 1}


@pytest.mark.parametrize("option", [{"activation_checkpointing": True}, {"loss_chunk_rows": 7}])
def test_memory_saving_option_changes_neither_loss_nor_gradients(batch: Tensors, option: dict[str, Any]) -> None:
    plain, saving = tiny(), tiny(**option)
    saving.load_state_dict(plain.state_dict())
    torch.testing.assert_close(
        loss_and_gradients(saving, batch), loss_and_gradients(plain, batch), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_autocast_stays_close_to_float32(batch: Tensors, form: str) -> None:
    model = tiny(retention=form)
    exact_loss, exact = loss_and_gradients(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch, with_logits=True)
        loss, rough = loss_and_gradients(model, batch)
        logits, cache = model.prefill(batch["input_ids"])
        logits, _ = model.decode(batch["input_ids"][:, 0], cache)
    assert output.logits.dtype == torch.bfloat16
    assert loss.dtype == logits.dtype == torch.float32
    assert all(state.dtype == torch.float32 for state in cache.states)
    assert abs(loss - exact_loss) < 1e-3
    for name, gradient in exact.items():
        similarity = torch.cosine_similarity(gradient.flatten(), rough[name].flatten(), dim=0)
        assert similarity > 0.998, name


def test_bfloat16_weights_train_and_decode(batch: Tensors) -> None:
    model = tiny().bfloat16()
    loss, gradients = loss_and_gradients(model, batch)
    assert loss.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients.values()} == {torch.bfloat16}
    logits, cache = model.prefill(batch["input_ids"])
    logits, _ = model.decode(batch["input_ids"][:, 0], cache)
    assert logits.dtype == torch.float32
    assert all(state.dtype == torch.float32 for state in cache.states)


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_initial_loss_is_near_the_logarithm_of_the_vocabulary(tie_embeddings: bool) -> None:
    model = RetNetConfig(tie_embeddings=tie_embeddings).build({"vocab_size": 4096, "seq_len": 32})
    input_ids, labels = torch.randint(4096, (2, 8, 32))
    loss = model({"input_ids": input_ids, "labels": labels}).loss.item()
    spread = 0.02 * math.sqrt(256)
    assert loss == pytest.approx(math.log(4096) + spread**2 / 2, abs=0.05)


def test_initial_weights_have_the_documented_spread() -> None:
    for name, weight in RetNetConfig(num_layers=8).build({"vocab_size": 1000, "seq_len": 8}).named_parameters():
        if name.endswith("norm.weight"):
            assert torch.equal(weight, torch.ones(256))
        else:
            adds_to_residual = name.endswith(("retention.output.weight", "ffn.down.weight"))
            spread = 0.02 / math.sqrt(2 * 8) if adds_to_residual else 0.02
            assert weight.std().item() == pytest.approx(spread, rel=0.03), name


def test_weights_depend_on_the_seed_only() -> None:
    def build(seed: int) -> Tensors:
        torch.manual_seed(seed)
        return tiny().state_dict()

    first, again, other = build(1), build(1), build(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_model_from_the_meta_device_equals_one_built_in_memory(batch: Tensors, tie_embeddings: bool) -> None:
    with torch.device("meta"):
        late = tiny(tie_embeddings=tie_embeddings)
    early = tiny(tie_embeddings=tie_embeddings)
    late.to_empty(device="cpu")
    for model in (early, late):
        torch.manual_seed(3)
        model.reset_parameters()
    assert late.state_dict().keys() == early.state_dict().keys()
    assert torch.equal(late(batch).loss, early(batch).loss)


def test_state_holds_weights_only_and_a_tied_matrix_once() -> None:
    untied, tied = tiny(), tiny(tie_embeddings=True)
    assert set(untied.state_dict()) == {name for name, _ in untied.named_parameters()}
    assert set(untied.state_dict()) - set(tied.state_dict()) == {"output.weight"}
    assert tied.output_weight is tied.embedding.weight


def test_parameter_groups_decay_all_matrices_and_no_norm() -> None:
    model = tiny()
    decayed, spared = model.parameter_groups()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] is True
    assert spared["weight_decay"] is False
    assert {names[id(parameter)] for parameter in spared["params"]} == {n for n in names.values() if "norm" in n}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_a_few_steps_learn_a_constant_batch(batch: Tensors) -> None:
    model = tiny(tie_embeddings=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss, _ = loss_and_gradients(model, batch)
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 3.5
    assert losses[-1] < 0.1


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while tracing
@pytest.mark.parametrize("form", ["parallel", "chunkwise"])
@pytest.mark.parametrize("autocast", [False, True])
def test_whole_step_is_one_graph(batch: Tensors, form: str, autocast: bool) -> None:
    model = tiny(retention=form, activation_checkpointing=autocast, loss_chunk_rows=50 if autocast else None)
    torch.compiler.reset()
    results = []
    for step in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = step(batch).loss
        results.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-3 if autocast else 1e-5)


def counted_flops_per_token(model: RetNet, seq_len: int) -> float:
    """Return what torch counts in one forward and backward pass over two samples."""
    tokens = torch.zeros(2, seq_len, dtype=torch.int64, device="meta")
    counter = FlopCounterMode(display=False)
    with counter:
        model({"input_ids": tokens, "labels": tokens}).loss.backward()
    return counter.get_total_flops() / (2 * seq_len)


@pytest.mark.parametrize(
    "settings",
    [
        {"retention": "parallel"},
        {"chunk_len": 8},
        {"chunk_len": 39},
        {"chunk_len": 40},
        {"chunk_len": 256},
        {"chunk_len": 10, "value_dim": 64, "ffn_dim": 100},
        {"preset": "7b", "num_layers": 2, "chunk_len": 20},
    ],
)
def test_flops_equal_what_torch_counts_up_to_the_norm_weights(settings: dict[str, Any]) -> None:
    model = on_meta(131072, **settings)
    norm_weights = 6 * (2 * model.config.num_layers + 1) * model.config.dim
    stated = model.flops_per_token(40)
    assert counted_flops_per_token(model, 40) == stated.full - norm_weights
    assert stated.causal < stated.full


def test_flops_do_not_grow_with_the_length_once_there_are_chunks() -> None:
    model, quadratic = on_meta(chunk_len=64), on_meta(retention="parallel")
    assert model.flops_per_token(64 * 500) == model.flops_per_token(64 * 2)
    grown = quadratic.flops_per_token(32000).full - quadratic.flops_per_token(16000).full
    assert grown == 6 * 4 * (256 + 432) * 16000
    state_only = on_meta(retention="recurrent").flops_per_token(32000)
    assert state_only == FlopsPerToken(state_only.causal, state_only.causal)


def test_recomputation_is_not_stated() -> None:
    plain, saving = on_meta(), on_meta(activation_checkpointing=True, loss_chunk_rows=16)
    assert saving.flops_per_token(40) == plain.flops_per_token(40)
    assert counted_flops_per_token(saving, 40) > counted_flops_per_token(plain, 40)
