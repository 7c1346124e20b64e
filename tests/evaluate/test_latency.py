"""Times and joules of fixed prompts, on a clock that only the model moves."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perjoule.config import resolve
from perjoule.core.errors import ConfigError
from perjoule.evaluate import latency as module
from perjoule.evaluate.contract import Findings, Metric
from perjoule.evaluate.latency import LatencyConfig, latency
from perjoule.evaluate.trained import Trained
from perjoule.models.ebt import EBT, EBTConfig
from perjoule.models.longnet import LongNetConfig
from perjoule.models.retnet import RetNetConfig
from perjoule.models.transformer import TransformerConfig

SHAPE = {"vocab_size": 32, "seq_len": 40}
SIZES: dict[str, Any] = {"dim": 16, "num_layers": 1, "num_heads": 2}
CONFIGS: dict[str, Any] = {
    "transformer": lambda: TransformerConfig(**SIZES),
    "retnet": lambda: RetNetConfig(**SIZES),
    "longnet": lambda: LongNetConfig(**SIZES, segment_lengths=[8], dilations=[2]),
    "ebt": lambda: EBTConfig(**SIZES),
}


class Clock:
    """Stands where the module's clock would."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s


class Timed(nn.Module):
    """A decoder that takes 1 ms to read a token, and 2 ms plus 0.01 ms per token of context and row to write one.

    ``slower`` multiplies the times of writing, trial by trial. With ``nap_s`` every call takes real time as well.
    """

    def __init__(self, clock: Clock, slower: tuple[float, ...] = (), nap_s: float = 0.0) -> None:
        super().__init__()
        self.clock, self.slower, self.nap_s = clock, slower, nap_s
        self.read: list[Tensor] = []
        self.contexts: list[list[int]] = []

    def prefill(self, input_ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, dict[str, int]]:
        assert mask is None
        self.read.append(input_ids.clone())
        self.contexts.append([])
        time.sleep(self.nap_s)
        self.clock.now_s += 1e-3 * input_ids.numel()
        return torch.zeros(len(input_ids), 32), {"context": input_ids.shape[1], "rows": len(input_ids)}

    def decode(self, token: Tensor, cache: dict[str, int]) -> tuple[Tensor, dict[str, int]]:
        assert len(token) == cache["rows"]
        cache["context"] += 1  # in place, as the contract allows
        self.contexts[-1].append(cache["context"])
        time.sleep(self.nap_s)
        factor = self.slower[len(self.read) - 1] if self.slower else 1.0
        self.clock.now_s += 1e-3 * factor * (2 + 0.01 * cache["context"] * cache["rows"])
        return torch.zeros(len(token), 32), cache


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stand_in = Clock()
    monkeypatch.setattr(module, "time", stand_in)
    return stand_in


def trained(model: Any, config: Any = None) -> Trained:
    return Trained(Path("run"), 5, model, config, SHAPE, torch.device("cpu"))


def build(kind: str) -> Trained:
    config = CONFIGS[kind]()
    return trained(config.build(SHAPE).eval(), config)


def find(model: Trained, said: list[str] | None = None, **settings: Any) -> Findings:
    settings = {"energy_s": 0.0, "new_tokens": 4, "trials": 2, **settings}
    return latency(model, LatencyConfig(**settings), (said if said is not None else []).append)


def by_name(found: Findings) -> Mapping[tuple[str, str], Metric]:
    metrics = {(one.name, one.of): one for one in found.metrics}
    assert len(metrics) == len(found.metrics)
    return metrics


def test_times_are_told_apart_and_every_figure_is_the_median_over_trials(clock: Clock) -> None:
    model = Timed(clock, slower=(50.0, 50.0, 1.0, 1.0, 3.0, 3.0, 2.0, 2.0))  # the first two warm up
    found = by_name(find(trained(model), prompt_tokens=(10, 30), trials=3))
    for context in (10, 30):
        of, token_ms = f"batch 1, context {context}", 2 + 0.01 * (context + 2.5)
        first, token = found["time_to_first_token", of], found["time_per_token", of]
        assert (first.value, first.low, first.high) == pytest.approx((context,) * 3)
        assert first.unit == "ms"
        assert token.unit == "ms/token"
        assert (token.value, token.low, token.high) == pytest.approx((2 * token_ms, 1.2 * token_ms, 2.8 * token_ms))
        assert found["tokens_per_second", of].value == pytest.approx(1000 / (2 * token_ms))
    growth = found["growth_per_token", "batch 1"]
    assert (growth.value, growth.low, growth.high) == pytest.approx((20, 12, 28))
    assert growth.unit == "ms/token per 1000 tokens of context"


def test_no_trial_sees_a_longer_prompt_than_another_and_settings_take_turns(clock: Clock) -> None:
    model = Timed(clock)
    found = find(trained(model), prompt_tokens=(3, 6), batch_sizes=(1, 2), trials=2, warmup=1)
    shapes = [(1, 3), (1, 6), (2, 3), (2, 6)]
    assert [tuple(one.shape) for one in model.read] == shapes * 3
    for number, prompts in enumerate(model.read):
        assert torch.equal(prompts, model.read[number % 4])
        assert model.contexts[number] == [prompts.shape[1] + step for step in (1, 2, 3, 4)]
    assert not torch.equal(model.read[1][:, :3], model.read[0])
    assert found.details["trials"][3]["trials"] == [pytest.approx({"first_s": 0.012, "token_s": 0.00217})] * 2
    assert len(by_name(found)) == 4 * 5 + 2
    other = Timed(clock)
    find(trained(other), prompt_tokens=(3,), seed=1)
    assert not torch.equal(other.read[0], model.read[0])


