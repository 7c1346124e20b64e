"""A minute of small training runs from which this machine's speed and power are learned.

Every configuration is an ordinary ``perjoule train`` run of a second in a temporary folder, so that what is calibrated
is what will be estimated: the loop, the recorder, the meters. The configurations are interleaved and each comes back in
every round, so that a neighbour's burst of work does not fall on one of them alone; the fastest round of each counts.
What is done is kept at once in the machine's profile: after a kill a second call does the rest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import raise_signal
from typing import TYPE_CHECKING, Any, Protocol

from perjoule.core.errors import DataError
from perjoule.core.files import temporary_folder
from perjoule.core.units import si
from perjoule.estimate.contract import Estimate
from perjoule.estimate.own.sample import Sample, read_sample
from perjoule.measure.machine import MachineProfile, cpu_info
from perjoule.measure.machine_load import MachineLoad
from perjoule.outlook.series import student
from perjoule.runs.folder import read_manifest
from perjoule.runs.machine_load import busy_line

if TYPE_CHECKING:
    from perjoule.config.resolve import Resolved
    from perjoule.train.config import TrainConfig

KEPT, UNDER_WAY = "estimate/calibration", "estimate/calibration under way"
COMPILED = "estimate/compiled"
_COMPILED_SD = 0.15
"""By how much the gain by compiling differs between configurations, in logarithms."""
FLOAT32, BF16 = "float32", "bf16-autocast"
_WARMUP = 3
_PLAIN = (
    "backend.compile=false",
    "schedule.kind=constant",
    "evaluate.batches=1",
    "checkpoint.asynchronous=false",
    f"record.warmup_steps={_WARMUP}",
)
"""What every calibration run has: the shortest end, and nothing that a step is not made of."""
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


class Trains(Protocol):
    """Trains a resolved recipe silently."""

    def __call__(self, config: Resolved[TrainConfig], *, recipe: str) -> Any:
        """Return something with ``run``, the run folder, and ``signal``, the number of what stopped it or None."""


Load = Callable[..., "Resolved[TrainConfig]"]
"""``load(recipe, *overrides)``: ``perjoule.load``."""


@dataclass(frozen=True)
class Trainer:
    """What of ``perjoule train`` is needed here; the command line hands it over, as the layers demand.

    Args:
        load: resolves a recipe.
        train: trains one.
    """

    load: Load
    train: Trains


@dataclass(frozen=True)
class Calibration:
    """What was measured on this machine.

    Args:
        samples: one for each configuration.
        chosen: what ``backend: auto`` stands for here, by key of the backend section.
        load: how busy other programs kept the machine meanwhile, as in a run's manifest.
    """

    samples: tuple[Sample, ...]
    chosen: Mapping[str, Any]
    load: Mapping[str, Any] = field(default_factory=dict)


def overrides_of(
    kind: str, dim: int, num_layers: int, batch_size: int, seq_len: int, vocabulary: int, precision: str
) -> tuple[str, tuple[str, ...]]:
    """Return the name and the overrides of a configuration on a data set that needs no preparation.

    Args:
        kind: of the model.
        dim: its width.
        num_layers: its depth.
        batch_size: samples per step.
        seq_len: tokens per sample.
        vocabulary: keys and values of the data set together.
        precision: of the backend.
    """
    name = f"{kind} {dim}x{num_layers}, batch {batch_size}, seq_len {seq_len}, vocabulary {vocabulary}, {precision}"
    values = {
        "model.kind": kind,
        "model.dim": dim,
        "model.num_layers": num_layers,
        "data.kind": "recall",
        "data.seq_len": seq_len,
        "data.num_pairs": min(8, (seq_len + 1) // 8),
        "data.num_keys": vocabulary // 2,
        "data.num_values": vocabulary // 2,
        "batch.size": batch_size,
        "backend.precision": precision,
    }
    return name, tuple(f"{key}={value}" for key, value in values.items())


def configurations(precisions: Sequence[str] = (FLOAT32, BF16)) -> dict[str, tuple[str, ...]]:
    """Return the calibration set: name to overrides of a recipe. Each differs from the others in more than one respect.

    Args:
        precisions: those to measure; the first one is measured more often.
    """
    shapes = (
        ("transformer", 64, 2, 8, 127, 128),
        ("transformer", 256, 2, 4, 255, 4096),
        ("transformer", 384, 3, 8, 127, 512),
        ("transformer", 128, 6, 2, 511, 1024),
        ("retnet", 128, 3, 8, 127, 2048),
        ("retnet", 256, 2, 2, 511, 256),
        ("longnet", 128, 2, 8, 255, 512),
        ("longnet", 256, 3, 4, 127, 2048),
        ("ebt", 64, 2, 4, 127, 256),
        ("ebt", 192, 2, 4, 127, 1024),
    )
    found: dict[str, tuple[str, ...]] = {}
    for number, shape in enumerate(shapes):
        one = precisions[number // 2 % len(precisions)]
        found |= dict(overrides_of(*shape, precision) for precision in (precisions if number % 2 == 0 else [one]))
    return found


def here() -> tuple[str, ...]:
    """Return the precisions that this machine computes in hardware."""
    return (FLOAT32, BF16) if cpu_info()["flags"] & BF16_FLAGS else (FLOAT32,)


def read_calibration(profile: MachineProfile) -> Calibration | None:
    """Return what was calibrated on this machine, or None if that was never done or is damaged."""
    stored = profile.get(KEPT)
    with suppress(KeyError, TypeError):
        if stored is not None:
            return Calibration(
                tuple(map(Sample.from_json, stored["samples"])), dict(stored["chosen"]), stored.get("load") or {}
            )
    return None


def calibrate(
    trainer: Trainer,
    profile: MachineProfile,
    seconds: float = 1.2,
    rounds: int = 2,
    which: Mapping[str, Sequence[str]] | None = None,
    most_s: float = 75.0,
) -> Iterator[str]:
    """Measure the calibration set and keep it in the profile; yield a line for each run.

    Args:
        trainer: loads and trains.
        profile: of this machine.
        seconds: training time of each run.
        rounds: how often each configuration is measured.
        which: configurations; None: :func:`configurations`.
        most_s: seconds after which no further round is made: on a busy machine one has to do.

    Raises:
        DataError: if a run was too short for a step behind its warm-up.
    """
    until_s = time.monotonic() + most_s
    which = configurations(here()) if which is None else which
    plan = [(f"{name} ({number})", name) for number in range(1, rounds + 1) for name in which]
    labels = {label for label, _ in plan}
    done: dict[str, dict[str, Any]] = profile.get(UNDER_WAY) or {}
    if not set(done) <= labels:  # of another set or another number of rounds
        done = {}
    chosen: dict[str, Any] = {}
    load = MachineLoad()
    for number, (label, name) in enumerate(plan, 1):
        if label in done:
            continue
        if number > len(which) and time.monotonic() > until_s:
            yield f"this took longer than {most_s:g} s: the rest of round {(number - 1) // len(which) + 1} is left out"
            break
        sample, chosen = measure(trainer, name, which[name], seconds)
        done[label] = {"sample": sample.as_json(), "chosen": chosen}
        profile.put(UNDER_WAY, done)
        yield f"{number}/{len(plan)} {name}: {si(sample.step_s, 's')} a step"
    best: dict[str, Sample] = {}
    for entry in done.values():
        sample = Sample.from_json(entry["sample"])
        if sample.name not in best or sample.step_s < best[sample.name].step_s:
            best[sample.name] = sample
    chosen = {**next(iter(done.values()))["chosen"], "precision": here()[-1]}
    facts = load.facts()
    profile.put(KEPT, {"samples": [one.as_json() for one in best.values()], "chosen": chosen, "load": facts})
    profile.put(UNDER_WAY, None)
    if busy := busy_line(facts):
        yield f"{busy}; what was measured may be slower than this machine is: calibrate again when it is quiet"


def calibrate_compiled(
    trainer: Trainer,
    profile: MachineProfile,
    seconds: float = 1.2,
    which: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[str]:
    """Measure what compiling makes of a step, on a few configurations of the calibration, and keep it in the profile.

    Args:
        trainer: loads and trains.
        profile: of this machine, calibrated.
        seconds: training time of each run, compiling not included.
        which: configurations; None: some of :func:`configurations`.

    Raises:
        DataError: if none of the configurations was calibrated.
    """
    known = read_calibration(profile)
    plain = {} if known is None else {one.name: one.step_s for one in known.samples}
    if which is None:
        which = dict(list(configurations(here()).items())[2:9:2])
    ratios = {}
    for name in which.keys() & plain.keys():
        sample, _ = measure(trainer, name, (*which[name], "backend.compile=true"), seconds)
        ratios[name] = sample.step_s / plain[name]
        yield f"{name}: compiled {si(sample.step_s, 's')} a step, {ratios[name]:.2f} of the time"
    if not ratios:
        raise DataError("compiling is compared with calibrated configurations: calibrate them first")
    profile.put(COMPILED, ratios)


def read_compiled(profile: MachineProfile) -> Estimate | None:
    """Return a compiled step over an eager one, as measured on this machine; None if that was never done."""
    stored = profile.get(COMPILED)
    if not isinstance(stored, Mapping) or not stored:
        return None
    logs = [math.log(ratio) for ratio in stored.values()]
    mean, num = sum(logs) / len(logs), len(logs)
    # A few ratios say little of how much ratios differ: the prior's spread counts as two more.
    variance = (2 * _COMPILED_SD**2 + sum((one - mean) ** 2 for one in logs)) / (num + 1)
    half = student(max(3.0, num + 1.0)) * math.sqrt(variance * (1 + 1 / num))
    low, middle, high = (math.exp(mean + by) for by in (-half, 0.0, half))
    return Estimate(middle, low, high, "", f"measured on {num} configurations")


def measure(
    trainer: Trainer, name: str, overrides: Sequence[str], seconds: float, least_steps: int = 5
) -> tuple[Sample, dict[str, Any]]:
    """Train a configuration for some seconds and return what it took, with the settings of its backend.

    Args:
        trainer: loads and trains.
        name: of the configuration.
        overrides: of the default recipe.
        seconds: training time; more if ``least_steps`` need it.
        least_steps: steps behind the warm-up.
    """
    from perjoule.estimate.own.counting import count

    with temporary_folder() as folder:

        def train(end: str) -> tuple[Sample, dict[str, Any]]:
            resolved = trainer.load(None, *_PLAIN, *overrides, f"stop={{{end}}}", f"runs={folder}")
            config: TrainConfig = resolved.config
            result = trainer.train(resolved, recipe="calibration")
            if result.signal is not None:  # it ended the run in good order; it was meant for all of us
                raise_signal(result.signal)
                raise KeyboardInterrupt  # where the signal is ignored, as in the background of a script
            path = Path(result.run)
            chosen: dict[str, Any] = read_manifest(path)["segments"][-1]["backend"]["chosen"]
            return read_sample(path, name, count(config, chosen["precision"]).work), chosen

        with suppress(DataError):  # not even one step behind the warm-up
            sample, chosen = train(f"seconds: {seconds}")
            if sample.num_steps >= least_steps:
                return sample, chosen
        return train(f"steps: {_WARMUP + least_steps}")
