"""The configuration of a training run: one section per concern, each with its own defaults and checks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, field_validator, model_validator
from typing_extensions import TypeAliasType

from perjoule.config import Component, Config
from perjoule.core.units import parse_energy_j, parse_mass_g
from perjoule.data import SHELF as DATA
from perjoule.measure.bridges.stats_name import StatsName
from perjoule.measure.carbon import CarbonConfig
from perjoule.measure.config import EnergyConfig
from perjoule.measure.recorder import FencePolicy
from perjoule.models import SHELF as MODELS
from perjoule.train.optimizer import OptimizerConfig
from perjoule.train.schedule import ScheduleConfig

Fraction = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0)]
# Named types, because a field that is openly a float takes no text.
Joules = TypeAliasType("Joules", Annotated[float, BeforeValidator(parse_energy_j), Field(gt=0)])
Grams = TypeAliasType("Grams", Annotated[float, BeforeValidator(parse_mass_g), Field(gt=0)])


class BatchConfig(Config):
    """How many samples make one optimizer step."""

    size: PositiveInt = 8
    """Samples per optimizer step, over all ranks and micro-batches."""
    accumulation: PositiveInt = 1
    """Micro-batches per step on each rank; more of them need less memory."""
    workers: int = Field(default=0, ge=0, le=64)
    """Threads that read ahead once batches take longer than handing them over; 0 reads in the loop. The stream is the
    same for any number."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.size % self.accumulation:
            raise ValueError(f"size {self.size} must be a multiple of accumulation {self.accumulation}")
        return self


class StopConfig(Config):
    """When training ends: at whichever of these comes first."""

    steps: PositiveInt | None = None
    epochs: float | None = Field(default=None, gt=0)
    tokens: PositiveInt | None = None
    seconds: Seconds | None = None
    """Seconds of training, over all segments, with compiling, evaluations and checkpoints; start-up not counted."""
    energy: Joules | None = None
    """``50kJ``, ``2 kWh`` or a number of joules: all that the meters count, over all segments, start-up included."""
    carbon: Grams | None = None
    """``10g``, ``0.2 kg`` or a number of grams CO2e; needs ``carbon.location``."""
    patience: PositiveInt | None = None
    """Early stopping: evaluations in a row without a better validation loss."""

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if not any((self.steps, self.epochs, self.tokens, self.seconds, self.energy, self.carbon)):
            raise ValueError("give at least one of steps, epochs, tokens, seconds, energy, carbon")
        return self


class EvaluateConfig(Config):
    """Held-out loss while training."""

    every_steps: PositiveInt | None = None
    """None: only at the end."""
    every_epochs: float | None = Field(default=None, gt=0)
    """Instead of ``every_steps``: 0.25 evaluates four times in an epoch."""
    batches: PositiveInt | None = 20
    """Batches of ``batch.size`` samples, from the start of the split; None: the whole split."""
    split: Literal["validation", "test", "ood"] = "validation"
    """``ood`` is out of distribution: longer or deeper, where a data set has such a split."""


class CheckpointConfig(Config):
    """What is kept of a run's state, and how often."""

    every_steps: PositiveInt | None = None
    """None: only at the end and when asked to stop."""
    every_minutes: float | None = Field(default=None, gt=0)
    """Also after so many minutes of training since the last checkpoint."""
    keep: PositiveInt = 2
    """How many of the newest are kept; the best ones are kept besides."""
    top: PositiveInt = 1
    """How many of the best by ``monitor`` are kept."""
    best: bool = True
    """Also save whenever an evaluation finds one of the ``top`` best states so far."""
    monitor: Literal["held_out_loss", "training_loss", "grad_norm"] = "held_out_loss"
    """What the best checkpoints are ranked by: the loss of the split ``evaluate.split``, or the mean of the training
    loss or gradient norm over the steps since the evaluation before. Looked at when it is time to evaluate;
    ``stop.patience`` looks at the held-out loss always."""
    direction: Literal["lowest", "highest"] = "lowest"
    """Which values of ``monitor`` are the best."""
    asynchronous: bool = True
    """Copy to memory, then write while training goes on."""


class RecordConfig(Config):
    """What is recorded of each step."""

    enabled: bool = True
    fence: FencePolicy = FencePolicy.NONE
    """Whether the device is waited for: never, once per step, or at every edge of every phase."""
    warmup_steps: int = Field(default=3, ge=0)
    """Steps at the start of each segment that rates and means leave out."""


