"""Documents in parquet: parts of a split, and runs of documents in the buckets of a shuffle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perjoule.core.errors import MissingExtra
from perjoule.data.duplicates import content_hash
from perjoule.data.folders import publish

_GROUP_BYTES = 8 << 20
_LEVEL = 3


@dataclass(frozen=True, slots=True)
class Placed:
    """A document that knows where it goes.

    Args:
        split: the split it belongs to.
        text: its text.
        name: where it stood in the source.
        rank: in the shuffled order, of 2⁶⁴.
    """

    split: str
    text: str
    name: str
    rank: int = 0


class PartWriter:
    """Writes one parquet file, if there is a document for it, and gives it its name when it is complete.

    Args:
        path: of the file.
        temporary: where it grows.
    """

    def __init__(self, path: Path, temporary: Path) -> None:
        self._path, self._temporary = path, temporary
        self._writer: Any = None
        self._texts: list[str] = []
        self._names: list[str] = []
        self._waiting_bytes = 0
        self.num_documents = 0
        self.num_bytes = 0

    def add(self, text: str, name: str) -> None:
        """Append a document."""
        self._texts.append(text)
        self._names.append(name.encode(errors="surrogateescape").decode(errors="replace"))  # of files, any bytes
        size = len(text.encode())
        self.num_documents += 1
        self.num_bytes += size
        self._waiting_bytes += size
        if self._waiting_bytes >= _GROUP_BYTES:
            self._flush()

    def close(self) -> dict[str, Any]:
        """Complete the file and return what the manifest says of it; nothing if no document came."""
        if not self.num_documents:
            return {}
        self._flush()
        self._writer.close()
        with self._temporary.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            size = file.tell()
        publish(self._temporary, self._path)
        counts = {"documents": self.num_documents, "bytes": self.num_bytes}
        return {"file": self._path.name, **counts, "size": size, "blake2b": digest}

    def abandon(self) -> None:
        """Let go of a file that is not complete."""
        if self._writer is not None:
            self._writer.close()
            self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        """Write what waits as one row group."""
        if not self._texts:
            return
        pyarrow, parquet = arrow()
        columns = {"text": pyarrow.array(self._texts, pyarrow.string()), "name": pyarrow.array(self._names)}
        table = pyarrow.table(columns)
        if self._writer is None:
            self._writer = parquet.ParquetWriter(
                str(self._temporary), table.schema, compression="zstd", compression_level=_LEVEL, use_dictionary=False
            )
        self._writer.write_table(table)
        self._texts, self._names, self._waiting_bytes = [], [], 0


def rank_of(text: str, seed: int) -> int:
    """Return a document's place in the shuffled order, of 2⁶⁴: a function of its text and the seed."""
    digest = hashlib.blake2b(content_hash(text), digest_size=8, key=str(seed).encode()[:64]).digest()
    return int.from_bytes(digest, "little")


def write_run(path: Path, temporary: Path, documents: Sequence[Placed], num_buckets: int) -> None:
    """Write documents bucket by bucket, so that each bucket can be read alone.

    A bucket is a range of ranks: bucket ``b`` of ``B`` has those from ``b / B`` to ``(b + 1) / B`` of all.
    """
    pyarrow, _ = arrow()
    buckets: list[list[Placed]] = [[] for _ in range(num_buckets)]
    for document in documents:
        buckets[document.rank * num_buckets >> 64].append(document)
    schema = pyarrow.schema(
        [("rank", pyarrow.uint64()), *((name, pyarrow.string()) for name in ("split", "text", "name"))]
    )
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    with pyarrow.OSFile(str(temporary), "wb") as sink, pyarrow.ipc.new_file(sink, schema, options=options) as writer:
        for bucket in buckets:
            columns = {name: [getattr(document, name) for document in bucket] for name in schema.names}
            writer.write_batch(pyarrow.RecordBatch.from_pydict(columns, schema))
    publish(temporary, path)


def read_bucket(runs: Iterable[Path], bucket: int) -> Iterator[Placed]:
    """Yield the documents of one bucket of all runs, in the order of their ranks; the bucket is in memory once."""
    pyarrow, _ = arrow()
    found: list[Placed] = []
    for run in runs:
        with pyarrow.memory_map(str(run)) as file, pyarrow.ipc.open_file(file) as reader:
            rows = reader.get_batch(bucket).to_pylist()
        found += (Placed(row["split"], row["text"], row["name"], row["rank"]) for row in rows)
    found.sort(key=lambda document: document.rank)  # stable: copies that were kept stay in the order of the source
    yield from found


def arrow() -> tuple[Any, Any]:
    """Return pyarrow and pyarrow.parquet.

    Raises:
        MissingExtra: if it is not installed.
    """
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("writing parquet needs pyarrow; install it with pip install 'perjoule[data]'") from error
    return pyarrow, parquet
