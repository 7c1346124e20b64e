"""RetNet beside torchscale 0.3 and beside the parallel form: time, memory, and milliseconds per decoded token.

Run with ``OMP_NUM_THREADS=1 python -m benchmarks.retnet [train|memory|decode]``. torchscale is compared if it can be
imported; its other dependencies pin libraries that break torch, and nothing of them is used here, so that

    pip install --target DIRECTORY --no-deps torchscale==0.3.0;  PYTHONPATH=DIRECTORY python -m benchmarks.retnet

is all there is to do. Settings: dim 256, 4 layers, 4 heads, values and GLU 512, vocabulary 4096, 2048 tokens per step
(or one row, where rows are longer), bfloat16 autocast. Time is CPU time of the process, arms in turn; with more threads
than one, it is their sum.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.ratios import paired_ratio, spread
from benchmarks.workload import keep_freed_memory, machine_line
from perjoule.models.contract import Decoder
from perjoule.models.retnet import RetNetConfig
from perjoule.models.transformer import TransformerConfig

VOCAB_SIZE, TOKENS = 4096, 2048
SIZES = {"dim": 256, "num_layers": 4, "num_heads": 4, "value_dim": 512, "ffn_dim": 512}
LENGTHS = (256, 1024, 2048, 4096, 8192)
CONTEXTS = (128, 1024, 4096, 16384)
OURS, AGAIN, COMPILED, PLAIN = "perjoule", "perjoule, again", "perjoule, compiled", "parallel form"
TORCHSCALE = {"torchscale parallel": None, "torchscale chunkwise 64": 64, "torchscale chunkwise 256": 256}
"""Its arms and their chunk; without one it computes its parallel form."""
QUADRATIC_LIMIT = 4096
"""Longest sequence for arms that form every score: 8192² of them would not fit many machines."""

Step = Callable[[], None]


def torchscale(chunk_len: int | None) -> Any:
    """Return torchscale's decoder of the same sizes.

    Args:
        chunk_len: of its chunkwise form; None for its parallel form.

    Raises:
        ImportError: if it is not installed.
    """
    unused: dict[str, dict[str, Any]] = {
        "fairscale": {},
        "fairscale.nn": {"checkpoint_wrapper": None, "wrap": lambda module: module},
        "timm": {},
        "timm.models": {},
        "timm.models.layers": {"drop_path": None},
    }
    for name, content in unused.items():
        stand_in = ModuleType(name)
        stand_in.__dict__.update(content)
        sys.modules.setdefault(name, stand_in)
    architecture = importlib.import_module("torchscale.architecture.retnet")
    config = importlib.import_module("torchscale.architecture.config").RetNetConfig(
        decoder_embed_dim=SIZES["dim"],
        decoder_value_embed_dim=SIZES["value_dim"],
        decoder_ffn_embed_dim=SIZES["ffn_dim"],
        decoder_layers=SIZES["num_layers"],
        decoder_retention_heads=SIZES["num_heads"],
        activation_fn="swish",
        vocab_size=VOCAB_SIZE,
        chunkwise_recurrent=chunk_len is not None,
        recurrent_chunk_size=chunk_len or 512,
    )
    return architecture.RetNetDecoder(config, nn.Embedding(VOCAB_SIZE, SIZES["dim"]))


def has_torchscale() -> bool:
    """Return whether torchscale can be compared."""
    try:
        torchscale(None)
    except ImportError as error:
        print(f"torchscale is left out ({error}): pip install --target DIRECTORY --no-deps torchscale==0.3.0")
        return False
    return True


def step_of(arm: str, seq_len: int, tokens: int) -> Step:
    """Return what runs one forward and backward pass of an arm.

    Args:
        arm: its name.
        seq_len: tokens per row.
        tokens: per step, if they make at least one row.
    """
    torch.manual_seed(0)
    rows = max(1, tokens // seq_len)
    input_ids, labels = torch.randint(VOCAB_SIZE, (2, rows, seq_len))
    loss_of: Callable[[], Tensor]
    if arm in TORCHSCALE:
        module: nn.Module = torchscale(TORCHSCALE[arm])

        def loss_of() -> Tensor:
            logits = module(input_ids)[0]
            return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())

    else:
        retention = "parallel" if arm == PLAIN else "auto"
        config = RetNetConfig.model_validate({**SIZES, "retention": retention})
        module = config.build({"vocab_size": VOCAB_SIZE, "seq_len": seq_len})
        forward: Any = torch.compile(module) if arm == COMPILED else module

        def loss_of() -> Tensor:
            loss: Tensor = forward({"input_ids": input_ids, "labels": labels}).loss
            return loss

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        module.zero_grad(set_to_none=True)

    return step


def arms_for(seq_len: int, peer: bool, compiled: bool) -> list[str]:
    """Return the arms that are compared at a length, ours first."""
    arms = [OURS, AGAIN, *([COMPILED] if compiled else [])]
    if seq_len <= QUADRATIC_LIMIT:
        arms.append(PLAIN)
    if peer:
        arms += [arm for arm, chunk_len in TORCHSCALE.items() if chunk_len or seq_len <= QUADRATIC_LIMIT]
    return arms


def cpu_s(run: Step) -> float:
    """Return the CPU seconds of a call."""
    begun = time.process_time()
    run()
    return time.process_time() - begun


def train(options: SimpleNamespace) -> None:
    """Compare the time of a training step without its optimizer."""
    for seq_len in options.lengths:
        arms = {arm: step_of(arm, seq_len, options.tokens) for arm in arms_for(seq_len, options.peer, options.compiled)}
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        for step in arms.values():
            step()
            step()
        for _ in range(options.rounds):
            for arm, step in arms.items():
                times[arm].append(cpu_s(step))
        for arm, values in times.items():
            print(f"{arm}, {seq_len}: {spread(values).text(0, 1e3)} ms")
        for arm, values in times.items():
            if arm != OURS:
                name = "A/A" if arm == AGAIN else f"{arm} / perjoule"
                print(f"ratio {name}, {seq_len}: {paired_ratio(values, times[OURS]).text(2)}")


def memory(options: SimpleNamespace) -> None:
    """Compare the memory that two steps add at their peak, each arm in a process of its own."""
    for seq_len in options.lengths:
        for arm in arms_for(seq_len, options.peer, compiled=False):
            if arm == AGAIN:
                continue
            command = [sys.executable, "-m", "benchmarks.retnet", "one", "--arm", arm, "--lengths", str(seq_len)]
            done = subprocess.run(
                [*command, "--tokens", str(options.tokens)], capture_output=True, text=True, check=True
            )
            print(f"{arm}, {seq_len}: {done.stdout.strip()} MB at the peak of a step")


def one(options: SimpleNamespace) -> None:
    """Print the megabytes that two steps of one arm add to the process at their peak."""
    step_of(options.arm, 8, 8)()  # what a library takes for itself when it is first used
    step = step_of(options.arm, options.lengths[0], options.tokens)
    before = peak_kb()
    step()
    step()
    print(f"{(peak_kb() - before) / 1024:.0f}")


def peak_kb() -> int:
    """Return the most memory this program has had; ``ru_maxrss`` would include that of the process that started it."""
    (found,) = re.findall(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    return int(found)


def decoder_of(model: Decoder, context: int, compiled: bool = False) -> Step:
    """Return what decodes one more token behind a context of some length, again and again."""
    token = torch.zeros(1, dtype=torch.int64)
    _, cache = model.prefill(torch.randint(VOCAB_SIZE, (1, context)))
    read: Any = torch.compile(model.decode) if compiled else model.decode

    def step() -> None:
        nonlocal cache
        _, cache = read(token, cache)

    return step


@torch.no_grad()
def decode(options: SimpleNamespace) -> None:
    """Compare the time of a decoded token, one row, float32."""
    shape = {"vocab_size": VOCAB_SIZE, "seq_len": max(options.contexts) + 4096}
    retnet = RetNetConfig.model_validate(SIZES).build(shape).eval()
    transformer: Any = TransformerConfig().build(shape).eval()
    arms = {f"perjoule, context {context}": decoder_of(retnet, context) for context in options.contexts}
    if options.compiled:
        arms[COMPILED] = decoder_of(retnet, options.contexts[0], compiled=True)
    if isinstance(transformer, Decoder):
        for context in options.contexts:
            arms[f"Transformer, context {context}"] = decoder_of(transformer, context)
    if options.peer:
        model = torchscale(None).eval()
        states: dict[Any, Any] = {}
        tokens = torch.zeros(1, 1, dtype=torch.int64)

        def step() -> None:
            nonlocal tokens
            model(tokens, incremental_state=states)
            tokens = F.pad(tokens, (0, 1))

        arms["torchscale, recurrent"] = step
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(options.rounds + 2):
        for arm, run in arms.items():
            begun = time.process_time()
            for _ in range(options.block):
                run()
            if number >= 2:  # the first two warm up
                times[arm].append((time.process_time() - begun) / options.block)
    first = f"perjoule, context {options.contexts[0]}"
    for arm, values in times.items():
        print(f"{arm}: {spread(values).text(3, 1e3)} ms per token")
        if arm != first:
            print(f"ratio {arm} / {first}: {paired_ratio(values, times[first]).text(2)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="RetNet beside torchscale and beside the parallel form")
    parser.add_argument("what", nargs="?", default="train", choices=["train", "memory", "decode", "one"])
    parser.add_argument("--lengths", type=int, nargs="+", help=f"tokens per row; {LENGTHS} unless given")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, help=f"per step; {TOKENS} unless given")
    parser.add_argument("--arm", default=OURS, help="of `one`, which `memory` runs for each arm")
    parser.add_argument("--compiled", action="store_true", help="compare perjoule under torch.compile too")
    parser.add_argument("--quick", action="store_true", help="two short rounds; the figures mean little")
    given = parser.parse_args(arguments)
    options = SimpleNamespace(
        arm=given.arm,
        lengths=given.lengths or ((16, 300) if given.quick else LENGTHS),
        contexts=(8, 32) if given.quick else CONTEXTS,
        rounds=2 if given.quick else given.rounds,
        block=2 if given.quick else 20,
        tokens=given.tokens or (64 if given.quick else TOKENS),
        compiled=given.compiled,
    )
    if given.what == "one":
        one(options)
        return
    keep_freed_memory()
    print(machine_line())
    options.peer = has_torchscale()
    {"train": train, "memory": memory, "decode": decode}[given.what](options)
    print(machine_line())


if __name__ == "__main__":
    main()
