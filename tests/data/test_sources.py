"""What is a document, what is counted and skipped, and what stops the run."""

import bz2
import gzip
import json
import lzma
import pickle
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from perjoule.core.errors import DataError, MissingExtra
from perjoule.data import formats, sources
from perjoule.data.formats import Limits
from perjoule.data.sources import Document, Source, Unit, files_source, stdlib_source


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
    with pytest.raises(DataError, match=r"no file with documents below .*table\.csv.*accepted endings: \.txt, "):
        files_source(tmp_path, "text")
    with pytest.raises(DataError, match=r"cannot read documents from .*table\.csv; accepted: \.txt, "):
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
        with pytest.raises(DataError, match=r"a\.jsonl:3 cannot be read as a row: ") as caught:
            read(files_source(path, "text"))
        assert "\n" not in str(caught.value)
    path.write_text('"just text"\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1 .* must be an object with the key 'text', not \"just text\"$"):
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
    with pytest.raises(MissingExtra, match=r"a\.parquet needs pyarrow; install it with pip install 'perjoule\[data\]'"):
        read(files_source(path, "text"))


def write_lines(path: Path, values: list[object]) -> Path:
    path.write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    return path


def compress(path: Path, suffix: str) -> Path:
    """Write a file's content through the usual library for a suffix, and remove the file."""
    data = path.read_bytes()
    target = path.with_name(path.name + suffix)
    if suffix == ".zst":
        with pa.CompressedOutputStream(str(target), "zstd") as file:
            file.write(data)
    else:
        libraries: dict[str, Any] = {".gz": gzip, ".bz2": bz2, ".xz": lzma}
        target.write_bytes(libraries[suffix].compress(data))
    path.unlink()
    return target


def rewrite_cells(path: Path, values: list[bytes]) -> Path:
    """Write a parquet file whose column claims to be strings, whatever the bytes."""
    cells = pa.array(values)
    return write_parquet(path, text=pa.Array.from_buffers(pa.string(), len(values), cells.buffers()))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_rows_and_texts_are_read_as_if_they_were_not(tmp_path: Path, suffix: str) -> None:
    compress(write_lines(tmp_path / "a.jsonl", ["one", None, "two"]), suffix)
    compress(write_lines(tmp_path / "b.json", ["three"]), suffix)
    (tmp_path / "c.txt").write_text("four")
    compress(tmp_path / "c.txt", suffix)
    documents, skipped = read(files_source(tmp_path, "text"))
    assert [document.text for document in documents] == ["one", "two", "three", "four"]
    assert documents[3].key == "c.txt", "a text keeps its split when it is compressed"
    assert skipped == {"null": 1}


def test_lone_json_file_is_no_source_of_documents(tmp_path: Path) -> None:
    write_lines(tmp_path / "manifest.json", ["x"])
    write_lines(tmp_path / "a.jsonl", ["one"])
    assert texts(files_source(tmp_path, "text")) == ["one"]


def test_several_members_of_a_gzip_file_are_one_file(tmp_path: Path) -> None:
    first, second = (json.dumps({"text": text}).encode() + b"\n" for text in ("one", "two"))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(first) + gzip.compress(second))
    assert texts(files_source(tmp_path / "a.jsonl.gz", "text")) == ["one", "two"]


def test_blank_documents_are_counted_and_skipped(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [" ", "\n\t", "x", "\u3000"])
    (tmp_path / "b.txt").write_text("\n\n")
    documents, skipped = read(files_source(tmp_path, "text"))
    assert [document.text for document in documents] == ["x"]
    assert skipped == {"blank": 4}


