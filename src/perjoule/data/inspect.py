"""``perjoule data inspect``: what a source or a token store holds, before anything is trained on it.

Counts and lengths for each split, what was or would be left out, what padding and packing would waste for several row
lengths, and some documents to look at; of a store, decoded from its tokens. Memory does not grow with the corpus.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeInt, PositiveInt

from perjoule.config import Config
from perjoule.core.cache import expand_home
from perjoule.core.errors import DataError
from perjoule.core.units import byte_size
from perjoule.data.duplicates import CopyCount
from perjoule.data.formats import DEFAULT_LIMITS, Limits
from perjoule.data.lengths import Lengths
from perjoule.data.manifest import MANIFEST
from perjoule.data.parts import rank_of
from perjoule.data.sources import files_source
from perjoule.data.split import SPLITS
from perjoule.data.store import Store, open_store
from perjoule.data.tokenize import UNFINISHED
from perjoule.data.tokenizer import TextTokenizer
from perjoule.data.walk import left_out_facts

ALL = "all"
"""What the documents of a source that is not split are shown under."""

_BATCH_CHARACTERS = 1 << 20
_BAR_CHARACTERS = 40
_TOKENS_AT_ONCE = 1 << 22
_DOCUMENTS_AT_ONCE = 1 << 16


class InspectConfig(Config):
    """What to look at."""

    tokenizer: Path | None = None
    """For a source: a tokenizer.json to count tokens with; without it lengths are in bytes."""
    seq_len: tuple[PositiveInt, ...] = (256, 512, 1024, 2048)
    """Row lengths to know the waste of."""
    samples: NonNegativeInt = 3
    """Documents to show of each split."""
    sample_characters: PositiveInt = 200
    """Of each of them, from its beginning."""
    documents: str | None = Field(
        default=None, pattern=r"^\d+:\d+$", json_schema_extra={"accepted": "FIRST:END, such as 0:1 for the first one"}
    )
    """Of a store: show these documents of each split instead of a sample, ``0:1`` the first one."""
    tokens: PositiveInt = 200
    """With ``documents``: of each of them, from its beginning."""
    seed: int = 0
    """Which documents are shown."""
    column: str = "text"
    """The field that holds the text in JSON-lines and parquet files."""
    duplicates: bool = True
    """Whether documents of a source with the same text are counted (16 bytes of temporary disk for each document)."""
    limits: Limits = DEFAULT_LIMITS


@dataclass(frozen=True)
class SplitInspection:
    """What a split holds.

    Args:
        num_bytes: of the documents' text in UTF-8.
        num_tokens: without BOS; None if nothing counted them.
        num_unknown: tokens that stand for what cannot be encoded; None if the tokenizer can encode everything.
        lengths: of documents, in tokens or, without a tokenizer, in bytes.
        samples: beginnings of documents.
    """

    num_bytes: int
    num_tokens: int | None
    num_unknown: int | None
    lengths: Lengths
    samples: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Args:
        path: of what was inspected.
        kind: ``source`` or ``store``.
        splits: by name.
        skipped: documents left out, by reason; of a source also ``duplicate``, which only ``split`` leaves out.
        facts: more of where it comes from (JSON).
        notes: lines about files that are not read; ``facts`` has them as well.
    """

    path: Path
    kind: str
    splits: Mapping[str, SplitInspection]
    skipped: Mapping[str, int]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return all of it (JSON)."""
        splits = {
            name: {
                "bytes": split.num_bytes,
                "tokens": split.num_tokens,
                "tokens_per_byte": _rate(split),
                "unknown_tokens": split.num_unknown,
                "lengths": {"unit": "bytes" if split.num_tokens is None else "tokens", **split.lengths.as_json()},
                "samples": list(split.samples),
            }
            for name, split in self.splits.items()
        }
        return {
            "path": str(self.path),
            "kind": self.kind,
            **self.facts,
            "splits": splits,
            "skipped": dict(self.skipped),
        }

    def lines(self) -> Iterator[str]:
        """Yield it as text."""
        yield f"{self.kind} {self.path}"
        for key, value in self.facts.items():
            if not isinstance(value, Mapping):
                yield f"{key:<12} {value}"
        yield from self.notes
        total = sum(split.lengths.num_documents for split in self.splits.values())
        for name, split in self.splits.items():
            count = split.lengths.num_documents
            line = f"{name:<12} {count:>11,} documents {count / max(total, 1):>7.2%}  {byte_size(split.num_bytes):>8}"
            if split.num_tokens is not None:
                rate = _rate(split)
                line += f"  {split.num_tokens:>11,} tokens" + (f"  {rate:.3f} a byte" if rate else "")
            if split.num_unknown is not None:
                line += f"  {split.num_unknown / max(split.num_tokens or 0, 1):.3%} unknown"
            yield line
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in self.skipped.items())
        yield f"{'left out' if self.kind == 'store' else 'unusable':<12} {skipped or 'none'}"
        first = next((name for name, split in self.splits.items() if split.lengths.num_documents), None)
        if first is not None:  # the others look alike, and --json has them all
            yield from _details(first, self.splits[first])


def inspect(path: Path, config: InspectConfig, say: Callable[[str], None]) -> Inspection:
    """Look at a source or a token store.

    Args:
        path: of a store, a split corpus, a folder or a file of documents.
        config: what to look at.
        say: prints the result, line by line.

    Raises:
        DataError: if there is nothing to be read, or something is damaged.
        MissingExtra: for parquet files without pyarrow.
    """
    found = inspect_store(path, config) if _is_store(path) else inspect_source(path, config)
    for line in found.lines():
        say(line)
    return found


def inspect_store(path: Path, config: InspectConfig) -> Inspection:
    """Look at a token store.

    Raises:
        DataError: if it cannot be opened.
    """
    store = open_store(path)
    facts: dict[str, Any] = {"vocab_size": store.tokenizer.vocab_size, "tokenizer": store.tokenizer.content_hash}
    splits = {name: _stored(store, name, config) for name in SPLITS}
    notes = () if config.documents is None else tuple(_shown(store, config))
    return Inspection(path, "store", splits, store.skipped, facts, notes)


def inspect_source(path: Path, config: InspectConfig) -> Inspection:
    """Read a source to its end.

    Raises:
        DataError: if it cannot be read.
        MissingExtra: for parquet files without pyarrow.
    """
    if config.documents is not None:
        raise DataError(f"documents={config.documents} shows documents of a token store, and {path} is none")
    source = files_source(path, config.column, config.limits)
    tokenizer = None if config.tokenizer is None else TextTokenizer.load(expand_home(config.tokenizer))
    names = [name for name in SPLITS if name in source.splits] or [ALL]
    reading = {name: _Reading(config, tokenizer) for name in names}
    skipped: Counter[str] = Counter()
    with CopyCount(config.duplicates) as hashes:
        for document in source.documents(skipped):
            reading[document.split or ALL].add(document.text)
            hashes.add(document.text)
        num_copies = hashes.count_copies()
    if num_copies:
        skipped["duplicate"] = num_copies
    splits = {name: one.finish() for name, one in reading.items()}
    facts = {"files": len(source.files), "not_read": left_out_facts(source.left_out)}
    return Inspection(path, "source", splits, skipped, facts, tuple(source.notes()))


def _is_store(path: Path) -> bool:
    """Return whether a folder is a token store, if an unfinished one; other steps write manifests as well."""
    if (path / UNFINISHED).is_dir():
        return True
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "vocab_size" in manifest


class _Reading:
    """Takes the documents of one split of a source."""

    def __init__(self, config: InspectConfig, tokenizer: TextTokenizer | None) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._lengths = Lengths(config.seq_len if tokenizer is not None else ())
        self._unk_id = None if tokenizer is None else tokenizer.unk_id
        self._waiting: list[str] = []
        self._waiting_characters = 0
        self._num_bytes = self._num_unknown = 0
        self._chosen: list[tuple[int, str]] = []

    def add(self, text: str) -> None:
        """Take note of a document."""
        self._waiting.append(text)
        self._waiting_characters += len(text)
        if self._waiting_characters >= _BATCH_CHARACTERS:
            self._flush()

    def finish(self) -> SplitInspection:
        """Return what there was."""
        self._flush()
        num_tokens = None if self._tokenizer is None else self._lengths.total
        num_unknown = None if self._unk_id is None else self._num_unknown
        samples = tuple(text for _, text in sorted(self._chosen, reverse=True))
        return SplitInspection(self._num_bytes, num_tokens, num_unknown, self._lengths, samples)

    def _flush(self) -> None:
        """Count what waits."""
        sizes = [len(text.encode()) for text in self._waiting]
        self._num_bytes += sum(sizes)
        if self._tokenizer is not None:
            encoded = self._tokenizer.encode_batch(self._waiting)
            self._num_unknown += sum(ids.count(self._unk_id) for ids in encoded if self._unk_id is not None)
            sizes = [len(ids) for ids in encoded if ids]
        self._lengths.add(np.array(sizes, np.int64))
        for text in self._waiting:
            # The lowest ranks stay: the same documents, wherever they lie.
            entry = (-rank_of(text, self._config.seed), text[: self._config.sample_characters])
            if entry not in self._chosen:
                heapq.heappush(self._chosen, entry)
                if len(self._chosen) > self._config.samples:
                    heapq.heappop(self._chosen)
        self._waiting, self._waiting_characters = [], 0


def _stored(store: Store, name: str, config: InspectConfig) -> SplitInspection:
    """Return what a split of a store holds."""
    split, unk_id = store.splits[name], store.tokenizer.unk_id
    lengths = Lengths(config.seq_len)
    num_unknown = 0
    for shard in split.shards:
        for begin in range(0, len(shard.offsets) - 1, _DOCUMENTS_AT_ONCE):
            lengths.add(np.diff(shard.offsets[begin : begin + _DOCUMENTS_AT_ONCE + 1]) - 1)
        if unk_id is not None:
            pieces = range(0, len(shard.tokens), _TOKENS_AT_ONCE)
            num_unknown += sum(
                int(np.count_nonzero(shard.tokens[at : at + _TOKENS_AT_ONCE] == unk_id)) for at in pieces
            )
    count = min(config.samples, lengths.num_documents)
    chosen = random.Random(config.seed).sample(range(lengths.num_documents), count)
    samples = tuple(_decoded(store, name, document, config.sample_characters) for document in sorted(chosen))
    return SplitInspection(split.num_bytes, lengths.total, None if unk_id is None else num_unknown, lengths, samples)


def _shown(store: Store, config: InspectConfig) -> Iterator[str]:
    """Yield the first tokens of chosen documents, as text, with the number of tokens that they have."""
    begin, end = map(int, str(config.documents).split(":"))
    for name, split in store.splits.items():
        for document in range(begin, min(end, split.num_documents)):
            tokens = _tokens(store, name, document)
            shown = tokens[: config.tokens]
            text = store.tokenizer.decode(shown.tolist())
            yield f"{name} document {document}: first {len(shown):,} of {len(tokens):,} tokens: {text!r}"


def _tokens(store: Store, name: str, document: int) -> npt.NDArray[Any]:
    """Return the tokens of a document, without its BOS."""
    for shard in store.splits[name].shards:
        if document < len(shard.offsets) - 1:
            begin, end = (int(offset) for offset in shard.offsets[document : document + 2])
            return shard.tokens[begin + 1 : end]
        document -= len(shard.offsets) - 1
    raise IndexError(document)


def _decoded(store: Store, name: str, document: int, num_characters: int) -> str:
    """Return the beginning of a document as text."""
    ids = _tokens(store, name, document)[: 4 * num_characters]  # no character has more bytes
    return store.tokenizer.decode(ids.tolist())[:num_characters]


def _rate(split: SplitInspection) -> float | None:
    """Return the tokens per byte."""
    return None if split.num_tokens is None or not split.num_bytes else split.num_tokens / split.num_bytes


def _details(name: str, split: SplitInspection) -> Iterator[str]:
    """Yield the distribution, the waste and the samples of a split."""
    lengths = split.lengths
    unit = "bytes" if split.num_tokens is None else "tokens"
    points = "  ".join(f"{point} {value:,}" for point, value in lengths.quantiles().items())
    yield ""
    yield f"{name}: {unit} per document: mean {lengths.total / lengths.num_documents:,.0f}, longest {lengths.longest:,}"
    yield f"  quantiles  {points}"
    histogram = lengths.histogram()
    for low, count in histogram.items():
        bar = "▇" * math.ceil(_BAR_CHARACTERS * count / max(histogram.values()))
        yield f"  {low:>11,} to {2 * low - 1:<11,} {count:>11,} {bar}".rstrip()
    if waste := lengths.waste():
        shares = " ".join(f"{share:>8}" for share in ("useful", "padding", "ignored", "dropped"))
        yield f"  {'seq_len':>7} {'batching':<16} {'rows':>11} {shares}"
    for one in waste:
        shares = " ".join(f"{share:>8.2%}" for share in (one.useful, one.padding, one.ignored, one.dropped))
        yield f"  {one.seq_len:>7} {one.batching:<16} {one.rows:>11,} {shares}"
    for text in split.samples:
        yield f"  {text!r}"
