"""What a draw may be is what Hugging Face's warpers leave, and each row draws from its own generator."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from perjoule.config import resolve
from perjoule.core.errors import ConfigError, TrainingDiverged
from perjoule.evaluate.sampling import SamplingConfig, choose, truncate


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def warped(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Return what transformers draws from."""
    from transformers.generation.logits_process import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers: list[Any] = [TemperatureLogitsWarper(config.temperature)]
    if config.top_k is not None:
        warpers.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        warpers.append(TopPLogitsWarper(config.top_p))
    processors: Any = LogitsProcessorList(warpers)
    scores: Tensor = processors(torch.zeros(len(logits), 1, dtype=torch.int64), logits)
    return scores


@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 2, 7, 40, 1000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_truncated_distribution_is_that_of_hugging_face(temperature: float, top_k: int | None, top_p: float) -> None:
    torch.manual_seed(0)
    logits = torch.cat((3 * torch.randn(8, 40), torch.randint(4, (8, 40)).float(), torch.zeros(1, 40)))  # with ties
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    torch.testing.assert_close(truncate(logits, config), warped(logits, config), rtol=0, atol=0)


def test_at_least_one_token_is_left_and_it_is_the_most_likely() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0]])
    left = truncate(logits, SamplingConfig(temperature=1, top_k=1, top_p=1e-6))
    assert left.isfinite().tolist() == [[False, True, False]]


def test_greedy_takes_the_most_likely_token_and_draws_nothing() -> None:
    logits, (generator,) = torch.tensor([[0.0, 2.0, 1.0]]), generators(0)
    before = generator.get_state()
    chosen = choose(logits, SamplingConfig(), [generator])
    assert chosen.tolist() == [1]
    assert chosen.dtype == torch.int64
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.7}])
def test_draws_have_the_probabilities_of_the_truncated_distribution(settings: dict[str, Any]) -> None:
    config, num = SamplingConfig(temperature=1.3, **settings), 4000
    logits = torch.tensor([[1.0, 3.0, -1.0, 2.0, 2.5]])
    (generator,) = generators(7)
    drawn = choose(logits.expand(num, -1), config, [generator] * num)
    shares = torch.bincount(drawn, minlength=5) / num
    expected = truncate(logits, config)[0].softmax(-1)
    assert (shares[expected == 0] == 0).all()
    torch.testing.assert_close(shares, expected, rtol=0, atol=4 * 0.5 / num**0.5)


def test_a_row_draws_from_its_own_generator_whatever_stands_beside_it() -> None:
    torch.manual_seed(1)
    logits, config = torch.randn(3, 50), SamplingConfig(temperature=1)
    together = choose(logits, config, generators(5, 6, 7))
    alone = [choose(logits[row : row + 1], config, generators(5 + row)) for row in range(3)]
    assert together.tolist() == torch.cat(alone).tolist()
    assert together.tolist() == choose(logits, config, generators(5, 6, 7)).tolist()
    assert len({int(choose(logits[:1], config, generators(seed))) for seed in range(20)}) > 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_one_clear_error(bad: float, temperature: float) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    message = (
        "^the logits of row 1 of 3 are not finite, so that no token can be chosen: training has diverged; take an "
        r"earlier checkpoint \(checkpoint=STEP\)$"
    )
    with pytest.raises(TrainingDiverged, match=message):
        choose(logits, SamplingConfig(temperature=temperature), generators(0, 1, 2))


@pytest.mark.parametrize("settings", [{"top_k": 5}, {"top_p": 0.9}])
def test_truncation_without_draws_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="temperature 0 draws nothing; accepted: with temperature=1, say"):
        SamplingConfig(**settings)


def test_temperature_that_would_overflow_is_refused_and_the_smallest_one_is_greedy() -> None:
    with pytest.raises(ConfigError, match=r"^temperature: would divide .* float32 holds; accepted: 0, or 1e-06 up"):
        resolve.load(SamplingConfig, None, ["temperature=1e-40"])
    logits = 1e3 * torch.randn(5, 40)
    chosen = choose(logits, SamplingConfig(temperature=1e-6, top_p=0.9), generators(0, 1, 2, 3, 4))
    assert torch.equal(chosen, logits.argmax(-1))


@pytest.mark.parametrize("wrong", ["temperature=-1", "top_k=0", "top_p=0", "top_p=1.5", "seed=-1", "temperature=hot"])
def test_what_is_out_of_range_is_refused_by_name(wrong: str) -> None:
    settings = ["temperature=1", wrong] if not wrong.startswith("temperature") else [wrong]
    with pytest.raises(ConfigError, match=rf"^{wrong.partition('=')[0]}: must be "):
        resolve.load(SamplingConfig, None, settings)
