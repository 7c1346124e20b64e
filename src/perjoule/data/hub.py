"""Files of a data set on the Hugging Face hub: a pinned revision, chosen files, each compared with its hash there."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perjoule.core.errors import DataError, MissingExtra, nearest
from perjoule.core.files import inside
from perjoule.core.units import byte_size
from perjoule.data.fetch import sha256_of
from perjoule.data.folders import publish
from perjoule.data.formats import kind_of

_CONNECTIONS = 4


class Unreachable(DataError):
    """The hub cannot be reached; files that were placed by hand may do."""


@dataclass(frozen=True)
class HubFile:
    """A file as the hub describes it.

    Args:
        name: its path in the data set.
        num_bytes: its size.
        sha256: of its content, if it is a large file.
        blob: what git calls it, if it is a small one.
    """

    name: str
    num_bytes: int
    sha256: str | None
    blob: str | None

    def is_at(self, path: Path) -> bool:
        """Return whether ``path`` has this file's content."""
        if not path.is_file() or path.stat().st_size != self.num_bytes:
            return False
        if self.sha256 is not None:
            return sha256_of(path) == self.sha256
        return self.blob is None or _git_blob(path) == self.blob


@dataclass(frozen=True)
class HubListing:
    """Chosen files of one revision.

    Args:
        data_set: ``owner/name``.
        commit: the revision's hash.
        files: in the order of their names.
    """

    data_set: str
    commit: str
    files: tuple[HubFile, ...]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a file is chosen: by a pattern, or without any because it can hold documents."""
    if not patterns:
        return kind_of(name) is not None
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def list_data_set(data_set: str, revision: str, patterns: Sequence[str], timeout_s: float) -> HubListing:
    """Ask the hub what there is.

    Args:
        data_set: ``owner/name``.
        revision: a branch, a tag or a commit.
        patterns: of the files' paths (``en/c4-train.0000*``); none: all files that can hold documents.
        timeout_s: of the question.

    Raises:
        Unreachable: if there is no connection.
        DataError: if there is no such data set or revision, no right to it, or no file that matches.
        MissingExtra: without huggingface_hub.
    """
    hub = _library()
    errors = hub.errors
    try:
        info = hub.HfApi(endpoint=_endpoint()).dataset_info(
            data_set, revision=revision, files_metadata=True, timeout=timeout_s
        )
    except errors.GatedRepoError as error:
        raise DataError(
            f"the data set {data_set} wants its conditions accepted: do so at {_page(data_set)}, then set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(f"the data set {data_set} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(
            f"no data set {data_set!r} on the hub, or it is private: check the name; for a private one set HF_TOKEN"
        ) from error
    except errors.HfHubHTTPError as error:
        kind = Unreachable if error.response.status_code >= 500 else DataError
        raise kind(f"the hub refuses to list {data_set}: {_first_line(error)}") from error
    except errors.HFValidationError as error:
        raise DataError(f"{data_set!r} is no name of a data set: {_first_line(error)}") from error
    except Exception as error:
        if not _is_connection(error):
            raise
        raise Unreachable(f"cannot reach the hub for {data_set}: {_first_line(error)}") from error
    names = sorted(sibling.rfilename for sibling in info.siblings or ())
    chosen = {name for name in names if matches(name, patterns)}
    if not chosen:
        near = nearest(patterns[0], names) if patterns else None
        wanted = f"matches {', '.join(patterns)}" if patterns else "can hold documents"
        raise DataError(
            f"none of the {len(names)} files of {data_set} {wanted}" + (f"; did you mean {near!r}?" if near else "")
        )
    for name in chosen:
        try:
            inside(Path(), name)
        except ValueError as error:
            raise DataError(f"the hub lists a file of {data_set} that cannot be accepted: {error}") from error
    files = sorted((_described(sibling) for sibling in info.siblings if sibling.rfilename in chosen), key=_name)
    return HubListing(data_set, str(info.sha), tuple(files))


def fetch_data_set(listing: HubListing, folder: Path, work: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Download what is missing of the chosen files.

    Args:
        listing: the files.
        folder: where they go, with their paths.
        work: the folder that keeps what has arrived.
        say: prints a line about progress.

    Returns:
        ``file``, ``bytes`` and the hash of each for the record of provenance.

    Raises:
        Unreachable: if the connection is lost.
        DataError: if a file is not what the hub says.
        OSError: if the disk is full or the folder cannot be written.
    """
    missing = [file for file in listing.files if not file.is_at(folder / file.name)]
    num_bytes = sum(file.num_bytes for file in missing)
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise DataError(f"{byte_size(num_bytes)} are to be downloaded, but only {byte_size(free)} are free in {folder}")
    say(f"{listing.data_set} at {listing.commit[:12]}: {len(missing)} files to download, {byte_size(num_bytes)}")
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        for number, file in enumerate(pool.map(lambda file: _fetch(listing, file, folder, work), missing), start=1):
            say(f"{number} of {len(missing)}: {file.name}, {byte_size(file.num_bytes)}")
    return [
        {
            "file": file.name,
            "bytes": file.num_bytes,
            "commit": listing.commit,
            **({"sha256": file.sha256} if file.sha256 else {"git": file.blob}),
        }
        for file in listing.files
    ]


def _fetch(listing: HubListing, file: HubFile, folder: Path, work: Path) -> HubFile:
    """Download one file; the hub's client goes on with what has arrived."""
    hub = _library()
    hub.utils.disable_progress_bars()
    try:
        arrived = Path(
            hub.hf_hub_download(
                listing.data_set,
                file.name,
                repo_type="dataset",
                revision=listing.commit,
                local_dir=work / "hub",
                endpoint=_endpoint(),
            )
        )
    except hub.errors.LocalEntryNotFoundError as error:
        raise Unreachable(f"cannot download {file.name} of {listing.data_set}: {_first_line(error)}") from error
    except Exception as error:
        if not _is_connection(error) or (isinstance(error, OSError) and error.errno is not None):  # the disk's
            raise
        raise DataError(f"cannot download {file.name} of {listing.data_set}: {_first_line(error)}") from error
    if not file.is_at(arrived):
        arrived.unlink()
        raise DataError(f"{file.name} of {listing.data_set} is not what the hub says; run this again")
    try:
        path = inside(folder, file.name)
    except ValueError as error:
        raise DataError(f"{listing.data_set}: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(arrived, path)
    return file


def _described(sibling: Any) -> HubFile:
    """Return what the hub's client says of a file."""
    large = sibling.lfs
    sha256 = None if large is None else large["sha256"] if isinstance(large, dict) else large.sha256
    size = sibling.size if sibling.size is not None else large["size"]
    return HubFile(sibling.rfilename, int(size), sha256, sibling.blob_id)


def _name(file: HubFile) -> str:
    return file.name


def _git_blob(path: Path) -> str:
    """Return git's name of a file's content."""
    total = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


def _is_connection(error: Exception) -> bool:
    """Return whether an error is of the network: the client's own, or its HTTP library's, which changes its name."""
    return isinstance(error, OSError | ValueError) or type(error).__module__.startswith("httpx")


def _endpoint() -> str | None:
    """Return the hub of a mirror, if the environment names one."""
    return os.environ.get("HF_ENDPOINT")


def _page(data_set: str) -> str:
    return f"https://huggingface.co/datasets/{data_set}"


def _first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _library() -> Any:
    """Return huggingface_hub.

    Raises:
        MissingExtra: if it is not installed.
    """
    try:
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise MissingExtra("the hub needs huggingface_hub; install it with pip install 'perjoule[data]'") from error
    return huggingface_hub
