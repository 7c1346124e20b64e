"""Documents are shared out by their own content, once each, to the same bytes however often the work is interrupted."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from perjoule.core.errors import DataError, MissingExtra
from perjoule.data import duplicates, engines, splitting
from perjoule.data.duplicates import content_hash, document_starts, mark_copies, read_copies
from perjoule.data.sources import files_source
from perjoule.data.split import SPLITS, Fractions
from perjoule.data.split_pieces import SplitPieces
from perjoule.data.splitting import SplitConfig, SplitResult, split
from perjoule.data.store import open_store, prepare
from perjoule.data.tokenize import TokenizeConfig, tokenize_files
from perjoule.data.tokenizer import TokenizerConfig
from perjoule.data.train_tokenizer import TrainTokenizerConfig, train_tokenizer

SHARES = Fractions(train=0.7, validation=0.2, test=0.1)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def do(source: Path, folder: Path, **settings: Any) -> SplitResult:
    return split(source, folder, SplitConfig(**{"fractions": SHARES, **settings}), lambda line: None)


def contents(folder: Path) -> dict[str, list[str]]:
    """Read every split with nothing but pyarrow."""
    return {
        name: [
            text for path in sorted((folder / name).iterdir()) for text in parquet.read_table(path)["text"].to_pylist()
        ]
        for name in SPLITS
    }


def digests(folder: Path) -> dict[str, str]:
    """Hash every part; the manifest is left out because it says where the source was."""
    paths = sorted(folder.glob("*/*.parquet"))
    return {str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() for path in paths}


def test_seventy_twenty_ten_gives_train_validation_test_in_that_order(tmp_path: Path) -> None:
    rows = [f"document {number}" for number in range(20_000)]
    result = do(write_rows(tmp_path / "a.jsonl", rows), tmp_path / "out")
    shares = {name: count / 20_000 for name, count in result.documents.items()}
    assert list(shares) == ["train", "validation", "test"]
    assert shares == pytest.approx({"train": 0.7, "validation": 0.2, "test": 0.1}, abs=0.01)
    found = contents(tmp_path / "out")
    assert {name: len(texts) for name, texts in found.items()} == dict(result.documents)
    assert sorted(text for texts in found.values() for text in texts) == sorted(rows)


def test_document_never_moves_when_others_are_added(tmp_path: Path) -> None:
    rows = [f"document {number}" for number in range(500)]
    do(write_rows(tmp_path / "a" / "a.jsonl", rows), tmp_path / "before")
    before = contents(tmp_path / "before")
    more = [f"newcomer {number}" for number in range(300)]
    do(write_rows(tmp_path / "b" / "a.jsonl", [*more[:100], *rows, *more[100:]]), tmp_path / "after", shuffle=True)
    after = contents(tmp_path / "after")
    for name in SPLITS:
        assert set(before[name]) == {text for text in after[name] if text.startswith("document")}


def test_split_is_the_one_that_training_on_the_fly_makes(tmp_path: Path) -> None:
    rows = [f"document {number}" for number in range(200)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    do(path, tmp_path / "out")
    expected: dict[str, list[str]] = {name: [] for name in SPLITS}
    for document in files_source(path, "text").documents(Counter()):
        expected[SHARES.split_of(document.key)].append(document.text)
    assert contents(tmp_path / "out") == expected


def test_tokens_through_all_steps_are_those_of_training_on_the_fly(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [f"document {number} and its words" for number in range(200)])
    file = train_tokenizer(path, tmp_path / "t.json", TrainTokenizerConfig(vocab_size=300), lambda line: None).file
    do(path, tmp_path / "out")
    config = TokenizeConfig(tokenizer=file, workers=0)
    tokenize_files(tmp_path / "out", tmp_path / "store", config, lambda line: None)
    stepwise = open_store(tmp_path / "store")
    on_the_fly = prepare(files_source(path, "text"), TokenizerConfig(file=file), SHARES, tmp_path / "cache")
    for name in SPLITS:
        assert np.array_equal(stepwise.splits[name].stream(), on_the_fly.splits[name].stream())
        assert len(stepwise.splits[name].stream())


def test_names_that_are_not_utf8_are_written_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"gr\xf6\xdfer.txt")).write_text("text")
    do(tmp_path / "in", tmp_path / "out", fractions=Fractions(train=1, validation=0, test=0))
    (part,) = (tmp_path / "out" / "train").iterdir()
    assert parquet.read_table(part).to_pylist() == [{"text": "text", "name": "gr\ufffd\ufffder.txt"}]


def test_result_is_a_source_whose_documents_keep_their_split_and_say_where_they_stood(tmp_path: Path) -> None:
    do(write_rows(tmp_path / "a.jsonl", [f"document {number}" for number in range(50)]), tmp_path / "out")
    source = files_source(tmp_path / "out", "text")
    assert source.splits == SPLITS
    assert {d.split for d in source.documents(Counter())} == set(SPLITS)
    (part,) = (tmp_path / "out" / "train").iterdir()
    table = parquet.read_table(part)
    assert table["name"][0].as_py().startswith("a.jsonl:")
    with pytest.raises(DataError, match=r"out is split already, into train, validation, test"):
        do(tmp_path / "out", tmp_path / "again")


def test_copies_and_what_is_no_text_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = ["one", None, "two", " ", "one", 7, "one", "", "two"]
    result = do(write_rows(tmp_path / "a.jsonl", rows), tmp_path / "out")
    assert sorted(text for texts in contents(tmp_path / "out").values() for text in texts) == ["one", "two"]
    assert dict(result.skipped) == {"null": 1, "blank": 1, "not_text": 1, "empty": 1, "duplicate": 3}
    kept = do(tmp_path / "a.jsonl", tmp_path / "kept", drop_duplicates=False)
    assert sum(kept.documents.values()) == 5
    assert "duplicate" not in kept.skipped


def test_manifest_counts_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "provenance.json").write_text('{"sources": {"hf:a/b": {}}}')
    write_rows(tmp_path / "in" / "a.jsonl", [f"größer {number}" for number in range(90)])
    do(tmp_path / "in", tmp_path / "out", part_bytes=500)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["source"]["provenance"] == {"sources": {"hf:a/b": {}}}
    assert sum(entry["documents"] for entry in manifest["splits"].values()) == 90
    for name, texts in contents(tmp_path / "out").items():
        entry = manifest["splits"][name]
        assert entry["documents"] == len(texts)
        assert entry["bytes"] == sum(len(text.encode()) for text in texts)
        for part in entry["parts"]:
            data = (tmp_path / "out" / name / part["file"]).read_bytes()
            assert (part["size"], part["blake2b"]) == (len(data), hashlib.blake2b(data, digest_size=16).hexdigest())


def test_shuffled_order_depends_on_documents_and_seed_only(tmp_path: Path) -> None:
    rows = [f"document {number}" for number in range(400)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    do(path, tmp_path / "plain")
    do(path, tmp_path / "one", shuffle=True)
    do(write_rows(tmp_path / "b" / "z.jsonl", rows[::-1]), tmp_path / "two", shuffle=True, part_bytes=900)
    do(path, tmp_path / "seed", shuffle=True, seed=1)
    plain, one, two, seed = (contents(tmp_path / name) for name in ("plain", "one", "two", "seed"))
    assert len(list((tmp_path / "two" / "train").iterdir())) > 3, "in pieces"
    assert one == two
    for name in SPLITS:
        assert sorted(one[name]) == sorted(seed[name]) == sorted(plain[name])
    assert plain["train"] != one["train"] != seed["train"]
    correlation = np.corrcoef([rows.index(text) for text in one["train"]], range(len(one["train"])))[0, 1]
    assert abs(correlation) < 0.25


def test_shuffle_keeps_copies_that_are_not_dropped(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ["same"] * 20 + ["other"])
    result = do(path, tmp_path / "out", shuffle=True, drop_duplicates=False, part_bytes=30)
    assert sum(result.documents.values()) == 21


KILLED = """
import os, signal, sys
from pathlib import Path
from perjoule.data import folders, parts, sources, split_pieces, splitting
from perjoule.data.split import Fractions

