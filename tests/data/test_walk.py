import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from perjoule.core.errors import DataError
from perjoule.data.inspect import InspectConfig, inspect
from perjoule.data.sources import files_source
from perjoule.data.splitting import SplitConfig, split
from perjoule.data.walk import LeftOut, walk


def _texts(path: Path) -> list[str]:
    return sorted(document.text for document in files_source(path, "text").documents(Counter()))


def test_linked_folders_are_read_once_under_the_name_of_the_real_one(tmp_path: Path) -> None:
    corpus, far = tmp_path / "corpus", tmp_path / "far"
    for folder in (corpus / "real", far / "deep"):
        folder.mkdir(parents=True)
    (corpus / "real" / "a.txt").write_text("a")
    (far / "b.txt").write_text("b")
    (far / "deep" / "c.txt").write_text("c")
    (corpus / "again").symlink_to("real")
    (corpus / "link").symlink_to("../far")
    (corpus / "link2").symlink_to("../far/deep")
    (far / "deep" / "back").symlink_to("../../corpus")
    found = walk(corpus, lambda name: name.endswith(".txt"))
    assert found.files == ("link/b.txt", "link/deep/c.txt", "real/a.txt")
    assert found.left_out == {"a link to a folder above": LeftOut(1, ("link/deep/back",))}


def test_links_in_a_circle_and_to_folders_above_end(tmp_path: Path) -> None:
    corpus = tmp_path / "outer" / "corpus"
    corpus.mkdir(parents=True)
    (tmp_path / "outer" / "not ours.txt").write_text("x")
    (corpus / "a.txt").write_text("a")
    (corpus / "self").symlink_to(".")
    (corpus / "up").symlink_to("..")
    (corpus / "root").symlink_to("/")
    (corpus / "one.txt").symlink_to("two.txt")
    (corpus / "two.txt").symlink_to("one.txt")
    found = walk(corpus, lambda name: name.endswith(".txt"))
    assert found.files == ("a.txt", "one.txt", "two.txt")
    assert found.left_out["a link to a folder above"].count == 3
    with pytest.raises(DataError, match=r"cannot read .*one\.txt"):
        _texts(corpus)


def test_endings_are_compared_without_case_and_ndjson_is_json_lines(tmp_path: Path) -> None:
    (tmp_path / "A.TXT").write_text("a")
    (tmp_path / "b.Text").write_text("b")
    (tmp_path / "C.JSONL").write_text('{"text": "c"}\n')
    (tmp_path / "d.ndjson").write_text('{"text": "d"}\n')
    with gzip.open(tmp_path / "E.NDJSON.GZ", "wt") as file:
        file.write('{"text": "e"}\n')
    with gzip.open(tmp_path / "F.TXT.gz", "wt") as file:
        file.write("f")
    assert _texts(tmp_path) == ["a", "b", "c", "d", "e", "f"]


def test_what_is_not_read_is_counted_and_named_by_every_step(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    for folder in ("_temporary/0", "_delta_log", ".cache"):
        (corpus / folder).mkdir(parents=True)
        (corpus / folder / "part.txt").write_text("unfinished")
    for name in ("notes.md", "table.csv", "a.json", "b.yaml", "_SUCCESS", ".hidden.txt"):
        (corpus / name).write_text("x")
    os.mkfifo(corpus / "pipe.txt")
    (corpus / "device.txt").symlink_to("/dev/zero")
    for number in range(40):
        (corpus / f"{number}.txt").write_text(f"document {number}")
    assert len(_texts(corpus)) == 40
    said: list[str] = []
    found = inspect(corpus, InspectConfig(), said.append)
    ending = "not read: 4 of another ending (a.json, b.yaml, notes.md and 1 more); accepted endings: .txt"
    assert any(line.startswith(ending) for line in said)
    for line in (
        "not read: 2 of an unfinished write (_SUCCESS, _temporary/)",
        "not read: 1 of a table's own log (_delta_log/)",
        "not read: 2 hidden (.cache/, .hidden.txt)",
        "not read: 2 no regular file (device.txt, pipe.txt)",
    ):
        assert line in said
    assert found.as_json()["not_read"]["hidden"] == {"count": 2, "names": [".cache/", ".hidden.txt"]}
    said.clear()
    split(corpus, tmp_path / "split", SplitConfig(), said.append)
    assert any("pipe.txt" in line for line in said)
    manifest = json.loads((tmp_path / "split" / "manifest.json").read_text())
    assert manifest["source"]["not_read"]["no regular file"]["count"] == 2


def test_folder_that_cannot_be_listed_is_an_error_and_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("a")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot read the folder .*closed: Permission denied"):
        walk(tmp_path, lambda name: True)


def test_names_of_any_bytes_are_printed_with_escapes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b\x1b[2J.csv").write_text("")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.csv")).write_text("")
    (note,) = files_source(tmp_path, "text").notes()
    assert note.isprintable() and r"b\x1b[2J.csv" in note and r"\udcff.csv" in note


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: Path(path).symlink_to("/dev/zero")])
def test_pipe_or_device_in_place_of_a_corpus_is_one_line(tmp_path: Path, make: object) -> None:
    path = tmp_path / "corpus.txt"
    make(path)  # type: ignore[operator]
    with pytest.raises(DataError, match=r"corpus\.txt: it is a (named pipe|device); accepted"):
        files_source(path, "text")