def test_rate_counts_the_tokens_of_all_rows(clock: Clock) -> None:
    found = by_name(find(trained(Timed(clock)), prompt_tokens=(10,), batch_sizes=(4,)))
    of, step_ms = "batch 4, context 10", 2 + 0.04 * 12.5
    assert found["time_per_token", of].value == pytest.approx(step_ms)
    assert found["tokens_per_second", of].value == pytest.approx(4 * 1000 / step_ms)


def test_growth_of_a_single_context_is_not_measured_and_says_why(clock: Clock) -> None:
    found = find(trained(Timed(clock)), prompt_tokens=(10,))
    assert by_name(found)["growth_per_token", "batch 1"].value is None
    assert found.details["growth_per_token"] == "a slope needs at least two contexts (latency.prompt_tokens)"


def test_contexts_are_those_of_the_data_unless_given(clock: Clock) -> None:
    model = Timed(clock)
    find(trained(model), new_tokens=8, trials=1, warmup=0)
    assert [one.shape[1] for one in model.read] == [8, 16, 32]


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_is_timed_and_contexts_without_positions_are_left_out_with_a_line(kind: str) -> None:
    said: list[str] = []
    found = find(build(kind), said, prompt_tokens=(64, 36, 8), new_tokens=4)
    line = "context 64 left out: with 4 new tokens the model has no positions for it"
    left_out = [] if kind == "retnet" else [64]
    assert said[: len(left_out)] == [line] * len(left_out)
    assert said[-1].startswith(f"warm-up: {3 - len(left_out)} trials in ")
    assert found.details["left_out"] == left_out
    timed = [one for one in found.metrics if one.name == "time_per_token"]
    assert [one.of for one in timed] == [f"batch 1, context {n}" for n in (8, 36, 64)[: len(timed)]]
    assert len(timed) == 3 - len(left_out)
    assert all(one.value is not None and one.value > 0 for one in timed)


def test_energy_is_measured_apart_in_blocks_from_the_same_context() -> None:
    said: list[str] = []
    model = Timed(Clock(), nap_s=2e-3)
    settings = {"prompt_tokens": (5,), "batch_sizes": (2,), "trials": 1, "warmup": 0, "meters": ("cpu_time",)}
    found = find(trained(model), said, **settings, energy_s=0.05)
    assert said[-1] == "energy: 2 blocks of 50 ms"
    _, *prefills, last = model.read  # the trial, the block of prefills, what decoding goes on from
    assert len(prefills) > 1
    assert model.contexts[-1][:8] == [6, 7, 8, 9] * 2
    energy = found.details["energy"]["decode_energy_per_token, batch 2, context 5"]
    assert energy["num_tokens"] == 2 * len(model.contexts[-1])
    for name in ("prefill_energy_per_token", "decode_energy_per_token"):
        metric = by_name(found)[name, "batch 2, context 5, modelled"]
        assert metric.low is not None and metric.value is not None and metric.high is not None
        assert 0 < metric.low < metric.value < metric.high
        assert metric.unit == "J/token"
    assert 0 < found.details["copying_share"] < 1
    assert torch.equal(last, model.read[0])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"energy_s": 0.0}, "not measured: not asked for (latency.energy_s is 0)"),
        ({"energy_s": 0.01, "meters": ("nvidia",)}, "not measured: nvidia: the run uses no CUDA device"),
    ],
)
def test_energy_that_is_not_measured_has_a_reason_and_no_value(settings: dict[str, Any], reason: str) -> None:
    found = find(build("retnet"), prompt_tokens=(4,), trials=1, **settings)
    for name in ("prefill_energy_per_token", "decode_energy_per_token"):
        assert by_name(found)[name, "batch 1, context 4"].value is None
        assert found.details[name] == reason


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            "transformer",
            {"prompt_tokens": (64, 38)},
            "no context of 38, 64 fits into 40 positions with 4 new tokens; accepted: latency.prompt_tokens up to 36, "
            "or latency.new_tokens below 40",
        ),
        (
            "retnet",
            {"new_tokens": 40},
            "no context of any length fits into 40 positions with 40 new tokens; accepted: latency.new_tokens below 40",
        ),
        ("longnet", {"thinking": {"steps": 3}}, "thinking is for models that think (ebt), and LongNet does not"),
        ("ebt", {"compile": True}, "compile is for models whose cache does not grow (retnet), and that of EBT does"),
    ],
)
def test_what_cannot_be_timed_is_one_clear_error(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        find(build(kind), **settings)
    assert str(error.value).startswith(message)


def test_model_that_writes_no_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="writes no tokens"):
        find(trained(nn.Identity()))


def test_thinking_is_done_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = build("ebt"), set()
    original = EBT._deliberate

    def watched(self: Any, energy: Any, weight: Any, start: Any, decoding: Any, *rest: Any, **more: Any) -> Any:
        seen.add((decoding.steps, decoding.candidates))
        return original(self, energy, weight, start, decoding, *rest, **more)

    monkeypatch.setattr(EBT, "_deliberate", watched)
    find(model, prompt_tokens=(4,), thinking={"steps": 3, "candidates": 2})
    assert seen == {(3, 2)}


def test_settings_come_from_the_command_line() -> None:
    words = ["prompt_tokens=[128, 512]", "meters=[{kind: cpu_time, idle_w_per_core: 2}]", "thinking.steps=4"]
    config = resolve.load(LatencyConfig, None, words).config
    assert config.prompt_tokens == (128, 512)
    assert config.thinking.steps == 4
    for wrong in ("prompt_tokens=[0]", "batch_sizes=[]", "trials=0", "energy_s=-1", "meters=[gauge]"):
        with pytest.raises(ConfigError, match=rf"^{wrong.partition('=')[0]}"):
            resolve.load(LatencyConfig, None, [wrong])
