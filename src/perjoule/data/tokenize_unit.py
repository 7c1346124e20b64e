"""One unit of work: its documents are read, encoded and written to a shard of each split that they belong to."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perjoule.core.errors import DataError
from perjoule.data.engine import Amount, Report, give_back_memory
from perjoule.data.fast_encode import Encoder, Ids
from perjoule.data.manifest import OFFSET_TYPE, OFFSETS, TOKENIZER, TOKENS, ShardEntry, UnitEntry, new_hash
from perjoule.data.sources import Document, Source, Unit, grouped
from perjoule.data.split import TRAIN, Fractions
from perjoule.data.tokenizer import TextTokenizer
from perjoule.runs.files import flush, write_json

NO_TOKENS = "no_tokens"
"""Why a document was skipped: its text vanished in the tokenizer, as blanks do in some."""

_BATCH_CHARACTERS = 1 << 20
_AHEAD_CHARACTERS = 16 << 20
"""May wait for being encoded or written; only documents of many megabytes are held up by it."""
_MAX_UNITS = 1024
_SMALLEST_UNIT_BYTES = 32 << 20


@dataclass(frozen=True)
class UnitJob:
    """A unit of work: neighbouring units of the source.

    Args:
        number: of it, from 0; shards are named by it.
        parts: of the source, in order.
    """

    number: int
    parts: tuple[Unit, ...]

    @property
    def name(self) -> str:
        """Return where its documents are."""
        first, last = self.parts[0], self.parts[-1]
        begin = f"{first.files[0]} from {first.begin}" if first.begin else first.files[0]
        if first.files[0] == last.files[-1]:
            return begin
        return f"{begin} to {last.files[-1]}"

    @property
    def num_bytes(self) -> int:
        """Return the bytes, as the source counts them."""
        return sum(part.num_bytes for part in self.parts)


@dataclass(frozen=True)
class TokenizeUnit:
    """What is done with a unit; small enough to be sent with each.

    Args:
        source: of the documents; its list of files is not needed.
        fractions: decide the split of a document that has none.
        out: the store's folder, which has its tokenizer.
        unfinished: holds the lines about finished units, and what is being written.
        tokenizer_hash: of the tokenizer, which may be kept from the unit before.
        dtype: of the tokens.
        shard_tokens: a shard that has as many is cut.
        compared_share: of the documents encoded by both encoders; None: ``tokenizers`` encodes all.
        tokenizer: if it is here already; a worker loads it from ``out``.
    """

    source: Source
    fractions: Fractions
    out: Path
    unfinished: Path
    tokenizer_hash: str
    dtype: str
    shard_tokens: int
    compared_share: float | None
    tokenizer: TextTokenizer | None = None

    def __call__(self, job: UnitJob, threads: int, report: Report) -> None:
        """Write the shards of one unit, then the line that makes them count.

        Raises:
            DataError: if a document cannot be read, or becomes BOS in the tokenizer.
            OSError: if a shard cannot be written.
            RunFolderError: if the line cannot be written.
        """
        tokenizer = self.tokenizer or _tokenizer(self.out / TOKENIZER, self.tokenizer_hash)
        encoder = _encoder(tokenizer, self.compared_share)
        skipped: Counter[str] = Counter()
        encoded: Counter[str] = Counter()
        batches = _batches(self._documents(job, skipped, report))
        with contextlib.ExitStack() as files:
            splits: dict[str, _SplitWriter] = {}
            for batch, ids, counts in _encoded(batches, encoder, threads):
                encoded += counts
                _check_no_bos(batch, ids, tokenizer.bos_id)
                chosen: dict[str, list[int]] = {}
                for number, document in enumerate(batch):
                    if len(ids[number]):
                        chosen.setdefault(document.split or TRAIN, []).append(number)
                    else:
                        skipped[NO_TOKENS] += 1
                done = Amount()
                for split, numbers in chosen.items():
                    if split not in splits:
                        splits[split] = files.enter_context(_SplitWriter(self, job.number, split))
                    stream = stream_of([ids[number] for number in numbers], tokenizer.bos_id, self.dtype)
                    text_bytes = sum(_num_bytes(batch[number].text) for number in numbers)
                    splits[split].append(*stream, text_bytes)
                    done += Amount(len(numbers), text_bytes, len(stream[0]))
                report(done)
            shards = [asdict(entry) for writer in splits.values() for entry in writer.finish()]
        unit = UnitEntry(job.name, dict(sorted(skipped.items())), dict(sorted(encoded.items())))
        write_json(unit_path(self.unfinished, job.number), {"unit": asdict(unit), "shards": shards})

    def _documents(self, job: UnitJob, skipped: Counter[str], report: Report) -> Iterator[Document]:
        """Read the parts, one after another."""
        for part in job.parts:
            for document in self.source.read(part, skipped):
                yield from self.source.share_out(document, self.fractions)
            report(Amount(unit_bytes=part.num_bytes))
            give_back_memory()


def unit_jobs(source: Source) -> list[UnitJob]:
    """Join neighbouring units of the source, so that a large corpus does not end in tens of thousands of shards.

    What a unit of work is depends on the source alone: at least 32 MiB, and not many more than 1,024 units.

    Raises:
        DataError: as ``source.units``.
        MissingExtra: as ``source.units``.
    """
    parts = source.units()
    enough = max(_SMALLEST_UNIT_BYTES, sum(part.num_bytes for part in parts) // _MAX_UNITS)
    return [UnitJob(number, group) for number, group in enumerate(grouped(parts, enough))]


def unit_path(unfinished: Path, number: int) -> Path:
    """Return the file of the line about a finished unit."""
    return unfinished / f"{number:05d}.json"


def read_unit(path: Path) -> tuple[UnitEntry, list[ShardEntry]]:
    """Read the line about a finished unit.

    Raises:
        OSError: if there is none.
        ValueError, KeyError, TypeError: if it is damaged.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    return UnitEntry(**content["unit"]), [ShardEntry(**entry) for entry in content["shards"]]


