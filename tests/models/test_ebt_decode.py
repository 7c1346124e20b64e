"""Causality, the exact cache, and what thinking without learning can do."""

from typing import Any

import pytest
import torch
from tests.models.ebt_cases import tiny_ebt, tokens
from torch import Tensor

from perjoule.core.errors import ConfigError
from perjoule.models.ebt import EBT
from perjoule.models.ebt_decode import Cache, Decoding, deliberate

OPTIONS = [
    Decoding(),
    Decoding(steps=5),
    Decoding(candidates=3),
    Decoding(steps=4, accept_lower=True),
    Decoding(steps=6, stop_below=0.05),
]


def model_of(variant: str, **thinking: Any) -> EBT:
    """Return a model in float64: random weights far from any training amplify rounding with every step."""
    return tiny_ebt({"step_size": 0.5, **thinking}, variant=variant).double().eval()


@pytest.mark.parametrize("decoding", OPTIONS)
@pytest.mark.parametrize("variant", ["default", "time_embed", "adaln"])
def test_every_way_of_thinking_is_the_same_with_and_without_cache(variant: str, decoding: Decoding) -> None:
    model, input_ids = model_of(variant), tokens()["input_ids"]
    full = model.deliberate(input_ids, decoding)
    _, cache = model.prefill(input_ids[:, :7], decoding=decoding)
    logits, _ = model.decode(input_ids[:, 7], cache)
    torch.testing.assert_close(logits, full.logits[:, 7], rtol=1e-5, atol=1e-5)


def test_cache_holds_one_context_for_each_landscape_in_use() -> None:
    def landscapes(variant: str, steps: int | None) -> list[int]:
        cache: Cache = model_of(variant, steps=3).prefill(tokens()["input_ids"], decoding=Decoding(steps=steps))[1]
        return sorted(cache.contexts)

    assert landscapes("default", None) == [0]
    assert landscapes("time_embed", None) == [0, 1, 2]
    assert landscapes("adaln", 2) == [0, 1]
    assert landscapes("adaln", 9) == [0, 1, 2]


def test_a_cache_can_be_continued_twice() -> None:
    model, input_ids = model_of("default"), tokens()["input_ids"]
    _, cache = model.prefill(input_ids[:, :5])
    first, second = (model.decode(input_ids[:, 5], cache)[0] for _ in range(2))
    torch.testing.assert_close(first, second)


def test_more_candidates_never_end_with_more_energy() -> None:
    model, input_ids = model_of("default"), tokens()["input_ids"]
    one, four = (model.deliberate(input_ids, Decoding(candidates=number)) for number in (1, 4))
    assert (four.energy <= one.energy).all()
    assert (four.energy < one.energy - 1e-6).any()


def staged_energies(decoding: Decoding, variant: str = "default", **thinking: Any) -> Tensor:
    verdict = model_of(variant, **thinking).deliberate(tokens()["input_ids"], decoding, staged=True)
    assert torch.equal(verdict.stages[-1].logits, verdict.logits)
    return torch.stack([stage.energy for stage in verdict.stages])


def test_accepting_lower_energies_only_never_climbs() -> None:
    free = staged_energies(Decoding(steps=6), step_size=5.0)
    careful = staged_energies(Decoding(steps=6, accept_lower=True), step_size=5.0)
    assert (free.diff(dim=0) > 1e-4).any()
    assert (careful.diff(dim=0) < 1e-6).all()
    assert (careful.diff(dim=0) < -1e-4).any()


def test_stages_share_the_last_landscape_so_that_energies_compare() -> None:
    model, input_ids = model_of("time_embed", steps=2), tokens()["input_ids"]
    verdict = model.deliberate(input_ids, staged=True)
    assert len(verdict.stages) == 3
    energy = model.energy(input_ids)
    for stage in verdict.stages:
        expected = energy(stage.logits.softmax(-1) @ model.candidate_matrix(), 1)
        torch.testing.assert_close(stage.energy, expected)


def test_positions_stop_when_the_energy_settles() -> None:
    model, input_ids = model_of("default"), tokens()["input_ids"]
    patient, hasty = (model.deliberate(input_ids, Decoding(steps=12, stop_below=bound)) for bound in (1e-9, 0.02))
    assert (patient.steps == 12).all()
    assert hasty.steps.min() >= 1
    assert 1 < hasty.steps.float().mean() < 12
    nothing = model.deliberate(input_ids, Decoding(steps=12, stop_below=1e9))
    assert (nothing.steps == 1).all()


def test_energies_of_different_landscapes_do_not_stop_a_position() -> None:
    model = model_of("time_embed", steps=3)
    verdict = model.deliberate(tokens()["input_ids"], Decoding(steps=5, stop_below=1e9))
    assert (verdict.steps == 3).all()  # steps 3 and 4 are the first two of one landscape


def test_settled_positions_end_the_work() -> None:
    calls: list[int] = []

    def energy(candidates: Tensor, step: int) -> Tensor:
        calls.append(step)
        return (candidates**2).sum(-1)

    class Plain:
        def enter(self, state: Tensor, step: int) -> tuple[Tensor, Tensor]:
            return state, state

        def leave(self, base: Tensor, move: Tensor) -> Tensor:
            return base - move

    decoding = Decoding(stop_below=1e-3)
    verdict = deliberate(energy, Plain(), torch.ones(1, 2, 3), torch.tensor(0.5), 50, decoding, lambda _: 0)
    assert len(calls) < 6
    assert verdict.logits.abs().max() < 1e-6


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("candidates", 0), ("stop_below", -1.0)])
def test_impossible_ways_of_thinking_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"thinking {name} must be positive, not {value}"):
        Decoding(**{name: value})  # type: ignore[arg-type]