def test_parquet_string_that_is_not_utf8_is_counted_and_its_neighbours_are_kept(tmp_path: Path) -> None:
    path = rewrite_cells(tmp_path / "a.parquet", [b"one", "größer".encode("latin-1"), b"two"])
    documents, skipped = read(files_source(path, "text"))
    assert [(document.name, document.text) for document in documents] == [
        ("a.parquet:0", "one"),
        ("a.parquet:2", "two"),
    ]
    assert skipped == {"not_utf8": 1}


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_cut_off_compressed_file_is_one_line(tmp_path: Path, suffix: str) -> None:
    path = compress(write_lines(tmp_path / "a.jsonl", [f"text {number}" * 9 for number in range(2000)]), suffix)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"cannot decompress .*a\.jsonl.*; is it cut off or damaged\? \(") as caught:
        read(files_source(path, "text"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_file_that_is_not_compressed_as_it_says_is_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_text("just text, not compressed at all")
    with pytest.raises(DataError, match=r"cannot decompress .*; is it cut off or damaged\? \(") as caught:
        read(files_source(path, "text"))
    assert "\n" not in str(caught.value)


def test_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.txt.gz", "wb") as file:
        for _ in range(80):
            file.write(b" " * (1 << 20))
    source = files_source(tmp_path, "text")
    with pytest.raises(
        DataError, match=r"a\.txt\.gz decompresses to more than 67\.1 MB, .* or limits.max_ratio \(250\)"
    ):
        read(Source(source.root, source.files, limits=Limits(max_ratio=250)))
    assert read(files_source(tmp_path, "text", Limits(max_ratio=2000))) == ([], {"blank": 1})
    with pytest.raises(DataError, match=r"decompresses to more than 1 kB, .* raise limits.max_bytes \(1000\)"):
        read(files_source(tmp_path, "text", Limits(max_bytes=1000)))


def test_zstd_without_pyarrow_says_which_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x")
    compress(tmp_path / "a.txt", ".zst")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"a\.txt\.zst needs pyarrow; .*perjoule\[data\]"):
        read(files_source(tmp_path, "text"))


def test_text_in_one_parquet_file_and_numbers_in_another_is_an_error(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", text=["x"])
    write_parquet(tmp_path / "b.parquet", text=pa.array(["y"]).dictionary_encode())
    assert texts(files_source(tmp_path, "text")) == ["x", "y"]
    write_parquet(tmp_path / "c.parquet", text=[3])
    with pytest.raises(
        DataError, match=r"the column 'text' is string in a\.parquet and int64 in c\.parquet of .*; accepted"
    ):
        files_source(tmp_path, "text").units()


def test_column_that_one_file_of_many_lacks_is_found_before_anything_is_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", text=["x"])
    write_parquet(tmp_path / "b.parquet", body=["x"])
    with pytest.raises(DataError, match=r"no column 'text' in .*b\.parquet: accepted: body"):
        files_source(tmp_path, "text").units()


def mixed_folder(folder: Path) -> Path:
    """Write some of every kind."""
    for name in ("a.txt", "b.txt", "d.txt"):
        (folder / name).write_text(f"the text of {name}\n")
    write_lines(folder / "c.jsonl", [f"line {number}" for number in range(100)])
    parquet.write_table(
        pa.table({"text": [f"row {number}" for number in range(100)]}), folder / "e.parquet", row_group_size=7
    )
    compress(write_lines(folder / "f.jsonl", ["packed"]), ".gz")
    return folder


@pytest.mark.parametrize("unit_bytes", [1, 20, 64, 300, 1 << 20])
def test_units_of_any_size_hold_all_documents_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit_bytes: int
) -> None:
    source = files_source(mixed_folder(tmp_path), "text")
    expected = [(document.text, document.key) for document in read(source)[0]]
    assert len(expected) == 204
    monkeypatch.setattr(sources, "UNIT_BYTES", unit_bytes)
    units = source.units()
    documents = [document for unit in units for document in source.read(unit, Counter())]
    assert [(document.text, document.key) for document in documents] == expected
    assert len({document.name for document in documents}) == 204, "every name says one place"
    assert source.units() == units
    assert len(units) > 15 if unit_bytes <= 20 else len(units) >= 5


def test_unit_is_the_same_after_json_and_in_another_process(tmp_path: Path) -> None:
    source = files_source(mixed_folder(tmp_path), "text")
    for unit in source.units():
        assert Unit.from_json(json.loads(json.dumps(unit.as_json()))) == unit
        assert pickle.loads(pickle.dumps(unit)) == unit
    assert read(pickle.loads(pickle.dumps(source))) == read(source)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(max_size=12), max_size=12), st.integers(1, 60), st.booleans())
def test_every_line_is_in_one_unit_wherever_the_cuts_fall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[str], unit_bytes: int, ends: bool
) -> None:
    path = tmp_path / "a.jsonl"
    content = "\n".join(json.dumps({"text": row}, ensure_ascii=False) for row in rows) + "\n" * ends
    path.write_bytes(content.encode())
    monkeypatch.setattr(sources, "UNIT_BYTES", unit_bytes)
    assert texts(files_source(path, "text")) == [row for row in rows if row and not row.isspace()]


def test_broken_line_far_into_a_file_is_named_by_its_number_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [f"row {number}" for number in range(50)])
    path.write_text(path.read_text() + "{broken\n")
    for unit_bytes in (1 << 20, 19, 20, 7):
        monkeypatch.setattr(sources, "UNIT_BYTES", unit_bytes)
        with pytest.raises(DataError, match=r"a\.jsonl:51 cannot be read"):
            read(files_source(path, "text"))


def test_column_may_be_absent_from_a_later_stretch_of_a_large_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["x"])
    path.write_text(path.read_text() + '{"other": 1}\n' * 5)
    monkeypatch.setattr(sources, "UNIT_BYTES", 16)
    assert read(files_source(path, "text"))[1] == {"null": 5}


def test_few_rows_are_held_at_once_where_rows_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=[f"{number}" * 1000 for number in range(64)])
    monkeypatch.setattr(formats, "_BATCH_BYTES", 4000)
    seen: list[int] = []
    cells = formats._cells

    def count(column: Any) -> list[object]:
        seen.append(len(column))
        return cells(column)

    monkeypatch.setattr(formats, "_cells", count)
    assert len(texts(files_source(path, "text"))) == 64
    assert max(seen) <= 4 and sum(seen) == 64