def stream_of(documents: Sequence[Ids], bos_id: int, dtype: npt.DTypeLike) -> tuple[npt.NDArray[Any], Ids]:
    """Return the documents as one stream, each behind BOS, and the length of each, BOS included.

    Args:
        documents: their ids; at least one document.
        bos_id: stands before each.
        dtype: of the stream, which holds every id.
    """
    parts: list[Ids] = [np.array([bos_id], np.uint32)] * (2 * len(documents))
    parts[1::2] = documents
    lengths = np.fromiter(map(len, documents), np.uint32, len(documents)) + 1
    return np.concatenate(parts, dtype=dtype, casting="unsafe"), lengths


@functools.lru_cache(maxsize=1)
def _tokenizer(path: Path, content_hash: str) -> TextTokenizer:
    """Load the tokenizer once per process."""
    tokenizer = TextTokenizer.load(path)
    if tokenizer.content_hash != content_hash:
        raise DataError(f"{path} was changed while it was in use; start again")
    return tokenizer


@functools.lru_cache(maxsize=1)
def _encoder(tokenizer: TextTokenizer, compared_share: float | None) -> Encoder:
    """Set the encoder up once per process."""
    return Encoder(tokenizer, compared_share)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Group documents so that arrays are worth their overhead and memory stays small."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(
    batches: Iterator[list[Document]], encoder: Encoder, threads: int
) -> Iterator[tuple[list[Document], list[Ids], Counter[str]]]:
    """Encode batches in threads, in order; the next ones are read and the last one is written meanwhile.

    tiktoken holds no lock while it works, so threads of one process do as well as processes while there are few.
    """

    def encode(batch: list[Document]) -> tuple[list[Document], list[Ids], Counter[str]]:
        counts: Counter[str] = Counter()
        return batch, encoder.encode([document.text for document in batch], counts), counts

    if threads == 1:
        yield from map(encode, batches)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[tuple[int, Future[tuple[list[Document], list[Ids], Counter[str]]]]] = deque()
        for batch in batches:
            ahead.append((sum(len(document.text) for document in batch), pool.submit(encode, batch)))
            del batch
            while len(ahead) > threads or sum(size for size, _ in ahead) > _AHEAD_CHARACTERS:
                yield ahead.popleft()[1].result()
        while ahead:
            yield ahead.popleft()[1].result()


