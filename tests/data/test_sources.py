"""What is a document, what is counted and skipped, and what stops the run."""

import json
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from perjoule.core.errors import DataError, MissingExtra
from perjoule.data.sources import Document, Source, files_source, stdlib_source


def read(source: Source) -> tuple[list[Document], dict[str, int]]:
    skipped: Counter[str] = Counter()
    return list(source.documents(skipped)), dict(skipped)


def texts(source: Source) -> list[str]:
    return [document.text for document in read(source)[0]]


def write_parquet(path: Path, **columns: object) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def test_folder_is_read_recursively_in_the_order_of_relative_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a.txt", "notes.md", ".hidden.txt", ".git/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    documents, skipped = read(files_source(tmp_path, "text"))
    assert [document.name for document in documents] == ["a.txt", "a/z.txt", "b.txt"]
    assert [document.text for document in documents] == ["a.txt", "a/z.txt", "b.txt"]
    assert skipped == {}


def test_file_text_keeps_its_newlines_and_loses_its_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert texts(files_source(tmp_path / "a.txt", "text")) == ["one\r\ntwo\n"]


def test_file_that_is_empty_or_not_utf8_is_counted_and_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("größer".encode("latin-1"))
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "c.txt").write_text("kept")
    documents, skipped = read(files_source(tmp_path, "text"))
    assert [document.text for document in documents] == ["kept"]
    assert skipped == {"not_utf8": 1, "empty": 1}


def test_jsonl_cells_that_are_no_text_are_counted_and_skipped(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"text": None}, {"other": 1}, {"text": ""}, {"text": 7}, {"text": ["x"]}, {"text": "two"}]
    lines = [json.dumps(row).encode() for row in rows]
    lines += [b"", b'{"text": "caf\xe9"}', rb'{"text": "half \ud800 pair"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    documents, skipped = read(files_source(tmp_path / "a.jsonl", "text"))
    assert [(document.name, document.text) for document in documents] == [("a.jsonl:1", "one"), ("a.jsonl:7", "two")]
    assert skipped == {"null": 2, "empty": 1, "not_text": 2, "not_utf8": 2}


def test_parquet_null_is_never_the_word_none_and_bytes_are_never_their_repr(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["one", None, "", "two"])
    documents, skipped = read(files_source(path, "text"))
    assert [document.text for document in documents] == ["one", "two"]
    assert [document.name for document in documents] == ["a.parquet:0", "a.parquet:3"]
    assert skipped == {"null": 1, "empty": 1}
    path = write_parquet(tmp_path / "b.parquet", text=[b"bytes", b"more"])
    assert read(files_source(path, "text")) == ([], {"not_text": 2})


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_strings_of_every_storage_are_text(tmp_path: Path, kind: object) -> None:
    column = pa.array(["one", "two", "one"], pa.string()).cast(kind)
    assert texts(files_source(write_parquet(tmp_path / "a.parquet", words=column), "words")) == ["one", "two", "one"]


def test_parquet_of_many_batches_is_read_in_order(tmp_path: Path) -> None:
    rows = [f"row {number}" for number in range(2500)]
    assert texts(files_source(write_parquet(tmp_path / "a.parquet", text=rows), "text")) == rows


def test_key_is_the_name_of_a_file_and_the_content_of_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("same")
    (tmp_path / "b.jsonl").write_text('{"text": "same"}\n')
    documents, _ = read(files_source(tmp_path, "text"))
    assert [document.key for document in documents] == ["a.txt", "same"]


def test_fingerprint_depends_on_names_bytes_and_the_column_of_rows_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    first = files_source(tmp_path, "text").fingerprint()
    assert files_source(tmp_path, "text").fingerprint() == first
    assert files_source(tmp_path, "other").fingerprint() == first
    assert files_source(tmp_path / "a.txt", "text").fingerprint() == first
    (tmp_path / "a.txt").write_text("two")
    changed = files_source(tmp_path, "text").fingerprint()
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    renamed = files_source(tmp_path, "text").fingerprint()
    (tmp_path / "c.jsonl").write_text('{"text": "x"}\n')
    assert len({first, changed, renamed, *(files_source(tmp_path, c).fingerprint() for c in ("text", "body"))}) == 5


def test_standard_library_has_modules_but_no_tests_and_no_packages() -> None:
    source = stdlib_source()
    assert {"ast.py", "json/decoder.py", "asyncio/tasks.py"} <= set(source.files)
    assert list(source.files) == sorted(source.files)
    folders = {part for name in source.files for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "site-packages", "__pycache__", "idlelib", "idle_test"}
    assert source.facts["python"] == ".".join(map(str, sys.version_info[:3]))


def test_python_without_library_files_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python311.zip"))
    with pytest.raises(DataError, match=r"not in files at .*python311\.zip; use data.kind=text"):
        stdlib_source()


def test_missing_path_names_the_nearest_sibling(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("x")
    with pytest.raises(DataError, match=r"no file or folder .*corpsu\.txt; did you mean 'corpus\.txt'\?$"):
        files_source(tmp_path / "corpsu.txt", "text")
    with pytest.raises(DataError, match=r"no file or folder .*/nowhere/at/all$"):
        files_source(tmp_path / "nowhere/at/all", "text")


def test_folder_without_documents_and_file_of_another_kind_are_errors(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("text\nx\n")
    with pytest.raises(
        DataError, match=r"no file with documents below the folder .*accepted: \.txt, \.jsonl, \.parquet"
    ):
        files_source(tmp_path, "text")
    with pytest.raises(
        DataError, match=r"cannot read documents from .*table\.csv; accepted: \.txt, \.jsonl, \.parquet"
    ):
        files_source(tmp_path / "table.csv", "text")


def test_unreadable_file_is_one_line_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("/proc/self/mem")  # may be opened, cannot be read; permissions do not stop root
    source = files_source(tmp_path, "text")
    with pytest.raises(DataError, match=r"cannot read .*a\.txt: Input/output error"):
        source.fingerprint()
    with pytest.raises(DataError, match=r"cannot read .*a\.txt: Input/output error"):
        read(source)


def test_broken_json_line_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for broken in ('{"text": "two"', "[" * 100_000):
        path.write_text('{"text": "one"}\n\n' + broken + "\n")
        with pytest.raises(DataError, match=r"a\.jsonl:3 is not JSON: ") as caught:
            read(files_source(path, "text"))
        assert "\n" not in str(caught.value)
    path.write_text('"just text"\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1 must be an object with the key 'text', not \"just text\"$"):
        read(files_source(path, "text"))


def test_missing_column_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "x"}\n{"id": 3}\n')
    write_parquet(tmp_path / "b.parquet", content=["x"], id=[3])
    for name in ("a.jsonl", "b.parquet"):
        message = rf"no column 'contents' in .*{name}: did you mean 'content'\? \(accepted: content, id\)"
        with pytest.raises(DataError, match=message):
            read(files_source(tmp_path / name, "contents"))


def test_truncated_parquet_is_one_line(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["one", "two"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet as parquet; is it cut off\?") as caught:
        read(files_source(path, "text"))
    assert "\n" not in str(caught.value)


def test_parquet_without_pyarrow_says_which_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["one"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        MissingExtra, match=r"a\.parquet needs pyarrow; install it with pip install 'perjoule\[parquet\]'"
    ):
        read(files_source(path, "text"))
