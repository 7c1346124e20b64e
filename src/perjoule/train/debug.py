"""Aids for finding mistakes before a long run: a walk over the data, a rehearsal, parameters without gradient."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from perjoule.core.errors import CheckpointError
from perjoule.core.units import si
from perjoule.data.contract import Batch, Samples
from perjoule.data.prefetch import Prefetcher
from perjoule.runs import checkpoints
from perjoule.train.backend import Backend
from perjoule.train.checkpoint import Checkpointer, random_state, restore
from perjoule.train.config import TrainConfig
from perjoule.train.console import Console
from perjoule.train.job import Job
from perjoule.train.session import Session
from perjoule.train.snapshot import Snapshot
from perjoule.train.stopping import Goal, Progress
from perjoule.train.stream import Stream


def walk_data(stream: Stream, samples: Samples, config: TrainConfig, console: Console) -> None:
    """Read the batches that a run would read, as fast as they come, and print what they are made of."""
    first = samples.batch(0, 1)
    goal = Goal(config.stop, config.batch.size, stream.epoch_samples, config.batch.size * first.num_tokens)
    num_batches = (goal.last_step or 1000) * config.batch.accumulation
    tokens = useful = rows = 0
    begun = time.monotonic()
    with Prefetcher(samples, stream.ranges(0), config.batch.workers) as batches:
        for batch in itertools.islice(batches, num_batches):
            tokens, useful, rows = tokens + batch.num_tokens, useful + batch.num_useful, rows + batch.num_samples
    seconds = max(time.monotonic() - begun, 1e-9)
    ignored = f"{1 - useful / tokens:.2%} of the labels ignored" if tokens else "no labels"
    console.line(
        f"data: {rows} samples ({rows / stream.epoch_samples:.2f} epochs), {si(tokens)} tokens, "
        f"{ignored}, {si(tokens / seconds, 'tok/s')}"
    )


def unused_parameters(module: nn.Module, batch: Batch, backend: Backend) -> list[str]:
    """Return the names of the trainable parameters that one backward pass leaves without a gradient."""
    with backend.autocast():
        output = module(backend.to_device(batch.tensors))
    output.loss.backward()
    unused = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    module.zero_grad(set_to_none=True)
    return unused


def step_timer(module: nn.Module, batch: Batch, backend: Backend, accumulation: int) -> Callable[[], float]:
    """Return a function that runs one eager forward and backward pass and returns the seconds of a whole step."""

    def time_step() -> float:
        begun = time.perf_counter()
        with backend.autocast():
            output = module(backend.to_device(batch.tensors))
        output.loss.backward()
        backend.fence()
        module.zero_grad(set_to_none=True)
        return (time.perf_counter() - begun) * accumulation

    return time_step


def rehearse(job: Job, session: Session, batch: Batch) -> None:
    """Go once through everything a run does, then put everything back as it was.

    One forward and backward pass, one optimizer step, one evaluation, one checkpoint written, verified and read back.

    Raises:
        CheckpointError: if what was read back differs from what was saved.
    """
    module, console = session.module, session.console
    snapshot = Snapshot(module, job.optimizer)
    with job.backend.autocast():
        output = job.model(job.backend.to_device(batch.tensors))
    output.loss.backward()
    job.clipper()
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    held_out = f", {session.measure_held_out().loss:.4f} held out" if session.held_out is not None else ""
    with tempfile.TemporaryDirectory(dir=session.checkpointer.folder) as scratch:
        rehearsed = Checkpointer(Path(scratch), module, job.optimizer, 1, False, lambda saved: None)
        rehearsed.save(Progress(step=1), [random_state()])
        stepped = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        newest = checkpoints.newest_whole(Path(scratch), console.line)
        assert newest is not None
        restore(newest, module, job.optimizer, 0)
    differing = [name for name, tensor in module.state_dict().items() if not torch.equal(tensor, stepped[name])]
    if differing:
        raise CheckpointError(f"rehearsal: {differing[0]} came back from the checkpoint with other values")
    snapshot.restore()
    console.line(
        f"rehearsal: a step, an evaluation and a checkpoint went well (loss {output.loss.item():.4f}{held_out}); "
        "starting over"
    )
