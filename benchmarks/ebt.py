"""What an Energy-Based Transformer costs: a training step against the published form and a Transformer, and decoding.

``python -m benchmarks.ebt``. Sizes: dim 256, 4 layers, feed-forward layers as wide, vocabulary 4096, batch 4, 2 steps,
one thread. All arms of a table take turns in one process.

=================== ==================================================================================================
``ours``            two streams, the context once, the slope at the embedding
``ours, chunked``   the same, with the last step's logits formed 256 rows at a time
``published form``  both streams in one tensor of twice the length under one mask, once per step; the slope with respect
                    to the distribution over the vocabulary. Written here with the same weights; the same loss
``Transformer``     the baseline of equal size, which is what an EBT competes with
=================== ==================================================================================================

Memory is the peak of a process of its own above what it held before its first step. FLOPs are what torch counts; those
of the body are extrapolated to no vocabulary from two sizes of it.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ratios import paired_ratio, spread
from benchmarks.workload import keep_freed_memory
from perjoule.models.ebt import EBT, EBTConfig
from perjoule.models.ebt_body import Block
from perjoule.models.layers.rope import rotate
from perjoule.models.transformer import Transformer, TransformerConfig

DIM, NUM_LAYERS, NUM_HEADS, VOCAB_SIZE, BATCH = 256, 4, 4, 4096, 4
OURS, CHUNKED, PUBLISHED, TRANSFORMER = "ours", "ours, chunked", "published form", "Transformer"
ARMS = (OURS, CHUNKED, PUBLISHED, TRANSFORMER)
Step = Callable[[], Tensor]


def ebt(vocab_size: int, seq_len: int, chunk: int | None = None) -> EBT:
    """Build the model, with an energy head that is not zero, so that everything is computed."""
    sizes = {"dim": DIM, "num_layers": NUM_LAYERS, "num_heads": NUM_HEADS, "ffn_dim": DIM}
    model = EBTConfig(**sizes, loss_chunk_rows=chunk).build({"vocab_size": vocab_size, "seq_len": seq_len})
    torch.nn.init.normal_(model.body.head.weight, std=0.02)
    return model


def published_loss(model: EBT, tensors: Mapping[str, Tensor], start: Tensor) -> Tensor:
    """Return the mean loss over the steps, computed as published: one mask over context and candidates."""
    tokens, labels = model.embedding(tensors["input_ids"]), tensors["labels"].flatten()
    seq_len = tokens.shape[1]
    table = model.body.rope(seq_len + 1)
    table = torch.cat((table[:, :-1], table[:, 1:]), dim=1)
    causal = torch.ones(seq_len, seq_len, dtype=torch.bool, device=tokens.device).tril()
    itself = torch.eye(seq_len, dtype=torch.bool, device=tokens.device)
    mask = torch.cat((torch.cat((causal, torch.zeros_like(itself)), 1), torch.cat((causal, itself), 1)))
    state, losses = start, []
    for _ in range(model.config.thinking.steps):
        base = state.detach().requires_grad_().softmax(-1)
        x = torch.cat((tokens, base @ model.candidate_matrix()), dim=1)
        for block in model.body.blocks:
            assert isinstance(block, Block)
            attention = block.attention
            heads = attention.qkv(block.attention_norm(x)).view(len(x), 2 * seq_len, 3, NUM_HEADS, -1)
            q, k, v = heads.permute(2, 0, 3, 1, 4)
            q, k = rotate(q, table), rotate(k, table)
            scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
            x = x + attention.output((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
            x = x + block.ffn(block.ffn_norm(x))
        energy = model.body.head(model.body.norm(x[:, seq_len:]))
        (slope,) = torch.autograd.grad(energy.sum(), base, create_graph=True)
        state = base - model.step_size * slope
        losses.append(F.cross_entropy(state.flatten(0, 1), labels))
    return torch.stack(losses).mean()


def step_of(arm: str, vocab_size: int, seq_len: int, device: str = "cpu") -> Step:
    """Return a function that computes a loss; all arms see the same numbers."""
    with torch.device(device):
        torch.manual_seed(0)
        model: EBT | Transformer
        if arm == TRANSFORMER:
            sizes = TransformerConfig(dim=DIM, num_layers=NUM_LAYERS, num_heads=NUM_HEADS, ffn_dim=DIM)
            model = sizes.build({"vocab_size": vocab_size, "seq_len": seq_len})
        else:
            model = ebt(vocab_size, seq_len, 256 if arm == CHUNKED else None)
        torch.manual_seed(1)
        input_ids, labels = torch.randint(vocab_size, (2, BATCH, seq_len))
        tensors = {"input_ids": input_ids, "labels": labels}

    def step() -> Tensor:
        model.zero_grad()
        if isinstance(model, Transformer):
            loss: Tensor = model(tensors).loss
        else:
            with torch.device(device):
                start = torch.randn(BATCH, seq_len, vocab_size, generator=_generator(device))
            loss = published_loss(model, tensors, start) if arm == PUBLISHED else model(tensors, start=start).loss
        torch.autograd.backward(loss)
        return loss.detach()

    return step


def _generator(device: str) -> torch.Generator | None:
    return None if device == "meta" else torch.Generator().manual_seed(2)


def flops(arm: str, vocab_size: int, seq_len: int) -> int:
    """Return what torch counts in one training step."""
    step, counter = step_of(arm, vocab_size, seq_len, "meta"), FlopCounterMode(display=False)
    with counter:
        step()
    return counter.get_total_flops()


def body_flops(arm: str, seq_len: int) -> int:
    """Return the FLOPs of a step without those that grow with the vocabulary."""
    return 2 * flops(arm, 64, seq_len) - flops(arm, 128, seq_len)


def peak_bytes(arm: str, seq_len: int) -> int:
    """Return how far a process of its own grows in three steps."""
    command = [sys.executable, "-m", "benchmarks.ebt", "--peak-of", arm, "--seq-len", str(seq_len)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(found.stdout)["peak_bytes"])


def own_peak(arm: str, seq_len: int) -> int:
    """Run three steps; return the growth of this process's peak."""
    step = step_of(arm, VOCAB_SIZE, seq_len)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _status_bytes("VmRSS")
    for _ in range(3):
        step()
    return _status_bytes("VmHWM") - before


