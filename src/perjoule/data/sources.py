"""Where documents come from: the files of the standard library, or text, JSON-lines and parquet files.

A source lists its files when it is made and reads them when asked, one document after the other, as often as needed:
memory does not grow with the corpus. It can be cut into units of work that depend on the files alone.

A folder with ``train`` and ``validation`` or ``test`` below it is a corpus that is split already: its documents know
their split.
"""

from __future__ import annotations

import hashlib
import itertools
import platform
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from perjoule.core.cache import expand_home
from perjoule.core.errors import DataError, nearest
from perjoule.core.files import special_kind
from perjoule.data import formats
from perjoule.data.formats import DEFAULT_LIMITS, Kind, Limits, is_compressed, kind_of, reading, uncompressed_name
from perjoule.data.split import SPLITS, TRAIN, Fractions
from perjoule.data.walk import LeftOut, left_out_facts, left_out_lines, walk

UNIT_BYTES = 32 << 20
"""A unit of work is about this much of the files: enough to keep a core busy for seconds, little enough to lose."""

_MANY = 10_000
"""Documents of which one belongs to each split, whatever the fractions, or the splits are meant to be that small."""
_SHORTEST_CUT = 4000
"""Characters, about a thousand tokens; a shorter document is not worth cutting."""
_ALIASES = {"val": "validation", "valid": "validation", "dev": "validation", "eval": "validation"}
_NOT_LIBRARY = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "idle_test", "turtledemo"}
)


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of text that is not continued elsewhere.

    Args:
        name: where it stands: the file's relative path, with the row's number in a file of rows (``a.jsonl:7``; beyond
            the first unit of a large file, ``a.jsonl@33554432:7``, the seventh line that begins there or later).
        text: never blank, always encodable as UTF-8.
        key: what decides its split: the name of a file, the content of a row (so that copies stay together).
        split: that of the folder it lies in, if its corpus is split already; else None, and ``key`` decides.
    """

    name: str
    text: str
    key: str
    split: str | None = None


@dataclass(frozen=True)
class Unit:
    """A part of a source, to be read at once: some text files, or a range of one file of rows.

    Args:
        files: relative POSIX paths; several only if they are text.
        begin: where to begin: a row group of parquet, a byte of uncompressed JSON lines.
        end: where to end (exclusive); None: with the file.
        split: of all documents in it, if the corpus is split already.
        num_bytes: of the files on disk, or of the parquet column when decompressed: for progress, not for accounts.
    """

    files: tuple[str, ...]
    begin: int = 0
    end: int | None = None
    split: str | None = None
    num_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` understands."""
        return {**asdict(self), "files": list(self.files)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Unit:
        """Return the unit that :meth:`as_json` described."""
        return cls(**{**value, "files": tuple(value["files"])})


@dataclass(frozen=True)
class Source:
    """Documents in a fixed order.

    Args:
        root: the folder that the names are relative to.
        files: relative POSIX paths, sorted.
        column: the field that holds the text of a row.
        facts: more for the manifest (JSON).
        splits: of a corpus that is split already, the splits it has; else none.
        limits: of compressed files.
        left_out: files and folders that are not read, by reason.
        within: whether documents are cut to share them out, instead of belonging to a split as a whole.
    """

    root: Path
    files: tuple[str, ...]
    column: str = "text"
    facts: Mapping[str, Any] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    limits: Limits = DEFAULT_LIMITS
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)
    within: bool = False

    def notes(self) -> Iterator[str]:
        """Yield lines about what is not read, and how the rest is shared out if that is unusual."""
        yield from left_out_lines(self.left_out, formats.ACCEPTED)
        if self.within:
            yield (
                "with so few documents a split would be empty: each is cut, its beginning for training, its end for "
                "validation and test"
            )

    def divided_by(self, fractions: Fractions) -> Source:
        """Return the source to be shared out: within its documents if a split would get none of them.

        Args:
            fractions: of the splits.

        Raises:
            DataError: if a file cannot be read.
            MissingExtra: for parquet files without pyarrow.
        """
        if self.splits:
            return self
        empty = {split for split in SPLITS if getattr(fractions, split) > 0}
        one_by_one = (replace(self, files=(name,)) for name in self.files)
        documents = itertools.chain.from_iterable(source.documents(Counter()) for source in one_by_one)
        longest = 0
        for document in itertools.islice(documents, _MANY):
            empty.discard(fractions.split_of(document.key))
            longest = max(longest, len(document.text))
            if not empty:
                return self
        return replace(self, within=longest >= _SHORTEST_CUT and next(documents, None) is None)

    def share_out(self, document: Document, fractions: Fractions) -> Iterator[Document]:
        """Yield the document, or its parts, with their split.

        Args:
            document: of this source.
            fractions: of the splits.
        """
        if document.split is not None:
            yield document
        elif self.within and len(document.text) >= _SHORTEST_CUT:
            for split, text in fractions.cut(document.text):
                yield Document(document.name, text, document.key, split)
        else:
            yield Document(document.name, document.text, document.key, fractions.split_of(document.key))

    def fingerprint(self) -> str:
        """Return a hash of the names and bytes of all files, and of the column where rows are read.

        Raises:
            DataError: if a file cannot be read.
        """
        total = hashlib.blake2b(digest_size=16)
        for name in self.files:
            path = self.root / name
            with reading(path), path.open("rb") as file:
                content = hashlib.file_digest(file, hashlib.blake2b).digest()
            column = self.column if _has_rows(name) else ""
            total.update(repr((name, column)).encode(errors="surrogateescape") + content)
        if self.splits:
            total.update(repr(self.splits).encode())
        return total.hexdigest()

    def listing(self) -> dict[str, Any]:
        """Return what tells the source from another without reading it: a hash of names, sizes and times (JSON).

        Raises:
            DataError: if a file is gone.
        """
        total = hashlib.blake2b(digest_size=16)
        num_bytes = 0
        for name in self.files:
            path = self.root / name
            with reading(path):
                status = path.stat()
            num_bytes += status.st_size
            total.update(repr((name, status.st_size, status.st_mtime_ns)).encode(errors="surrogateescape"))
        within = {"within_documents": True} if self.within else {}
        return {"files": len(self.files), "bytes": num_bytes, "listing": total.hexdigest(), **within}

    def units(self) -> tuple[Unit, ...]:
        """Cut the source into parts that depend on its files only; their documents in order are all documents.

        Raises:
            DataError: if a file cannot be read, or parquet files disagree on the column.
            MissingExtra: for parquet files without pyarrow.
        """
        found: list[Unit] = []
        first_parquet: tuple[str, formats.RowGroups] | None = None
        for name in self.files:
            path, split = self.root / name, self._split_of(name)
            with reading(path):
                size = path.stat().st_size
            match kind_of(name):
                case Kind.PARQUET:
                    groups = formats.row_groups(path, self.column)
                    first_parquet = first_parquet or (name, groups)
                    self._check_same_type(first_parquet, (name, groups))
                    found += (
                        Unit((name,), begin, end, split, num_bytes) for begin, end, num_bytes in _cut(groups.num_bytes)
                    )
                case Kind.JSON_LINES if not is_compressed(name):
                    for begin in range(0, size, UNIT_BYTES):
                        end = min(begin + UNIT_BYTES, size)
                        found.append(Unit((name,), begin, end, split, end - begin))
                case Kind.JSON_LINES:
                    found.append(Unit((name,), split=split, num_bytes=size))
                case _:
                    last = found[-1] if found else None
                    if last and not _has_rows(last.files[0]) and last.split == split and last.num_bytes < UNIT_BYTES:
                        found[-1] = Unit((*last.files, name), split=split, num_bytes=last.num_bytes + size)
                    else:
                        found.append(Unit((name,), split=split, num_bytes=size))
        return tuple(found)

    def read(self, unit: Unit, skipped: Counter[str]) -> Iterator[Document]:
        """Read the documents of one unit.

        Args:
            unit: one of :meth:`units`.
            skipped: counts what is left out, by reason (``null``, ``empty``, ``blank``, ``not_text``, ``not_utf8``).

        Raises:
            DataError: for an unreadable or damaged file, a broken line, or a column that no row has.
            MissingExtra: for a parquet file or zstd without pyarrow.
        """
        for name in unit.files:
            path, kind = self.root / name, kind_of(name)
            place = name
            if kind is Kind.PARQUET:
                rows = formats.parquet_rows(path, self.column, unit.begin, unit.end)
            elif kind is Kind.JSON_LINES:
                rows = formats.json_rows(path, self.column, unit.begin, unit.end, self.limits)
                place = f"{name}@{unit.begin}" if unit.begin else name
            else:
                text = formats.file_text(path, self.limits, skipped)
                if text is not None:
                    yield Document(name, text, uncompressed_name(name), unit.split)
                continue
            for number, value in rows:
                text = formats.usable(value, skipped)
                if text is not None:
                    yield Document(f"{place}:{number}", text, text, unit.split)

    def documents(self, skipped: Counter[str]) -> Iterator[Document]:
        """Read every document.

        Args:
            skipped: as in :meth:`read`.

        Raises:
            DataError: as :meth:`units` and :meth:`read`.
            MissingExtra: as :meth:`units` and :meth:`read`.
        """
        for unit in self.units():
            yield from self.read(unit, skipped)

    def only(self, split: str) -> Source:
        """Return one split of a corpus that is split already, as a source with the same names.

        Raises:
            DataError: if the corpus is not split or has no such split.
        """
        if split not in self.splits:
            has = f"it has {', '.join(self.splits)}" if self.splits else "it is not split"
            raise DataError(f"no split {split!r} in {self.root}: {has}")
        files = tuple(name for name in self.files if self._split_of(name) == split)
        return replace(self, files=files, splits=(split,))

    def _split_of(self, name: str) -> str | None:
        """Return the split a file belongs to."""
        return name.partition("/")[0] if self.splits else None

    def _check_same_type(self, first: tuple[str, formats.RowGroups], other: tuple[str, formats.RowGroups]) -> None:
        """Refuse text in one file and numbers in another: one of them is not what it should be."""
        if first[1].is_text != other[1].is_text:
            types = " and ".join(f"{groups.column_type} in {name}" for name, groups in (first, other))
            raise DataError(f"the column {self.column!r} is {types} of {self.root}; accepted: strings in every file")


