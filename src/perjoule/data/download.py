"""``perjoule data download``: documents from elsewhere into a folder, with a record of where they are from.

A source is a data set of the Hugging Face hub (``hf:owner/name``), a file at an ``https://`` address, a file or folder
of this machine, or ``stdlib``, the standard library of the running Python. Several may go into the same folder.
``provenance.json`` has, for each of them, the files with their sizes and hashes, and the revision.

A download that was stopped goes on where it was. Nothing has its name before it is whole.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from perjoule.config import Config
from perjoule.core.cache import expand_home
from perjoule.core.errors import DataError
from perjoule.core.files import inside
from perjoule.core.units import byte_size
from perjoule.data import formats
from perjoule.data.fetch import Patience, fetch, fetched_before, sha256_of
from perjoule.data.folders import PROVENANCE, exclusive, identity_of, publish, read_object, write_json, writing
from perjoule.data.hub import Unreachable, fetch_data_set, list_data_set, matches
from perjoule.data.parts import PartWriter, arrow
from perjoule.data.sources import Document, stdlib_source
from perjoule.data.walk import walk

FORMAT = 1
STDLIB, HUB = "stdlib", "hf:"


class DownloadConfig(Config):
    """What to take, and how long to try."""

    files: tuple[str, ...] = ()
    """Patterns of paths (en/c4-train.0000*) or suffixes (.parquet) in a data set or a folder; all documents if none."""
    documents: tuple[str, ...] = ()
    """Patterns or suffixes (.py) of files of a folder that are one document each; they become rows of parquet."""
    revision: str = "main"
    """Of a data set on the hub: a branch, a tag or a commit; the commit is recorded."""
    sha256: str | None = Field(
        default=None, pattern="^[0-9a-fA-F]{64}$", json_schema_extra={"accepted": "64 hexadecimal digits"}
    )
    """What a downloaded file must have; without it, only an encrypted connection is trusted."""
    name: str | None = Field(
        default=None,
        pattern=r"^[^/.][^/]*$",
        json_schema_extra={"accepted": "the name of a file, without '/' and a leading dot"},
    )
    """Of the file, if its address does not end with a good one."""
    timeout_s: PositiveFloat = 30.0
    """Without a byte, until a connection is given up."""
    retries: int = Field(default=5, ge=0)
    """In a row without a new byte, until the download is given up."""
    wait_s: PositiveFloat = 1.0
    """Before the first retry, twice that before the next, and so on up to a minute."""
    part_bytes: PositiveInt = 64 << 20
    """Of text in one parquet file of ``documents`` or the standard library."""

    @field_validator("files", "documents", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("files", "documents")
    @classmethod
    def _suffix_is_a_pattern(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"*{pattern}" if pattern.startswith(".") else pattern for pattern in value)  # YAML keeps the * out


@dataclass(frozen=True)
class DownloadResult:
    """What a source gave.

    Args:
        folder: where it is.
        files: relative paths.
        num_bytes: on disk.
        skipped: documents left out, by reason, where files became rows.
    """

    folder: Path
    files: tuple[str, ...]
    num_bytes: int
    skipped: Mapping[str, int]


def download(source: str, folder: Path, config: DownloadConfig, say: Callable[[str], None]) -> DownloadResult:
    """Bring a source into a folder, or finish a download that was stopped.

    Args:
        source: ``hf:owner/name``, an address, a path, or ``stdlib``.
        folder: where it goes; what other sources brought stays.
        config: what to take.
        say: prints a line about progress.

    Raises:
        DataError: if the source cannot be had, or the folder cannot be written.
        MissingExtra: without huggingface_hub or pyarrow where they are needed.
    """
    if source.startswith("hf://datasets/"):
        source = HUB + source.removeprefix("hf://datasets/")
    if Path(source).is_dir() and Path(source).resolve() == folder.resolve():
        raise DataError(f"{folder} is the source itself; choose another folder")
    with exclusive(folder) as work, writing(folder):
        record = _record(folder)
        settings = config.model_dump(
            mode="json", include={"files", "documents", "revision", "sha256", "name", "part_bytes"}
        )
        entry = record["sources"].get(source)
        if entry and entry["settings"] == settings and _is_there(folder, entry):
            say(f"{source} is in {folder} already")
        else:
            own = work / identity_of({"source": source})  # what has arrived of other sources is theirs
            own.mkdir(exist_ok=True)
            step = _Download(folder, own, config, record["sources"], say)
            entry = {"settings": settings, **_with_earlier(folder, entry, step.take(source))}
            record = {"kind": "download", "format": FORMAT, "sources": {**record["sources"], source: entry}}
            write_json(folder / PROVENANCE, record)
            shutil.rmtree(own)
        if not any(entry.is_dir() for entry in work.iterdir()):
            shutil.rmtree(work)
    files = tuple(file["file"] for file in entry["files"])
    result = DownloadResult(folder, files, sum(file["bytes"] for file in entry["files"]), entry.get("skipped", {}))
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in result.skipped.items())
    say(f"{len(files)} files, {byte_size(result.num_bytes)} in {folder}; skipped documents: {skipped or 'none'}")
    return result


class _Download:
    """One source on its way into a folder.

    Args:
        folder: where it goes.
        work: the folder for what is not finished of it.
        config: what to take.
        record: of the sources that were brought before.
        say: prints a line about progress.
    """

    def __init__(
        self,
        folder: Path,
        work: Path,
        config: DownloadConfig,
        record: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._work, self._config, self._say = folder, work, config, say
        self._owner = {file["file"]: source for source, entry in record.items() for file in entry["files"]}

    def take(self, source: str) -> dict[str, Any]:
        """Bring the source and return its record: ``files``, and what else is known."""
        if source == STDLIB:
            library = stdlib_source()
            return {**library.facts, **self._rows(source, STDLIB, library.documents)}
        if source.startswith(HUB):
            return self._from_hub(source)
        if source.lower().startswith(("http://", "https://")):
            return self._from_web(source)
        return self._from_here(source)

    def _from_hub(self, source: str) -> dict[str, Any]:
        """Download files of a data set, or be content with those that were placed by hand."""
        data_set, patterns = source.removeprefix(HUB), self._config.files
        try:
            listing = list_data_set(data_set, self._config.revision, patterns, self._config.timeout_s)
            for file in listing.files:
                self._may_write(file.name, source)
            return {"files": fetch_data_set(listing, self._folder, self._work, self._say)}
        except Unreachable as error:
            placed = [name for name in self._loose(source) if matches(name, patterns)]
            absent = [name for name in patterns if not any(matches(found, [name]) for found in placed)]
            if placed and not absent:
                self._say(
                    f"{error}: taking the {len(placed)} files that are in {self._folder}, which nothing vouches for"
                )
                return {"placed_by_hand": True, "files": [self._described(name) for name in placed]}
            wanted = ", ".join(absent or ["its files"])
            raise DataError(
                f"{error}; without a network, place {wanted} of https://huggingface.co/datasets/{data_set} below "
                f"{self._folder} and run this again"
            ) from error

    def _from_web(self, source: str) -> dict[str, Any]:
        """Download one file, or be content with one that was placed by hand."""
        sha256 = self._config.sha256
        if sha256 is None and source.lower().startswith("http://"):
            raise DataError(f"{source} could be changed on its way: give the file's sha256=…, or use https")
        name = self._config.name or urllib.parse.unquote(urllib.parse.urlsplit(source).path.rpartition("/")[2])
        if formats.kind_of(name) is None or "/" in name:
            raise DataError(f"{source}: {name!r} does not say what it holds; accepted: {formats.ACCEPTED}; give name=…")
        self._may_write(name, source)
        try:
            path = inside(self._folder, name)
        except ValueError as error:
            raise DataError(f"{source}: {error}; give name=…") from error
        if (facts := fetched_before(source, path, self._work)) is not None:
            return {"files": [{"file": name, **facts}]}
        if path.is_file() and name not in self._owner:
            found = sha256_of(path)
            if sha256 is not None and found != sha256.lower():
                raise DataError(
                    f"{path} has the SHA-256 {found} instead of {sha256}: remove it, or place the right one"
                )
            self._say(f"{path} was placed by hand" + ("" if sha256 else "; nothing vouches for it"))
            return {"placed_by_hand": True, "files": [self._described(name)]}
        patience = Patience(self._config.timeout_s, self._config.retries, self._config.wait_s)
        return {"files": [{"file": name, **fetch(source, path, self._work, sha256, patience, self._say)}]}

    def _from_here(self, source: str) -> dict[str, Any]:
        """Link or copy files, and write those that are documents themselves as rows."""
        root = expand_home(Path(source))
        if root.is_file():
            return {"files": [self._linked(root, root.name, source)]}
        if not root.is_dir():
            raise DataError(
                f"no file or folder {source}; a data set of the hub is {HUB}owner/name, a file elsewhere https://…"
            )
        config = self._config
        below = self._folder.resolve()
        names = [name for name in walk(root, lambda _: True).files if below not in (root / name).resolve().parents]
        documents = [name for name in names if config.documents and _matches_path(name, config.documents)]
        chosen = (
            [] if config.documents and not config.files else [name for name in names if matches(name, config.files)]
        )
        chosen = [name for name in chosen if name not in documents]
        if not documents and not chosen:
            wanted = ", ".join((*config.files, *config.documents)) or formats.ACCEPTED
            raise DataError(f"none of the {len(names)} files below {root} matches {wanted}")
        entry: dict[str, Any] = {"files": [self._linked(root / name, name, source) for name in chosen]}
        if documents:
            rows = self._rows(source, root.resolve().name, lambda skipped: _documents(root, documents, skipped))
            entry = {**rows, "files": entry["files"] + rows["files"]}
        return entry

    def _linked(self, path: Path, name: str, source: str) -> dict[str, Any]:
        """Make a file appear in the folder: as a second name where the disk is the same, else as a copy."""
        target = self._folder / name
        status = path.stat()
        if target.exists() and not _is_copy(path, target):
            self._may_write(name, source)
            if name not in self._owner:
                raise DataError(f"{target} is there already, and is another file than {path}; remove one of them")
        if not target.exists() or not _is_copy(path, target):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._work / "copy.tmp"
            temporary.unlink(missing_ok=True)
            try:
                os.link(path.resolve(), temporary)
            except OSError:  # another disk, or one without links
                shutil.copyfile(path, temporary)
                os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
            publish(temporary, target)
            temporary.unlink(missing_ok=True)  # renaming does nothing where both are names of the same file
        return {"file": name, "bytes": status.st_size}

    def _rows(self, source: str, stem: str, documents: Callable[[Counter[str]], Iterable[Document]]) -> dict[str, Any]:
        """Write documents as parquet files."""
        arrow()
        for name, owner in self._owner.items():  # written with other settings
            if owner == source and name.startswith(f"{stem}-") and name.endswith(".parquet"):
                (self._folder / name).unlink(missing_ok=True)
        skipped: Counter[str] = Counter()
        files: list[dict[str, Any]] = []
        writer: PartWriter | None = None
        for document in documents(skipped):
            if writer is None:
                name = f"{stem}-{len(files):05d}.parquet"
                self._may_write(name, source)
                writer = PartWriter(self._folder / name, self._work / "rows.tmp")
            writer.add(document.text, document.name)
            if writer.num_bytes >= self._config.part_bytes:
                files.append(writer.close())
                writer = None
        if writer is not None:
            files.append(writer.close())
        if not files:
            raise DataError(
                f"no documents in {source}; skipped: {', '.join(f'{n} {why}' for why, n in skipped.items())}"
            )
        written = [{"file": file["file"], "bytes": file["size"], "blake2b": file["blake2b"]} for file in files]
        return {"files": written, "skipped": dict(skipped)}

    def _may_write(self, name: str, source: str) -> None:
        """Refuse to replace what another source brought."""
        owner = self._owner.get(name, source)
        if owner != source:
            raise DataError(f"{self._folder / name} is from {owner} already; choose another folder")

    def _loose(self, source: str) -> list[str]:
        """Return the files in the folder that no other source brought."""
        names = walk(self._folder, lambda name: name != PROVENANCE).files
        return [name for name in names if self._owner.get(name, source) == source]

    def _described(self, name: str) -> dict[str, Any]:
        """Return the record of a file that is in the folder."""
        path = self._folder / name
        return {"file": name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _record(folder: Path) -> dict[str, Any]:
    """Read what other sources brought into a folder.

    Raises:
        DataError: if the record is damaged, or names a file that lies elsewhere.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        return {"sources": {}}
    record: dict[str, Any] = read_object(path)
    try:
        for entry in record["sources"].values():
            entry["settings"].items()
            for file in entry["files"]:
                inside(folder, file["file"])
                int(file["bytes"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it, and the files that it should describe") from error
    return record


def _documents(root: Path, names: Iterable[str], skipped: Counter[str]) -> Iterable[Document]:
    """Yield each file as one document."""
    for name in names:
        text = formats.file_text(root / name, formats.DEFAULT_LIMITS, skipped)
        if text is not None:
            yield Document(name, text, name)


def _matches_path(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a pattern matches a path, or the last part of it."""
    return any(fnmatch.fnmatchcase(part, pattern) for pattern in patterns for part in (name, name.rpartition("/")[2]))


def _is_copy(path: Path, target: Path) -> bool:
    """Return whether two files are the same, or look it."""
    ours, theirs = path.stat(), target.stat()
    return path.samefile(target) or (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)


def _with_earlier(folder: Path, earlier: Mapping[str, Any] | None, entry: dict[str, Any]) -> dict[str, Any]:
    """Return a source's record with the files that it brought before and that are still there."""
    names = {file["file"] for file in entry["files"]}
    files = earlier["files"] if earlier else []
    kept = [file for file in files if file["file"] not in names and (folder / file["file"]).is_file()]
    return {**entry, "files": [*entry["files"], *kept]}


def _is_there(folder: Path, entry: Mapping[str, Any]) -> bool:
    """Return whether all files of a record are in the folder."""
    paths = [(folder / file["file"], file["bytes"]) for file in entry["files"]]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)
