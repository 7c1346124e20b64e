"""Tokenised documents on disk, prepared once and memory-mapped by every run after that.

A store is a folder of the cache, named by a hash of what it was made from: the documents, the tokenizer, the
fractions and the format. For each split it holds ``<split>.tokens.bin``, the stream ``[BOS, document, BOS, …]`` of
uint16 (uint32 above 65,536 tokens), and ``<split>.offsets.npy``, where each document begins; beside them
``tokenizer.json`` and ``manifest.json`` with counts, sizes and checksums.

The sequence length is no part of it: rows are cut when they are read. A store is written into a hidden folder and
renamed when complete, under a lock that a killed process loses; the ranks of a run that start together build it once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from perjoule.core.errors import DataError
from perjoule.core.units import byte_size
from perjoule.data.shards import Shard, SplitTokens
from perjoule.data.sources import Document, Source
from perjoule.data.split import SPLITS, TRAIN, Fractions
from perjoule.data.tokenizer import TextTokenizer, TokenizerConfig

FORMAT = 1
MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
NO_TOKENS = "no_tokens"
"""Why a document was skipped: its text vanished in the tokenizer, as blanks do in some."""

_BATCH_CHARACTERS = 1 << 21
_CHECKED_BYTES = 64 << 20
"""Files up to this size are hashed whenever a store is opened; of larger ones only the size is compared."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """An opened store.

    Args:
        path: its folder.
        state: ``reused``, ``built``, or ``rebuilt`` with the reason.
        tokenizer: what made the tokens.
        splits: by name, all three; a split may be empty.
        skipped: documents left out, by reason.
    """

    path: Path
    state: str
    tokenizer: TextTokenizer
    splits: Mapping[str, SplitTokens]
    skipped: Mapping[str, int]


class _Damaged(Exception):
    """A store folder that cannot be used; it will be rebuilt."""


def prepare(source: Source, tokenizer: TokenizerConfig, fractions: Fractions, cache: Path) -> Store:
    """Open the store of these documents and settings, building it if it is missing or damaged.

    The files are hashed at every start (about 1 GB/s); nothing else of them is read when the store exists.

    Raises:
        DataError: if the documents cannot be read, change meanwhile, there is none, or the cache cannot be written.
        MissingExtra: for parquet files without pyarrow.
    """
    fingerprint = source.fingerprint()
    recipe = [FORMAT, fingerprint, tokenizer.identity(), fractions.model_dump()]
    name = f"tokens-{hashlib.blake2b(json.dumps(recipe).encode(), digest_size=12).hexdigest()}"
    path = cache / name
    try:
        return _open(path, "reused")
    except (FileNotFoundError, _Damaged):
        pass
    with _writing(cache), _locked(cache / f"{name}.lock"):
        state = "built"
        try:
            return _open(path, "reused")  # another process built it while this one waited for the lock
        except FileNotFoundError:
            pass
        except _Damaged as damage:
            state = f"rebuilt: {damage}"
            _log.warning("the token store %s is damaged (%s): building it again", path, damage)
        fresh = cache / f".{name}"
        shutil.rmtree(fresh, ignore_errors=True)  # holding the lock: what is here was left by a kill
        try:
            fresh.mkdir()
            _build(fresh, source, tokenizer, fractions)
            if source.fingerprint() != fingerprint:  # the store would hold other documents than its name says
                raise DataError(f"the documents in {source.root} changed while they were tokenised; start again")
            shutil.rmtree(path, ignore_errors=True)
            fresh.rename(path)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return _open(path, state)


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    """Create the cache folder and say how to choose another if it cannot be written."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(
            f"cannot write the data cache {cache}: {error.strerror or error}; choose another with data.cache=FOLDER "
            "or the environment variable PERJOULE_CACHE"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for and hold the lock of one store; the kernel releases it when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _SplitWriter:
    """Appends documents to the files of one split."""

    def __init__(self, folder: Path, split: str, tokenizer: TextTokenizer) -> None:
        self._offsets_path = folder / f"{split}.offsets.npy"
        self._file = (folder / f"{split}.tokens.bin").open("wb")
        self._bos_id = tokenizer.bos_id
        self._dtype = _dtype(tokenizer)
        self._offsets = [0]
        self.num_bytes = 0

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def append(self, ids: list[int], num_bytes: int) -> None:
        """Write BOS and one document."""
        self._file.write(np.array([self._bos_id, *ids], self._dtype).tobytes())
        self._offsets.append(self._offsets[-1] + 1 + len(ids))
        self.num_bytes += num_bytes

    def finish(self) -> dict[str, int]:
        """Complete the files and return the split's entry of the manifest."""
        self._file.flush()
        np.save(self._offsets_path, np.array(self._offsets, np.int64))
        return {"documents": len(self._offsets) - 1, "bytes": self.num_bytes, "tokens": self._offsets[-1]}