count = 0
def publish(temporary, path, real=folders.publish):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(temporary, path)

sources.UNIT_BYTES = 500
folders.publish = parts.publish = split_pieces.publish = publish
config = splitting.SplitConfig(
    fractions=Fractions(train=0.7, validation=0.2, test=0.1), part_bytes=600, shuffle=sys.argv[4] == "shuffled"
)
splitting.split(Path(sys.argv[1]), Path(sys.argv[2]), config, print)
"""


@pytest.mark.parametrize("order", ["as-it-is", "shuffled"])
def test_split_that_was_killed_again_and_again_ends_with_the_same_bytes(
    tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perjoule.data.sources.UNIT_BYTES", 500)
    path = write_rows(tmp_path / "a.jsonl", [f"document {number % 150}" for number in range(200)])
    do(path, tmp_path / "whole", part_bytes=600, shuffle=order == "shuffled")
    kills = 0
    for instant in (1, 2, 5, 7, 11):
        arguments = [str(path), str(tmp_path / "killed"), str(instant), order]
        done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, capture_output=True, text=True)
        kills += done.returncode == -signal.SIGKILL
    assert kills == 5, done.stderr
    assert not (tmp_path / "killed" / "manifest.json").exists()
    do(path, tmp_path / "killed", part_bytes=600, shuffle=order == "shuffled")
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert len(digests(tmp_path / "whole")) > 3
    assert sorted(entry.name for entry in (tmp_path / "killed").iterdir()) == sorted(["manifest.json", *SPLITS])


@pytest.mark.parametrize(("order", "workers"), [("as-it-is", 3), ("shuffled", 2)])
def test_bytes_are_the_same_for_any_number_of_processes(
    tmp_path: Path, order: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perjoule.data.sources.UNIT_BYTES", 1000)
    path = write_rows(tmp_path / "a.jsonl", [f"document {number % 150}" for number in range(200)])
    settings = {"part_bytes": 1000, "shuffle": order == "shuffled"}
    alone = do(path, tmp_path / "alone", workers=0, **settings)
    together = do(path, tmp_path / "together", workers=workers, **settings)
    assert len(digests(tmp_path / "alone")) >= 9
    assert digests(tmp_path / "alone") == digests(tmp_path / "together")
    assert alone.documents == together.documents
    assert alone.skipped == together.skipped == {"duplicate": 50}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("shuffle", [False, True])
def test_dask_writes_the_same_bytes(tmp_path: Path, shuffle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perjoule.data.sources.UNIT_BYTES", 1000)
    path = write_rows(tmp_path / "a.jsonl", [f"document {number % 150}" for number in range(200)])
    settings: dict[str, Any] = {"part_bytes": 1000, "shuffle": shuffle}
    do(path, tmp_path / "alone", workers=0, **settings)
    cluster = {"host": "127.0.0.1"}
    do(path, tmp_path / "dask", engine="dask", scheduler="local", workers=2, cluster=cluster, **settings)
    assert digests(tmp_path / "alone") == digests(tmp_path / "dask")


def test_processes_are_one_for_two_cores_unless_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perjoule.data.sources.UNIT_BYTES", 500)
    used: list[int] = []
    monkeypatch.setattr(engines, "run_pool", lambda work, jobs, report, workers, threads: used.append(workers))
    path = write_rows(tmp_path / "a.jsonl", [f"document {number}" for number in range(100)])
    for cores in (4, 16):
        monkeypatch.setattr(engines, "num_cores", lambda cores=cores: cores)
        if cores == 4:
            do(path, tmp_path / "out", part_bytes=500)
        else:
            with pytest.raises(DataError, match="No such file"):  # as nothing was done
                do(path, tmp_path / "none", part_bytes=500)
    assert used == [8]


def test_finished_pieces_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "a.jsonl", [f"document {number}" for number in range(100)])
    written: list[int] = []
    write = SplitPieces._write

    def stop_at_the_third(self: Any, number: int, documents: Iterator[Any]) -> dict[str, Any]:
        if number == 2 and 2 not in written:
            written.append(2)
            raise KeyboardInterrupt
        written.append(number)
        return write(self, number, documents)

    monkeypatch.setattr("perjoule.data.sources.UNIT_BYTES", 500)
    monkeypatch.setattr(SplitPieces, "_write", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        do(path, tmp_path / "out", part_bytes=500)
    do(path, tmp_path / "out", part_bytes=500)
    assert written[:4] == [0, 1, 2, 2]
    assert written.count(0) == written.count(1) == 1


def test_finished_split_is_left_alone_and_other_settings_are_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [f"document {number}" for number in range(50)])
    first = do(path, tmp_path / "out")
    times = {part: part.stat().st_mtime_ns for part in (tmp_path / "out").rglob("*.parquet")}
    assert do(path, tmp_path / "out") == first
    assert times == {part: part.stat().st_mtime_ns for part in (tmp_path / "out").rglob("*.parquet")}
    with pytest.raises(DataError, match=r"out was made with another settings; choose another folder, or remove this"):
        do(path, tmp_path / "out", shuffle=True)
    write_rows(path, ["another"])
    with pytest.raises(DataError, match=r"out was made with another source; choose another folder"):
        do(path, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text("{cut")
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        do(path, tmp_path / "out")


def test_half_written_split_is_finished_with_its_own_settings_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "a.jsonl", [f"document {number}" for number in range(50)])
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(splitting, "mark_copies", lambda *arguments: (_ for _ in ()).throw(RuntimeError))
        do(path, tmp_path / "out")
    with pytest.raises(DataError, match=r"out is half written and was made with another settings; finish that, or"):
        do(path, tmp_path / "out", seed=3)
    assert sum(do(path, tmp_path / "out").documents.values()) == 50


def test_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ["x"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("do not touch")
    with pytest.raises(DataError, match=r"out is not empty \(there is thesis\.tex\); choose another folder"):
        do(path, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"out holds something else; choose another folder"):
        do(path, tmp_path / "out")


def test_result_within_its_source_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "in" / "a.jsonl", ["x"])
    with pytest.raises(DataError, match=r"in/out lies in .*in, whose documents it would become part of"):
        do(tmp_path / "in", tmp_path / "in" / "out")
    assert not (tmp_path / "in" / "out").exists()


def test_two_processes_do_not_write_the_same_folder(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ["x"])
    from perjoule.data.folders import exclusive

    with exclusive(tmp_path / "out"), pytest.raises(DataError, match=r"another process is writing .*out; wait for it"):
        do(path, tmp_path / "out")


def test_full_disk_is_one_line_and_the_next_run_finishes(tmp_path: Path) -> None:
    rows = [os.urandom(1500).hex() for _ in range(40)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # as a full disk, but only for this process
    try:
        with pytest.raises(
            DataError,
            match=r"cannot write .*out: .*File too large.*; finished work is kept",
        ):
            do(path, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sum(do(path, tmp_path / "out").documents.values()) == 40


def test_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ["x"])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write .*file/out: Not a directory; choose another folder"):
        do(path, tmp_path / "file" / "out")


def test_documents_that_change_meanwhile_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "a.jsonl", ["one", "two"])
    mark = mark_copies

    def change(content: str) -> None:
        def mark_and_change(*arguments: Any) -> Any:
            path.write_text(content)
            return mark(*arguments)

        monkeypatch.setattr(splitting, "mark_copies", mark_and_change)

    for number, content in enumerate(('{"text": "one"}\n', '{"text": "1"}\n{"text": "2"}\n{"text": "3"}\n')):
        write_rows(path, ["one", "two"])
        change(content)
        with pytest.raises(DataError, match=rf"the files in .* changed while they were split; remove .*out{number}"):
            do(path, tmp_path / f"out{number}")
    write_rows(path, ["one", "two"])
    change('{"text": "uno"}\n{"text": "due"}\n')
    with pytest.raises(DataError, match=r"the files in .* changed while they were split; remove .*out3"):
        do(path, tmp_path / "out3")


def test_source_without_documents_says_what_was_skipped(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [None, "", None])
    with pytest.raises(DataError, match=r"no documents in .*; skipped: 2 null, 1 empty$"):
        do(path, tmp_path / "out")


def test_without_pyarrow_says_which_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "a.jsonl", ["x"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"writing parquet needs pyarrow; .*perjoule\[data\]"):
        do(path, tmp_path / "out")


def test_progress_and_result_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "_SAY_EVERY_S", 0.0)
    monkeypatch.setattr("perjoule.data.sources.UNIT_BYTES", 500)
    path = write_rows(tmp_path / "a.jsonl", [f"document {number}" for number in range(100)] + ["document 1"])
    said: list[str] = []
    split(path, tmp_path / "out", SplitConfig(fractions=SHARES, part_bytes=500), said.append)
    assert any(line.startswith("read 1 of 5 pieces, ") and line.endswith(" left") for line in said), said
    assert any(line.startswith("written 4 of 5 pieces, ") for line in said)
    assert [line.split()[0] for line in said[-4:]] == ["train", "validation", "test", "dropped"]
    assert "%" in said[-2] and said[-1] == "dropped     1 duplicate"


@given(st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=4), st.integers(1, 40))
def test_copies_are_found_whatever_the_slices(tmp_path_factory: Any, files: list[list[int]], at_once: int) -> None:
    folder = tmp_path_factory.mktemp("hashes")
    paths = []
    for number, texts in enumerate(files):
        paths.append(folder / str(number))
        paths[-1].write_bytes(b"".join(content_hash(str(text)) for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_HASHES_AT_ONCE", at_once)
        num_copies = mark_copies(paths, folder / "copies")
    starts = document_starts(paths)
    seen: set[int] = set()
    for number, texts in enumerate(files):
        marks = read_copies(folder / "copies", starts[number], starts[number + 1])
        assert len(texts) == len(marks)
        for text, mark in zip(texts, marks, strict=True):
            assert bool(mark) == (text in seen)
            seen.add(text)
    assert num_copies == starts[-1] - len(seen)


def test_large_part_has_several_row_groups_and_is_read_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perjoule.data.parts._GROUP_BYTES", 100)
    rows = [f"document {number}" for number in range(100)]
    do(write_rows(tmp_path / "a.jsonl", rows), tmp_path / "out", fractions=Fractions(train=1, validation=0, test=0))
    (part,) = (tmp_path / "out" / "train").iterdir()
    assert parquet.ParquetFile(part).metadata.num_row_groups == 10
    assert contents(tmp_path / "out") == {"train": rows, "validation": [], "test": []}
    assert parquet.read_schema(part).field("text").type == pa.string()
