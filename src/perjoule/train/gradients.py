"""The norm of the gradient by blocks of the model, journaled step by step: where it vanishes or explodes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from itertools import takewhile

import torch
from torch import nn

from perjoule.runs.folder import RunFolder
from perjoule.train.job import StepRecord


class BlockGradients:
    """Measures every block's gradient before it is clipped, and writes it down when the step's loss is read.

    Args:
        module: its trainable parameters are measured, by :func:`block_of` their names.
    """

    def __init__(self, module: nn.Module) -> None:
        self._blocks: dict[str, list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self._blocks.setdefault(block_of(name), []).append(parameter)
        self._measured: deque[tuple[list[str], torch.Tensor]] = deque()  # an accelerator's are read one step late

    def measure(self) -> None:
        """Compute the L2 norm and the largest absolute value of each block's gradient; nothing waits for it."""
        names, rows = [], []
        for name, parameters in self._blocks.items():
            if gradients := [one.grad for one in parameters if one.grad is not None]:
                names.append(name)
                largest = torch.stack([one.float() for one in torch._foreach_norm(gradients, math.inf)]).max()
                rows.append(torch.stack([nn.utils.get_total_norm(gradients).float(), largest]))
        self._measured.append((names, torch.stack(rows)))

    def forget(self) -> None:
        """Drop what was measured where no step was recorded, as in a rehearsal."""
        self._measured.clear()

    def before(self, on_step: Callable[[StepRecord], None], run: RunFolder | None) -> Callable[[StepRecord], None]:
        """Return what writes the oldest measurement, and then calls ``on_step``.

        Args:
            on_step: takes the step's record.
            run: the folder to write into; None on ranks that have none.
        """

        def write(record: StepRecord) -> None:
            names, measured = self._measured.popleft()
            if run is not None:
                values = zip(names, measured.tolist(), strict=True)
                blocks = {name: [one if math.isfinite(one) else None for one in pair] for name, pair in values}
                run.append_event("gradients", step=record.step, blocks=blocks)
            on_step(record)

        return write


def block_of(name: str) -> str:
    """Return the block of a parameter: up to its first number, else the module that has it, else itself.

    ``blocks.3.ffn.down.weight`` is in ``blocks.3``, ``output.weight`` in ``output``.
    """
    parts = name.split(".")
    words = list(takewhile(lambda part: not part.isdigit(), parts))
    return ".".join(parts[: len(words) + 1] if len(words) < len(parts) else parts[:-1] or parts)
