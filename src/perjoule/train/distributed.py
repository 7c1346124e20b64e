"""The ranks of a run: one process per rank, started by ``torchrun``, or a single process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from perjoule.core.errors import ConfigError, PerjouleError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among its peers.

    Args:
        rank: 0 … world_size − 1; rank 0 writes the run folder.
        world_size: number of processes.
        local_rank: place on this node, which selects the device.
        local_world_size: processes on this node, which share its cores.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def join(cls, device: str) -> Ranks:
        """Read torchrun's environment and join the process group (gloo on CPUs, NCCL on GPUs)."""
        world_size = _number("WORLD_SIZE", 1)
        if world_size == 1:
            return cls()
        local_world_size, local_rank = _number("LOCAL_WORLD_SIZE", world_size), _number("LOCAL_RANK", 0)
        if not dist.is_initialized():
            try:
                dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
            except ValueError as error:  # a variable of torchrun's is missing or is no number
                raise ConfigError(
                    f"WORLD_SIZE={world_size} in the environment: {str(error).splitlines()[0]}; accepted: the "
                    "variables that torchrun sets, or none of them"
                ) from error
        return cls(dist.get_rank(), world_size, local_rank, local_world_size)

    @property
    def leads(self) -> bool:
        """Return whether this is the rank that writes and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model with gradients averaged over ranks, or the model itself in a single process."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def without_sync(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Return a context in which gradients stay local, for every micro-batch but the last."""
        if self.world_size == 1 or last or not isinstance(model, DistributedDataParallel):
            return nullcontext()
        return model.no_sync()

    def totals(self, *values: int) -> Sequence[int]:
        """Return the sums over all ranks of a few integers."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor)
        return [int(value) for value in tensor]

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks of a tensor (in place in a group)."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def leader_does(self, work: Callable[[], T]) -> T | None:
        """Let rank 0 do something while the others wait; return its result there, and None elsewhere.

        Raises:
            PerjouleError: on every rank if it failed on rank 0, so that no rank waits for a failed one.
        """
        result: T | None = None
        error: PerjouleError | None = None
        if self.leads:
            try:
                result = work()
            except PerjouleError as caught:
                error = caught
        error = self.from_leader(error)
        if error is not None:
            raise error
        return result

    def from_leader(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of the ranks."""
        if self.world_size == 1:
            return [value]
        box: list[Any] = [None] * self.world_size
        dist.all_gather_object(box, value)
        return box

    def leave(self) -> None:
        """Leave the process group."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _number(variable: str, default: int) -> int:
    """Read a count or a rank that torchrun sets.

    Raises:
        ConfigError: if it is set to something else.
    """
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise ConfigError(f"{variable}={text!r} in the environment: must be a number, as torchrun sets it, or not set")
    return int(text)
