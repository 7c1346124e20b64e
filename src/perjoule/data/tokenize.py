"""``perjoule data tokenize``: documents to a token store, unit of work by unit of work.

Work is cut by the source alone, and a shard holds what came from one unit; so the files are the same for any engine
and any number of processes. A shard is written under another name, flushed and renamed; then a line about the unit
goes into ``.unfinished``, and when all are there, the manifest is written from them and ``.unfinished`` removed. A kill
at any instant loses the units that were being worked on; the next run checks the others against their hashes.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from pydantic import Field, PositiveInt

from perjoule.core import file_lock
from perjoule.core.cache import expand_home
from perjoule.core.errors import ConfigError, DataError, RunFolderError
from perjoule.core.units import byte_size
from perjoule.data import manifest as store_files
from perjoule.data.engine import KEPT, CannotWrite
from perjoule.data.engines import Engine, EngineConfig
from perjoule.data.fast_encode import COMPARED, TIKTOKEN, TOKENIZERS, Encoder
from perjoule.data.formats import DEFAULT_LIMITS, Limits
from perjoule.data.manifest import MANIFEST, TOKENIZER, Damaged, Manifest, ShardEntry, UnitEntry, read_manifest
from perjoule.data.progress import Progress
from perjoule.data.seen import Seen, look_at, stamps
from perjoule.data.sources import Source, files_source
from perjoule.data.split import SPLITS, Fractions
from perjoule.data.tokenize_unit import TokenizeUnit, UnitJob, read_unit, unit_jobs, unit_path
from perjoule.data.tokenizer import TextTokenizer
from perjoule.runs.files import write_atomically, write_json

UNFINISHED = ".unfinished"
PLAN = "plan.json"

_MOST_THREADS = 8
"""Threads of one process share what Python does between the calls of the encoder; more than these wait for it."""


class OtherStore(DataError):
    """A folder holds tokens of other documents, or by another tokenizer."""


class TokenizeConfig(EngineConfig):
    """How documents become a token store."""

    tokenizer: Path | None = None
    """A ``tokenizer.json``."""
    column: str = "text"
    """The field of rows that holds the text."""
    fractions: Fractions = Fractions()
    """The splits, unless the corpus is split already."""
    limits: Limits = DEFAULT_LIMITS
    """What a compressed file may grow to."""
    encoder: Literal["auto", "tokenizers"] = "auto"
    """``auto`` uses tiktoken where it provably gives the same ids."""
    compare: float = Field(default=1 / 256, ge=0, le=1)
    """The share of the documents that both encode, to be sure."""
    shard_tokens: PositiveInt = 1 << 28
    """A unit's shard is cut when it has this many."""
    hash_documents: bool = True
    """Whether documents are known by their files' content (1 GB/s) or by names, sizes and times: for terabytes."""
    again: bool = False
    """Whether what is damaged in an existing store is made again."""


@dataclass(frozen=True)
class Tokenized:
    """A complete store.

    Args:
        path: its folder.
        state: ``built``, ``continued``, ``reused`` or ``repaired``.
        manifest: what is in it.
    """

    path: Path
    state: str
    manifest: Manifest

    def lines(self) -> list[str]:
        """Return what a person wants to know."""
        manifest = self.manifest
        text = [
            f"{split}: {manifest.count(split, 'documents'):,} documents, {manifest.count(split, 'tokens'):,} tokens, "
            f"{byte_size(manifest.count(split, 'bytes'))} of text, {len(shards)} shards"
            for split, shards in manifest.shards.items()
        ]
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in manifest.skipped.items()) or "none"
        counts = manifest.encoded
        encoded = [f"{counts[what]:,} by {what}" for what in (TIKTOKEN, TOKENIZERS) if what in counts]
        if COMPARED in counts:
            encoded.append(f"{counts[COMPARED]:,} by both and compared")
        return [*text, f"skipped: {skipped}", f"encoded: {', '.join(encoded)}", f"{self.state}: {self.path}"]


def tokenize_files(path: Path, out: Path, config: TokenizeConfig, say: Callable[[str], None]) -> Tokenized:
    """Tokenize a file or folder, such as ``perjoule data split`` makes.

    Args:
        path: of the documents.
        out: the store's folder; a store that is unfinished is finished, one that is complete is checked.
        config: how; ``tokenizer`` is needed.
        say: is told lines for a person.

    Raises:
        ConfigError: if ``config`` has no tokenizer.
        DataError: as :func:`tokenize`.
        MissingExtra: as :func:`tokenize`.
    """
    if config.tokenizer is None:
        raise ConfigError("tokenize needs tokenizer=FILE.json (perjoule data tokenizer makes one)")
    tokenizer = TextTokenizer.load(expand_home(config.tokenizer))
    here, there = out.resolve(), path.resolve()
    if path.is_dir() and (here.is_relative_to(there) or there.is_relative_to(here)):
        raise DataError(f"{out} lies in the folder of the documents, {path}, or around it; choose another folder")
    source = files_source(path, config.column, config.limits).divided_by(config.fractions)
    for note in source.notes():
        say(note)
    try:
        done = tokenize(source, tokenizer, expand_home(out), config, say)
    except CannotWrite as error:
        raise CannotWrite(f"{error}; {KEPT}") from error
    for line in done.lines():
        say(line)
    if TIKTOKEN not in done.manifest.encoded and config.encoder == "auto":
        say(f"tiktoken, which is faster, was not used: {Encoder(tokenizer).why_not}")
    return done