def _build(folder: Path, source: Source, config: TokenizerConfig, fractions: Fractions) -> None:
    """Write a store: train the tokenizer on the training split, then tokenise all documents."""
    training = (d.text for d in source.documents(Counter()) if fractions.split_of(d.key) == TRAIN)
    tokenizer = config.build(training)
    (folder / TOKENIZER).write_text(tokenizer.inner.to_str(pretty=True), encoding="utf-8")
    skipped: Counter[str] = Counter()
    with ExitStack() as files:
        writers = {split: files.enter_context(_SplitWriter(folder, split, tokenizer)) for split in SPLITS}
        for batch in _batches(source.documents(skipped)):
            for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
                if tokenizer.bos_id in ids:
                    raise DataError(f"the tokenizer turns text of {document.name} into its BOS token; use another one")
                if ids:
                    writers[fractions.split_of(document.key)].append(ids, len(document.text.encode()))
                else:
                    skipped[NO_TOKENS] += 1
        splits = {split: writer.finish() for split, writer in writers.items()}
    num_documents = sum(entry["documents"] for entry in splits.values())
    if num_documents == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise DataError(f"no documents in {len(source.files)} files of {source.root}; skipped: {reasons or 'none'}")
    num_bytes = sum(entry["bytes"] for entry in splits.values())
    _log.info("tokenised %d documents (%s) into %s", num_documents, byte_size(num_bytes), folder.parent)
    entries = {path.name: {"bytes": path.stat().st_size, "blake2b": _digest(path)} for path in folder.iterdir()}
    body = {"format": FORMAT, "splits": splits, "skipped": skipped, "files": entries, "made_by": _versions()}
    for path in folder.iterdir():
        _flush(path)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"checksum": _checksum(body), **body}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Group documents so that every core has work and memory stays small."""
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


def _open(path: Path, state: str) -> Store:
    """Open a store if it is complete and whole.

    Raises:
        FileNotFoundError: if there is no such folder.
        _Damaged: if something in it is missing or is not as it was written.
    """
    if not path.is_dir():
        raise FileNotFoundError(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest.pop("checksum") != _checksum(manifest):
            raise _Damaged(f"{MANIFEST} was changed")
        for name, entry in manifest["files"].items():
            size = (path / name).stat().st_size
            if size != entry["bytes"]:
                raise _Damaged(f"{name} has {size} bytes instead of {entry['bytes']}")
            if size <= _CHECKED_BYTES and _digest(path / name) != entry["blake2b"]:
                raise _Damaged(f"{name} was changed")
    except OSError as error:
        raise _Damaged(f"{Path(error.filename or MANIFEST).name}: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _Damaged(f"{MANIFEST} cannot be read: {error}") from error
    tokenizer = TextTokenizer.load(path / TOKENIZER)
    splits = {split: _map(path, split, tokenizer, manifest["splits"][split]) for split in SPLITS}
    return Store(path, state, tokenizer, splits, manifest["skipped"])


def _map(path: Path, split: str, tokenizer: TextTokenizer, entry: Mapping[str, int]) -> SplitTokens:
    """Map the files of one split."""
    dtype = _dtype(tokenizer)
    tokens: npt.NDArray[Any] = np.empty(0, dtype)
    if entry["tokens"]:  # an empty file cannot be mapped
        tokens = np.asarray(np.memmap(path / f"{split}.tokens.bin", dtype, "r"))
    return SplitTokens((Shard(tokens, np.load(path / f"{split}.offsets.npy"), entry["bytes"]),))


def _dtype(tokenizer: TextTokenizer) -> npt.DTypeLike:
    """Return the smallest little-endian type that holds every token."""
    return "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"


def _digest(path: Path) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _checksum(body: Mapping[str, Any]) -> str:
    """Return the hash of a manifest's content."""
    return hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16).hexdigest()


def _flush(path: Path) -> None:
    """Make sure a file has reached the disk before the folder gets its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _versions() -> dict[str, str]:
    """Return what the tokens were made with."""
    return {"tokenizers": tokenizers.__version__, "numpy": np.__version__}