def _check_no_bos(batch: Sequence[Document], ids: Sequence[Ids], bos_id: int) -> None:
    """Refuse a tokenizer that makes BOS of text: it would begin a document where none does."""
    if not (np.concatenate(ids) == bos_id).any():
        return
    document = next(document for document, own in zip(batch, ids, strict=True) if (own == bos_id).any())
    raise DataError(f"the tokenizer turns text of {document.name} into its BOS token; use another one")


def _num_bytes(text: str) -> int:
    """Return the bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


class _SplitWriter:
    """Appends documents to the shards of one unit and split."""

    def __init__(self, work: TokenizeUnit, number: int, split: str) -> None:
        self._work, self._number, self._split = work, number, split
        self._shard: _ShardWriter | None = None
        self._finished: list[ShardEntry] = []

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._shard is not None:
            self._shard.discard()

    def append(self, tokens: npt.NDArray[Any], lengths: Ids, text_bytes: int) -> None:
        """Write documents; begin another shard after them if this one is large."""
        if self._shard is None:
            cut = len(self._finished)
            name = f"{self._split}-{self._number:05d}" + (f"_{cut:03d}" if cut else "")
            self._shard = _ShardWriter(self._work, name, self._number)
        self._shard.append(tokens, lengths, text_bytes)
        if self._shard.num_tokens >= self._work.shard_tokens:
            self.finish()

    def finish(self) -> list[ShardEntry]:
        """Complete the last shard and return all."""
        if self._shard is not None:
            self._finished.append(self._shard.finish())
            self._shard = None
        return self._finished


class _ShardWriter:
    """Writes the two files of a shard, under other names until they are complete."""

    def __init__(self, work: TokenizeUnit, name: str, number: int) -> None:
        self._work, self._name, self._number = work, name, number
        own = f"{socket.gethostname()}.{os.getpid()}"  # a cluster may have given a lost worker's unit to another
        self._paths = [work.unfinished / f"{name}{suffix}.{own}" for suffix in (TOKENS, OFFSETS)]
        self._files = [path.open("wb") for path in self._paths]
        self._hashes = [new_hash(), new_hash()]
        self.num_tokens = self._num_documents = self._text_bytes = 0
        self._write(1, np.zeros(1, OFFSET_TYPE))

    def append(self, tokens: npt.NDArray[Any], lengths: Ids, text_bytes: int) -> None:
        """Write documents."""
        self._write(0, tokens)
        self._write(1, np.cumsum(lengths, dtype=OFFSET_TYPE) + self.num_tokens)
        self.num_tokens += len(tokens)
        self._num_documents += len(lengths)
        self._text_bytes += text_bytes

    def finish(self) -> ShardEntry:
        """Flush the files to the disk and give them their names."""
        for number, suffix in enumerate((TOKENS, OFFSETS)):
            with _naming(self._paths[number]), self._files[number] as file:
                flush(file)
            self._paths[number].replace(self._work.out / f"{self._name}{suffix}")
        tokens, offsets = (content.hexdigest() for content in self._hashes)
        return ShardEntry(
            self._name, self._number, self._num_documents, self.num_tokens, self._text_bytes, tokens, offsets
        )

    def discard(self) -> None:
        """Remove what was written so far."""
        for file, path in zip(self._files, self._paths, strict=True):
            with contextlib.suppress(OSError):  # closing tries to write what is left
                file.close()
            path.unlink(missing_ok=True)

    def _write(self, number: int, array: npt.NDArray[Any]) -> None:
        """Append to one of the files."""
        with _naming(self._paths[number]):
            self._files[number].write(array.data)
        self._hashes[number].update(array.data)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which file could not be written: the system does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
