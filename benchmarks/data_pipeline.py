"""Text to token files: perjoule against what people use for it, on the same text with the same tokenizer.

Run with ``.peers/bin/python -m benchmarks.data_pipeline``; a peer that is not installed is left out with a line. The
text is what lies in site-packages, as parquet in four files; a larger size repeats it, each time with another first
line. Every arm is a process of its own that reads the parquet files and leaves tokens on the disk:

* perjoule, as the command line does it (threads of one process on a small machine), and with two worker processes;
* ``tokenizers``: row groups through ``encode_batch_fast``, written as uint16, the fastest loop one writes by hand;
* ``datasets``: ``map(batched=True, num_proc=2)`` and a second ``map`` that packs rows of 1,025;
* Dask: ``map_partitions`` with one tokenizer call per row, as published training pipelines have it, two workers;
* datatrove: ``ParquetReader`` and ``DocumentTokenizer``, four tasks, two workers.

The clock runs from before the first library of the arm is imported to after the last file is written. Memory is the sum
of the peaks (VmHWM) of the processes of an arm that live at the same time, which counts shared libraries in each. All
arms must give the same number of tokens (BOS, which perjoule alone adds, is not counted).

With ``--peak-megabytes 1000`` there is a line about the memory of perjoule alone on so much text, read once.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ratios import paired_ratio, spread

PERJOULE, AGAIN, PROCESSES = "perjoule", "A/A", "perjoule, 2 processes"
ROW = 1025
NUM_FILES, GROUP_ROWS = 4, 200
_POLL_S = 0.02


@dataclass(frozen=True)
class Outcome:
    """What one process of an arm needed.

    Args:
        wall_s: from before the imports to after the last file.
        cpu_s: of all its processes, from their start; not of datatrove's, which are a fork server's children.
        tokens: without BOS.
        peak_bytes: largest sum of the peaks of the processes that lived at the same time.
    """

    wall_s: float
    cpu_s: float
    tokens: int
    peak_bytes: int


def with_perjoule(workers: str) -> Callable[[Path, Path, Path], int]:
    """Return the arm of perjoule with a number of worker processes."""

    def run(corpus: Path, tokenizer: Path, out: Path) -> int:
        from perjoule.config import resolve
        from perjoule.data.tokenize import TokenizeConfig, tokenize_files

        fractions = "fractions={train: 1.0, validation: 0.0, test: 0.0}"
        config = resolve.load(TokenizeConfig, None, [f"tokenizer={tokenizer}", f"workers={workers}", fractions]).config
        manifest = tokenize_files(corpus, out, config, lambda line: print(line, file=sys.stderr)).manifest
        return manifest.total("tokens") - manifest.total("documents")

    return run


def with_tokenizers(corpus: Path, tokenizer: Path, out: Path) -> int:
    """Encode 64 documents at a time on all cores."""
    from pyarrow import parquet  # type: ignore[import-untyped]
    from tokenizers import Tokenizer

    inner, total = Tokenizer.from_file(str(tokenizer)), 0
    with out.open("wb") as file:
        for path in sorted(corpus.iterdir()):
            with parquet.ParquetFile(path) as reader:
                for batch in reader.iter_batches(batch_size=64, columns=["text"]):
                    texts = batch.column(0).to_pylist()
                    for encoding in inner.encode_batch_fast(texts, add_special_tokens=False):
                        ids = np.array(encoding.ids, np.uint16)
                        file.write(ids.tobytes())
                        total += len(ids)
    return total


def with_datasets(corpus: Path, tokenizer: Path, out: Path) -> int:
    """Map twice: to ids, then to rows of one length."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    datasets = importlib.import_module("datasets")
    fast = importlib.import_module("transformers").PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer), model_max_length=10**9
    )

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": fast(batch["text"], add_special_tokens=False)["input_ids"]}

    def pack(batch: dict[str, list[list[int]]]) -> dict[str, list[Any]]:
        joined = [token for ids in batch["ids"] for token in ids]
        rows = [joined[begin : begin + ROW] for begin in range(0, len(joined), ROW)]
        return {"row": rows, "length": [len(row) for row in rows]}

    files = [str(path) for path in sorted(corpus.iterdir())]
    data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(out))
    data = data.map(encode, batched=True, num_proc=2, remove_columns=["text"])
    data = data.map(pack, batched=True, num_proc=2, remove_columns=["ids"])
    return int(sum(data["length"]))


