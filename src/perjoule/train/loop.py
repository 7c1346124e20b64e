"""The training loop. What one step does stands in :meth:`Loop._step`, from top to bottom.

Nothing here knows the modality: a batch is tensors with counts, a model returns a loss. Phases partition the step;
what lies between them is reported as ``other``. The loss that is trained on is the mean over all useful positions of
the step, whatever their distribution over micro-batches and ranks.
"""

from __future__ import annotations

import math
import time

import torch

from perjoule.core import phases
from perjoule.core.errors import DataError, TrainingDiverged
from perjoule.train.job import Ending, Job, StepRecord
from perjoule.train.stopping import Progress


class Loop:
    """Trains until the goal is reached or somebody asks to stop."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self.job, self.progress = job, progress
        phase = job.recorder.phase
        self._step_phase = phase(phases.STEP)
        self._data, self._transfer, self._forward, self._backward, self._optimize, self._evaluate, self._save = map(
            phase, (*phases.TRAINING, *phases.ON_SCHEDULE)
        )
        self._autocast = job.backend.autocast()
        self._pending: tuple[StepRecord, torch.Tensor, torch.Tensor] | None = None
        self._stop_agreed = False

    def run(self) -> Ending:
        """Train; return why it ended, the same on every rank."""
        job, progress = self.job, self.progress
        self._stop_agreed = job.goal.out_of_time(progress)  # resumed: every rank restored the same seconds
        while (reason := job.goal.reached(progress)) is None and not self._stop_agreed:
            begun = time.perf_counter()
            job.recorder.step = progress.step + 1
            with self._step_phase:
                self._step()
                self._on_schedule()
            progress.seconds += time.perf_counter() - begun
        self._settle()
        if reason is not None:
            return Ending(reason)
        # A signal may have reached one rank only.
        received = next((signal for signal in job.ranks.gather(job.signals.received) if signal is not None), None)
        if received is not None:
            return Ending(f"stopped by {received.name}", received)
        return Ending(f"reached {job.config.stop.seconds:g} s")

    def _step(self) -> None:
        """Take one optimizer step: data, transfer, forward, backward for each micro-batch, then the optimizer."""
        job, progress = self.job, self.progress
        with self._data:
            batches = [next(job.batches) for _ in range(job.config.batch.accumulation)]
            wants_stop = job.signals.received is not None or job.goal.out_of_time(progress)
            samples, tokens, useful, stop = job.ranks.totals(
                sum(batch.num_samples for batch in batches),
                sum(batch.num_tokens for batch in batches),
                sum(batch.num_useful for batch in batches),
                int(wants_stop),
            )
            self._stop_agreed = stop > 0
            if useful == 0:
                raise DataError(f"step {progress.step + 1}: every label of the batch is ignored; nothing to learn from")
        loss = torch.zeros((), device=job.backend.device)
        for number, batch in enumerate(batches, 1):
            share = batch.num_useful / useful
            with self._transfer:
                tensors = job.backend.to_device(batch.tensors)
            with job.ranks.without_sync(job.model, last=number == len(batches)):
                with self._forward, self._autocast:
                    output = job.model(tensors)
                with self._backward:
                    # Ranks average their gradients; times their number, the shares add up to the global mean.
                    scale = share * job.ranks.world_size
                    (output.loss if scale == 1 else output.loss * scale).backward()
            loss += output.loss.detach() * share
        with self._optimize:
            lr = self._set_learning_rate()
            norm = job.clipper()
            record = StepRecord(progress.step + 1, math.nan, math.nan, lr, samples, tokens, useful)
            self._settle()
            self._pending = record, job.ranks.total(loss), norm
            if job.backend.device.type == "cpu":  # reading costs nothing here, and a bad step is not taken
                self._settle()
            job.optimizer.step()
            job.optimizer.zero_grad(set_to_none=True)
            if job.after_optimizer_step is not None:
                job.after_optimizer_step()
        progress.step += 1
        progress.samples += samples
        progress.tokens += tokens
        progress.useful += useful

    def _set_learning_rate(self) -> float:
        """Set the schedule's rate for this step and return it."""
        config, goal = self.job.config, self.job.goal
        lr = config.optimizer.lr * config.schedule.factor(self.progress.step, goal.last_step)
        for group in self.job.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _settle(self) -> None:
        """Read the pending step's loss from the device and hand its record on. On an accelerator this is one step late.

        Raises:
            TrainingDiverged: if the loss or the gradient norm is not finite.
        """
        if self._pending is None:
            return
        record, loss, norm = self._pending
        self._pending = None
        values = loss.item(), norm.item()
        self.job.on_step(StepRecord(record.step, *values, record.lr, record.samples, record.tokens, record.useful))
        if not all(map(math.isfinite, values)):
            raise TrainingDiverged(
                f"step {record.step}: loss {values[0]}, gradient norm {values[1]}; the checkpoints before are intact. "
                "Lower optimizer.lr, or find the operation with debug.anomaly_detection=true"
            )

    def _on_schedule(self) -> None:
        """Evaluate and save when their step has come."""
        config, step = self.job.config, self.progress.step
        save = bool(config.checkpoint.every_steps) and step % (config.checkpoint.every_steps or 1) == 0
        if config.evaluate.every_steps and step % config.evaluate.every_steps == 0:
            self._settle()
            with self._evaluate:
                save |= self.job.evaluate()
        if save:
            self._settle()
            with self._save:
                self.job.save()
