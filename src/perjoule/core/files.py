"""What a reader of other people's files checks first: that it is a file, its size, its encoding, its name.

Opening a named pipe waits for a writer that never comes, a device never ends, a file name from elsewhere may lead out
of its folder, and a byte order mark is no part of a text.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from perjoule.core.errors import PerjouleError
from perjoule.core.units import byte_size

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
_DRIVE = re.compile(r"[A-Za-z]:")


class NotText(ValueError):
    """Bytes that are no text; the message says where and why."""


def special_kind(path: Path) -> str | None:
    """Say what a path is that is not a regular file (``a named pipe``); None for a file, and for what does not exist.

    Raises:
        OSError: if it cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    return None if stat.S_ISREG(mode) else _SPECIAL.get(stat.S_IFMT(mode), "no file")


def encoding_mark(head: bytes) -> tuple[bytes, str] | None:
    """Look for a byte order mark.

    Args:
        head: the first four bytes of a file, or more.

    Returns:
        The mark and the encoding behind it; None without one.
    """
    return next(((mark, encoding) for mark, encoding in _MARKS if head.startswith(mark)), None)


def decode(data: bytes) -> str:
    """Decode a whole file: by its byte order mark, else as UTF-8.

    Raises:
        NotText: naming the byte and the line where it is neither.
    """
    mark, encoding = encoding_mark(data) or (b"", "utf-8")
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        at = error.start + len(mark)
        line = data.count(b"\n", 0, at) + 1
        raise NotText(
            f"byte {at} (line {line}) is 0x{data[at]:02x}, which is not {encoding.upper()}; save the file as UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise NotText(f"line {line} has a NUL byte, which no text has; if it is UTF-16, save the file as UTF-8")
    return text


def read_text(path: Path, what: str, error: type[PerjouleError], most_bytes: int) -> str:
    """Read a text file that a person wrote or another program made.

    Args:
        path: the file.
        what: it is, for the message: ``the recipe``.
        error: the class to raise.
        most_bytes: that such a file may have.

    Raises:
        PerjouleError: of the class ``error``: if it cannot be read, is not a regular file, is too large, or is neither
            UTF-8 nor UTF-16 or UTF-32 with a byte order mark.
    """
    try:
        kind = special_kind(path)
        if kind is not None:
            raise error(f"cannot read {what} {path}: it is {kind}; accepted: a text file")
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as cause:
        raise error(f"cannot read {what} {path}: {cause.strerror or cause}") from cause
    if len(data) > most_bytes:
        raise error(f"cannot read {what} {path}: it has more than {byte_size(most_bytes)}")
    try:
        return decode(data)
    except NotText as cause:
        raise error(f"cannot read {what} {path}: {cause}") from cause


@contextmanager
def temporary_folder(remedy: str = "") -> Iterator[Path]:
    """Make a temporary folder and remove it in the end; a full, read-only or missing ``TMPDIR`` is one line.

    Only making it is guarded: whoever writes into it says what could not be written.

    Args:
        remedy: what else helps, such as ``or give duplicates=false``.

    Raises:
        PerjouleError: if there is none.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="perjoule-", ignore_cleanup_errors=True)
    except OSError as error:
        advice = f"set TMPDIR to a folder that can be written {remedy}".strip()
        raise PerjouleError(f"cannot make a temporary folder: {error.strerror or error}; {advice}") from error
    with folder as name:
        yield Path(name)


def inside(folder: Path, name: object) -> Path:
    """Return the path of a file below a folder that others named: a hub's listing, a manifest, an address.

    Args:
        folder: that must not be left.
        name: a relative POSIX path.

    Raises:
        ValueError: if it is not text, is absolute, has ``..``, a backslash, a drive or a control character in it, or
            leads out of the folder through a link.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{name!r} is not the name of a file")
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name or _DRIVE.match(name):
        raise ValueError(f"the name {name!r} leads out of its folder; accepted: a relative path without '..'")
    if not name.isprintable() and any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise ValueError(f"the name {name!r} has control characters")
    path = folder.joinpath(*parts)
    if path == folder:
        raise ValueError(f"{name!r} is not the name of a file")
    if not Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"the name {name!r} leads out of its folder through a link")
    return path
