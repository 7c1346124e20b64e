"""How long a trained model takes to write, how that grows with context, and what a token costs in joules.

::

    trial        prompt ─prefill─> first token │ ─decode─> token ─decode─> token …
                 time to first token           │ time per token: the mean over new_tokens decoding steps
    energy       prefill, prefill, prefill, … │ decode from a copy of the cache, again and again

Prompts are fixed: every trial of a setting (batch size and context) reads the same random tokens and begins from a
fresh cache, so that no trial sees a longer context than another. The trials of all settings take turns, so that what
slows the machine for a while slows all of them; warm-up trials come before and are told apart. A figure is the median
over trials, with the 10th and the 90th percentile. The growth is the slope of time per token against context within a
trial, which has all contexts. Energy is measured apart from times, in blocks of seconds (token_energy.py).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from perjoule.config import Component, Config
from perjoule.core.errors import ConfigError
from perjoule.core.seeding import derive
from perjoule.core.units import duration
from perjoule.evaluate.contract import Findings, Metric
from perjoule.evaluate.decoding import DecodingConfig, compiled_decode, thinking_prefill
from perjoule.evaluate.generate import longest_sequence
from perjoule.evaluate.token_energy import TokenEnergy, Work, token_energies
from perjoule.evaluate.trained import Trained
from perjoule.measure import SHELF as METERS
from perjoule.measure.config import EnergyConfig
from perjoule.measure.contract import Unavailable

FIRST, TOKEN, RATE, GROWTH = "time_to_first_token", "time_per_token", "tokens_per_second", "growth_per_token"
PREFILL_ENERGY, DECODE_ENERGY = "prefill_energy_per_token", "decode_energy_per_token"


class LatencyConfig(Config):
    """What is timed and metered."""

    prompt_tokens: tuple[PositiveInt, ...] | None = None
    """Contexts, in tokens; null is a quarter, half and all of what the data's ``seq_len`` has room for."""
    new_tokens: PositiveInt = 32
    """Decoding steps of a trial."""
    batch_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1,)
    """Prompts that are read and continued at a time."""
    trials: PositiveInt = 5
    """Of every setting."""
    warmup: NonNegativeInt = 1
    """Trials of every setting that are not counted."""
    seed: NonNegativeInt = 0
    """Of the prompts."""
    thinking: DecodingConfig = DecodingConfig()
    """For a model that thinks."""
    compile: bool = False
    """Compile the decoding of a RetNet; that takes place in the warm-up."""
    energy_s: NonNegativeFloat = 2.0
    """Seconds that prefill and decoding of every setting are repeated for the meters; 0 measures no energy."""
    meters: Annotated[tuple[Config, ...], Component(METERS, many=True)] = Field(
        default=("nvidia", "rapl", "cpu_time", "ram"), validate_default=True
    )
    """What to read; a modelled figure counts only where no measured one covers the same part of the machine."""


def latency(trained: Trained, config: LatencyConfig, say: Callable[[str], None]) -> Findings:
    """Time and meter a trained model while it writes.

    Args:
        trained: the model.
        config: what to time.
        say: takes lines for the terminal.

    Raises:
        ConfigError: if the model writes no tokens, no context fits it, or it cannot think or be compiled as asked.
    """
    contexts, left_out = fitting_contexts(trained, config)
    for context in left_out:
        say(f"context {context} left out: with {config.new_tokens} new tokens the model has no positions for it")
    workload = Workload(trained, config)
    settings = [Setting(batch, context) for batch in config.batch_sizes for context in contexts]
    warmed_s = time.monotonic()
    for _ in range(config.warmup):
        for setting in settings:
            workload.trial(setting)
    warmed_s = time.monotonic() - warmed_s
    say(f"warm-up: {config.warmup * len(settings)} trials in {duration(warmed_s)}")
    trials = [{setting: workload.trial(setting) for setting in settings} for _ in range(config.trials)]
    metrics, reasons = list(_times(settings, trials)), dict[str, str]()
    for batch in config.batch_sizes:
        metrics.append(_growth(batch, contexts, trials, reasons))
    energies = _energies(workload, settings, config, say)
    metrics += _joules(settings, energies, reasons)
    details = {
        "prompts": f"random tokens, the same in every trial (seed {config.seed})",
        "intervals": "times: 10th and 90th percentile over trials; energy: 95 %, as the ledger gives it",
        "new_tokens": config.new_tokens,
        "left_out": left_out,
        "warmup_s": warmed_s,
        "threads": torch.get_num_threads(),
        "trials": [
            {"batch": one.batch, "context": one.context, "trials": [asdict(trial[one]) for trial in trials]}
            for one in settings
        ],
        "energy": {name: asdict(one) for name, one in energies.items()},
        "copying_share": workload.copying_share,
        **reasons,
    }
    return Findings(metrics, details)


