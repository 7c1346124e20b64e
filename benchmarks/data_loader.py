"""From tokens on disk to batches: perjoule's reader beside a memory-mapped array, torch's DataLoader and litdata.

Run with ``python -m benchmarks.data_loader``; litdata is in ``.peers`` (`make peers`). All read the same uint16 stream
of made-up documents and hand over int64 inputs and labels of 8 x 1024 tokens, in memory of their own. Nothing is
trained. Readers are opened once and take turns in blocks of batches within one process, so that neither start-up nor
drift counts; what worker processes have prepared before a block begins is a few batches of many hundreds. perjoule's
workers are threads that only build batches which take longer than their hand-over, and these do not.

What differs is how much is done for a batch. perjoule reads each row of an epoch once, in an order that depends on the
epoch, begins in the middle of one as after a resume, ignores the label behind each BOS, and counts what is left.
Neither the memory-mapped samplers nor the DataLoader over them know of documents; their shuffle is an array of all
rows, or draws with replacement. litdata keeps int32 and reads blocks of 1025 tokens that do not overlap.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.ratios import paired_ratio, spread
from benchmarks.turns import Lap
from benchmarks.workload import machine_line
from perjoule.data.contract import Samples
from perjoule.data.mixing import Mix, MixedSamples, shares
from perjoule.data.prefetch import Prefetcher, ranges
from perjoule.data.reader import PackedSamples
from perjoule.data.shards import Shard, SplitTokens

ROWS, SEQ_LEN = 8, 1024
VOCAB_SIZE, BOS = 4096, 0
MEAN_DOCUMENT = 600
NUM_SHARDS = 16
CHUNK_TOKENS = (SEQ_LEN + 1) * 2048

CLOCKS = ("wall_s", "cpu_s")

Pair = tuple[Tensor, Tensor]
Open = Callable[[ExitStack], Iterator[Pair]]


@dataclass(frozen=True)
class Corpus:
    """A stream of documents on disk.

    Args:
        path: of its tokens, uint16.
        offsets: where documents begin, then the number of tokens.
    """

    path: Path
    offsets: np.ndarray[Any, np.dtype[np.int64]]

    @classmethod
    def write(cls, folder: Path, num_tokens: int) -> Corpus:
        """Draw documents of an exponential distribution of lengths."""
        chance = np.random.default_rng(0)
        lengths = 2 + chance.exponential(MEAN_DOCUMENT, size=2 * num_tokens // MEAN_DOCUMENT + 100).astype(np.int64)
        ends = np.cumsum(lengths)
        offsets = np.concatenate([[0], ends[ends <= num_tokens]])
        tokens = chance.integers(1, VOCAB_SIZE, size=int(offsets[-1]), dtype=np.uint16)
        tokens[offsets[:-1]] = BOS
        tokens.tofile(folder / "tokens.bin")
        return cls(folder / "tokens.bin", offsets)

    @property
    def tokens(self) -> np.ndarray[Any, np.dtype[np.uint16]]:
        """Map the stream."""
        return np.asarray(np.memmap(self.path, np.uint16, "r"))

    @property
    def num_rows(self) -> int:
        """Return the rows of an epoch."""
        return int((self.offsets[-1] - 1) // SEQ_LEN)

    def split(self, num_shards: int) -> SplitTokens:
        """Return the stream in so many shards of whole documents."""
        tokens, cuts = self.tokens, np.linspace(0, len(self.offsets) - 1, num_shards + 1).astype(np.int64)
        shards = []
        for begin, end in pairwise(cuts):
            offsets = self.offsets[begin : end + 1]
            shards.append(Shard(tokens[offsets[0] : offsets[-1]], offsets - offsets[0], 0))
        return SplitTokens(tuple(shards))


def packed(corpus: Corpus, num_shards: int, seed: int, mask_documents: bool = False) -> PackedSamples:
    """Return shuffled rows; with one seed, those of two arms would share parts of the order."""
    return PackedSamples(corpus.split(num_shards), SEQ_LEN, BOS, seed, mask_documents)


def perjoule(samples: Samples, workers: int) -> Open:
    """Read from the middle of the second epoch on."""

    def open_(stack: ExitStack) -> Iterator[Pair]:
        batches = stack.enter_context(Prefetcher(samples, ranges(3 * samples.num_samples // 2, ROWS), workers))
        return ((batch.tensors["input_ids"], batch.tensors["labels"]) for batch in batches)

    return open_


def gathered(corpus: Corpus) -> Open:
    """Index a memory-mapped array with all places of a batch at once, in a shuffled order of all rows."""

    def open_(stack: ExitStack) -> Iterator[Pair]:
        tokens, places = corpus.tokens, np.arange(SEQ_LEN + 1)
        while True:
            order = np.random.permutation(corpus.num_rows)
            for begin in range(0, len(order) - ROWS + 1, ROWS):
                rows = tokens[order[begin : begin + ROWS, None] * SEQ_LEN + places].astype(np.int64)
                yield torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())

    return open_


def sliced(corpus: Corpus) -> Open:
    """Copy slices of a memory-mapped array into a batch, drawn with replacement: the least that can be done."""

    def open_(stack: ExitStack) -> Iterator[Pair]:
        tokens, last = corpus.tokens, len(corpus.tokens) - SEQ_LEN - 1
        while True:
            inputs, labels = np.empty((ROWS, SEQ_LEN), np.int64), np.empty((ROWS, SEQ_LEN), np.int64)
            for row, begin in enumerate(np.random.randint(0, last, ROWS).tolist()):
                inputs[row] = tokens[begin : begin + SEQ_LEN]
                labels[row] = tokens[begin + 1 : begin + SEQ_LEN + 1]
            yield torch.from_numpy(inputs), torch.from_numpy(labels)

    return open_


def stacked(corpus: Corpus) -> Open:
    """Make a tensor of each slice and stack them, drawn with replacement: the sampler of many small trainers."""

    def open_(stack: ExitStack) -> Iterator[Pair]:
        tokens, last = corpus.tokens, len(corpus.tokens) - SEQ_LEN - 1
        while True:
            begins = torch.randint(last, (ROWS,)).tolist()
            inputs = [torch.from_numpy(tokens[begin : begin + SEQ_LEN].astype(np.int64)) for begin in begins]
            labels = [torch.from_numpy(tokens[begin + 1 : begin + SEQ_LEN + 1].astype(np.int64)) for begin in begins]
            yield torch.stack(inputs), torch.stack(labels)

    return open_


class Rows(IterableDataset[Pair]):
    """Shuffled rows without an end, shared out over the workers."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def __iter__(self) -> Iterator[Pair]:
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info else (0, 1)
        tokens, epoch = self._corpus.tokens, 0
        while True:
            order = np.random.default_rng(epoch).permutation(self._corpus.num_rows)[number::workers]
            for begin in (order * SEQ_LEN).tolist():
                row = torch.from_numpy(tokens[begin : begin + SEQ_LEN + 1].astype(np.int64))
                yield row[:-1], row[1:]
            epoch += 1