def tokenize(
    source: Source,
    tokenizer: TextTokenizer,
    out: Path,
    config: TokenizeConfig,
    say: Callable[[str], None],
    seen: Seen | None = None,
) -> Tokenized:
    """Write a token store, finish an unfinished one, or check a complete one.

    Args:
        source: the documents.
        tokenizer: makes the tokens.
        out: the store's folder.
        config: how.
        say: is told of progress.
        seen: the source, if it has been looked at already.

    Raises:
        DataError: if the documents cannot be read or change meanwhile, there is none, ``out`` holds anything else or
            cannot be written, another process is writing it, or what is in it is damaged.
        MissingExtra: for an engine or a format whose library is missing.
    """
    seen = seen or look_at(source, config.hash_documents)
    made_from = {
        "documents": seen.documents,
        "tokenizer": tokenizer.content_hash,
        "fractions": _fractions(source, config.fractions),
        "shard_tokens": config.shard_tokens,
    }
    with _writable(out), _locked(out):
        return _Tokenizing(source, tokenizer, out, config, made_from, say).run(seen)


def _fractions(source: Source, fractions: Fractions) -> Any:
    """Return what says which text is in which split (JSON)."""
    if source.splits:
        return "of the corpus"
    return {**fractions.model_dump(), **({"within_documents": True} if source.within else {})}


