"""What lies in a token store's folder: ``manifest.json``, ``tokenizer.json`` and the shards. See docs/token_store.md.

The manifest is written last. A folder without it is no store, and every file it names is complete.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perjoule.core.errors import DataError
from perjoule.data.shards import Shard, SplitTokens
from perjoule.data.split import SPLITS

FORMAT = 2
MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
TOKENS, OFFSETS = ".tokens.bin", ".offsets.bin"

CHECKED_BYTES = 64 << 20
"""Files up to this size are hashed whenever a store is opened; of larger ones only the size is compared."""

_SHARD = re.compile(r"(train|validation|test)-\d+(_\d+)?", re.ASCII)
OFFSET_TYPE = np.dtype("<i8")


class Damaged(DataError):
    """A store, or a part of one, is not as it was written."""


@dataclass(frozen=True)
class ShardEntry:
    """A shard's line in the manifest.

    Args:
        name: of its files, without ``.tokens.bin`` and ``.offsets.bin``.
        unit: the unit of work that it came from.
        documents: in it.
        tokens: in it, BOS included.
        bytes: of the documents' text in UTF-8.
        tokens_blake2b: hash of the first file.
        offsets_blake2b: hash of the second.
    """

    name: str
    unit: int
    documents: int
    tokens: int
    bytes: int
    tokens_blake2b: str
    offsets_blake2b: str

    @property
    def split(self) -> str:
        """Return the split that it is a part of."""
        return self.name.partition("-")[0]

    def files(self, dtype: npt.DTypeLike) -> tuple[tuple[str, int, str], ...]:
        """Return the name, size in bytes and hash of both files."""
        return (
            (self.name + TOKENS, self.tokens * np.dtype(dtype).itemsize, self.tokens_blake2b),
            (self.name + OFFSETS, (self.documents + 1) * OFFSET_TYPE.itemsize, self.offsets_blake2b),
        )


@dataclass(frozen=True)
class UnitEntry:
    """A unit of work's line in the manifest.

    Args:
        name: where its documents came from.
        skipped: documents left out, by reason.
        encoded: documents by what encoded them.
    """

    name: str
    skipped: Mapping[str, int]
    encoded: Mapping[str, int]


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    Args:
        made_from: what the tokens depend on: hashes of the documents and of the tokenizer, fractions, shard size.
        source: where the documents were.
        dtype: of the tokens: ``<u2`` or ``<u4``.
        vocab_size: one more than the largest id.
        bos_id: stands before each document.
        pad_id: for padded rows; no store holds it.
        tokenizer_blake2b: hash of ``tokenizer.json``.
        shards: of each split, in the order of the stream; all three splits are named.
        units: all units of work, in order.
        made_by: versions of the libraries.
    """

    made_from: Mapping[str, Any]
    source: Mapping[str, Any]
    dtype: str
    vocab_size: int
    bos_id: int
    pad_id: int
    tokenizer_blake2b: str
    shards: Mapping[str, tuple[ShardEntry, ...]]
    units: tuple[UnitEntry, ...]
    made_by: Mapping[str, str]

    def count(self, split: str, what: str) -> int:
        """Return the ``documents``, ``tokens`` or ``bytes`` of a split."""
        return sum(getattr(entry, what) for entry in self.shards[split])

    def total(self, what: str) -> int:
        """Return the ``documents``, ``tokens`` or ``bytes`` of all splits."""
        return sum(self.count(split, what) for split in self.shards)

    @property
    def skipped(self) -> dict[str, int]:
        """Return the documents that were left out, by reason."""
        return _sum(unit.skipped for unit in self.units)

    @property
    def encoded(self) -> dict[str, int]:
        """Return the documents by what encoded them, and how many were compared."""
        return _sum(unit.encoded for unit in self.units)

    def as_json(self) -> dict[str, Any]:
        """Return the content, sums and checksum included."""
        splits = {
            split: {
                **{what: self.count(split, what) for what in ("documents", "tokens", "bytes")},
                "shards": [asdict(entry) for entry in entries],
            }
            for split, entries in self.shards.items()
        }
        body = {
            "format": FORMAT,
            **{name: value for name, value in asdict(self).items() if name not in {"shards", "units"}},
            "splits": splits,
            "skipped": self.skipped,
            "encoded": self.encoded,
            "units": [asdict(unit) for unit in self.units],
        }
        return {"checksum": checksum(body), **body}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Manifest:
        """Return the manifest that :meth:`as_json` described."""
        own = {name: body[name] for name in cls.__dataclass_fields__ if name not in {"shards", "units"}}
        shards = {
            split: tuple(ShardEntry(**shard) for shard in entry["shards"]) for split, entry in body["splits"].items()
        }
        return cls(**own, shards=shards, units=tuple(UnitEntry(**unit) for unit in body["units"]))

    @property
    def identity(self) -> str:
        """Return the checksum: it names these tokens, and how they came about."""
        return str(self.as_json()["checksum"])


