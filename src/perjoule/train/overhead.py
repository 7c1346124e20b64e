"""The overhead experiment: what recording costs, found by training the same steps in turn with more and more of it.

One model, one optimizer and one stream of batches serve all arms, so that nothing but the recording differs; the arms
take turns in blocks of steps, in random order. Two of them record nothing: their ratio is the band within which the
method cannot tell anything apart.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perjoule.core.files import temporary_folder
from perjoule.data.contract import Batch
from perjoule.data.prefetch import Prefetcher
from perjoule.measure.config import EnergyConfig
from perjoule.measure.machine import MachineProfile
from perjoule.measure.overhead import AGAIN, Overhead, Ratio, store
from perjoule.measure.recorder import FencePolicy
from perjoule.models.transformer import TransformerConfig
from perjoule.runs.folder import RunFolder
from perjoule.train import backend as backends
from perjoule.train.config import BackendConfig, BatchConfig, RecordConfig, StopConfig, TrainConfig
from perjoule.train.console import Console
from perjoule.train.costs import Costs
from perjoule.train.distributed import Ranks
from perjoule.train.job import Job
from perjoule.train.loop import Loop
from perjoule.train.optimizer import Clipper
from perjoule.train.session import Session
from perjoule.train.stopping import Goal, Progress, SignalFlag
from perjoule.train.stream import Stream

NOTHING, TIME, ENERGY, SYNCHRONISED = "no-op", "time", "energy", "synchronised energy"
_ROWS, _SEQ_LEN, _VOCAB_SIZE = 8, 64, 512
"""A step of these takes about 10 ms on two cores."""


def measure(profile: MachineProfile, device: torch.device, quick: bool = False) -> Overhead:
    """Run the experiment and keep what it finds; about a minute on a CPU, or a few seconds if ``quick``.

    Args:
        profile: keeps it.
        device: to train on.
        quick: take so few steps that the figures mean little.
    """
    num_rounds, num_steps = (3, 4) if quick else (24, 30)
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        arms = _arms(folder, device, profile, stack)
        seconds = _take_turns(arms, num_rounds, num_steps)
    ratios = {arm: Ratio.paired(seconds[arm], seconds[NOTHING]) for arm in arms if arm != NOTHING}
    step_s = float(np.median(seconds[NOTHING])) / num_steps
    found = Overhead(step_s, num_rounds, num_steps, ratios, Ratio.paired(seconds[SYNCHRONISED], seconds[ENERGY]))
    store(found, profile, device.type)
    return found


@dataclass(frozen=True)
class _Tokens:
    """Random tokens, made once, so that reading them takes next to nothing."""

    num_samples: int = 1024
    ids: torch.Tensor = field(
        default_factory=lambda: torch.randint(_VOCAB_SIZE, (1024, _SEQ_LEN), generator=torch.Generator().manual_seed(0))
    )

    def batch(self, start: int, rows: int) -> Batch:
        """Return rows; the labels are the tokens themselves."""
        ids = self.ids[[(start + row) % self.num_samples for row in range(rows)]]
        return Batch({"input_ids": ids, "labels": ids}, rows, ids.numel(), ids.numel())


@dataclass(frozen=True)
class _Arm:
    """One way to record the same training."""

    session: Session
    job: Job

    def block(self, num_steps: int) -> float:
        """Take some steps; return their seconds."""
        progress = self.session.progress
        goal = replace(self.job.goal, config=StopConfig(steps=progress.step + num_steps))
        loop = Loop(replace(self.job, goal=goal, on_step=self.session.on_step(goal)), progress)
        begun = time.perf_counter()
        loop.run()
        self.job.backend.fence()
        return time.perf_counter() - begun


def _take_turns(arms: Mapping[str, _Arm], num_rounds: int, num_steps: int) -> dict[str, list[float]]:
    """Let every arm take a block in each round; the first round warms up and does not count.

    The metered arms stand together in a round, because the sampler runs for them only, and takes a while to start.
    """
    chance = random.Random(0)
    metered = [name for name, arm in arms.items() if arm.job.config.energy.sampler != "off"]
    groups = [metered, [name for name in arms if name not in metered]]
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(num_rounds + 1):
        chance.shuffle(groups)
        for group in groups:
            chance.shuffle(group)
            sessions = [arms[name].session for name in group]
            sessions[0].segment = number  # every round has a file of samples
            metering = sessions[0].meter()
            try:
                metering.ready()
                for session, name in zip(sessions, group, strict=True):
                    session.metering = metering
                    seconds[name].append(arms[name].block(num_steps))
            finally:
                metering.stop()
    return {name: taken[1:] for name, taken in seconds.items()}


def _arms(folder: Path, device: torch.device, profile: MachineProfile, stack: ExitStack) -> dict[str, _Arm]:
    """Build the arms around one model, one optimizer and one stream."""
    off = EnergyConfig(sampler="off")
    base = TrainConfig(
        model=TransformerConfig(dim=64, num_layers=2, num_heads=2),
        batch=BatchConfig(size=_ROWS),
        backend=BackendConfig(preset="plain", allocator="keep"),  # page faults would be most of the noise
        energy=off,
    )
    record, edge = RecordConfig(), RecordConfig(fence=FencePolicy.EDGE)
    kinds: dict[str, dict[str, Any]] = {
        NOTHING: {"record": RecordConfig(enabled=False)},
        AGAIN: {"record": RecordConfig(enabled=False)},
        TIME: {"record": record},
        ENERGY: {"record": record, "energy": EnergyConfig()},
        SYNCHRONISED: {"record": edge, "energy": EnergyConfig()},
    }
    backend = backends.choose(base.backend, device, backends.prepare(base.backend, Ranks(), profile), profile)
    module = base.model.build({"vocab_size": _VOCAB_SIZE, "seq_len": _SEQ_LEN}).to(device)  # type: ignore[attr-defined]
    optimizer, progress = base.optimizer.build(module, False), Progress()
    samples = _Tokens()
    stream = Stream(base.batch, base.debug, Ranks(), samples.num_samples)
    batches = stack.enter_context(Prefetcher(samples, stream.ranges(0), 0))
    goal = Goal(base.stop, _ROWS, samples.num_samples, _ROWS * _SEQ_LEN)
    costs = Costs.of(base, progress, stream, None, module)
    arms = {}
    for name, sections in kinds.items():
        config = base.model_copy(update=sections)
        run = RunFolder.create(folder / name.replace(" ", "-"), "", {}, {})
        stack.callback(run.close)
        parts = backend, module, optimizer, stream, None, progress, costs
        session = Session(config, run.path, run, Ranks(), Console(silent=True), *parts)
        stack.callback(session.close)
        job = Job(
            config=config,
            model=module,
            optimizer=optimizer,
            clipper=Clipper(list(module.parameters()), base.optimizer.clip_norm),
            batches=batches,
            recorder=session.begin(profile, {}),
            backend=backend,
            ranks=Ranks(),
            goal=goal,
            calendar=costs.calendar,
            signals=SignalFlag(),
            on_step=session.on_step(goal),
            evaluate=session.evaluate,
            save=session.save,
        )
        arms[name] = _Arm(session, job)
    return arms
