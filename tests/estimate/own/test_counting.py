import json
from pathlib import Path

import pytest
import torch
from torch import nn

import perjoule
from perjoule.estimate.own.counting import count
from perjoule.models.contract import Output
from perjoule.train.config import TrainConfig

DIM, LAYERS, BATCH, SEQ_LEN = 32, 2, 4, 31


def recipe(*overrides: str, kind: str = "transformer") -> TrainConfig:
    config: TrainConfig = perjoule.load(
        None,
        f"model={{kind: {kind}, dim: {DIM}, num_layers: {LAYERS}}}",
        f"data={{kind: recall, seq_len: {SEQ_LEN}, num_pairs: 2, num_keys: 16, num_values: 16}}",
        f"batch.size={BATCH}",
        *overrides,
    ).config
    return config


def built(config: TrainConfig) -> nn.Module:
    model: nn.Module = config.model.build(config.data.build(0).shape)  # type: ignore[attr-defined]
    return model


def test_flops_are_those_of_the_model_s_own_formula(tmp_path: Path) -> None:
    config = recipe()
    counted = count(config, "float32", tmp_path)
    per_token = built(config).flops_per_token(SEQ_LEN).causal  # type: ignore[operator]
    assert counted.tokens_per_step == BATCH * SEQ_LEN
    assert counted.work.flops == pytest.approx(per_token * counted.tokens_per_step, rel=0.1)
    assert counted.work.forward_share == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("kind", ["transformer", "retnet", "longnet", "ebt"])
def test_every_architecture_is_counted_without_being_run(kind: str, tmp_path: Path) -> None:
    work = count(recipe(kind=kind), "float32", tmp_path).work
    assert work.float32_flops > 0
    assert work.bf16_flops == 0
    assert work.num_calls > 50
    assert work.peak_bytes >= work.activation_bytes > 0


def test_weights_and_optimizer_are_counted_to_the_byte(tmp_path: Path) -> None:
    config = recipe()
    num = sum(one.numel() for one in built(config).parameters())
    work = count(config, "float32", tmp_path).work
    assert work.trained_parameters == num
    assert work.weight_bytes == 3 * 4 * num
    # Gradients are there when the backward pass ends, and nothing else that the step made.
    assert work.peak_bytes > 4 * num


def test_saved_activations_are_those_that_autograd_holds(tmp_path: Path) -> None:
    config = recipe()
    model, batch = built(config), config.data.build(0).split("train").batch(0, BATCH)  # type: ignore[attr-defined]
    own = {one.untyped_storage().data_ptr() for one in model.parameters()}
    own |= {one.untyped_storage().data_ptr() for one in batch.tensors.values()}
    held: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(batch.tensors).loss
    assert loss.requires_grad
    assert count(config, "float32", tmp_path).work.activation_bytes == pytest.approx(sum(held.values()), rel=0.05)


def test_autocast_moves_products_to_bf16(tmp_path: Path) -> None:
    single, half = (count(recipe(), name, tmp_path).work for name in ("float32", "bf16-autocast"))
    assert half.bf16_flops == single.float32_flops
    assert half.float32_flops == 0
    assert half.bf16_bytes > 0 == single.bf16_bytes
    assert half.weight_bytes == single.weight_bytes


def test_weights_in_bf16_take_half_the_memory(tmp_path: Path) -> None:
    single, half = (count(recipe(), name, tmp_path).work for name in ("float32", "bf16"))
    assert half.weight_bytes == single.weight_bytes / 2


def test_twice_the_batch_is_twice_the_work(tmp_path: Path) -> None:
    one, two = (count(recipe(f"batch.size={size}"), "float32", tmp_path).work for size in (4, 8))
    assert two.flops == 2 * one.flops
    assert two.num_calls == one.num_calls
    assert two.weight_bytes == one.weight_bytes


def test_accumulation_does_the_same_work_in_less_memory(tmp_path: Path) -> None:
    whole, parts = (count(recipe(f"batch.accumulation={num}"), "float32", tmp_path) for num in (1, 4))
    assert parts.work.flops == whole.work.flops
    assert parts.tokens_per_step == whole.tokens_per_step
    assert parts.work.activation_bytes < whole.work.activation_bytes / 2


def test_more_thinking_is_more_work(tmp_path: Path) -> None:
    """The number of thinking steps is drawn while the model runs; it is counted at the middle of its range."""
    few, many = (
        count(recipe(f"model.thinking.steps={steps}", kind="ebt"), "float32", tmp_path).work for steps in (1, 4)
    )
    assert many.flops > 2 * few.flops


def test_counts_are_kept_and_depend_on_the_recipe(tmp_path: Path) -> None:
    first = count(recipe(), "float32", tmp_path)
    kept = list(tmp_path.glob("work-*.json"))
    assert len(kept) == 1
    changed = json.loads(kept[0].read_text())
    changed["samples_per_epoch"] = 7
    kept[0].write_text(json.dumps(changed))
    assert count(recipe(), "float32", tmp_path).samples_per_epoch == 7
    other = count(recipe("model.num_layers=1"), "float32", tmp_path)
    assert other.work.flops < first.work.flops
    assert len(list(tmp_path.glob("work-*.json"))) == 2


def test_a_damaged_count_is_made_again(tmp_path: Path) -> None:
    first = count(recipe(), "float32", tmp_path)
    for damage in ("{", "[]", '{"work": {}}'):
        next(tmp_path.glob("work-*.json")).write_text(damage)
        assert count(recipe(), "float32", tmp_path) == first


class Unfakeable(nn.Module):
    """Its shapes depend on what is in its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 8))

    def forward(self, tensors: dict[str, torch.Tensor]) -> Output:
        rows = tensors["input_ids"].ne(-1).nonzero()[:, :1].float()
        return Output((rows.expand(-1, 8) @ self.weight).sum())


def test_a_model_that_must_see_its_data_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipe()
    monkeypatch.setattr(type(config.model), "build", lambda self, shape: Unfakeable(), raising=True)
    work = count(config, "float32", tmp_path).work
    assert work.float32_flops == 2 * 2 * (BATCH * SEQ_LEN) * 8 * 8  # forward, and the gradient of the weight
    assert work.trained_parameters == 64
