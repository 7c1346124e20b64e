"""Tokenised documents on disk, prepared once and memory-mapped by every run after that.

A store is a folder of the format in docs/token_store.md. ``perjoule data tokenize`` writes one where it is told to;
:func:`prepare` keeps one in the cache for each set of documents and settings, under a hash of them. The sequence
length is no part of it: rows are cut when they are read.

In the cache a store is written into a hidden folder and renamed when complete, under a lock that a killed process
loses; the ranks of a run that start together build it once, and what a kill left is gone on with.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perjoule.core import file_lock
from perjoule.core.cache import expand_home
from perjoule.core.errors import DataError
from perjoule.core.units import byte_size
from perjoule.data import manifest as store_files
from perjoule.data.engine import CannotWrite
from perjoule.data.manifest import FORMAT, MANIFEST, TOKENIZER, Damaged, Manifest, read_manifest
from perjoule.data.seen import Seen, look_at
from perjoule.data.shards import SplitTokens
from perjoule.data.sources import Source
from perjoule.data.split import SPLITS, TRAIN, Fractions
from perjoule.data.tokenize import UNFINISHED, OtherStore, TokenizeConfig, tokenize
from perjoule.data.tokenizer import TextTokenizer, TokenizerConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """An opened store.

    Args:
        path: its folder.
        state: ``opened``; from the cache ``reused``, ``built``, or ``rebuilt`` with the reason.
        tokenizer: what made the tokens.
        splits: by name, all three; a split may be empty.
        manifest: what else is known of it.
    """

    path: Path
    state: str
    tokenizer: TextTokenizer
    splits: Mapping[str, SplitTokens]
    manifest: Manifest

    @property
    def skipped(self) -> Mapping[str, int]:
        """Return the documents that were left out, by reason."""
        return self.manifest.skipped

    @property
    def identity(self) -> str:
        """Return a hash of the tokens and of how they came about."""
        return self.manifest.identity


def open_store(path: Path) -> Store:
    """Open a store that ``perjoule data tokenize`` wrote.

    Sizes are checked, and the content of files up to 64 MiB.

    Raises:
        DataError: if there is none, it is unfinished, damaged, or of another format.
    """
    path = expand_home(path)
    if not (path / MANIFEST).is_file():
        unfinished = (path / UNFINISHED).is_dir()
        what = "is unfinished, perjoule data tokenize goes on with it" if unfinished else f"has no {MANIFEST}"
        raise DataError(f"no token store at {path}: it {what if path.is_dir() else 'does not exist'}")
    if (other := store_files.other_manifest(path)) is not None:
        raise DataError(
            f"{path} is {other}, and not a token store; perjoule data tokenize makes one of documents, and "
            "data.kind=text trains on them as they are"
        )
    try:
        return _open(path, "opened")
    except Damaged as damage:
        raise Damaged(
            f"the token store {path} is damaged ({damage}); perjoule data tokenize … again=true makes that part again"
        ) from damage


def prepare(source: Source, tokenizer: TokenizerConfig, fractions: Fractions, cache: Path) -> Store:
    """Open the store of these documents and settings, building it if it is missing or damaged.

    The files are hashed at every start (about 1 GB/s); nothing else of them is read when the store exists.

    Raises:
        DataError: if the documents cannot be read, change meanwhile, there is none, or the cache cannot be written.
        MissingExtra: for parquet files without pyarrow.
    """
    for note in source.notes():
        _log.warning(note)
    seen = look_at(source)
    recipe = [FORMAT, seen.documents, tokenizer.identity(), fractions.model_dump()]
    recipe += ["within documents"] * source.within
    name = f"tokens-{store_files.checksum({'recipe': recipe})[:24]}"
    path = cache / name
    try:
        return _open(path, "reused")
    except (FileNotFoundError, Damaged):
        pass
    with _writing(cache), _locked(cache / f"{name}.lock"):
        state = "built"
        try:
            return _open(path, "reused")  # another process built it while this one waited for the lock
        except FileNotFoundError:
            pass
        except Damaged as damage:
            state = f"rebuilt: {damage}"
            _log.warning("the token store %s is damaged (%s): building it again", path, damage)
        fresh = cache / f".{name}"
        try:
            _build(fresh, source, seen, tokenizer, fractions)
            shutil.rmtree(path, ignore_errors=True)
            fresh.rename(path)
        except Exception:  # but not after Ctrl-C or a kill: the next run goes on
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        return _open(path, state)


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    """Create the cache folder and say how to choose another if it cannot be written."""
    reason = ""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
        return
    except OSError as error:
        cause: Exception = error
        reason = error.strerror or str(error)
    except CannotWrite as error:
        cause, reason = error, str(error)
    raise DataError(
        f"cannot write the data cache {cache}: {reason}; choose another with data.cache=FOLDER "
        "or the environment variable PERJOULE_CACHE"
    ) from cause


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for and hold the lock of one store; the kernel releases it when the process ends, however it ends."""
    try:
        lock = file_lock.take(path, wait=True)
    except file_lock.Busy as busy:
        raise DataError(f"{path} is held by {busy}") from busy
    try:
        yield
    finally:
        lock.release()


def _build(folder: Path, source: Source, seen: Seen, config: TokenizerConfig, fractions: Fractions) -> None:
    """Write a store, or finish the one that a killed run left: train the tokenizer, then tokenise all documents."""
    training = (
        part.text
        for document in source.documents(Counter())
        for part in source.share_out(document, fractions)
        if part.split == TRAIN
    )
    tokenizer = config.build(training, _log.info)
    settings = TokenizeConfig(fractions=fractions)
    try:
        manifest = tokenize(source, tokenizer, folder, settings, _log.info, seen).manifest
    except OtherStore:  # a killed run of another version trained another tokenizer
        shutil.rmtree(folder)
        manifest = tokenize(source, tokenizer, folder, settings, _log.info, seen).manifest
    size = byte_size(manifest.total("bytes"))
    _log.info("tokenised %d documents (%s) into %s", manifest.total("documents"), size, folder.parent)


def _open(path: Path, state: str) -> Store:
    """Open a store if it is complete and whole.

    Raises:
        FileNotFoundError: if there is no such folder.
        Damaged: if something in it is missing or is not as it was written.
        DataError: if it is of another format.
    """
    if not path.is_dir():
        raise FileNotFoundError(path)
    try:
        manifest = read_manifest(path)
    except FileNotFoundError as error:
        raise Damaged(f"{MANIFEST}: {error.strerror}") from error
    store_files.check(path, manifest, store_files.CHECKED_BYTES)
    tokenizer = TextTokenizer.load(path / TOKENIZER)
    splits = {split: store_files.map_split(path, manifest, split) for split in SPLITS}
    return Store(path, state, tokenizer, splits, manifest)