def read_manifest(folder: Path) -> Manifest:
    """Read a store's manifest.

    Raises:
        FileNotFoundError: if there is none.
        DataError: if it is of a newer or older format.
        Damaged: if it was changed or cut off.
    """
    path = folder / MANIFEST
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        version, own = body["format"], body.pop("checksum")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(f"{MANIFEST}: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise Damaged(f"{MANIFEST} cannot be read: {error}") from error
    if isinstance(version, int) and version > FORMAT:
        raise DataError(
            f"the token store {folder} has format {version}, this perjoule reads up to {FORMAT}: upgrade perjoule"
        )
    if version != FORMAT:
        raise DataError(f"the token store {folder} has format {version}, perjoule reads {FORMAT}: tokenize again")
    if own != checksum(body):
        raise Damaged(f"{MANIFEST} was changed")
    try:
        manifest = Manifest.from_json(body)
        _check_entries(manifest)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Damaged(f"{MANIFEST} is not that of a store: {error}") from error
    return manifest


def other_manifest(folder: Path) -> str | None:
    """Say what a folder is whose manifest is not that of a store, whole or damaged; None for a store or no manifest."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        body = None
    if isinstance(body, dict) and body.get("kind") in {"split", "download"}:
        return f"a folder that perjoule data {body['kind']} made"
    if (isinstance(body, dict) and {"checksum", "made_from", "format"} & set(body)) or (folder / TOKENIZER).is_file():
        return None
    return f"a folder with another program's {MANIFEST}"


def _check_entries(manifest: Manifest) -> None:
    """Refuse names that are none of a shard's, and counts that are none.

    Raises:
        ValueError: for the first of them.
    """
    if manifest.dtype not in {"<u2", "<u4"} or set(manifest.shards) != set(SPLITS):
        raise ValueError(f"dtype {manifest.dtype!r}, splits {', '.join(map(str, manifest.shards))}")
    for split, entries in manifest.shards.items():
        for entry in entries:
            if not isinstance(entry.name, str) or not _SHARD.fullmatch(entry.name) or entry.split != split:
                raise ValueError(f"{entry.name!r} is not the name of a shard of {split}")
            for count in (entry.documents, entry.tokens, entry.bytes):
                if not isinstance(count, int) or count < 0:
                    raise ValueError(f"{count!r} in {entry.name} is not a count")


def damage(folder: Path, files: Iterable[tuple[str, int, str]], checked_bytes: float) -> str | None:
    """Return what is wrong with the first file that is not as it was written; None if all are.

    Args:
        folder: of the files.
        files: name, size and hash of each.
        checked_bytes: the largest size that is hashed.
    """
    for name, expected, blake2b in files:
        try:
            size = (folder / name).stat().st_size
            if size != expected:
                return f"{name} has {size} bytes instead of {expected}"
            if size <= checked_bytes and digest(folder / name) != blake2b:
                return f"{name} was changed"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def check(folder: Path, manifest: Manifest, checked_bytes: float) -> None:
    """Compare the files of a store with its manifest.

    Args:
        folder: of the store.
        manifest: its own.
        checked_bytes: the largest size that is hashed.

    Raises:
        Damaged: naming the first file that is not as it was written.
    """
    tokenizer = folder / TOKENIZER
    try:
        if digest(tokenizer) != manifest.tokenizer_blake2b:
            raise Damaged(f"{TOKENIZER} was changed")
    except OSError as error:
        raise Damaged(f"{TOKENIZER}: {error.strerror}") from error
    entries = (entry for shards in manifest.shards.values() for entry in shards)
    found = damage(folder, (file for entry in entries for file in entry.files(manifest.dtype)), checked_bytes)
    if found:
        raise Damaged(found)


def map_split(folder: Path, manifest: Manifest, split: str) -> SplitTokens:
    """Map the shards of a split into memory; nothing of them is read."""
    return SplitTokens(
        tuple(
            Shard(
                np.asarray(np.memmap(folder / f"{entry.name}{TOKENS}", manifest.dtype, "r")),
                np.asarray(np.memmap(folder / f"{entry.name}{OFFSETS}", OFFSET_TYPE, "r")),
                entry.bytes,
            )
            for entry in manifest.shards[split]
        )
    )


def digest(path: Path) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, new_hash).hexdigest()


def new_hash() -> Any:
    """Return an empty hash of the kind that stores use."""
    return hashlib.blake2b(digest_size=16)


def checksum(body: Mapping[str, Any]) -> str:
    """Return the hash of a JSON object's content."""
    return hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16).hexdigest()


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add counts by name."""
    total: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))
