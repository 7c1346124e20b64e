"""The pieces of work that a split is made of; each can be done by any process, and is done when its note is there.

A piece reads some units of the source (a *job*) or gathers a bucket of documents, and writes its files and then its
note, each under another name first. A piece that a kill interrupted is done again, to the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perjoule.core.errors import DataError
from perjoule.data.duplicates import HASH_BYTES, content_hash, read_copies
from perjoule.data.engine import Amount, Report
from perjoule.data.folders import publish, write_json
from perjoule.data.parts import PartWriter, Placed, rank_of, read_bucket, write_run
from perjoule.data.sources import Source, Unit
from perjoule.data.split import SPLITS, TRAIN, Fractions

READ, SORTED, WRITTEN = "read", "sorted", "written"
"""What is done with a piece: hash its documents, sort them into buckets, write them as parts."""

_RUNS_PER_PART = 4  # a run is in memory several times while it is sorted and compressed, a bucket only once


@dataclass(frozen=True)
class Piece:
    """One piece of one pass.

    Args:
        what: ``read``, ``sorted`` or ``written``.
        number: of the job; of the bucket, if parts are written in shuffled order.
        folder: of the result.
    """

    what: str
    number: int
    folder: Path

    @property
    def name(self) -> str:
        """Return what an error message calls it."""
        return str(self.folder)


@dataclass(frozen=True)
class SplitPieces:
    """Does pieces of work; it can be pickled.

    Args:
        source: the documents.
        folder: of the result.
        work: of what is not finished.
        fractions: of the splits.
        seed: of the shuffled order; None: that of the source.
        part_bytes: of text in a bucket; runs are shorter.
        jobs: units of the source that are read at once.
        copies: which documents are left out, by :func:`mark_copies`; None: none is.
        starts: how many documents come before each job.
        num_buckets: of the shuffle.
        runs: names of the files of sorted documents.
    """

    source: Source
    folder: Path
    work: Path
    fractions: Fractions
    seed: int | None
    part_bytes: int
    jobs: tuple[tuple[Unit, ...], ...]
    copies: Path | None = None
    starts: tuple[int, ...] = ()
    num_buckets: int = 0
    runs: tuple[str, ...] = ()

    def __call__(self, job: Piece, threads: int, report: Report) -> None:
        """Do a piece and note it (see :class:`perjoule.data.engine.Work`).

        Raises:
            DataError: if the source cannot be read or has changed.
            OSError: if the disk is full or the folder cannot be written.
        """
        if job.what == READ:
            note = self._read(job.number)
        elif job.what == SORTED:
            note = self._sort(job.number)
        elif self.seed is None:
            note = self._write(job.number, self._kept(job.number))
        else:
            note = self._write(job.number, read_bucket([self.work / run for run in self.runs], job.number))
        write_json(self.note(job), note)
        report(Amount())

    def note(self, piece: Piece) -> Path:
        """Return the file that says that a piece is done."""
        return self.work / f"{piece.what}-{piece.number:05d}.json"

    def hashes(self, job: int) -> Path:
        """Return the file of a job's hashes."""
        return self.work / f"hashes-{job:05d}.bin"

    def _read(self, job: int) -> dict[str, Any]:
        """Note the hash of every document of a job."""
        skipped: Counter[str] = Counter()
        num_characters = 0
        temporary = self.work / f"hashes-{job:05d}.tmp"
        with temporary.open("wb") as file:
            for unit in self.jobs[job]:
                for document in self.source.read(unit, skipped):
                    file.write(content_hash(document.text))
                    num_characters += len(document.text)
        publish(temporary, self.hashes(job))
        return {"characters": num_characters, "skipped": skipped}

    def _kept(self, job: int) -> Iterator[Placed]:
        """Yield the documents of a job that are no copies, with their split and rank."""
        expected = self.hashes(job).stat().st_size // HASH_BYTES
        dropped = None
        if self.copies is not None:
            dropped = read_copies(self.copies, self.starts[job], self.starts[job + 1]).tolist()
        number = 0
        for unit in self.jobs[job]:
            for document in self.source.read(unit, Counter()):
                if number >= expected:
                    raise self._changed()
                if dropped is None or not dropped[number]:
                    for part in self.source.share_out(document, self.fractions):
                        rank = 0 if self.seed is None else rank_of(part.text, self.seed)
                        yield Placed(part.split or TRAIN, part.text, part.name, rank)
                number += 1
        if number != expected:
            raise self._changed()

    def _changed(self) -> DataError:
        """Return the error for a source that is not what it was."""
        return DataError(
            f"the files in {self.source.root} changed while they were split; remove {self.folder} and start again"
        )

    def _write(self, number: int, documents: Iterable[Placed]) -> dict[str, Any]:
        """Write one part of each split that has documents among these."""
        name = f"part-{number:05d}.parquet"
        with ExitStack() as stack:
            writers = {}
            for split in SPLITS:
                writers[split] = PartWriter(self.folder / split / name, self.work / f"{split}-{number:05d}.tmp")
                stack.callback(writers[split].abandon)
            for document in documents:
                writers[document.split].add(document.text, document.name)
            entries = {split: writer.close() for split, writer in writers.items()}
        return {split: entry for split, entry in entries.items() if entry}

    def _sort(self, job: int) -> dict[str, Any]:
        """Write the documents of a job in buckets, in as many runs as the memory asks for."""
        names: list[str] = []
        held: list[Placed] = []
        num_characters = 0

        def flush() -> None:
            names.append(f"run-{job:05d}-{len(names):03d}.arrow")
            write_run(self.work / names[-1], self.work / f"run-{job:05d}.tmp", held, self.num_buckets)
            held.clear()

        for document in self._kept(job):
            held.append(document)
            num_characters += len(document.text)
            if num_characters >= self.part_bytes // _RUNS_PER_PART:
                flush()
                num_characters = 0
        if held:
            flush()
        return {"runs": names}


def changed(source: Path, folder: Path) -> str:
    """Return what to say of a source that is not what it was."""
    return f"the files in {source} changed while they were split; remove {folder} and start again"