def _status_bytes(key: str) -> int:
    """Return an entry of this process's status, which is in kibibytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def training(seq_len: int, rounds: int) -> None:
    """Print losses, FLOPs, seconds and memory of a training step."""
    steps = {arm: step_of(arm, VOCAB_SIZE, seq_len) for arm in ARMS}
    losses = {arm: step().item() for arm, step in steps.items()}
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    again = []
    for _ in range(rounds):
        for arm, step in steps.items():
            seconds[arm].append(_seconds(step))
        again.append(_seconds(steps[TRANSFORMER]))
    print(f"training, {seq_len} tokens, ln(vocab_size) {math.log(VOCAB_SIZE):.3f}")
    bodies = {arm: body_flops(arm, seq_len) for arm in ARMS}
    every = {arm: flops(arm, VOCAB_SIZE, seq_len) for arm in ARMS}
    memory = {arm: peak_bytes(arm, seq_len) for arm in ARMS}
    for arm in ARMS:
        print(
            f"  {arm}: loss {losses[arm]:.6f}, {spread(seconds[arm]).text(1, 1e3)} ms, {memory[arm] / 1e6:.0f} MB, "
            f"{every[arm] / 1e9:.2f} GFLOP, {bodies[arm] / 1e9:.2f} of them in the body"
        )
    for arm in ARMS[:-1]:
        against = {name: found[arm] / found[TRANSFORMER] for name, found in _named(bodies, every, memory).items()}
        print(f"  {arm} / Transformer: {', '.join(f'{name} {value:.2f}' for name, value in against.items())}")
        print(f"ratio time, {arm} / Transformer, {seq_len}: {paired_ratio(seconds[arm], seconds[TRANSFORMER]).text()}")
    print(f"  published form / ours: body FLOPs {bodies[PUBLISHED] / bodies[OURS]:.2f}, ", end="")
    print(f"losses differ by {abs(losses[PUBLISHED] / losses[OURS] - 1):.1e}")
    print(f"ratio time, published form / ours, {seq_len}: {paired_ratio(seconds[PUBLISHED], seconds[OURS]).text()}")
    print(f"ratio A/A, {seq_len}: {paired_ratio(again, seconds[TRANSFORMER]).text()}")


def _named(bodies: dict[str, int], every: dict[str, int], memory: dict[str, int]) -> dict[str, dict[str, int]]:
    return {"body FLOPs": bodies, "FLOPs": every, "memory": memory}


def decoding(context: int, batch_size: int, rounds: int) -> None:
    """Print the seconds of one more token of each row, with the cache and by reading everything again."""
    torch.manual_seed(0)
    model = ebt(VOCAB_SIZE, context + 1).eval()
    input_ids = torch.randint(VOCAB_SIZE, (batch_size, context + 1))
    _, cache = model.prefill(input_ids[:, :-1])
    batch = {"input_ids": input_ids, "labels": input_ids}

    def cached() -> Tensor:
        logits, _ = model.decode(input_ids[:, -1], cache)
        return logits

    def recomputed() -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(batch, with_logits=True).logits
        return logits[:, -1]

    start = model.guess.fixed(input_ids, 1, model.candidate_matrix())[0]
    off = (cached() - recomputed()).abs().max().item()
    arms = {"published form": lambda: published_loss(model, batch, start), "ours": recomputed, "cached": cached}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm, work in arms.items():
            seconds[arm].append(_seconds(work))
    where = f"context {context}, batch {batch_size}"
    print(f"decoding at {where}: {spread(seconds['cached']).text(2, 1e3)} ms; logits differ by {off:.1e}")
    for arm in ("published form", "ours"):
        print(f"ratio time, recomputing everything, {arm} / cached, {where}: ", end="")
        print(paired_ratio(seconds[arm], seconds["cached"]).text(1))


def _seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()  # one thread: the wall's time without what others did meanwhile
    work()
    return time.process_time() - begun


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq-len", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--matmul", choices=["highest", "medium"], default="highest", help="float32 matrix products")
    parser.add_argument("--quick", action="store_true", help="seconds, and means little")
    parser.add_argument("--peak-of", choices=ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(arguments.matmul)
    if arguments.peak_of:
        print(json.dumps({"peak_bytes": own_peak(arguments.peak_of, arguments.seq_len[0])}))
        return
    keep_freed_memory()
    rounds = 2 if arguments.quick else arguments.rounds
    print(f"torch {torch.__version__}, 1 thread, matmul {arguments.matmul}")
    for seq_len in [32] if arguments.quick else arguments.seq_len:
        training(seq_len, rounds)
    for batch_size in [1] if arguments.quick else [1, 8]:
        decoding(64 if arguments.quick else 256, batch_size, rounds)


if __name__ == "__main__":
    main()
