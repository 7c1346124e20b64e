"""What training has changed so far, kept in memory, to be put back after something was tried."""

from __future__ import annotations

import copy

import torch
from torch import nn

from perjoule.train.checkpoint import random_state, restore_random_state


class Snapshot:
    """The state of a model, its optimizer and every random generator of this process, bit by bit.

    Parameters and *all* buffers are kept, those that no checkpoint holds among them. The copies lie in main memory.

    Args:
        module: the model, not compiled and not wrapped.
        optimizer: its optimizer.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._module, self._optimizer = module, optimizer
        self._tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._named()}
        self._optimizer_state = copy.deepcopy(optimizer.state_dict())
        self._random = random_state()

    def restore(self) -> None:
        """Put everything back, and drop the gradients."""
        with torch.no_grad():
            for name, tensor in self._named():
                tensor.copy_(self._tensors[name])
        self._optimizer.zero_grad(set_to_none=True)
        self._optimizer.load_state_dict(self._optimizer_state)
        restore_random_state(self._random)

    def _named(self) -> list[tuple[str, torch.Tensor]]:
        """Return every tensor of the model once."""
        return [*self._module.named_parameters(), *self._module.named_buffers()]
