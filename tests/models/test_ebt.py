"""The model as the training loop sees it: loss, start, chance, options, parameters, FLOPs."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.models.ebt_cases import VARIANTS, guesses, tiny_ebt, tokens
from tests.models.every_model import counted_flops_per_token
from torch import Tensor

from perjoule.core.errors import ConfigError
from perjoule.models import SHELF
from perjoule.models.contract import Trainable, count_parameters
from perjoule.models.ebt import EBT, EBTConfig
from perjoule.models.ebt_flops import flops_per_token

TEXT = {"vocab_size": 1000, "seq_len": 16}


def on_meta(**settings: Any) -> EBT:
    with torch.device("meta"):
        return EBTConfig(**settings).build(TEXT)


def test_shelf_loads_the_model_which_meets_the_contract_of_the_loop() -> None:
    assert SHELF.load("ebt") is EBTConfig
    assert SHELF.describe("ebt").startswith("Energy-Based Transformer: a language model")
    assert isinstance(tiny_ebt(), Trainable)


@pytest.mark.parametrize("preset", EBTConfig.PRESETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_counted_parameters_equal_the_formula(preset: str, variant: str) -> None:
    model = on_meta(preset=preset, variant=variant)
    assert count_parameters(model) == model.config.num_body_parameters + 2 * 1000 * model.config.dim + 1
    tied = on_meta(preset=preset, variant=variant, tie_candidates=True)
    assert count_parameters(model) - count_parameters(tied) == 1000 * model.config.dim


def test_body_of_xxs_is_as_large_as_the_released_one() -> None:
    with torch.device("meta"):
        model = EBTConfig(preset="xxs", variant="time_embed").build({"vocab_size": 50277, "seq_len": 256})
    assert model.config.num_body_parameters == 6_199_296
    assert count_parameters(model) == 44_812_034 - 1  # theirs counts a frozen noise as well


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("thinking", ["s1", {"preset": "s2", "replay_fraction": 0.0}])
def test_training_starts_at_the_logarithm_of_the_vocabulary(variant: str, thinking: Any) -> None:
    model = EBTConfig(dim=32, num_heads=2, num_layers=2, variant=variant, thinking=thinking).build(TEXT)
    batch = {name: torch.randint(1000, (4, 16)) for name in ("input_ids", "labels")}
    assert model(batch).loss.item() == pytest.approx(math.log(1000), abs=0.02)


@pytest.mark.parametrize(("vocab_size", "dim"), [(100, 32), (4096, 32), (4096, 256), (50000, 64)])
def test_step_size_is_scaled_so_that_logits_of_the_first_step_have_a_spread_near_one(vocab_size: int, dim: int) -> None:
    model = EBTConfig(dim=dim, num_heads=2, num_layers=2).build({"vocab_size": vocab_size, "seq_len": 16})
    torch.nn.init.normal_(model.body.head.weight, std=0.02)
    input_ids = torch.randint(vocab_size, (2, 16))
    path = model.think(model.energy(input_ids), torch.randn(2, 16, vocab_size), last_state=True)
    assert 0.3 < path.states[0].std().item() < 3
    output = model({"input_ids": input_ids, "labels": input_ids})
    assert abs(output.metrics["initial_loss"].item() - math.log(vocab_size)) < 2


def test_given_step_size_is_taken_and_a_learned_one_has_a_floor() -> None:
    model = tiny_ebt({"step_size": 7.0})
    assert model.step_size.item() == 7.0
    with torch.no_grad():
        model.step_size_factor.fill_(-3.0)
    assert model.step_size.item() == pytest.approx(1e-4)
    assert model(tokens()).metrics["step_size"].item() == pytest.approx(1e-4)


def test_system_two_steps_ten_times_as_far_unless_told_how_far() -> None:
    one, two = (EBTConfig(thinking=preset).initial_step_size(500) for preset in ("s1", "s2"))
    assert two == pytest.approx(10 * one)
    scaled = EBTConfig(thinking={"preset": "s2", "step_size_scale": 1.0}).initial_step_size(500)
    given = EBTConfig(thinking={"preset": "s2", "step_size": 7.0}).initial_step_size(500)
    assert (scaled, given) == (one, 7.0)


def test_start_of_zeros_scales_the_step_size_by_its_own_spread() -> None:
    noise, zeros = (EBTConfig(norm_eps=1e-12, thinking={"start": start}) for start in ("noise", "zeros"))
    ratio = noise.initial_step_size(500) / zeros.initial_step_size(500)
    assert ratio == pytest.approx(math.exp(0.5), rel=1e-3)


def test_evaluation_is_the_same_every_time_and_training_is_not() -> None:
    model, batch = tiny_ebt({"langevin_noise": 1.0, "random_step_size": 2.0, "max_steps": 4}), tokens()
    first, again = model.eval()(batch), model(batch)
    torch.testing.assert_close(first.loss, again.loss)
    by_hand = torch.nn.functional.cross_entropy(
        model(batch, with_logits=True).logits.flatten(0, 1), batch["labels"].flatten()
    )
    torch.testing.assert_close(first.loss, by_hand)
    model.train()
    assert model(batch).loss != model(batch).loss


def loss_of(thinking: dict[str, Any], seed: int = 3, **settings: Any) -> float:
    model = tiny_ebt(thinking, **settings)
    torch.manual_seed(seed)
    loss: float = model(tokens(), start=guesses()).loss.item()
    return loss


@pytest.mark.parametrize(
    "chance",
    [{"langevin_noise": 1.0}, {"random_step_size": 2.0}, {"steps": 1, "max_steps": 5}],
    ids=lambda c: next(iter(c)),
)
def test_chance_in_training_comes_from_the_default_generator(chance: dict[str, Any]) -> None:
    seeds = [loss_of(chance, seed) for seed in range(4)]
    assert seeds == [loss_of(chance, seed) for seed in range(4)]
    without = [loss_of({}, seed) for seed in range(4)]
    assert seeds != without


def test_random_step_sizes_lie_between_the_bounds() -> None:
    model = tiny_ebt({"step_size": 1.0, "random_step_size": 2.0, "steps": 1})
    fixed = tiny_ebt({"step_size": 1.0, "steps": 1})
    input_ids, start = torch.randint(20, (8, 12)), guesses(8)
    moved, plain = (m.think(m.energy(input_ids), start, last_state=True).steps[0].move for m in (model, fixed))
    ratios = (moved / plain).detach()
    assert 0.5 <= ratios.min() + 1e-4 and ratios.max() <= 2.0 + 1e-4
    assert ratios.min() < 0.7 < 1.8 < ratios.max()


def test_loss_is_the_mean_over_steps_or_the_last() -> None:
    batch, start = tokens(), guesses()
    every, last = (tiny_ebt({"steps": 3, "loss_on": which})(batch, start=start) for which in ("all", "last"))
    assert every.metrics["final_loss"] == last.metrics["final_loss"] == last.loss
    path_losses = tiny_ebt({"steps": 3, "loss_on": "all"})
    path = path_losses.think(path_losses.energy(batch["input_ids"]), start, last_state=True)
    expected = [
        torch.nn.functional.cross_entropy(state.flatten(0, 1), batch["labels"].flatten()) for state in path.states
    ]
    torch.testing.assert_close(every.loss, torch.stack(expected).mean())
    torch.testing.assert_close(every.metrics["initial_loss"], expected[0].detach())


def test_soft_targets_fade_from_the_first_step_to_none_at_the_last() -> None:
    batch, start = tokens(), guesses()
    model = tiny_ebt({"steps": 3, "soft_targets": 0.4})
    output = model(batch, start=start)
    path = model.think(model.energy(batch["input_ids"]), start, last_state=True)
    labels = batch["labels"].flatten()
    expected = [
        torch.nn.functional.cross_entropy(state.flatten(0, 1), labels, label_smoothing=smoothing)
        for state, smoothing in zip(path.states, (0.4, 0.2, 0.0), strict=True)
    ]
    torch.testing.assert_close(output.loss, torch.stack(expected).mean())


def test_contrast_prefers_the_true_token_and_ignores_what_has_no_label() -> None:
    model, batch, start = tiny_ebt({"contrastive": 0.5}), tokens(), guesses()
    output = model(batch, start=start)
    plain = tiny_ebt()(batch, start=start)
    torch.testing.assert_close(output.loss, plain.loss + 0.5 * output.metrics["contrastive_loss"])
    energy = model.energy(batch["input_ids"])
    found = model.think(energy, start, last_state=True).steps[-1].energy
    pairs = torch.stack((energy(model.candidate_matrix()[batch["labels"].clamp(min=0)], 1), found), dim=-1)
    targets = torch.where(batch["labels"] < 0, -100, 0).flatten()
    expected = torch.nn.functional.cross_entropy(-pairs.flatten(0, 1), targets)
    torch.testing.assert_close(output.metrics["contrastive_loss"], expected.detach())
    assert "contrastive_loss" not in model.eval()(batch).metrics


def gradients(model: EBT, batch: dict[str, Tensor], start: Tensor) -> dict[str, Tensor]:
    model(batch, start=start).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "thinking", [{}, {"soft_targets": 0.3, "loss_on": "all"}, {"detach": "last-1", "loss_on": "last"}]
)
def test_chunked_loss_changes_neither_loss_nor_gradients(thinking: dict[str, Any]) -> None:
    batch, start = tokens(), guesses().double()
    whole, chunked = (tiny_ebt(thinking, loss_chunk_rows=rows).double() for rows in (None, 7))
    torch.testing.assert_close(chunked(batch, start=start).loss, whole(batch, start=start).loss)
    torch.testing.assert_close(gradients(chunked, batch, start), gradients(whole, batch, start))


@pytest.mark.parametrize(("loss_chunk_rows", "positions"), [(None, "rope"), (7, "rope"), (7, "xpos"), (None, "none")])
def test_bfloat16_autocast_stays_close_to_float32(loss_chunk_rows: int | None, positions: str) -> None:
    batch, start = tokens(), guesses()
    exact, rough = (
        tiny_ebt({"step_size": 0.3}, scale=0.1, loss_chunk_rows=loss_chunk_rows, positions=positions) for _ in range(2)
    )
    expected = gradients(exact, batch, start)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(rough, batch, start)
    for name in ("embedding.weight", "candidate_embedding.weight", "body.head.weight"):
        assert torch.cosine_similarity(expected[name].flatten(), found[name].flatten(), dim=0) > 0.98, name


def test_bfloat16_weights_train() -> None:
    model = tiny_ebt(scale=0.1).bfloat16()
    loss = model(tokens()).loss
    loss.backward()
    assert loss.isfinite()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.bfloat16}


def test_a_few_steps_learn_a_constant_batch() -> None:
    torch.manual_seed(0)
    model, batch = tiny_ebt(scale=0.0, dim=32), tokens()
    groups = [{**group, "lr": 1e-2 * group.pop("lr_scale")} for group in model.parameter_groups()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        output = model(batch)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[0] == pytest.approx(math.log(20), abs=0.02)
    assert losses[-1] < 1.0
    assert model.eval()(batch).loss < 1.0


def test_parameter_groups_hold_everything_once_and_the_step_size_learns_faster() -> None:
    model = tiny_ebt({"step_size_lr": 5.0}, variant="adaln")
    groups = model.parameter_groups()
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert [group["weight_decay"] for group in groups] == [True, False, False]
    assert [group["lr_scale"] for group in groups] == [1.0, 1.0, 5.0]
    assert groups[-1]["params"] == [model.step_size_factor]
    assert all(parameter.ndim == 1 for parameter in groups[1]["params"])
    fixed = tiny_ebt({"learn_step_size": False})
    assert len(fixed.parameter_groups()) == 2


def test_model_from_the_meta_device_equals_one_built_in_memory() -> None:
    settings: dict[str, Any] = {"dim": 16, "num_layers": 2, "num_heads": 2, "variant": "adaln"}
    settings["thinking"] = {"preset": "s2", "replay_capacity": 4}
    with torch.device("meta"):
        late = EBTConfig(**settings).build(TEXT)
    early = EBTConfig(**settings).build(TEXT)
    late.to_empty(device="cpu")
    batch = {name: torch.randint(1000, (2, 16)) for name in ("input_ids", "labels")}
    losses = []
    for model in (early, late):
        torch.manual_seed(3)
        model.reset_parameters()
        losses.append(model(batch).loss)
    torch.testing.assert_close(*losses)


def counted(config: EBTConfig) -> float:
    """Return what torch counts in a training step at 40 tokens, per token."""
    with torch.device("meta"):
        return counted_flops_per_token(config.build({"vocab_size": 300, "seq_len": 40}), 40)


@pytest.mark.parametrize(
    "thinking", [{}, {"steps": 1}, {"steps": 3, "detach": "none"}, {"steps": 3, "loss_on": "last", "detach": "last-2"}]
)
@pytest.mark.parametrize("chunk", [None, 16])
def test_flops_equal_what_torch_counts(thinking: dict[str, Any], chunk: int | None) -> None:
    config = EBTConfig(dim=32, num_layers=3, num_heads=2, thinking=thinking, loss_chunk_rows=chunk)
    again = config.thinking.steps * config.num_layers * 4 * config.dim * 40  # products that attention's slope repeats
    assert counted(config) - again == pytest.approx(flops_per_token(config, 300, 40).full, rel=1e-3)


def test_flops_of_several_landscapes_count_the_context_for_each() -> None:
    settings: dict[str, Any] = {"dim": 32, "num_layers": 3, "num_heads": 2}
    config = EBTConfig(**settings, variant="time_embed")
    assert counted(config) == pytest.approx(flops_per_token(config, 300, 40).full, rel=0.05)
    single, double = (
        flops_per_token(EBTConfig(**settings, variant=v), 300, 40).full for v in ("default", "time_embed")
    )
    block = 4 * 32**2 + 3 * 32 * 96
    assert double - single == 6 * (2 * block + 2 * 32**2) + 12 * 2 * 32 * 40


def test_two_steps_cost_about_five_transformers_of_the_same_body() -> None:
    config = EBTConfig(preset="xxs")
    matrices = 6 * 7 * config.num_layers * config.dim**2 + 12 * config.num_layers * config.dim * 256
    assert 4.7 < flops_per_token(config, 0, 256).full / matrices < 4.95
    assert 1.7 < 8.66 / (flops_per_token(config, 0, 256).full / matrices)  # of the released form


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "xss"}, "unknown preset 'xss': did you mean 'x"),
        ({"dim": 30, "num_heads": 4}, r"4 does not divide dim 30 \(nearest: 1, 3, 5, 15\)"),
        ({"dim": 31, "positions": "xpos"}, "of even size, as positions xpos needs; make dim even"),
        ({"variant": "adalm"}, "Input should be 'default', 'time_embed', 'adaln' or 'adaln_zero'"),
    ],
)
def test_impossible_sizes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EBTConfig(**settings)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"image_size": 8}, "needs data with vocab_size and seq_len, such as text; this data has image_size"),
        ({}, "this data has neither"),
        ({"vocab_size": 9, "seq_len": 4}, "vocab_size 8 is smaller than the data's 9; accepted: null .* at least 9"),
    ],
)
def test_unfit_data_is_refused(shape: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EBTConfig(vocab_size=8).build(shape)