def data_loader(corpus: Corpus, workers: int) -> Open:
    """Read through torch's DataLoader, which stacks the rows."""

    def open_(stack: ExitStack) -> Iterator[Pair]:
        return iter(DataLoader(Rows(corpus), batch_size=ROWS, num_workers=workers))

    return open_


def litdata(folder: Path, workers: int) -> Open:
    """Read blocks of tokens from litdata's chunks, shuffled, epoch after epoch."""

    def open_(stack: ExitStack) -> Iterator[Pair]:
        from litdata import (  # type: ignore[import-not-found, unused-ignore]
            StreamingDataLoader,
            StreamingDataset,
            TokensLoader,
        )

        blocks = StreamingDataset(
            str(folder), item_loader=TokensLoader(block_size=SEQ_LEN + 1), shuffle=True, drop_last=True
        )
        loader = StreamingDataLoader(blocks, batch_size=ROWS, num_workers=workers)
        while True:
            for rows in loader:
                yield rows[:, :-1].long(), rows[:, 1:].long()

    return open_


def write_chunks(corpus: Corpus, folder: Path) -> None:
    """Write the stream as litdata wants it."""
    from litdata import TokensLoader, optimize  # type: ignore[import-not-found, unused-ignore]

    bounds = list(range(0, int(corpus.offsets[-1]), CHUNK_TOKENS))
    with contextlib.redirect_stdout(None):
        optimize(
            fn=_Piece(corpus.path),
            inputs=bounds,
            output_dir=str(folder),
            chunk_size=CHUNK_TOKENS,
            item_loader=TokensLoader(),
            num_workers=1,
            verbose=False,
        )


@dataclass(frozen=True)
class _Piece:
    """Reads one chunk's tokens; litdata calls it in a process of its own."""

    path: Path

    def __call__(self, begin: int) -> Iterator[Tensor]:
        tokens = np.memmap(self.path, np.uint16, "r")[begin : begin + CHUNK_TOKENS]
        yield torch.from_numpy(tokens.astype(np.int32))


