"""``output_hidden_states``: the residual stream in front of every block, and what the last norm makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def hidden_states(model: Any, wanted: bool) -> Iterator[list[Tensor]]:
    """Give a list that takes the hidden states of the forward passes within; of several, the last one's.

    Args:
        model: its ``blocks_and_norm()`` says what is watched.
        wanted: otherwise the list stays empty, and nothing is watched.
    """
    taken: list[Tensor] = []
    if not wanted:
        yield taken
        return
    blocks, norm, stream = model.blocks_and_norm()

    def before(block: nn.Module, inputs: tuple[Any, ...]) -> None:
        if stream is None or inputs[1] == stream:
            if block is blocks[0]:
                taken.clear()
            taken.append(inputs[0])

    def after(norm: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        taken.append(output if output.ndim > 2 else output.unsqueeze(1))  # a decoder gives the last column only

    hooks = [block.register_forward_pre_hook(before) for block in blocks]
    hooks.append(norm.register_forward_hook(after))
    try:
        yield taken
    finally:
        for hook in hooks:
            hook.remove()
