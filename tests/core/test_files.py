import codecs
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from perjoule.core.errors import DataError, PerjouleError
from perjoule.core.files import inside, read_text, special_kind, temporary_folder


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_text_is_read_by_its_byte_order_mark(tmp_path: Path, mark: bytes, encoding: str) -> None:
    text = "naïve\r\n😀\n"
    (tmp_path / "a").write_bytes(mark + text.encode(encoding))
    assert read_text(tmp_path / "a", "the note", DataError, 100) == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("ab\ncaf\u00e9".encode("latin-1"), r"byte 6 \(line 2\) is 0xe9, which is not UTF-8"),
        (codecs.BOM_UTF16_LE + b"a", r"not UTF-16-LE"),
        ("ab".encode("utf-16-le"), "line 1 has a NUL byte"),
        (b"x" * 101, "more than 100 B"),
    ],
)
def test_what_is_no_text_is_one_line_with_file_and_place(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(DataError, match=rf"cannot read the note .*/a: .*{message}") as caught:
        read_text(tmp_path / "a", "the note", DataError, 100)
    assert "\n" not in str(caught.value)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


SPECIAL: list[tuple[Callable[[Path], object], str]] = [
    (os.mkfifo, "a named pipe"),
    (lambda path: path.symlink_to("/dev/zero"), "a device"),
    (Path.mkdir, "a folder"),
    (_socket, "a socket"),
]


@pytest.mark.parametrize(("make", "kind"), SPECIAL)
def test_what_is_no_file_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    make(Path("a"))
    assert special_kind(Path("a")) == kind
    with pytest.raises(DataError, match=f"it is {kind}; accepted: a text file"):
        read_text(Path("a"), "the note", DataError, 100)


def test_missing_file_is_no_special_kind_and_cannot_be_read(tmp_path: Path) -> None:
    assert special_kind(tmp_path / "a") is None
    with pytest.raises(DataError, match="No such file"):
        read_text(tmp_path / "a", "the note", DataError, 100)


NAMES = ["../a", "a/../../b", "/etc/passwd", "..", ".", "", "a\\b", "C:\\a", "c:/a", "a\nb", "a\x1b[2J", 7, None]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_from_elsewhere_leaves_its_folder(tmp_path: Path, name: object) -> None:
    with pytest.raises(ValueError, match="name"):
        inside(tmp_path, name)


def test_names_below_a_folder_are_accepted_but_not_through_a_link_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert inside(tmp_path, "in/a..b é.txt") == tmp_path / "in" / "a..b é.txt"
    assert inside(tmp_path, "new/deep") == tmp_path / "new" / "deep"
    (tmp_path / "out").symlink_to("/tmp")
    with pytest.raises(ValueError, match="through a link"):
        inside(tmp_path, "out/a")


def test_temporary_folder_that_cannot_be_made_names_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(PerjouleError, match="set TMPDIR to a folder"), temporary_folder():
        pass
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
    assert not folder.exists()
