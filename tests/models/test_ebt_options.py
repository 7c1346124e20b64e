"""Options of thinking that the published code has beside its recipes: how it starts, steps, ends, and is chosen."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.models.ebt_cases import VOCAB_SIZE, guesses, tiny_ebt, tokens
from torch import Tensor, nn
from torch.nn import functional as F

from perjoule.core.errors import ConfigError
from perjoule.models.ebt import EBT, EBTConfig
from perjoule.models.ebt_decode import Decoding
from perjoule.models.thinking import ThinkingConfig


def build(thinking: dict[str, Any] | None = None, **settings: Any) -> EBT:
    return tiny_ebt({"step_size": 0.5, **(thinking or {})}, 0.3, **settings).double()


def slope_at(model: EBT, candidate: Tensor, step: int) -> Tensor:
    candidate = candidate.detach().requires_grad_()
    energy = model.energy(tokens_of_test()["input_ids"])
    return torch.autograd.grad(energy(candidate, step).sum(), candidate)[0]


def tokens_of_test() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return tokens()


def states(model: EBT, start: Tensor) -> list[Tensor]:
    batch = tokens_of_test()
    return [state.detach() for state in model.think(model.energy(batch["input_ids"]), start, last_state=True).states]


SHAPED: dict[str, dict[str, Any]] = {
    "sharpen": {"sharpen": 0.5},
    "max_change": {"max_change": 0.7},
    "max_logit": {"max_logit": 0.4, "sharpen": 2.0},
    "first": {"softmax_on": "first"},
    "none": {"softmax_on": "none", "max_change": 0.3},
}


@pytest.mark.parametrize("name", SHAPED)
def test_steps_are_the_formula_written_out(name: str) -> None:
    thinking = {"steps": 3, **SHAPED[name]}
    model, state = build(thinking), guesses().double()
    config, weight = model.config.thinking, model.candidate_matrix().detach()
    found = states(model, state)
    for step in range(3):
        softmax = config.softmax_on == "all" or (config.softmax_on == "first" and step == 0)
        base = state.softmax(-1) if softmax else state
        change = model.step_size.detach() * slope_at(model, base @ weight, step) @ weight.T
        bound = config.max_change or torch.inf
        state = base - change.clamp(-bound, bound)
        state = state.clamp(-(config.max_logit or torch.inf), config.max_logit or torch.inf) / config.sharpen
        torch.testing.assert_close(found[step], state)


@pytest.mark.parametrize("name", [*SHAPED, "joint", "noise"])
def test_gradients_are_those_without_chunks_whatever_shapes_a_state(name: str) -> None:
    thinking = {**SHAPED, "joint": {"detach": "none"}, "noise": {"langevin_noise": 0.5, "learn_noise": True}}[name]
    gradients = []
    for chunk in (None, 5):
        model = build({"steps": 2, "loss_on": "last", **thinking}, loss_chunk_rows=chunk)
        torch.manual_seed(3)
        model(tokens_of_test(), start=guesses().double()).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_soft_targets_fall_to_none_or_are_of_the_first_step_alone() -> None:
    falling = ThinkingConfig(soft_targets=0.4)
    first = ThinkingConfig(soft_targets=0.4, soft_targets_on="first")
    assert [falling.smoothing(step, 2) for step in range(3)] == pytest.approx([0.4, 0.2, 0.0])
    assert [first.smoothing(step, 2) for step in range(3)] == pytest.approx([0.4, 0.0, 0.0])
    batch, start = tokens_of_test(), guesses().double()
    model = build({"steps": 3, "soft_targets": 0.4, "soft_targets_on": "first"})
    losses = [
        F.cross_entropy(state.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.4 * (number == 0))
        for number, state in enumerate(states(model, start))
    ]
    assert model(batch, start=start).loss.item() == pytest.approx(sum(losses).item() / 3)  # type: ignore[union-attr]


def test_learned_start_is_one_guess_for_all_and_learns() -> None:
    model, batch = build({"start": "learned"}), tokens_of_test()
    learned = model.guess.learned
    assert learned is not None
    model.train()(batch).loss.backward()
    assert learned.weight.grad is not None
    assert learned.weight.grad.abs().max() > 0
    expected = model.eval()(batch, start=learned.weight.detach().expand(2, 12, -1)).loss
    torch.testing.assert_close(model(batch).loss, expected)
    fresh = EBTConfig(thinking={"start": "learned", "start_std": 2.0}).build({"vocab_size": 5000, "seq_len": 4})
    assert fresh.guess.learned is not None
    assert fresh.guess.learned.weight.std().item() == pytest.approx(2.0, rel=0.1)


def test_recent_start_is_the_embedding_of_the_token_before() -> None:
    model, batch = build({"start": "recent"}), tokens_of_test()
    start = model.guess(batch["input_ids"], model.candidate_matrix())
    assert model.candidate_embedding is not None
    torch.testing.assert_close(
        start.softmax(-1) @ model.candidate_matrix(), model.candidate_embedding(batch["input_ids"])
    )
    model.eval()
    logits = model(batch, with_logits=True).logits
    assert logits is not None
    prompt, cache = model.prefill(batch["input_ids"][:, :6])
    torch.testing.assert_close(prompt, logits[:, 5].detach())
    after, _ = model.decode(batch["input_ids"][:, 6], cache)
    torch.testing.assert_close(after, logits[:, 6].detach())


def test_learned_noise_is_a_parameter_that_learns_and_has_the_rate_of_the_step_size() -> None:
    model = build({"langevin_noise": 0.5, "learn_noise": True, "step_size_lr": 4.0})
    model.train()(tokens_of_test()).loss.backward()
    assert model.noise is not None
    assert model.noise.factor.grad is not None
    assert model.noise.factor.grad.abs() > 0
    assert model.parameter_groups()[-1]["params"] == [model.alpha.factor, model.noise.factor]
    assert model.parameter_groups()[-1]["lr_scale"] == 4.0


@pytest.mark.parametrize("norm", ["rms", "layer", "dyt", "none"])
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
def test_norms_and_activations_have_their_parameters_and_exact_gradients(norm: str, activation: str) -> None:
    config = {"norm": norm, "activation": activation, "variant": "adaln"}
    sizes = EBTConfig(dim=16, num_layers=2, num_heads=2, **config)
    fresh = sizes.build({"vocab_size": VOCAB_SIZE, "seq_len": 12})
    body = sum(parameter.numel() for parameter in fresh.body.parameters())
    assert body == sizes.num_body_parameters
    model, batch, start = build({"detach": "none"}, **config), tokens_of_test(), guesses().double()
    weights = [parameter for parameter in model.body.parameters()]
    gradients = torch.autograd.grad(model(batch, start=start).loss, weights)
    directions, losses = [torch.randn_like(weight) for weight in weights], []
    for change in (1e-8, -2e-8):
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight.add_(direction, alpha=change)
        losses.append(model(batch, start=start).loss.item())
    slope = sum((gradient * direction).sum().item() for gradient, direction in zip(gradients, directions, strict=True))
    assert (losses[0] - losses[1]) / 2e-8 == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("method", "spread"), [("xavier", (2 / 192) ** 0.5), ("he", (2 / 64) ** 0.5)])
def test_weights_start_with_the_spread_of_their_sizes(method: str, spread: float) -> None:
    config = EBTConfig(dim=64, ffn_dim=64, init=method, init_gain=0.5)
    model = config.build({"vocab_size": 1000, "seq_len": 8})
    matrix = model.body.blocks[0].ffn.gate_up.weight  # type: ignore[union-attr]
    assert matrix.std().item() == pytest.approx(0.5 * spread, rel=0.05)  # type: ignore[operator]
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.count_nonzero(model.body.head.weight) == 0


def test_embeddings_learn_at_a_rate_of_their_own() -> None:
    for model in (
        build(embedding_lr=0.1),
        EBTConfig(tie_candidates=True, embedding_lr=0.1).build({"vocab_size": 9, "seq_len": 4}),
    ):
        (group,) = [group for group in model.parameter_groups() if group.get("lr_scale") == 0.1]
        tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
        assert len(group["params"]) == len(tables)
        assert group["weight_decay"]
        every = [parameter for group in model.parameter_groups() for parameter in group["params"]]
        assert {id(parameter) for parameter in every} == {id(parameter) for parameter in model.parameters()}
        assert len(every) == len(set(map(id, every)))


@pytest.mark.parametrize(
    ("thinking", "message"),
    [
        ({"start": "learned", "steps": 3, "detach": "last-1"}, "first step that"),
        ({"learn_noise": True}, "langevin_noise above 0"),
    ],
)
def test_options_that_could_not_learn_are_refused(thinking: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ThinkingConfig(**thinking)


def deliberate(model: EBT, **decoding: Any) -> Any:
    return model.deliberate(tokens_of_test()["input_ids"], Decoding(**decoding))


def test_step_size_of_thinking_may_be_another_or_scaled() -> None:
    model, twice = build(), build({"step_size": 1.0})
    expected = deliberate(twice).logits
    torch.testing.assert_close(deliberate(model, step_size=1.0).logits, expected)
    torch.testing.assert_close(deliberate(model, step_size_scale=2.0).logits, expected)
    prompt, _ = model.prefill(tokens_of_test()["input_ids"], decoding=Decoding(step_size=1.0))
    torch.testing.assert_close(prompt, expected[:, -1])


def test_noise_of_thinking_comes_from_the_generator_and_may_be_of_the_first_step_alone() -> None:
    model = build({"steps": 2})
    quiet = deliberate(model).logits
    loud = [deliberate(model, noise=0.5).logits for _ in range(2)]  # seeded by the tokens
    torch.testing.assert_close(loud[0], loud[1])
    assert (loud[0] - quiet).abs().max() > 1e-3
    one_step = [deliberate(model, noise=0.5, noise_on=on, steps=1).logits for on in ("all", "first")]
    torch.testing.assert_close(one_step[0], one_step[1])
    assert (deliberate(model, noise=0.5, noise_on="first").logits - loud[0]).abs().max() > 1e-3


def test_all_steps_may_descend_the_last_landscape() -> None:
    model = build({"steps": 3}, variant="time_embed")
    batch, weight = tokens_of_test(), model.candidate_matrix().detach()
    state = model.guess.fixed(batch["input_ids"], 1, weight)[0]
    for _ in range(2):
        base = state.softmax(-1)
        state = base - model.step_size.detach() * slope_at(model, base @ weight, 2) @ weight.T
    found = deliberate(model, steps=2, landscape="last")
    torch.testing.assert_close(found.logits, state)
    prompt, cache = model.prefill(batch["input_ids"], decoding=Decoding(steps=2, landscape="last"))
    assert list(cache.contexts) == [2]
    torch.testing.assert_close(prompt, state[:, -1])


@pytest.mark.parametrize("choose", ["least", "most", "fall"])
def test_candidates_are_chosen_by_their_energies_at_the_end_or_by_how_far_they_fell(choose: str) -> None:
    model, batch = build({"steps": 2}), tokens_of_test()
    weight, energy = model.candidate_matrix(), model.energy(batch["input_ids"])
    verdicts, falls = [], []
    for start in model.guess.fixed(batch["input_ids"], 3, weight):
        path = model.eval().think(energy, start, last_state=True)
        ends = energy(path.states[-1].softmax(-1) @ weight, 1).detach()
        falls.append(energy(start.softmax(-1) @ weight, 1).detach() - ends)
        verdicts.append((path.states[-1].detach(), ends))
    energies = torch.stack([ends for _, ends in verdicts])
    index = {"least": energies.argmin(0), "most": energies.argmax(0), "fall": torch.stack(falls).argmax(0)}[choose]
    logits = torch.stack([logits for logits, _ in verdicts])
    expected = logits.gather(0, index[None, ..., None].expand(1, -1, -1, VOCAB_SIZE))[0]
    found = deliberate(model, candidates=3, choose=choose)
    torch.testing.assert_close(found.logits, expected)
    torch.testing.assert_close(found.energy, energies.gather(0, index[None])[0])
    prompt, _ = model.prefill(batch["input_ids"], decoding=Decoding(candidates=3, choose=choose))  # type: ignore[arg-type]
    torch.testing.assert_close(prompt, expected[:, -1])


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"step_size_scale": float("nan")}, "step_size_scale must be positive"),
        ({"noise": -1.0}, "noise must be at least 0"),
        ({"choose": "best"}, "least, most, fall"),
        ({"landscape": "first"}, "own, last"),
    ],
)
def test_ways_of_thinking_that_do_not_exist_are_refused(decoding: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Decoding(**decoding)