@dataclass(frozen=True)
class Setting:
    """What is read and continued.

    Args:
        batch: rows.
        context: tokens of each prompt.
    """

    batch: int
    context: int

    @property
    def label(self) -> str:
        """Return it in words."""
        return f"batch {self.batch}, context {self.context}"


@dataclass(frozen=True)
class Trial:
    """The times of one trial, in seconds.

    Args:
        first_s: from the prompt to the first token.
        token_s: of a decoding step, the mean over all of the trial.
    """

    first_s: float
    token_s: float


def fitting_contexts(trained: Trained, config: LatencyConfig) -> tuple[list[int], list[int]]:
    """Return the contexts that the model has positions for, ascending, and those that it has not.

    Raises:
        ConfigError: if none fits.
    """
    limit, new = longest_sequence(trained.model), config.new_tokens
    asked = config.prompt_tokens
    if asked is None:
        room = trained.shape["seq_len"] - new
        asked = tuple(one for one in (room // 4, room // 2, room) if one > 0)
    contexts = sorted(set(asked))
    fitting = [one for one in contexts if limit is None or one + new <= limit]
    if not fitting:
        longest = trained.shape["seq_len"] if limit is None else limit
        accepted = f"latency.prompt_tokens up to {longest - new}, or " if longest > new else ""
        raise ConfigError(
            f"no context of {', '.join(map(str, contexts)) or 'any length'} fits into {longest} positions with "
            f"{new} new tokens; accepted: {accepted}latency.new_tokens below {longest}"
        )
    return fitting, [one for one in contexts if one not in fitting]


@dataclass
class Workload:
    """Reads fixed prompts and continues them.

    Args:
        trained: the model.
        config: how.

    Raises:
        ConfigError: if the model writes no tokens, or cannot think or be compiled as asked.
    """

    trained: Trained
    config: LatencyConfig
    _prompts: dict[Setting, Tensor] = field(default_factory=dict)
    _copied_s: float = 0.0
    _decoded_s: float = 0.0

    def __post_init__(self) -> None:
        decoder = self.trained.decoder
        self._read = thinking_prefill(decoder, self.config.thinking)
        self._advance = compiled_decode(decoder) if self.config.compile else decoder.decode

    def trial(self, setting: Setting) -> Trial:
        """Read the prompts and continue them, once."""
        prompts = self.prompts(setting)
        self._fence()
        begun_s = time.perf_counter()
        token, cache = self._prefill(prompts)
        read_s = time.perf_counter()
        self._decode(token, cache)
        return Trial(read_s - begun_s, (time.perf_counter() - read_s) / self.config.new_tokens)

    def prefill_work(self, setting: Setting) -> Work:
        """Return what reads the prompts."""
        prompts = self.prompts(setting)

        def work() -> int:
            self._prefill(prompts)
            return prompts.numel()

        return work

    def decode_work(self, setting: Setting) -> Work:
        """Return what continues the prompts, each time from the same context: from a copy of the cache."""
        token, cache = self._prefill(self.prompts(setting))

        def work() -> int:
            begun_s = time.perf_counter()
            fresh = copy.deepcopy(cache)
            self._fence()
            copied_s = time.perf_counter()
            self._decode(token, fresh)
            self._copied_s += copied_s - begun_s
            self._decoded_s += time.perf_counter() - begun_s
            return setting.batch * self.config.new_tokens

        return work

    @property
    def copying_share(self) -> float | None:
        """Return the share of the time of decoding for the meters that went into copies of caches; None before it."""
        return self._copied_s / self._decoded_s if self._decoded_s > 0 else None

    def prompts(self, setting: Setting) -> Tensor:
        """Return the (batch, context) prompts of a setting, always the same."""
        if setting not in self._prompts:
            chance = torch.Generator().manual_seed(derive(self.config.seed, "latency", setting.batch, setting.context))
            size = (setting.batch, setting.context)
            drawn = torch.randint(self.trained.shape["vocab_size"], size, generator=chance)
            self._prompts[setting] = drawn.to(self.trained.device)
        return self._prompts[setting]

    def _prefill(self, prompts: Tensor) -> tuple[Tensor, Any]:
        logits, cache = self._read(prompts)
        token = logits.argmax(-1)
        self._fence()
        return token, cache

    def _decode(self, token: Tensor, cache: Any) -> None:
        """Write ``new_tokens``; the device is waited for at each, as it is when tokens are shown or compared."""
        for _ in range(self.config.new_tokens):
            logits, cache = self._advance(token, cache)
            token = logits.argmax(-1)
            self._fence()

    def _fence(self) -> None:
        if self.trained.device.type != "cpu":
            torch.accelerator.synchronize(self.trained.device)


def _times(settings: Sequence[Setting], trials: Sequence[Mapping[Setting, Trial]]) -> Iterator[Metric]:
    """Yield medians and percentiles over the trials of each setting."""
    for setting in settings:
        first_s = np.array([trial[setting].first_s for trial in trials])
        token_s = np.array([trial[setting].token_s for trial in trials])
        yield _spread(FIRST, 1e3 * first_s, "ms", setting.label)
        yield _spread(TOKEN, 1e3 * token_s, "ms/token", setting.label)
        yield _spread(RATE, setting.batch / token_s, "tokens/s", setting.label)


def _growth(
    batch: int, contexts: Sequence[int], trials: Sequence[Mapping[Setting, Trial]], reasons: dict[str, str]
) -> Metric:
    """Return the slope of time per token against context; least squares within each trial."""
    unit, of = "ms/token per 1000 tokens of context", f"batch {batch}"
    if len(contexts) < 2:
        reasons[GROWTH] = "a slope needs at least two contexts (latency.prompt_tokens)"
        return Metric(GROWTH, None, unit, of=of)
    token_ms = 1e3 * np.array([[trial[Setting(batch, one)].token_s for one in contexts] for trial in trials])
    centred = np.array(contexts) - np.mean(contexts)
    slopes = token_ms @ centred / (centred @ centred)
    return _spread(GROWTH, 1e3 * slopes, unit, of)


def _spread(name: str, values: np.ndarray[Any, Any], unit: str, of: str) -> Metric:
    low, median, high = np.percentile(values, (10, 50, 90)).tolist()
    return Metric(name, median, unit, low=low, high=high, of=of)


def _energies(
    workload: Workload, settings: Sequence[Setting], config: LatencyConfig, say: Callable[[str], None]
) -> dict[str, TokenEnergy | Unavailable]:
    """Return the energies per token of reading and of writing, by name and setting."""
    if config.energy_s == 0:
        return {}
    works: dict[str, Callable[[], Work]] = {}
    for setting in settings:
        works[f"{PREFILL_ENERGY}, {setting.label}"] = partial(workload.prefill_work, setting)
        works[f"{DECODE_ENERGY}, {setting.label}"] = partial(workload.decode_work, setting)
    say(f"energy: {len(works)} blocks of {duration(config.energy_s)}")
    return token_energies(works, EnergyConfig(meters=config.meters), config.energy_s)


def _joules(
    settings: Sequence[Setting], energies: Mapping[str, TokenEnergy | Unavailable], reasons: dict[str, str]
) -> Iterator[Metric]:
    """Yield energies per token, each with the word that says how it was found."""
    for setting in settings:
        for name in (PREFILL_ENERGY, DECODE_ENERGY):
            found = energies.get(f"{name}, {setting.label}", Unavailable("not asked for (latency.energy_s is 0)"))
            if isinstance(found, Unavailable):
                reasons[name] = "; ".join(filter(None, (f"not measured: {found.reason}", found.remedy)))
                yield Metric(name, None, "J/token", of=setting.label)
            else:
                of = f"{setting.label}, {found.method}"
                yield Metric(name, found.energy_j, "J/token", low=found.low_j, high=found.high_j, of=of)