def split_folder(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "part.txt").write_text(f"text of {name}")
    return folder


def test_folder_with_splits_gives_documents_that_know_theirs(tmp_path: Path) -> None:
    source = files_source(split_folder(tmp_path, "train", "validation", "test"), "text")
    assert source.splits == ("train", "validation", "test")
    assert {document.text: document.split for document in read(source)[0]} == {
        f"text of {name}": name for name in ("train", "validation", "test")
    }
    assert {unit.split for unit in source.units()} == set(source.splits), "no unit has documents of two splits"
    assert texts(source.only("test")) == ["text of test"]
    assert source.only("test").splits == ("test",)


def test_folder_with_one_split_only_is_a_plain_folder(tmp_path: Path) -> None:
    source = files_source(split_folder(tmp_path, "train", "more"), "text")
    assert source.splits == ()
    assert {document.split for document in read(source)[0]} == {None}
    with pytest.raises(DataError, match=r"no split 'train' in .*: it is not split"):
        source.only("train")


def test_split_that_a_corpus_lacks_names_those_it_has(tmp_path: Path) -> None:
    source = files_source(split_folder(tmp_path, "train", "test"), "text")
    with pytest.raises(DataError, match=r"no split 'validation' in .*: it has train, test"):
        source.only("validation")


def test_folder_split_in_part_or_under_another_name_is_an_error(tmp_path: Path) -> None:
    folder = split_folder(tmp_path / "a", "train", "test", "extra")
    with pytest.raises(DataError, match=r"is split into train, test, but extra/part\.txt is in none of them: move it"):
        files_source(folder, "text")
    folder = split_folder(tmp_path / "b", "train", "val")
    with pytest.raises(DataError, match=r"split, but into train and val: rename the folder to validation"):
        files_source(folder, "text")


def test_listing_changes_with_names_sizes_and_times_and_is_not_the_content(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    source = files_source(tmp_path, "text")
    first = source.listing()
    assert first == source.listing()
    assert (first["files"], first["bytes"]) == (1, 3)
    (tmp_path / "a.txt").write_text("two!")
    assert source.listing() != first
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.txt: No such file"):
        source.listing()


def texts_and_skipped(source: Source) -> tuple[list[str], dict[str, int]]:
    documents, skipped = read(source)
    return [document.text for document in documents], skipped


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_documents_are_read_by_their_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("naïve\r\n😀".encode(encoding))
    assert texts_and_skipped(files_source(tmp_path, "text")) == (["naïve\r\n😀"], {})


def test_documents_that_are_no_text_are_counted(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "unmarked.txt").write_bytes("two bytes each".encode("utf-16-le"))
    (tmp_path / "good.txt").write_text("good")
    assert texts_and_skipped(files_source(tmp_path, "text")) == (["good"], {"not_utf8": 1, "not_text": 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n'.encode("utf-16"), r"a\.jsonl is UTF-16-LE, JSON lines are UTF-8"),
        (b'{"text": "a", "text": "b"}\n', r"a\.jsonl:1 .* the key 'text' stands in it twice"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n", r"a\.jsonl:1 "),
        (b'{"text": "a\x00"}\n', r"a\.jsonl:1 "),
        (b'{"text": "a"}\r{"text": "b"}\r', r"a\.jsonl:1 "),
        (b'{"text": ' + b"[" * 100_000 + b"}\n", r"a\.jsonl:1 .* nested too deeply"),
    ],
)
def test_lines_that_mislead_are_one_line_with_the_place(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(files_source(tmp_path, "text"))
    assert "\n" not in str(caught.value)


def test_rows_may_have_other_line_ends_marks_surrogates_and_keys_within_keys(tmp_path: Path) -> None:
    rows = [
        '\ufeff{"text": "a"}',
        '{"text": "b", "meta": {"text": 1}}',
        '{"text": "\\ud800"}',
        '{"text": "\\"text\\""}',
    ]
    (tmp_path / "a.jsonl").write_bytes("\r\n".join(rows).encode())
    assert texts_and_skipped(files_source(tmp_path, "text")) == (["a", "b", '"text"'], {"not_utf8": 1})


def test_document_or_line_beyond_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "available_bytes", lambda: 60)
    monkeypatch.setattr(formats, "_HARMLESS_BYTES", 10)
    (tmp_path / "a.txt").write_text("ten bytes.")
    (tmp_path / "b.txt").write_text("more than ten bytes")
    with pytest.raises(DataError, match=r"b\.txt is one document of more than 10 B, which does not fit"):
        read(files_source(tmp_path, "text"))
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"c\.jsonl: line 1 has more than 10 B"):
        read(files_source(tmp_path / "c.jsonl", "text"))