class BackendConfig(Config):
    """How the arithmetic is done. ``auto`` is probed on this machine, printed, and recorded in the manifest."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "auto": {},
        "plain": {
            "precision": "float32",
            "matmul": "highest",
            "compile": False,
            "attention": "sdpa",
            "allocator": "system",
            "threads": "torch",
            "fused_optimizer": False,
        },
    }

    preset: str | None = None
    """``auto`` (the defaults) or ``plain`` (what PyTorch does when nothing is set)."""
    precision: Literal["auto", "float32", "bf16-autocast", "bf16"] = "auto"
    """``bf16`` keeps weights, gradients and optimizer in bf16: updates below 0.4 % of a weight are lost. There is no
    fp16: without a gradient scaler, which this loop has not, its small gradients become 0."""
    matmul: Literal["auto", "highest", "high", "medium"] = "auto"
    """The path of float32 products: the vendor's BLAS, or oneDNN (``medium`` rounds to bf16 on a CPU with AMX); on GPUs
    ``high`` is TF32. ``auto`` never takes ``high``."""
    compile: Literal["auto", True, False] = "auto"
    attention: Literal["auto", "sdpa", "blocked"] = "auto"
    allocator: Literal["auto", "system", "keep"] = "auto"
    """``keep`` tells glibc to hold freed memory instead of giving its pages back and clearing them again."""
    threads: Literal["auto", "torch"] | PositiveInt = "auto"
    fused_optimizer: Literal["auto", True, False] = "auto"

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, precision: object) -> object:
        if re.fullmatch(r"(fp|float)?16([-_]\w+)?|half", str(precision)):
            raise ValueError(
                f"must be auto, float32, bf16-autocast or bf16, not {precision!r}: fp16 needs a gradient scaler, and "
                "there is none; bf16-autocast needs none"
            )
        return precision


class DebugConfig(Config):
    """Aids for finding mistakes; all off by default."""

    overfit_batches: PositiveInt | None = None
    """Repeat the first n batches for ever: the loss of a sound model goes to 0."""
    limit_batches: PositiveInt | None = None
    """Pretend an epoch has only n batches."""
    rehearsal: bool = False
    """Run one step, one evaluation and one checkpoint round trip, restore the state, then train."""
    anomaly_detection: bool = False
    """Let autograd name the forward operation of a non-finite gradient (slow)."""
    unused_parameters: bool = False
    """Before training, list the trainable parameters that the first batch gives no gradient."""
    gradients: bool = False
    """Journal the norm and the largest absolute value of the gradient of every block of the model at every step, before
    clipping, in ``metrics.jsonl`` (lines of kind ``gradients``; null: not finite; a block without a gradient is left
    out)."""
    data_only: bool = False
    """Read the batches of the run without training on them; print their rate and the fraction of ignored labels."""


class TrainConfig(Config):
    """One training run."""

    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$",
        json_schema_extra={"accepted": "letters, digits, '.', '_' and '-', a letter or digit first, at most 200"},
    )
    """Name of the run folder; None: the recipe's name, the time and four random digits."""
    runs: Path = Path("runs")
    """The folder that holds run folders."""
    seed: int = Field(default=0, ge=0)
    device: str = "cpu"
    """``cpu``, ``cuda`` or ``cuda:1``; nothing is guessed."""
    model: Annotated[Config, Component(MODELS)] = Field(default="transformer", validate_default=True)
    data: Annotated[Config, Component(DATA)] = Field(default="stdlib", validate_default=True)
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    stop: StopConfig = StopConfig(steps=200)
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    record: RecordConfig = RecordConfig()
    energy: EnergyConfig = Field(default_factory=EnergyConfig)
    carbon: CarbonConfig = CarbonConfig()
    stats: StatsName | None = None
    """A ``TrainerStats`` of the course toolkit to call besides: ``simple``, ``codecarbon``, ``noop`` or your own as
    ``module:Class`` or ``module:construct_trainer_stats``."""
    stats_options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of these stats, or flags of the toolkit's configuration, such as ``run_num``."""
    backend: BackendConfig = BackendConfig()
    debug: DebugConfig = DebugConfig()
    initial_weights: Path | None = None
    """A ``.safetensors`` file to start from instead of random weights."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise ValueError("must be cpu, cuda, or cuda and a number, such as cuda:1")
        return device

    @model_validator(mode="after")
    def _horizon(self) -> Self:
        bounded = self.stop.steps or self.stop.epochs or self.stop.tokens or self.schedule.horizon_steps
        if self.schedule.kind in {"linear", "cosine"} and not bounded:
            raise ValueError(
                f"schedule.kind {self.schedule.kind!r} must know its last step: give stop.steps, stop.epochs, "
                "stop.tokens or schedule.horizon_steps"
            )
        if self.evaluate.every_steps and self.evaluate.every_epochs:
            raise ValueError("give one of evaluate.every_steps and evaluate.every_epochs")
        if self.stop.patience and not (self.evaluate.every_steps or self.evaluate.every_epochs):
            raise ValueError("stop.patience counts evaluations: give evaluate.every_steps or evaluate.every_epochs")
        return self

    @model_validator(mode="after")
    def _metered(self) -> Self:
        metered = self.energy.sampler != "off" and self.energy.meters
        budget = next((name for name in ("energy", "carbon") if getattr(self.stop, name) is not None), None)
        if budget and not metered:
            raise ValueError(f"stop.{budget} needs meters: energy.sampler must not be off, nor energy.meters empty")
        if self.stop.carbon is not None and not _knows_its_grid(self.carbon):
            raise ValueError("stop.carbon needs carbon.location, such as DEU, or carbon.intensity_g_per_kwh")
        if self.energy.calibrate and not (metered and self.record.enabled):
            raise ValueError(
                "energy.calibrate needs energy.meters, an energy.sampler that is not off, and record.enabled=true"
            )
        return self


def _knows_its_grid(carbon: CarbonConfig) -> bool:
    """Return whether carbon can be computed at all."""
    return carbon.is_live or carbon.location is not None or carbon.intensity_g_per_kwh is not None
