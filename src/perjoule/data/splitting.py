"""``perjoule data split``: documents of a source into ``train``, ``validation`` and ``test``, as parquet.

Which split a document belongs to is a function of the document (see ``split.py``), so that it stays where it is when
the corpus grows. Copies of a document are dropped but for the first. Then the order is that of the source or, with
``shuffle=true``, one that depends on the documents and the seed alone.

The work is cut into jobs that depend on the source only. A first pass notes the hash of every document, 16 bytes each,
on disk; copies are found among those hashes, a slice of the hashes at a time. A second pass writes, for each job, one
part of each split. To shuffle, the second pass writes runs of documents sorted into buckets, and a third gathers the
buckets. Every piece of work is written under another name and renamed: a run that was stopped leaves whole pieces and
the next one does the others, to the same bytes.

``DIR/{train,validation,test}/part-00000.parquet`` have the columns ``text`` and ``name`` (where the document stood);
``DIR/manifest.json`` has the counts.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from perjoule.core.errors import DataError
from perjoule.core.units import byte_size, duration
from perjoule.data.duplicates import document_starts, mark_copies
from perjoule.data.engine import KEPT, Amount, CannotWrite
from perjoule.data.engines import WHO_DOES_IT, Engine, EngineConfig
from perjoule.data.folders import (
    MANIFEST,
    exclusive,
    identity_of,
    provenance_of,
    read_object,
    start_over_or_go_on,
    write_json,
    writing,
)
from perjoule.data.formats import DEFAULT_LIMITS, Limits
from perjoule.data.parts import arrow
from perjoule.data.sources import Source, files_source, grouped
from perjoule.data.split import SPLITS, TRAIN, VALIDATION, Fractions
from perjoule.data.split_pieces import READ, SORTED, WRITTEN, Piece, SplitPieces, changed

FORMAT = 1
DUPLICATE = "duplicate"
"""Why a document was dropped: another one has the same text."""

_SAY_EVERY_S = 5.0


class SplitConfig(EngineConfig):
    """How documents are shared out."""

    fractions: Fractions = Fractions()
    """Of the documents, on average."""
    column: str = "text"
    """The field that holds the text in JSON-lines and parquet files."""
    drop_duplicates: bool = True
    """Whether only the first of several documents with the same text is kept."""
    shuffle: bool = False
    """Whether the documents are put into an order of their own; else the source's."""
    seed: int = 0
    """Of the shuffled order; which split a document belongs to does not depend on it."""
    part_bytes: PositiveInt = 256 << 20
    """What is done at once, in bytes of the source: a kill loses this much work at most, and the shuffle holds it."""
    limits: Limits = DEFAULT_LIMITS


@dataclass(frozen=True)
class SplitResult:
    """What a split corpus holds.

    Args:
        folder: where it is.
        documents: by split.
        num_bytes: of the documents' text in UTF-8, by split.
        skipped: documents left out, by reason.
    """

    folder: Path
    documents: Mapping[str, int]
    num_bytes: Mapping[str, int]
    skipped: Mapping[str, int]


def split(path: Path, folder: Path, config: SplitConfig, say: Callable[[str], None]) -> SplitResult:
    """Split a source, or finish a split that was stopped.

    Args:
        path: a file of documents, or a folder of such.
        folder: what to write; it must be empty, or from the same documents and settings.
        config: the settings.
        say: prints a line about progress.

    Raises:
        DataError: if the documents cannot be read or are split already, or the folder cannot be written or holds
            something else.
        MissingExtra: without pyarrow.
    """
    arrow()
    if config.engine == "dask":  # workers may be in other folders
        path, folder = path.absolute(), folder.absolute()
    source = files_source(path, config.column, config.limits)
    if source.splits:
        raise DataError(f"{path} is split already, into {', '.join(source.splits)}")
    source = source.divided_by(config.fractions)
    for note in source.notes():
        say(note)
    if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
        raise DataError(f"{folder} lies in {path}, whose documents it would become part of; choose another folder")
    plan = {
        "format": FORMAT,
        "settings": config.model_dump(mode="json", exclude=set(WHO_DOES_IT)),
        "source": source.listing(),
    }
    with exclusive(folder) as work, writing(folder):
        if not start_over_or_go_on(folder, work, plan):
            with Engine(config) as engine:
                counts = _Passes(source, folder, work, config, engine, say).run()
            manifest = {"identity": identity_of(plan), "kind": "split", "plan": plan, **counts}
            manifest["source"] = {**source.facts, "provenance": provenance_of(path)}
            if source.listing() != plan["source"]:
                raise DataError(changed(path, folder))
            write_json(folder / MANIFEST, manifest)
        shutil.rmtree(work)
    result = _result(folder)
    _report(result, say)
    return result