def with_dask(corpus: Path, tokenizer: Path, out: Path) -> int:
    """Map partitions of a frame with one tokenizer call per row."""
    import pyarrow as pa
    from pyarrow import parquet

    dataframe, distributed = importlib.import_module("dask.dataframe"), importlib.import_module("distributed")
    importlib.import_module("dask").config.set({"dataframe.convert-string": False})

    def encode(frame: Any) -> Any:
        fast = importlib.import_module("transformers").PreTrainedTokenizerFast(
            tokenizer_file=str(tokenizer), model_max_length=10**9
        )
        return frame["text"].apply(lambda text: fast(text, add_special_tokens=False)["input_ids"]).to_frame("input_ids")

    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(**settings) as cluster, distributed.Client(cluster):
        frame = dataframe.read_parquet(str(corpus), columns=["text"], split_row_groups=True)
        ids = frame.map_partitions(encode, meta={"input_ids": object})
        ids.to_parquet(str(out), schema=pa.schema([("input_ids", pa.list_(pa.int64()))]), write_index=False)
    return sum(
        len(batch.column(0).flatten())
        for path in sorted(out.glob("*.parquet"))
        for batch in parquet.ParquetFile(path).iter_batches(columns=["input_ids"])
    )


def with_datatrove(corpus: Path, tokenizer: Path, out: Path) -> int:
    """Run its pipeline, a task for each file."""
    readers, tokens = (importlib.import_module(f"datatrove.pipeline.{name}") for name in ("readers", "tokens"))
    pipeline = [
        readers.ParquetReader(str(corpus), text_key="text"),
        tokens.DocumentTokenizer(str(out), str(tokenizer), eos_token=None, shuffle_documents=False, batch_size=64),
    ]
    importlib.import_module("datatrove.executor").LocalPipelineExecutor(
        pipeline, tasks=NUM_FILES, workers=2, logging_dir=str(out / "logs")
    ).run()
    width = 2  # uint16, as its index says for vocabularies up to 65,536
    return sum(path.stat().st_size for path in out.glob("*.ds")) // width


ARMS: dict[str, tuple[Callable[[Path, Path, Path], int], tuple[str, ...]]] = {
    PERJOULE: (with_perjoule("null"), ()),
    AGAIN: (with_perjoule("null"), ()),
    PROCESSES: (with_perjoule("2"), ()),
    "tokenizers encode_batch_fast": (with_tokenizers, ()),
    "datasets.map": (with_datasets, ("datasets", "transformers")),
    "Dask map_partitions": (with_dask, ("dask", "distributed", "pandas", "transformers")),
    "datatrove": (with_datatrove, ("datatrove",)),
}


def site_packages_texts(limit_bytes: int) -> Iterator[str]:
    """Yield sources and documentation until there are as many bytes; if they are repeated, with another first line."""
    import pyarrow

    root, size, round_ = Path(pyarrow.__file__).parents[1], 0, 0
    paths = [path for path in sorted(root.rglob("*")) if path.suffix in {".py", ".md", ".rst", ".pyi", ".h", ".txt"}]
    while True:
        for path in paths:
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if text.strip():
                text = f"# copy {round_}\n{text}" if round_ else text
                yield text
                size += len(text.encode())
                if size >= limit_bytes:
                    return
        round_ += 1


def write_corpus(folder: Path, limit_bytes: int) -> int:
    """Write parquet files and return the bytes of text in them."""
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir()
    schema, written = pa.schema([("text", pa.string())]), 0
    writers = [
        parquet.ParquetWriter(folder / f"{number}.parquet", schema, compression="zstd") for number in range(NUM_FILES)
    ]
    group: list[str] = []
    for text in site_packages_texts(limit_bytes):
        group.append(text)
        written += len(text.encode())
        if len(group) == GROUP_ROWS:
            # The file with the least so far, so that the tasks of an arm that works file by file are of one size.
            min(writers, key=lambda writer: writer.file_handle.tell()).write_table(pa.table({"text": group}, schema))
            group = []
    if group:
        writers[0].write_table(pa.table({"text": group}, schema))
    for writer in writers:
        writer.close()
    return written


def train_tokenizer(corpus: Path, path: Path, vocab_size: int) -> None:
    """Train a byte-level BPE on a part of the text."""
    from perjoule.data.sources import files_source
    from perjoule.data.tokenizer import TokenizerConfig

    source = files_source(corpus, "text")
    texts = (document.text for number, document in enumerate(source.documents(Counter())) if number % 16 == 0)
    path.write_text(TokenizerConfig(vocab_size=vocab_size).build(texts).inner.to_str(), encoding="utf-8")


def measured(arm: str, corpus: Path, tokenizer: Path, folder: Path) -> Outcome:
    """Run an arm in a process of its own and watch the memory of all its descendants.

    Raises:
        RuntimeError: if it fails.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name, (folder / "log").open("w+") as log:
        command = [sys.executable, "-m", "benchmarks.data_pipeline", "--arm", arm, str(corpus), str(tokenizer)]
        environment = {**os.environ, "HF_HOME": name, "TMPDIR": name}
        environment.pop("OMP_NUM_THREADS", None)
        process = subprocess.Popen(
            [*command, f"{name}/out"], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(peak_bytes, descendants(process.pid))))
            time.sleep(_POLL_S)
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        if process.returncode != 0:
            log.seek(0)
            raise RuntimeError(f"{arm} ended with {process.returncode}: {log.read()[-2000:]}")
    found = json.loads(lines[-1])
    return Outcome(**found, peak_bytes=peak)


def descendants(pid: int) -> list[int]:
    """Return a process and all that it started."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:
                continue
    return found