class _Tokenizing:
    """One run over a store's folder, which is locked."""

    def __init__(
        self,
        source: Source,
        tokenizer: TextTokenizer,
        out: Path,
        config: TokenizeConfig,
        made_from: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self._source, self._tokenizer, self._out, self._config = source, tokenizer, out, config
        self._made_from, self._say = made_from, say
        self._unfinished = out / UNFINISHED
        self._dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"

    def run(self, seen: Seen) -> Tokenized:
        """Do what is left to do."""
        state, complete = self._found()
        if complete is not None:
            shutil.rmtree(self._unfinished, ignore_errors=True)
            return Tokenized(self._out, state, complete)
        self._begin()
        jobs = unit_jobs(self._source)
        missing = [job for job in jobs if not self._finished(job)]
        if len(missing) < len(jobs):
            state = "continued" if state == "built" else state
            self._say(f"{len(jobs) - len(missing)} of {len(jobs)} units are there already")
        write_atomically(self._out / TOKENIZER, self._tokenizer.inner.to_str(pretty=True))
        self._tokenize(missing, sum(job.num_bytes for job in jobs))
        if stamps(self._source) != seen.stamps:
            shutil.rmtree(self._unfinished)
            raise DataError(f"the documents in {self._source.root} changed while they were tokenised; start again")
        return Tokenized(self._out, state, self._finish(jobs))

    def _begin(self) -> None:
        """Make the folder of what is unfinished, or clear what a kill left half written."""
        self._unfinished.mkdir(exist_ok=True)
        for partial in (*self._unfinished.glob("*.bin.*"), *self._out.glob(".*.json.*.tmp")):
            partial.unlink()
        write_json(self._unfinished / PLAN, self._made_from)

    def _found(self) -> tuple[str, Manifest | None]:
        """Return what the folder holds: the manifest only if the store is complete and whole."""
        if (other := store_files.other_manifest(self._out)) is not None:
            raise DataError(f"{self._out} is {other}, and not a token store; choose another folder")
        try:
            manifest = read_manifest(self._out)
        except FileNotFoundError:
            self._check_unfinished()
            return "built", None
        except Damaged as damage:
            if not self._config.again:
                raise Damaged(
                    f"the token store {self._out} is damaged ({damage}); again=true makes it again"
                ) from damage
            (self._out / MANIFEST).unlink()
            return "repaired", None
        self._check_same(manifest.made_from, "holds tokens")
        try:
            store_files.check(self._out, manifest, math.inf)
        except Damaged as damage:
            if not self._config.again:
                raise Damaged(f"{self._out} is damaged ({damage}); again=true makes that part again") from damage
            self._reopen(manifest)
            return "repaired", None
        return "reused", manifest

    def _check_unfinished(self) -> None:
        """Refuse a folder that holds anything but an unfinished store of the same."""
        plan = self._unfinished / PLAN
        if plan.is_file():
            with contextlib.suppress(ValueError):
                self._check_same(json.loads(plan.read_text(encoding="utf-8")), "holds an unfinished store")
        elif others := sorted({path.name for path in self._out.iterdir()} - {UNFINISHED}):
            raise DataError(
                f"{self._out} holds other files ({', '.join(others[:3])}); choose a folder that is empty or new"
            )

    def _check_same(self, found: Mapping[str, Any], holds: str) -> None:
        """Refuse tokens of something else."""
        unlike = [name for name in self._made_from if found.get(name) != self._made_from[name]]
        if unlike:
            raise OtherStore(f"{self._out} {holds} made from other {' and '.join(unlike)}; choose another folder")

    def _reopen(self, manifest: Manifest) -> None:
        """Make an unfinished store of a complete one whose shards are damaged."""
        self._begin()
        for number, unit in enumerate(manifest.units):
            shards = [entry for entries in manifest.shards.values() for entry in entries if entry.unit == number]
            content = {"unit": asdict(unit), "shards": [asdict(entry) for entry in shards]}
            write_json(unit_path(self._unfinished, number), content)
        (self._out / MANIFEST).unlink()

    def _finished(self, job: UnitJob) -> bool:
        """Return whether the unit's line is there and its files are whole."""
        try:
            _, shards = read_unit(unit_path(self._unfinished, job.number))
        except (OSError, ValueError, KeyError, TypeError):
            return False  # it is written atomically: if it is damaged, then by the disk
        files = [file for entry in shards for file in entry.files(self._dtype)]
        damage = store_files.damage(self._out, files, math.inf)
        if damage is not None:
            self._say(f"{damage}: {job.name} is tokenized again")
        return damage is None

    def _tokenize(self, jobs: Sequence[UnitJob], total_bytes: int) -> None:
        """Do the units that are missing."""
        config = self._config
        work = TokenizeUnit(
            source=replace(self._source, files=(), facts={}, left_out={}),
            fractions=config.fractions,
            out=self._out.absolute(),
            unfinished=self._unfinished.absolute(),
            tokenizer_hash=self._tokenizer.content_hash,
            dtype=self._dtype,
            shard_tokens=config.shard_tokens,
            compared_share=config.compare if config.encoder == "auto" else None,
        )
        if not jobs:
            return
        left_bytes = sum(job.num_bytes for job in jobs)
        with Engine(config) as engine, Progress(total_bytes, total_bytes - left_bytes, self._say) as progress:
            here = replace(work, tokenizer=self._tokenizer)
            engine.run(work, jobs, progress.add, here, _MOST_THREADS)

    def _finish(self, jobs: Sequence[UnitJob]) -> Manifest:
        """Write the manifest from the lines about the units."""
        units: list[UnitEntry] = []
        shards: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
        for job in jobs:
            unit, entries = read_unit(unit_path(self._unfinished, job.number))
            units.append(unit)
            for entry in entries:
                shards[entry.split].append(entry)
        manifest = Manifest(
            made_from=self._made_from,
            source={**self._source.facts, "column": self._source.column, "files": len(self._source.files)},
            dtype=self._dtype,
            vocab_size=self._tokenizer.vocab_size,
            bos_id=self._tokenizer.bos_id,
            pad_id=self._tokenizer.pad_id,
            tokenizer_blake2b=store_files.digest(self._out / TOKENIZER),
            shards={split: tuple(entries) for split, entries in shards.items()},
            units=tuple(units),
            made_by={"tokenizers": tokenizers.__version__, "numpy": np.__version__},
        )
        if manifest.total("documents") == 0:
            reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.skipped.items())
            source = self._source
            raise DataError(f"no documents in {len(source.files)} files of {source.root}; skipped: {reasons or 'none'}")
        write_json(self._out / MANIFEST, manifest.as_json())
        shutil.rmtree(self._unfinished)
        return manifest


@contextlib.contextmanager
def _writable(out: Path) -> Iterator[None]:
    """Create the folder, and turn what cannot be written into one line."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except RunFolderError as error:
        raise CannotWrite(str(error)) from error
    except OSError as error:
        raise CannotWrite(f"cannot write {error.filename or out}: {error.strerror or error}") from error


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder; the kernel lets go of it when the process ends, however it ends."""
    try:
        lock = file_lock.take(out)
    except file_lock.Busy as busy:
        raise DataError(f"another process is writing {out}; wait for it or choose another folder ({busy})") from busy
    try:
        yield
    finally:
        lock.release()
