"""How LongNet's time grows with length: ``python -m benchmarks.longnet``.

Forward and backward pass, on one thread, of attention alone (one sequence, 4 heads of 64) and of a whole training step
without its optimizer (2 layers of 256). Arms take turns in random order, and are compared within a round. The clock is
the processor time of the process, which is what one thread takes when nothing else runs:

========== ==========================================================================================================
``dense``   causal SDPA over the whole sequence, and a Transformer with it
``half``    segments 256, 512 … 16384 with dilations 1, 2 … 64: every pattern forms half as many scores as the last
``paper``   segments 2048, 4096 … 32768 with dilations 1, 2, 4, 6, 12, as published
========== ==========================================================================================================

torchscale's LongNet has no arm: it asserts that flash-attn is there, which needs a GPU.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.ratios import paired_ratio, spread
from benchmarks.workload import keep_freed_memory, machine_line
from perjoule.models.layers.dilated import Pattern, dilated_attention
from perjoule.models.longnet import LongNetConfig
from perjoule.models.transformer import TransformerConfig

DENSE, AGAIN, HALF, PAPER = "dense", "dense, again", "half", "paper"
LENGTHS = (2048, 4096, 8192, 16384)
NUM_HEADS, HEAD_DIM, NUM_LAYERS, VOCAB_SIZE = 4, 64, 2, 512
PATTERNS = {
    HALF: [Pattern(256 * 2**n, 2**n) for n in range(7)],
    PAPER: LongNetConfig(preset="paper").patterns,
}

Work = Callable[[], None]


def attention(seq_len: int) -> dict[str, Work]:
    """Return attention alone for each arm: forward, and backward to queries, keys and values."""
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, NUM_HEADS, seq_len, HEAD_DIM))
    direction = torch.randn(1, NUM_HEADS, seq_len, HEAD_DIM)

    def with_backward(attend: Callable[[], Tensor]) -> Work:
        def work() -> None:
            torch.autograd.grad(attend(), (q, k, v), direction)

        return work

    dense = with_backward(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    arms = {DENSE: dense, AGAIN: dense}
    for name, patterns in PATTERNS.items():
        arms[name] = with_backward(lambda patterns=patterns: dilated_attention(q, k, v, patterns))  # type: ignore[misc]
    return arms


def model(seq_len: int) -> dict[str, Work]:
    """Return the forward and backward pass of a model for each arm."""
    shape = {"vocab_size": VOCAB_SIZE, "seq_len": seq_len}
    sizes = {"dim": NUM_HEADS * HEAD_DIM, "num_layers": NUM_LAYERS, "num_heads": NUM_HEADS}
    built = {DENSE: TransformerConfig.model_validate(sizes).build(shape)} | {
        name: LongNetConfig.model_validate(
            sizes
            | {
                "segment_lengths": [pattern.segment_length for pattern in patterns],
                "dilations": [pattern.dilation for pattern in patterns],
            }
        ).build(shape)
        for name, patterns in PATTERNS.items()
    }
    tokens = torch.randint(VOCAB_SIZE, (1, seq_len))

    def step(module: torch.nn.Module) -> None:
        module.zero_grad()
        module({"input_ids": tokens, "labels": tokens}).loss.backward()

    arms: dict[str, Work] = {name: lambda module=module: step(module) for name, module in built.items()}  # type: ignore[misc]
    return arms | {AGAIN: arms[DENSE]}


def take_turns(works: Mapping[tuple[int, str], Work], rounds: int) -> dict[tuple[int, str], list[float]]:
    """Return the seconds of each work in each round; a round before them warms up."""
    order, chance = list(works), random.Random(0)
    seconds: dict[tuple[int, str], list[float]] = {key: [] for key in works}
    for number in range(rounds + 1):
        chance.shuffle(order)
        for key in order:
            begun = time.process_time()
            works[key]()
            if number:
                seconds[key].append(time.process_time() - begun)
    return seconds


def report(what: str, seconds: Mapping[tuple[int, str], list[float]], lengths: Sequence[int]) -> None:
    """Print times, their growth from each length to the next, and ratios to dense attention."""
    for length in lengths:
        for arm in (DENSE, *PATTERNS):
            print(f"{what}, {arm}, {length} tokens: {spread(seconds[length, arm]).text(1, 1e3)} ms")
        print(f"ratio A/A, {what}, {length}: {paired_ratio(seconds[length, AGAIN], seconds[length, DENSE]).text()}")
        for arm in PATTERNS:
            against = paired_ratio(seconds[length, DENSE], seconds[length, arm])
            print(f"ratio {DENSE} / {arm}, {what}, {length}: {against.text(2)}")
    for short, long in pairwise(lengths):
        for arm in (DENSE, *PATTERNS):
            growth = paired_ratio(seconds[long, arm], seconds[short, arm])
            print(f"ratio {long} / {short}, {what}, {arm}: {growth.text(2)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="how LongNet's time grows with length")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a few seconds; the figures mean little")
    options = parser.parse_args(arguments)
    rounds, lengths = (1, (256, 512)) if options.quick else (options.rounds, LENGTHS)
    keep_freed_memory()
    torch.manual_seed(0)
    print(machine_line())
    for what, arms_at in (("attention", attention), ("model", model)):
        works = {(length, arm): work for length in lengths for arm, work in arms_at(length).items()}
        report(what, take_turns(works, rounds), lengths)
    print(machine_line())


if __name__ == "__main__":
    main()