def stdlib_source() -> Source:
    """Return the modules of the running interpreter's standard library, without tests, demos and the IDE.

    Raises:
        DataError: if this interpreter keeps its library elsewhere than in files.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = walk(root, lambda name: name.endswith(".py"), _NOT_LIBRARY).files if root.is_dir() else ()
    if not files:
        raise DataError(f"the standard library of this Python is not in files at {root}; use data.kind=text and a path")
    return Source(root, files, facts={"python": platform.python_version()})


def files_source(path: Path, column: str, limits: Limits = DEFAULT_LIMITS) -> Source:
    """Return one file, or all files with documents below a folder and the folders that are linked there.

    Args:
        path: a text, JSON-lines or parquet file, or a folder of such; a folder with ``train`` and ``validation`` or
            ``test`` below it is a corpus that is split already.
        column: the field of rows that holds the text.
        limits: of compressed files.

    Raises:
        DataError: if there is nothing at ``path`` that can be read, or it is split in part only.
    """
    path = expand_home(path)
    facts: dict[str, Any] = {"path": str(path.absolute())}
    if path.is_dir():
        found = walk(path, lambda name: kind_of(name) is not None)
        if not found.files:
            there = "; ".join(left_out_lines(found.left_out, formats.ACCEPTED)) or f"accepted: {formats.ACCEPTED}"
            raise DataError(f"no file with documents below the folder {path}; {there}")
        if found.left_out:
            facts["not_read"] = left_out_facts(found.left_out)
        splits = _splits(path, found.files)
        return Source(path, found.files, column, facts, splits, limits, found.left_out)
    if not path.exists():
        siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, siblings)
        raise DataError(f"no file or folder {path.absolute()}" + (f"; did you mean {near!r}?" if near else ""))
    if (special := special_kind(path)) is not None:
        raise DataError(f"cannot read documents from {path}: it is {special}; accepted: a file or a folder")
    if kind_of(path.name) is None:
        raise DataError(f"cannot read documents from {path}; accepted: {formats.ACCEPTED}, or a folder of such files")
    return Source(path.parent, (path.name,), column, facts, limits=limits)


def _splits(root: Path, files: tuple[str, ...]) -> tuple[str, ...]:
    """Return the splits of a folder that is a split corpus; none if it is a plain folder."""
    present = tuple(split for split in SPLITS if (root / split).is_dir())
    aliases = [name for name in _ALIASES if (root / name).is_dir()]
    if TRAIN not in present or (len(present) == 1 and not aliases):
        return ()
    if aliases:  # read as a plain folder, it would be trained on what is held out
        raise DataError(f"{root} is split, but into {TRAIN} and {aliases[0]}: rename the folder to validation")
    stray = next((name for name in files if name.partition("/")[0] not in present), None)
    if stray is not None:
        raise DataError(f"{root} is split into {', '.join(present)}, but {stray} is in none of them: move it")
    return present


def _has_rows(name: str) -> bool:
    """Return whether a file is one of rows; any other is one document."""
    return kind_of(name) in {Kind.JSON_LINES, Kind.PARQUET}


def _cut(num_bytes: Iterable[int]) -> Iterator[tuple[int, int, int]]:
    """Yield the ranges of row groups that make up units, with the bytes of each."""
    begin = end = size = 0
    for count in num_bytes:
        end, size = end + 1, size + count
        if size >= UNIT_BYTES:
            yield begin, end, size
            begin, size = end, 0
    if end > begin:
        yield begin, end, size


def grouped(units: Sequence[Unit], num_bytes: int) -> tuple[tuple[Unit, ...], ...]:
    """Group units, in their order, into jobs of about ``num_bytes``."""
    groups: list[list[Unit]] = []
    size = num_bytes
    for unit in units:
        if size >= num_bytes:
            groups.append([])
            size = 0
        groups[-1].append(unit)
        size += unit.num_bytes
    return tuple(map(tuple, groups))
