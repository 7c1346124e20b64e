"""Calibration: before training, each phase over and over for seconds, so that the power of each becomes visible.

What is repeated is what a step of :mod:`perjoule.train.loop` does, phase by phase, on the model that it calls, with the
batches that come next. Everything is put back afterwards: a calibrated run has the losses of one that is not, bit by
bit. The learning rate is 0 meanwhile, so that the weights, and with them the arithmetic's power, stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from perjoule.core import phases
from perjoule.core.units import duration
from perjoule.data.contract import Batch
from perjoule.measure.bursts import PAUSE_S, Burst, Repeated, run_bursts
from perjoule.train.console import Console
from perjoule.train.job import Job
from perjoule.train.snapshot import Snapshot


def calibrate(job: Job, module: nn.Module, batches: Iterator[Batch], console: Console) -> tuple[Repeated, ...]:
    """Run the bursts of every phase, record them, and put everything back as it was.

    Args:
        job: of the run, before its first step.
        module: the model, not compiled and not wrapped.
        batches: a pass of its own over the batches that come next; those of the job are not touched.
        console: where lines go.
    """
    seconds, snapshot = job.config.energy.burst_s, Snapshot(module, job.optimizer)
    try:
        work = _Work(job, batches)
        bursts = work.bursts()
        names, total = ", ".join(burst.name for burst in bursts), duration(len(bursts) * (seconds + PAUSE_S))
        console.line(f"calibration: {names}, {seconds:g} s each, about {total}; the state is restored afterwards")
        for group in job.optimizer.param_groups:
            group["lr"] = 0.0
        work.step()  # compiles, allocates, and makes the optimizer's state
        job.backend.fence()
        fence, agree = job.backend.fence, job.ranks.from_leader
        repeated = run_bursts(bursts, job.recorder, seconds, fence=fence, agree=agree)
    finally:
        snapshot.restore()
    console.line("calibration: repeated " + ", ".join(f"{one.name} {one.num_repeats} times" for one in repeated))
    return repeated


class _Work:
    """The phases of a step, each to be called by itself.

    Args:
        job: of the run.
        batches: where data comes from.
    """

    def __init__(self, job: Job, batches: Iterator[Batch]) -> None:
        self.job, self._stream = job, batches
        self._autocast = job.backend.autocast()
        self._last = job.config.batch.accumulation - 1
        self.data()

    def bursts(self) -> tuple[Burst, ...]:
        """Return the bursts: the phases that can run alone, forward with backward, and whole steps."""
        data, transfer = (phases.DATA, self.data), (phases.TRANSFER, self.transfer)
        forward, backward = (phases.FORWARD, self.forward), (phases.BACKWARD, self.backward)
        optimizer = (phases.OPTIMIZER, self.optimize)
        micro_batch = (transfer, forward, backward)
        return (
            Burst((data,)),
            Burst((transfer,)),
            Burst(((phases.FORWARD, self.forward_only),)),
            Burst((forward, backward)),
            Burst((optimizer,)),
            Burst((data, *micro_batch * (self._last + 1), optimizer)),
        )

    def step(self) -> None:
        """Take one whole step."""
        for _, work in self.bursts()[-1].parts:
            work()

    def data(self) -> None:
        """Fetch the micro-batches of a step."""
        self._batches = [next(self._stream) for _ in range(self._last + 1)]
        self._useful = sum(self.job.ranks.totals(sum(batch.num_useful for batch in self._batches)))
        self._number = 0

    def transfer(self) -> None:
        """Move a micro-batch to the device."""
        self._tensors = self.job.backend.to_device(self._batches[self._number].tensors)

    def forward(self) -> None:
        """Compute the loss of a micro-batch."""
        with self.job.ranks.without_sync(self.job.model, last=self._number == self._last), self._autocast:
            self._output = self.job.model(self._tensors)

    def forward_only(self) -> None:
        """Compute a loss that no backward pass will follow."""
        with self.job.ranks.without_sync(self.job.model, last=False), self._autocast:
            self.job.model(self._tensors)

    def backward(self) -> None:
        """Compute the gradient of the loss, and take the next micro-batch."""
        if self._number == 0:
            self.job.optimizer.zero_grad(set_to_none=True)
        share = self._batches[self._number].num_useful / max(self._useful, 1)
        with self.job.ranks.without_sync(self.job.model, last=self._number == self._last):
            (self._output.loss * share * self.job.ranks.world_size).backward()
        self._loss = self._output.loss.detach()
        self._number = (self._number + 1) % (self._last + 1)

    def optimize(self) -> None:
        """Clip the gradient and take the optimizer's step; the gradient stays for the next time."""
        self.job.ranks.total(self._loss.clone())
        self.job.clipper()
        self.job.optimizer.step()
        if self.job.after_optimizer_step is not None:
            self.job.after_optimizer_step()
