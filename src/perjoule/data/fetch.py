"""One file over HTTP(S): continued where it stopped, checked, and given its name only when it is whole.

What has arrived is kept in a file with the validator (ETag or date) that the server gave; a later try asks for the
rest with ``If-Range``, so that a file that changed on the server starts again instead of being glued together.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perjoule.core.errors import DataError
from perjoule.core.units import byte_size, duration
from perjoule.data.folders import publish, write_json

_CHUNK_BYTES = 1 << 20
_SAY_EVERY_S = 5.0
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT_S = 60.0


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Args:
        timeout_s: without a byte, until a connection is given up.
        retries: in a row without a new byte, until the download is given up.
        wait_s: before the first retry; twice that before the next, and so on.
    """

    timeout_s: float = 30.0
    retries: int = 5
    wait_s: float = 1.0


class _Interrupted(Exception):
    """The connection broke, or the server asked to come back later."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def fetch(
    url: str, path: Path, work: Path, sha256: str | None, patience: Patience, say: Callable[[str], None]
) -> dict[str, Any]:
    """Download a file, or the rest of it.

    Args:
        url: where it is; plain ``http`` needs a checksum.
        path: where it goes.
        work: the folder that keeps what has arrived.
        sha256: in hexadecimal; None: whatever came over a safe connection is right.
        patience: how long to try.
        say: prints a line about progress.

    Returns:
        ``bytes``, ``sha256`` and ``etag`` for the record of provenance.

    Raises:
        DataError: if the file cannot be had, or is not what the checksum says.
        OSError: if the disk is full or the folder cannot be written.
    """
    transfer = _Transfer(url, work / f"{path.name}.part", sha256 is not None, patience, say)
    failures = 0
    while True:
        before = transfer.num_bytes
        try:
            transfer.go_on()
            break
        except _Interrupted as error:
            failures = 0 if transfer.num_bytes > before else failures + 1
            if failures > patience.retries:
                kept = f" ({byte_size(transfer.num_bytes)} are kept for the next try)" if transfer.num_bytes else ""
                raise DataError(
                    f"cannot download {url}: {error}{kept}; without a network, place the file at {path} and run this "
                    "again"
                ) from error
            time.sleep(min(max(error.wait_s, patience.wait_s * 2 ** max(failures - 1, 0)), _LONGEST_WAIT_S))
    found = sha256_of(transfer.path)
    if sha256 is not None and found != sha256.lower():
        transfer.forget()
        raise DataError(f"{url} has the SHA-256 {found} instead of {sha256}: it is damaged, or is another file")
    facts = {"bytes": transfer.num_bytes, "sha256": found, "etag": transfer.validator}
    write_json(transfer.state, {"url": url, "validator": transfer.validator, "facts": facts})
    publish(transfer.path, path)
    return facts


def fetched_before(url: str, path: Path, work: Path) -> dict[str, Any] | None:
    """Return the facts of a file that arrived, but whose record a kill prevented; None if it is from elsewhere."""
    state = _state(work / f"{path.name}.part")
    if not state.is_file() or not path.is_file():
        return None
    noted = json.loads(state.read_text(encoding="utf-8"))
    facts: dict[str, Any] | None = noted.get("facts") if noted["url"] == url else None
    return facts if facts and facts["sha256"] == sha256_of(path) else None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Transfer:
    """What has arrived of a file, and the way to get more.

    Args:
        url: where it is.
        path: where it grows.
        checked: whether a checksum will tell in the end if it is right.
        patience: for the time-out.
        say: prints a line about progress.
    """

    def __init__(self, url: str, path: Path, checked: bool, patience: Patience, say: Callable[[str], None]) -> None:
        self.path = path
        self._url, self._checked, self._patience, self._say = url, checked, patience, say
        self.state = _state(path)
        self._opener = urllib.request.build_opener(_SafeRedirects(checked))
        self.validator: str | None = None
        if path.is_file() and self.state.is_file():
            state = json.loads(self.state.read_text(encoding="utf-8"))
            self.validator = state["validator"] if state["url"] == url else None
        self.num_bytes = path.stat().st_size if self.validator is not None else 0

    def forget(self) -> None:
        """Remove what has arrived."""
        self.path.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)

    def go_on(self) -> None:
        """Ask for what is missing and append it, to the end.

        Raises:
            _Interrupted: if the end did not come.
            DataError: if trying again would not help.
        """
        headers = {"Accept-Encoding": "identity", "User-Agent": "perjoule"}
        if self.num_bytes and self.validator is not None:
            headers |= {"Range": f"bytes={self.num_bytes}-", "If-Range": self.validator}
        try:
            response = self._opener.open(
                urllib.request.Request(self._url, headers=headers), timeout=self._patience.timeout_s
            )
        except urllib.error.HTTPError as error:
            with closing(error):
                self._refused(error)
            return
        except urllib.error.URLError as error:
            raise _Interrupted(_reason(error.reason)) from error
        except ValueError as error:  # a host or an address that no request can hold; trying again does not help
            raise DataError(f"cannot download {self._url}: {_reason(error)}") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(_reason(error)) from error
        with closing(response):
            total = self._begin(response.status, response.headers)
            self._receive(response, total)

    def _refused(self, error: urllib.error.HTTPError) -> None:
        """Handle an answer that is no success; return if it says that everything has arrived."""
        if error.code == 416 and self.num_bytes:  # nothing from there on: complete, or another file
            size = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if size and int(size[1]) == self.num_bytes:
                return
            self.num_bytes, self.validator = 0, None
            raise _Interrupted("the file has changed on the server")
        if error.code in _TRY_AGAIN:
            wait = error.headers.get("Retry-After", "")
            raise _Interrupted(f"{error.code} {error.reason}", float(wait) if wait.isdigit() else 0.0)
        raise DataError(f"cannot download {self._url}: {error.code} {error.reason}")

    def _begin(self, status: int, headers: Mapping[str, str]) -> int | None:
        """Note what the server says of the file, and return its whole size if it does."""
        if status == 206:
            place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
            if not place or int(place[1]) != self.num_bytes:
                raise DataError(f"cannot download {self._url}: the server sends another part than it was asked for")
            return int(place[2])
        self.num_bytes = 0
        tag = headers.get("ETag") or ""
        # A weak tag does not promise the same bytes, and If-Range does not accept it.
        self.validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
        self.path.write_bytes(b"")
        write_json(self.state, {"url": self._url, "validator": self.validator})
        length = headers.get("Content-Length")
        if length is not None and not length.strip().isdecimal():
            raise DataError(f"cannot download {self._url}: the server says that it has {length!r} bytes")
        chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
        if length is None and not chunked and not self._checked:
            raise DataError(f"{self._url}: the server does not say how long the file is; give its sha256=…")
        if length is not None and int(length) > (free := shutil.disk_usage(self.path.parent).free):
            raise DataError(f"{self._url} has {byte_size(int(length))}, but only {byte_size(free)} are free")
        return int(length) if length is not None else None

    def _receive(self, response: http.client.HTTPResponse, total: int | None) -> None:
        """Append the body of an answer."""
        began = said = time.monotonic()
        first = self.num_bytes
        with self.path.open("r+b") as file:
            file.seek(self.num_bytes)
            while True:
                try:
                    chunk = response.read1(_CHUNK_BYTES)  # what is there: waiting for more could lose it
                except (OSError, http.client.HTTPException) as error:
                    raise _Interrupted(_reason(error)) from error
                if not chunk:
                    break
                file.write(chunk)
                self.num_bytes += len(chunk)
                now = time.monotonic()
                if total and now - said >= _SAY_EVERY_S:
                    said = now
                    rate = (self.num_bytes - first) / (now - began)
                    left = duration((total - self.num_bytes) / rate)
                    self._say(f"{byte_size(self.num_bytes)} of {byte_size(total)}, {byte_size(rate)}/s, {left} left")
            file.truncate()
        if total is not None and self.num_bytes != total:
            raise _Interrupted(f"the connection was closed after {self.num_bytes} of {total} bytes")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no way out of an encrypted connection, unless a checksum will tell."""

    def __init__(self, checked: bool) -> None:
        self._checked = checked

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the request that follows the redirection.

        Raises:
            DataError: if it leads to plain HTTP.
        """
        if not newurl.lower().startswith("https://") and not (self._checked and newurl.lower().startswith("http://")):
            raise DataError(f"{req.full_url} leads to {newurl}, which is not encrypted; give the sha256=… of the file")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _state(part: Path) -> Path:
    """Return the file that says what a part is of."""
    return part.with_suffix(".json")


def _reason(error: object) -> str:
    """Return what went wrong, in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
