"""The training loop. What one step does stands in :meth:`Loop._step`, from top to bottom.

Nothing here knows the modality: a batch is tensors with counts, a model returns a loss. Phases partition the step; the
rest is ``other``. The loss is the mean over the step's useful positions, however micro-batches and ranks share them.
"""

from __future__ import annotations

import time

import torch

from perjoule.core import phases
from perjoule.core.errors import DataError, TrainingDiverged
from perjoule.train.job import Ending, Job, StepRecord
from perjoule.train.stopping import Progress

Pending = tuple[torch.Tensor, torch.Tensor, float, int, int, int]
"""Loss and gradient norm, still on the device, with learning rate, samples, tokens and useful tokens of their step."""


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
        self._on_cpu = job.backend.device.type == "cpu"
        self._pending: Pending | None = None
        self._last_read = progress.step
        self._used_up: str | None = None
        self._stop_agreed = self._save_agreed = False

    def run(self) -> Ending:
        """Train; return why it ended, the same on every rank."""
        job, progress = self.job, self.progress
        self._used_up = job.goal.used_up(progress, 1)  # nothing may be left of a resumed run
        self._stop_agreed = any(job.ranks.gather(self._used_up))
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
        # A signal may have reached one rank only, clocks differ, and one rank reads the budgets.
        signals, reasons = zip(*job.ranks.gather((job.signals.received, self._used_up)), strict=True)
        received = next((signal for signal in signals if signal is not None), None)
        if received is not None:
            return Ending(f"stopped by {received.name}", received)
        return Ending(next(reason for reason in reasons if reason is not None))

    def _step(self) -> None:
        """Take one optimizer step: data, transfer, forward, backward for each micro-batch, then the optimizer."""
        job, progress = self.job, self.progress
        with self._data:
            batches = [next(job.batches) for _ in range(job.config.batch.accumulation)]
            self._used_up = job.goal.used_up(progress, 2)  # this step is taken, and another would be
            counts = zip(*[(batch.num_samples, batch.num_tokens, batch.num_useful) for batch in batches], strict=True)
            wishes = (job.signals.received or self._used_up) is not None, job.calendar.time_to_save(progress)
            samples, tokens, useful, *agreed = job.ranks.totals(*map(sum, counts), *map(int, wishes))
            self._stop_agreed, self._save_agreed = (number > 0 for number in agreed)
            if useful == 0:
                raise DataError(f"step {progress.step + 1}: every label of the batch is ignored; nothing to learn from")
        loss: torch.Tensor | None = None
        for number, batch in enumerate(batches, 1):
            share = batch.num_useful / useful
            with self._transfer:
                tensors = job.backend.to_device(batch.tensors)
            with job.ranks.without_sync(job.model, last=number == len(batches)):
                with self._forward, self._autocast:
                    output = job.model(tensors)
                with self._backward:
                    part = output.loss if share == 1 else output.loss * share
                    # Ranks average their gradients; times their number, the parts add up to the global mean.
                    (part if job.ranks.world_size == 1 else part * job.ranks.world_size).backward()
            loss = part.detach() if loss is None else loss + part.detach()
        with self._optimize:
            lr = self._set_learning_rate()
            norm = job.clipper()
            assert loss is not None
            ready, self._pending = self._pending, (job.ranks.total(loss), norm, lr, samples, tokens, useful)
            if self._on_cpu:  # reading costs nothing here, and a bad step is not taken
                ready, self._pending = self._pending, None
            record = None if ready is None else self._read(ready)
            if record is None or record.finite:
                job.optimizer.step()
            job.optimizer.zero_grad(set_to_none=True)
            if job.after_optimizer_step is not None:
                job.after_optimizer_step()
        if record is not None:
            self._hand_on(record)
        progress.step += 1
        progress.samples += samples
        progress.tokens += tokens
        progress.useful += useful

    def _set_learning_rate(self) -> float:
        """Set the schedule's rate for this step, times what a group asks for, and return it."""
        config = self.job.config
        lr = config.optimizer.lr * config.schedule.factor(self.progress.step, self.job.goal.last_step)
        for group in self.job.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        return lr

    def _read(self, pending: Pending) -> StepRecord:
        """Read a step's loss and gradient norm from the device. On an accelerator this happens one step late."""
        loss, norm, lr, *counts = pending
        self._last_read += 1
        return StepRecord(self._last_read, loss.item(), norm.item(), lr, *counts)

    def _settle(self) -> None:
        """Read what is pending, before something else is done with the weights."""
        ready, self._pending = self._pending, None
        if ready is not None:
            self._hand_on(self._read(ready))

    def _hand_on(self, record: StepRecord) -> None:
        """Give the record to whoever writes and prints it.

        Raises:
            TrainingDiverged: if the loss or the gradient norm is not finite.
        """
        self.job.on_step(record)
        if not record.finite:
            raise TrainingDiverged(
                f"step {record.step}: loss {record.loss}, gradient norm {record.grad_norm}; the checkpoints before are "
                "intact. Lower optimizer.lr, or find the operation with debug.anomaly_detection=true"
            )

    def _on_schedule(self) -> None:
        """Evaluate and save when their step has come."""
        job, step = self.job, self.progress.step
        save = job.calendar.saves(step) or self._save_agreed
        if job.calendar.evaluates(step):
            self._settle()
            with self._evaluate:
                save |= job.evaluate()
        if save:
            self._settle()
            with self._save:
                job.save()