def measure(arms: dict[str, Open], rounds: int, block: int) -> dict[str, list[Lap]]:
    """Return what a batch of each arm takes in each round."""
    order, chance = list(arms), random.Random(0)
    laps: dict[str, list[Lap]] = {name: [] for name in arms}
    with ExitStack() as stack:
        readers = {name: open_(stack) for name, open_ in arms.items()}
        for reader in readers.values():
            check(next(reader))
            list(islice(reader, block))
        for _ in range(rounds):
            chance.shuffle(order)
            for name in order:
                wall, cpu = time.perf_counter(), time.process_time()
                for _batch in islice(readers[name], block):
                    pass
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                laps[name].append(Lap(wall / block, cpu / block))
    return laps


def report(laps: dict[str, list[Lap]]) -> None:
    """Print each arm's speed, and perjoule's over that of the peers with as many workers, or that know none.

    By CPU time too, where one thread does it all.
    """
    wall, cpu = ({name: [getattr(lap, clock) for lap in own] for name, own in laps.items()} for clock in CLOCKS)
    for arm in laps:
        print(f"{arm}: {spread([ROWS * SEQ_LEN / each / 1e6 for each in wall[arm]]).text(0)} Mtok/s")
    for ours in (arm for arm in laps if arm.startswith("perjoule")):
        workers = ours.endswith("2 workers")
        for peer in (arm for arm in laps if not arm.startswith("perjoule")):
            if peer.endswith("workers") and peer.endswith("2 workers") != workers:
                continue
            print(f"ratio {ours} / {peer}, wall: {paired_ratio(wall[peer], wall[ours]).text()}")
            if not workers:
                print(f"ratio {ours} / {peer}, CPU time: {paired_ratio(cpu[peer], cpu[ours]).text()}")


def check(pair: Pair) -> None:
    """Make sure that an arm hands over what a model takes."""
    for tensor in pair:
        if tensor.shape != (ROWS, SEQ_LEN) or tensor.dtype != torch.int64:
            raise RuntimeError(f"a batch of {tuple(tensor.shape)} {tensor.dtype}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="tokens per second into batches")
    parser.add_argument("--tokens", type=int, default=100_000_000, help="length of the stream")
    parser.add_argument("--rounds", type=int, default=40, help="blocks of each arm")
    parser.add_argument("--block", type=int, default=500, help="batches in a block")
    parser.add_argument("--quick", action="store_true", help="a few seconds; the figures mean little")
    options = parser.parse_args(arguments)
    num_tokens, rounds, block = (2_000_000, 5, 20) if options.quick else (options.tokens, options.rounds, options.block)
    warnings.filterwarnings("ignore")  # DataLoader's advice on the number of workers
    torch.set_num_threads(1)
    print(machine_line())
    with tempfile.TemporaryDirectory(prefix="perjoule-benchmark-") as temporary:
        folder = Path(temporary)
        corpus = Corpus.write(folder, num_tokens)
        print(f"{corpus.offsets[-1]:,} tokens, {len(corpus.offsets) - 1:,} documents; batches of {ROWS} x {SEQ_LEN}")
        arms = {"A/A": perjoule(packed(corpus, 1, seed=0), 0)}
        for workers in (0, 2):
            for num_shards in (1, NUM_SHARDS):
                name = f"perjoule, {num_shards} shards, {workers} workers"
                arms[name] = perjoule(packed(corpus, num_shards, seed=len(arms)), workers)
        masked, parts = packed(corpus, NUM_SHARDS, len(arms), True), [packed(corpus, 1, len(arms) + k) for k in (1, 2)]
        arms["perjoule, documents masked, 0 workers"] = perjoule(masked, 0)
        arms["perjoule, mixture of two, 0 workers"] = perjoule(MixedSamples(parts, Mix(shares([1, 1]), 0)), 0)
        arms |= {"memmap, gathered at once": gathered(corpus), "memmap, slices copied": sliced(corpus)}
        arms["memmap, slices stacked"] = stacked(corpus)
        arms |= {f"DataLoader, {workers} workers": data_loader(corpus, workers) for workers in (0, 2)}
        if find_spec("litdata") is None:
            print("litdata: left out, it is not installed (make peers)")
        else:
            write_chunks(corpus, folder / "chunks")
            arms |= {f"litdata, {workers} workers": litdata(folder / "chunks", workers) for workers in (0, 2)}
        report(measure(arms, rounds, block))
    print(machine_line())


if __name__ == "__main__":
    main()
