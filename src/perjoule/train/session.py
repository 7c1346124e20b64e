"""One segment of a run while it trains: its entry in the manifest, its records, evaluations, checkpoints and end."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from perjoule.core import phases
from perjoule.core.errors import PerjouleError
from perjoule.data.contract import Samples
from perjoule.evaluate.loss import HeldOutLoss, evaluating, held_out_loss
from perjoule.measure.bridges.stats_name import build_stats
from perjoule.measure.bridges.trainer_stats import HookedRecorder, StatsBridge
from perjoule.measure.bursts import phase_names
from perjoule.measure.contract import Meter, Site, Unavailable
from perjoule.measure.device_clock import DeviceClock
from perjoule.measure.live import LiveEnergy
from perjoule.measure.machine import MachineProfile, host_facts
from perjoule.measure.meters.memory import MemoryConfig
from perjoule.measure.overhead import synchronising
from perjoule.measure.recorder import FencePolicy, Recorder
from perjoule.runs import checkpoints, folder
from perjoule.runs.folder import RunFolder
from perjoule.runs.journal import JournalWriter
from perjoule.train.backend import Backend
from perjoule.train.checkpoint import Checkpointer, Saved, random_state, restore_random_state
from perjoule.train.config import TrainConfig
from perjoule.train.console import Console
from perjoule.train.costs import Costs
from perjoule.train.distributed import Ranks
from perjoule.train.job import StepRecord
from perjoule.train.left import Left
from perjoule.train.memory import MemoryReading
from perjoule.train.metering import Metering, Place
from perjoule.train.ranking import Ranking
from perjoule.train.stopping import GivenUp, Goal, Progress, ending_of, until
from perjoule.train.stream import Stream


@dataclass
class Session:
    """Keeps what the loop produces. Only the leading rank has a folder and writes.

    Args:
        config: the run's configuration.
        path: the run folder, known to all ranks.
        folder: its writer; None on other ranks.
        ranks: this process's place.
        console: where lines go.
        backend: precision and device.
        module: the model, not compiled and not wrapped.
        optimizer: its optimizer.
        stream: cuts the held-out split.
        held_out: the split to evaluate on; None if it is too short.
        progress: where the run is; shared with the loop.
        costs: learns what its parts take; knows when it evaluates and saves.
    """

    config: TrainConfig
    path: Path
    folder: RunFolder | None
    ranks: Ranks
    console: Console
    backend: Backend
    module: nn.Module
    optimizer: torch.optim.Optimizer
    stream: Stream
    held_out: Samples | None
    progress: Progress
    costs: Costs
    last_loss: float | None = None
    last_evaluated: int = -1
    last_saved: int = -1
    segment: int = -1
    metering: Metering | None = None
    memory: Meter | Unavailable = field(default_factory=lambda: MemoryConfig().build(Site((os.getpid(),)))[0])

    def __post_init__(self) -> None:
        self.place = Place.here(self.backend.device)
        self.recorder: Recorder | None = None
        self.bridge: StatsBridge | None = None
        self.left: Left | None = None
        self.asked_to_stop: Callable[[], bool] = lambda: False
        self._unsaved_evaluation = False
        section = self.config.checkpoint
        self.ranking = Ranking(section, self.progress)
        self.checkpointer = Checkpointer(
            self.path / folder.CHECKPOINTS, self.module, self.optimizer, section.keep, section.asynchronous, self._saved
        )

    def open(self) -> None:
        """Begin a segment: its entry in the manifest."""
        if self.folder is not None:
            self.folder.begin_segment(
                {
                    "host": host_facts(),
                    "device": str(self.backend.device),
                    "world_size": self.ranks.world_size,
                    "first_step": self.progress.step + 1,
                    "warmup_steps": self.config.record.warmup_steps,
                    "fence": self.config.record.fence.value,
                    "stop": self.config.stop.model_dump(mode="json"),
                }
            )
        self.segment = self.ranks.from_leader(self.folder.segment if self.folder else None)

    def meter(self) -> Metering:
        """Start reading the meters, as long before the first step as possible; all ranks must come here.

        Raises:
            ConfigError: if carbon's source does not know the place.
            MissingExtra: if carbon's source is not installed.
        """
        self.metering = Metering.start(self.config, self.path, self.segment, self.ranks, self.place, self.console)
        if self.folder is not None:
            self.folder.update_segment(**self.metering.facts())
        return self.metering

    def begin(
        self, profile: MachineProfile, startup_s: dict[str, float], num_train_steps: int | None = None
    ) -> Recorder:
        """Note how the segment computes, print what was chosen, and open this rank's journals.

        Args:
            profile: knows the peak of this machine, and what synchronising costs.
            startup_s: seconds of each part of the start-up.
            num_train_steps: last step of the run if it is known, for the user's stats.

        Raises:
            ConfigError: if the user's stats cannot be built.
        """
        if self.segment < 0:
            self.open()
        if self.folder is not None:
            self.folder.update_segment(
                startup_s={name: round(value, 4) for name, value in startup_s.items()},
                backend=self.backend.facts(),
                peak=self.backend.peak(profile),
            )
        for line in self.backend.why:
            self.console.line(f"backend: {line}")
        self.console.line("backend: " + ", ".join(f"{key} {value}" for key, value in self.backend.settings.items()))
        if self.config.record.fence != FencePolicy.NONE:
            cost = synchronising(profile, self.backend.device.type)
            self.console.line(f"record.fence={self.config.record.fence.value}: what waiting costs: {cost}")
            if self.folder is not None:
                self.folder.update_segment(fence_overhead=cost)
        if self.metering is not None:
            self.metering.ready()
        if self.config.stats is not None:
            self.bridge = self._bridge(self.config.stats, num_train_steps)
        self.recorder = self._recorder()
        return self.recorder

    def _bridge(self, name: str, num_train_steps: int | None) -> StatsBridge:
        """Build the user's stats, and a folder for what they write."""
        output = self.path / "stats"
        output.mkdir(exist_ok=True)
        offered = {
            "device": self.backend.device,
            "num_train_steps": num_train_steps,
            "run": self.path,
            "output_dir": output,
            "fence": self.backend.fence,
            "conf": self.config,
            "say": self.console.line,
            "run_num": 0,
            "project_name": self.path.name,
        }
        flags = {
            "batch_size": self.config.batch.size,
            "learning_rate": self.config.optimizer.lr,
            "model": getattr(self.config.model, "kind", ""),
            "data": getattr(self.config.data, "kind", ""),
            "output_dir": str(output),
        }
        stats = build_stats(name, offered, flags, self.config.stats_options)
        return StatsBridge(stats, partial(torch.tensor, device=self.backend.device))

    def _recorder(self) -> Recorder:
        """Open this rank's journals."""
        record, fence = self.config.record, self.backend.fence
        journal = clock = None
        if record.enabled:
            names = (*phases.RECORDED, *getattr(self.module, "phases", ()))
            if self.config.energy.calibrate:
                names += phase_names(phases.TRAINING)
            facts = {"rank": self.ranks.rank, "segment": self.segment, "node": self.place.node}
            facts["device"] = self.place.device.removeprefix("GPU-")  # as in the domains of meters
            which = (self.path, self.segment, self.ranks.rank)
            if (new_event := self.backend.timing_event) is not None:
                clock = DeviceClock(new_event, fence, JournalWriter(folder.device_event_path(*which), names, facts))
            journal = JournalWriter(folder.event_path(*which), names, facts)
        if self.bridge is None:
            return Recorder(journal, fence, record.fence, clock)
        return HookedRecorder(self.bridge, journal, fence, record.fence, clock)

    def on_step(self, goal: Goal) -> Callable[[StepRecord], None]:
        """Return what the loop calls after each step: one line of metrics, and the progress display."""
        run = self.folder if self.config.record.enabled else None
        console, progress, segment, memory = self.console, self.progress, self.segment, MemoryReading(self.memory)
        left = self.left = self._left(goal)
        describe = left.text if left is not None else lambda: ""
        take_loss = self.bridge.take_loss if self.bridge is not None else None
        watch = self.metering.watch if self.metering is not None and self.metering.sampler is not None else None

        def on_step(record: StepRecord) -> None:
            if run is not None:
                step, loss, norm, lr, samples, tokens, useful = record
                run.append(
                    f'{{"kind":"step","segment":{segment},"step":{step},"loss":{loss!r},"grad_norm":{norm!r},"lr":{lr!r},'
                    f'"samples":{samples},"tokens":{tokens},"useful":{useful},"memory_bytes":{memory.json()}}}'
                    if record.finite
                    else json.dumps({"kind": "step", "segment": segment, **record.as_json()})
                )
            if left is not None:
                left.step()
            console.step(record, goal.fraction(progress), describe)
            self.ranking.step(record)
            if take_loss is not None:
                take_loss(record.loss)
            if watch is not None:
                watch()

        return on_step

    def _left(self, goal: Goal) -> Left | None:
        """Return what watches how much of the run is left, on the rank that prints it."""
        if self.folder is None:
            return None
        metered = self.metering is not None and self.metering.sampler is not None
        return Left(
            self.config,
            self.costs.calendar,
            goal,
            self.progress,
            parameters=sum(weight.numel() for weight in self.module.parameters()),
            held_out_samples=None if self.held_out is None else self.held_out.num_samples,
            energy=LiveEnergy(self.path) if metered else None,
        )

    def measure_held_out(self) -> HeldOutLoss:
        """Measure the held-out loss, and note nothing.

        Raises:
            GivenUp: if somebody asks to stop meanwhile; not where other ranks would wait.
        """
        assert self.held_out is not None
        batches = self.stream.held_out(self.held_out, self.config.evaluate.batches)
        if self.ranks.world_size == 1:
            batches = until(self.asked_to_stop, batches)
        with self.backend.autocast():
            return held_out_loss(self.module, batches, self.backend.to_device, self.ranks.total)

    def time_evaluation(self, goal: Goal) -> None:
        """Time a held-out batch, so that a budget keeps back what the last evaluation will cost."""
        if self.held_out is None or self.ranks.world_size > 1:  # other ranks need not agree on what was seen
            return
        state = random_state()
        with torch.no_grad(), evaluating(self.module), self.backend.autocast():
            for batch in islice(self.stream.held_out(self.held_out, 2), 2):  # the first one allocates
                begun = time.perf_counter()
                self.module(self.backend.to_device(batch.tensors)).loss.item()
                self.costs.evaluation_batch_s = took_s = time.perf_counter() - begun
                if not goal.has_room(self.progress, 100 * took_s):  # a small budget cannot afford another
                    break
        restore_random_state(state)

    def evaluate(self) -> bool:
        """Measure the held-out loss and take note of it; return whether its state shall be saved as one of the best."""
        if self.held_out is None:
            return self.ranking.is_of_steps and self._rank(math.nan)
        section, progress, begun = self.config.evaluate, self.progress, time.perf_counter()
        try:
            result = self.measure_held_out()
        except GivenUp:
            self.console.line(f"step {progress.step}: {section.split} loss: not measured: asked to stop")
            return False
        self.last_loss, best = result.loss, progress.saw_held_out_loss(result.loss)
        if self.folder is not None:
            self.folder.append_event(
                "evaluate",
                step=progress.step,
                split=section.split,
                loss=result.loss if math.isfinite(result.loss) else None,
                tokens=result.useful,
                seconds=result.seconds,
            )
        self.costs.evaluated(time.perf_counter() - begun)
        if self.left is not None:
            self.left.evaluated(time.perf_counter() - begun, result.loss)
        mark = " (best so far)" if best else ""
        self.console.line(f"step {progress.step}: {section.split} loss {result.loss:.4f}{mark}")
        return self._rank(result.loss)

    def _rank(self, held_out_loss: float) -> bool:
        """Rank the present state; return whether it shall be saved as one of the best."""
        self._unsaved_evaluation, self.last_evaluated = True, self.progress.step
        return self.ranking.evaluated(held_out_loss) and self.config.checkpoint.best

    def save(self) -> None:
        """Write a checkpoint, or what an evaluation of the same step has found since it was written."""
        progress, begun = self.progress, time.perf_counter()
        if self.last_saved != progress.step:
            states = self.ranks.gather(random_state())
            if self.folder is not None:
                self.checkpointer.save(progress, states)
        elif self._unsaved_evaluation and self.folder is not None:
            self.checkpointer.restate(progress)
        self.last_saved, self._unsaved_evaluation = progress.step, False
        self.costs.calendar.saved_s = progress.seconds
        self.costs.blocked(time.perf_counter() - begun)
        if self.left is not None:
            self.left.saved(time.perf_counter() - begun)

    def _saved(self, saved: Saved) -> None:
        """Record a checkpoint that is on the disk. Called from the writing thread."""
        self.costs.saved(saved.blocked_s, saved.write_s)
        if self.folder is not None:
            self.folder.append_event(
                "checkpoint",
                step=saved.step,
                path=str(saved.path.relative_to(self.path)),
                bytes=saved.num_bytes,
                blocked_s=saved.blocked_s,
                write_s=saved.write_s,
                best=checkpoints.best_step(self.folder.checkpoints) == saved.step,
            )

    def _load(self) -> dict[str, Any]:
        """Return how busy other programs kept the machine."""
        return self.metering.load_facts() if self.metering is not None else {}

    def end(self, recorder: Recorder, status: str, reason: str, goal: Goal) -> None:
        """Evaluate once more unless asked to stop, save the last state, stop metering, write how the segment ended."""
        progress, costs, begun = self.progress, self.costs, time.perf_counter()
        measures = self.held_out is not None or self.ranking.is_of_steps
        if measures and status == folder.FINISHED and self.last_evaluated != progress.step:
            room = self.ranks.from_leader(goal.has_room(progress, costs.evaluation_s + costs.checkpoint_s))
            if room:
                with recorder.phase(phases.EVALUATE):
                    self.evaluate()
            else:
                self.console.line(f"{self.config.evaluate.split} loss: not measured: the budget leaves no room for it")
        progress.seconds += time.perf_counter() - begun
        begun = time.perf_counter()
        if self.last_saved != progress.step or self._unsaved_evaluation:
            with recorder.phase(phases.CHECKPOINT):
                self.save()
        self.checkpointer.wait()
        if self.bridge is not None:
            self.bridge.end()
        self.close()
        progress.seconds += time.perf_counter() - begun
        if self.folder is not None:
            self.folder.end(status, reason, last_step=progress.step, seconds=progress.seconds, **self._load())
        self.console.line(f"{status}: {reason}, at step {progress.step}")
        if self.bridge is not None:
            self.bridge.report()

    def close(self) -> None:
        """End what was recorded and metered. May be called twice."""
        if self.recorder is not None:
            self.recorder.close()
        if self.metering is not None:
            self.metering.stop()
        if not isinstance(self.memory, Unavailable):
            self.memory.close()

    def fail(self, error: BaseException) -> None:
        """Write why the run ended early, as far as that is still possible."""
        if self.bridge is not None:
            self._end_stats(self.bridge)
        if self.folder is None:
            return
        status, reason = ending_of(error)
        try:
            self.checkpointer.wait()
            self.close()
            self.folder.end(status, reason, last_step=self.progress.step, seconds=self.progress.seconds, **self._load())
        except PerjouleError as second:  # a full disk, most likely; the journal and the checkpoints before stay
            self.console.line(str(second))

    def _end_stats(self, bridge: StatsBridge) -> None:
        """Stop the user's stats after an error, which matters more than one of theirs."""
        try:
            bridge.end()
        except PerjouleError as second:
            self.console.line(str(second))