def peak_bytes(pid: int) -> int:
    """Return the largest resident size a process has had; 0 if it is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def packing_mtok_per_s(num_tokens: int) -> float:
    """Return how fast ready documents of 500 tokens become one stream with BOS, in millions of tokens per second."""
    from perjoule.data.tokenize_unit import stream_of

    documents = [np.arange(500, dtype=np.uint32)] * (num_tokens // 500)
    begun = time.perf_counter()
    stream, _ = stream_of(documents, 0, "<u2")
    return len(stream) / (time.perf_counter() - begun) / 1e6


def is_importable(modules: Sequence[str]) -> bool:
    """Return whether all of the modules are installed."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print, or run one arm."""
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(description="text to token files, against other libraries")
    parser.add_argument("--arm", nargs=4, metavar=("NAME", "CORPUS", "TOKENIZER", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--megabytes", type=float, default=60)
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peak-megabytes", type=float, default=0, help="text for one more run of perjoule: its memory")
    parser.add_argument("--only", nargs="+", choices=tuple(ARMS), help="these arms, beside perjoule itself")
    parser.add_argument(
        "--quick", action="store_true", help="once, on 2 MB, without the peers; the figures mean little"
    )
    options = parser.parse_args(arguments)
    if options.arm:
        name, *paths = options.arm
        tokens = ARMS[name][0](*map(Path, paths))
        wall_s = time.perf_counter() - begun
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu_s = sum(one.ru_utime + one.ru_stime for one in usage)
        print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "tokens": tokens}))
        return
    if options.quick:
        options.megabytes, options.vocab_size, options.rounds = 2, 1000, 1
        options.only = options.only or [PROCESSES, "tokenizers encode_batch_fast"]
    print(f"load average {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory(prefix="perjoule-benchmark-") as folder:
        compare(Path(folder), options)
    print(f"load average {os.getloadavg()[0]:.2f}")


def compare(folder: Path, options: argparse.Namespace) -> None:
    """Let the arms take turns, and print."""
    corpus, tokenizer = folder / "corpus", folder / "tokenizer.json"
    text_bytes = write_corpus(corpus, int(options.megabytes * 1e6))
    train_tokenizer(corpus, tokenizer, options.vocab_size)
    arms = {PERJOULE, AGAIN, *(options.only or ARMS)}
    for arm, (_, modules) in ARMS.items():
        if arm in arms and not is_importable(modules):
            print(f"{arm} is left out: not installed ({', '.join(modules)})")
            arms.discard(arm)
    outcomes: dict[str, list[Outcome]] = {arm: [] for arm in ARMS if arm in arms}
    for number in range(options.rounds):
        order = list(outcomes)
        for arm in order[number % len(order) :] + order[: number % len(order)]:
            outcomes[arm].append(measured(arm, corpus, tokenizer, folder))
    print(
        f"{text_bytes / 1e6:.0f} MB of text, {outcomes[PERJOULE][0].tokens:,} tokens, vocabulary {options.vocab_size}"
    )
    for arm, found in outcomes.items():
        wall_s, cpu_s = [outcome.wall_s for outcome in found], [outcome.cpu_s for outcome in found]
        if arm != PERJOULE:
            ours = outcomes[PERJOULE]
            print(f"ratio {arm} / {PERJOULE}: {paired_ratio(wall_s, [one.wall_s for one in ours]).text(2)}")
            print(f"ratio {arm} / {PERJOULE}, CPU time: {paired_ratio(cpu_s, [one.cpu_s for one in ours]).text(2)}")
        speed = spread([outcome.tokens / outcome.wall_s for outcome in found])
        peak = max(outcome.peak_bytes for outcome in found) / 1e6
        times = f"{spread(wall_s).text(2)} s, CPU {spread(cpu_s).text(2)} s"
        print(f"{arm}: {speed.text(2, 1e-6)} Mtok/s, {times}, peak {peak:.0f} MB")
    counts = {outcome.tokens for found in outcomes.values() for outcome in found}
    print(f"token counts equal: {'yes' if len(counts) == 1 else f'no: {sorted(counts)}'}")
    packing = spread([packing_mtok_per_s(10_000_000) for _ in range(5)])
    print(f"packing ready documents: {packing.text(0)} Mtok/s")
    if options.peak_megabytes:
        large = folder / "large"
        text_bytes = write_corpus(large, int(options.peak_megabytes * 1e6))
        outcome = measured(PERJOULE, large, tokenizer, folder)
        peak = outcome.peak_bytes / 1e6
        print(f"{PERJOULE} on {text_bytes / 1e6:.0f} MB of text: peak {peak:.0f} MB, {outcome.wall_s:.1f} s")


if __name__ == "__main__":
    main()