class _Passes:
    """The passes over a source, each in pieces that are done once, in any order, in any process.

    Args:
        source: the documents.
        folder: of the result.
        work: of what is not finished.
        config: the settings.
        engine: does the pieces.
        say: prints a line about progress.
    """

    def __init__(
        self,
        source: Source,
        folder: Path,
        work: Path,
        config: SplitConfig,
        engine: Engine,
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._work, self._config, self._engine, self._say = folder, work, config, engine, say
        jobs = grouped(source.units(), config.part_bytes)
        seed = config.seed if config.shuffle else None
        self._pieces = SplitPieces(source, folder, work, config.fractions, seed, config.part_bytes, jobs)

    def run(self) -> dict[str, Any]:
        """Do what is left to do and return the manifest's counts."""
        for split in SPLITS:
            (self._folder / split).mkdir(exist_ok=True)
        num_jobs = len(self._pieces.jobs)
        surveys = self._each(READ, num_jobs)
        skipped = _sum(survey["skipped"] for survey in surveys)
        num_characters = sum(survey["characters"] for survey in surveys)
        if num_characters == 0:
            reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "none"
            raise DataError(f"no documents in {self._pieces.source.root}; skipped: {reasons}")
        if self._config.drop_duplicates:
            hashes = [self._pieces.hashes(job) for job in range(num_jobs)]
            marks = self._work / "copies.bin"
            num_copies = mark_copies(hashes, marks)
            skipped.update({DUPLICATE: num_copies} if num_copies else {})
            self._pieces = replace(self._pieces, copies=marks, starts=tuple(document_starts(hashes)))
        num_parts = num_jobs
        if self._config.shuffle:
            num_parts = -(-num_characters // self._config.part_bytes)
            self._pieces = replace(self._pieces, num_buckets=num_parts)
            runs = self._each(SORTED, num_jobs)
            names = tuple(name for run in runs for name in run["runs"])
            self._pieces = replace(self._pieces, runs=names)
        return {"splits": _splits(self._each(WRITTEN, num_parts)), "skipped": dict(skipped)}

    def _each(self, what: str, count: int) -> list[dict[str, Any]]:
        """Do every piece of a pass that is not done yet; return what is noted of each."""
        pieces = [Piece(what, number, self._folder) for number in range(count)]
        left = [piece for piece in pieces if not self._pieces.note(piece).is_file()]
        began = said = time.monotonic()
        done = 0

        def report(amount: Amount) -> None:
            nonlocal done, said
            done += 1
            now = time.monotonic()
            if done < len(left) and now - said >= _SAY_EVERY_S:
                said = now
                remaining = duration((now - began) / done * (len(left) - done))
                self._say(f"{what} {count - len(left) + done} of {count} pieces, {remaining} left")

        try:
            self._engine.run(self._pieces, left, report)
        except CannotWrite as error:
            raise CannotWrite(f"{error}; {KEPT}") from error
        return [json.loads(self._pieces.note(piece).read_text(encoding="utf-8")) for piece in pieces]


def _splits(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what each split holds, from the notes of the parts."""
    splits = {}
    for split in SPLITS:
        entries = [part[split] for part in parts if split in part]
        totals = {key: sum(entry[key] for entry in entries) for key in ("documents", "bytes")}
        splits[split] = {**totals, "parts": entries}
    return splits


def _sum(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Add counts by reason."""
    total: Counter[str] = Counter()
    for some in counts:
        total.update(some)
    return total


def _result(folder: Path) -> SplitResult:
    """Read back what a finished folder holds."""
    manifest = read_object(folder / MANIFEST)
    try:
        splits = {split: manifest["splits"][split] for split in SPLITS}
        documents = {split: int(entry["documents"]) for split, entry in splits.items()}
        num_bytes = {split: int(entry["bytes"]) for split, entry in splits.items()}
        skipped = {str(reason): int(count) for reason, count in manifest["skipped"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / MANIFEST} is damaged ({error}); remove {folder} and split again") from error
    return SplitResult(folder, documents, num_bytes, skipped)


def _report(result: SplitResult, say: Callable[[str], None]) -> None:
    """Say what the splits hold."""
    total = sum(result.documents.values())
    for split, count in result.documents.items():
        say(f"{split:<11} {count:>11,} documents  {count / total:>6.2%}  {byte_size(result.num_bytes[split])}")
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in result.skipped.items())
    say(f"dropped     {skipped or 'none'}")
    for split in (TRAIN, VALIDATION):
        if not result.documents[split]:
            why = {TRAIN: "nothing can be trained on", VALIDATION: "training on this measures no held-out loss"}[split]
            say(f"the {split} split is empty: {why}")
