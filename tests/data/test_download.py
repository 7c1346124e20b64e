"""What arrives is whole and what was asked for, however often the line is cut; who is offline is told what to place.

The servers are on the loopback interface: an HTTP server that can be made to misbehave, and a stand-in for the hub that
huggingface_hub's own client talks to.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from perjoule.core.errors import DataError, MissingExtra
from perjoule.data import download as download_module
from perjoule.data import fetch as fetch_module
from perjoule.data import hub
from perjoule.data.download import DownloadConfig, DownloadResult, download
from perjoule.data.fetch import Patience, fetch
from perjoule.data.sources import files_source

ROWS = "".join(json.dumps({"text": f"row {number} " * 9}) + "\n" for number in range(4000)).encode()
SHA256 = hashlib.sha256(ROWS).hexdigest()
SOON = Patience(timeout_s=1.0, retries=2, wait_s=0.001)


@dataclass
class Web:
    """Files by path, and how the server treats those who ask.

    Args:
        files: the content by path.
        cut_after: bytes of body after which the connection breaks, for each request in turn; then never again.
        status: answers instead of success, for each request in turn.
        redirects: to where, by path.
        ranges: whether parts can be had.
        tag: of all files; None: none is sent.
        length: how the end of a body is known: ``length``, ``chunks`` or ``close``.
        requests: what was asked: method, path, Range.
    """

    files: dict[str, bytes]
    cut_after: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    tag: str | None = '"one"'
    length: str = "length"
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    address: str = ""


@contextmanager
def serve(web: Web) -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None: ...

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path, _, _ = self.path.partition("?")
            web.requests.append((self.command, path, self.headers.get("Range")))
            if web.status:
                self.plain(web.status.pop(0))
            elif path in web.redirects:
                self.plain(302, {"Location": web.redirects[path]})
            elif path not in web.files:
                self.plain(404)
            else:
                self.file(web.files[path], body)

        def plain(self, status: int, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": "0", "Retry-After": "0", **web.headers, **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()

        def file(self, content: bytes, body: bool) -> None:
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if wanted and self.headers.get("If-Range", web.tag) != web.tag:
                wanted = None
            start = int(wanted[1]) if wanted and web.ranges else 0
            if start and start >= len(content):
                return self.plain(416, {"Content-Range": f"bytes */{len(content)}"})
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if web.tag:
                self.send_header("ETag", web.tag)
            for name, value in web.headers.items():
                self.send_header(name, value)
            rest = content[start:]
            if web.length == "length":
                self.send_header("Content-Length", str(len(rest)))
            elif web.length == "chunks":
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if body:
                cut = web.cut_after.pop(0) if web.cut_after else len(rest) + 1
                self.send(rest[:cut], complete=cut > len(rest))

        def send(self, data: bytes, complete: bool) -> None:
            if web.length == "chunks":
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) + b"0\r\n\r\n" * complete)
            else:
                self.wfile.write(data)
            self.wfile.flush()
            if not complete or web.length == "close":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def web() -> Iterator[Web]:
    with serve(Web({"/rows.jsonl": ROWS})) as server:
        yield server


def get(source: str, folder: Path, **settings: Any) -> DownloadResult:
    config = DownloadConfig(**{"wait_s": 0.001, "timeout_s": 5.0, "retries": 3, **settings})
    return download(source, folder, config, lambda line: None)


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "provenance.json").read_text())
    return found


def test_file_arrives_whole_and_its_origin_is_recorded(web: Web, tmp_path: Path) -> None:
    result = get(f"{web.address}/rows.jsonl", tmp_path / "in", sha256=SHA256.upper())
    assert (tmp_path / "in" / "rows.jsonl").read_bytes() == ROWS
    assert (result.files, result.num_bytes) == (("rows.jsonl",), len(ROWS))
    (entry,) = record(tmp_path / "in")["sources"].values()
    assert entry["files"] == [{"file": "rows.jsonl", "bytes": len(ROWS), "sha256": SHA256, "etag": '"one"'}]
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["provenance.json", "rows.jsonl"]
    assert len(list(files_source(tmp_path / "in", "text").documents(Counter()))) == 4000


def test_connection_that_is_cut_again_and_again_loses_nothing(web: Web, tmp_path: Path) -> None:
    web.cut_after = [1000, 20_000, 1, 70_000, 5]
    get(f"{web.address}/rows.jsonl", tmp_path / "in", sha256=SHA256, retries=1)
    assert (tmp_path / "in" / "rows.jsonl").read_bytes() == ROWS
    ranges = [wanted for _, _, wanted in web.requests]
    assert ranges == [None, "bytes=1000-", "bytes=21000-", "bytes=21001-", "bytes=91001-", "bytes=91006-"]


@pytest.mark.parametrize("length", ["chunks", "close"])
def test_body_without_a_length_is_whole_as_well(web: Web, tmp_path: Path, length: str) -> None:
    web.length = length
    get(f"{web.address}/rows.jsonl", tmp_path / "in", sha256=SHA256)
    assert (tmp_path / "in" / "rows.jsonl").read_bytes() == ROWS


def test_cut_between_chunks_is_noticed(web: Web, tmp_path: Path) -> None:
    web.length, web.cut_after = "chunks", [1000, 5]
    fetch(f"{web.address}/rows.jsonl", tmp_path / "rows.jsonl", tmp_path, None, SOON, print)
    assert (tmp_path / "rows.jsonl").read_bytes() == ROWS
    assert [wanted for _, _, wanted in web.requests] == [None, "bytes=1000-", "bytes=1005-"]


def test_end_that_cannot_be_told_from_a_broken_line_needs_a_checksum(web: Web, tmp_path: Path) -> None:
    web.length = "close"
    with pytest.raises(DataError, match=r"the server does not say how long the file is; give its sha256="):
        fetch(f"{web.address}/rows.jsonl", tmp_path / "rows.jsonl", tmp_path, None, SOON, print)


def test_download_that_gave_up_goes_on_where_it_was(web: Web, tmp_path: Path) -> None:
    web.cut_after = [50_000, 0, 0, 0]
    with pytest.raises(
        DataError, match=r"cannot download .*: the connection was closed after 50000 of \d+ bytes"
    ) as caught:
        get(f"{web.address}/rows.jsonl", tmp_path / "in", sha256=SHA256, retries=2)
    assert "(50 kB are kept for the next try)" in str(caught.value)
    assert not (tmp_path / "in" / "rows.jsonl").exists()
    web.requests.clear()
    get(f"{web.address}/rows.jsonl", tmp_path / "in", sha256=SHA256)
    assert web.requests == [("GET", "/rows.jsonl", "bytes=50000-")]
    assert (tmp_path / "in" / "rows.jsonl").read_bytes() == ROWS


FETCH = """
import sys
from pathlib import Path
from perjoule.data.download import DownloadConfig, download

download(sys.argv[1], Path(sys.argv[2]), DownloadConfig(sha256=sys.argv[3]), print)
"""


def test_download_that_was_killed_goes_on_where_it_was(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{web.address}/rows.jsonl"

    def parts() -> list[Path]:
        return list((tmp_path / "in").rglob("rows.jsonl.part"))

    web.cut_after = [50_000]
    killed = threading.Event()
    shutdown = socket.socket.shutdown
    monkeypatch.setattr(socket.socket, "shutdown", lambda self, how: (killed.wait(20), shutdown(self, how)))
    process = subprocess.Popen([sys.executable, "-c", FETCH, url, str(tmp_path / "in"), SHA256])
    try:
        deadline = time.monotonic() + 20
        while not any(part.stat().st_size for part in parts()) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
        killed.set()
    kept = parts()[0].stat().st_size
    assert 0 < kept <= 50_000
    web.requests.clear()
    get(url, tmp_path / "in", sha256=SHA256)
    assert web.requests == [("GET", "/rows.jsonl", f"bytes={kept}-")]
    assert (tmp_path / "in" / "rows.jsonl").read_bytes() == ROWS


def test_another_source_leaves_what_has_arrived_of_the_first(web: Web, tmp_path: Path) -> None:
    web.cut_after, web.files["/more.jsonl"] = [50_000, 0], ROWS
    with pytest.raises(DataError, match="50 kB are kept"):
        get(f"{web.address}/rows.jsonl", tmp_path / "in", sha256=SHA256, retries=0)
    get(f"{web.address}/more.jsonl", tmp_path / "in", sha256=SHA256)
    web.requests.clear()
    get(f"{web.address}/rows.jsonl", tmp_path / "in", sha256=SHA256)
    assert web.requests == [("GET", "/rows.jsonl", "bytes=50000-")]
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["more.jsonl", "provenance.json", "rows.jsonl"]


def test_file_that_arrived_before_a_kill_is_known_though_nothing_recorded_it(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{web.address}/rows.jsonl"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download_module, "write_json", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        get(url, tmp_path / "in", sha256=SHA256)
    web.requests.clear()
    get(url, tmp_path / "in", sha256=SHA256)
    assert web.requests == []
    assert "placed_by_hand" not in record(tmp_path / "in")["sources"][url]


def test_file_that_changed_on_the_server_is_not_glued_to_the_old_part(web: Web, tmp_path: Path) -> None:
    web.cut_after = [50_000, 0, 0, 0]
    url, path = f"{web.address}/rows.jsonl", tmp_path / "rows.jsonl"
    with pytest.raises(DataError):
        fetch(url, path, tmp_path, None, SOON, print)
    web.files["/rows.jsonl"], web.tag = ROWS[::-1], '"two"'
    assert fetch(url, path, tmp_path, None, SOON, print)["etag"] == '"two"'
    assert path.read_bytes() == ROWS[::-1]


def test_server_without_ranges_or_tags_starts_again(web: Web, tmp_path: Path) -> None:
    for number, (ranges, tag) in enumerate([(False, '"one"'), (True, None), (True, 'W/"weak"')]):
        web.ranges, web.tag, web.cut_after = ranges, tag, [50_000]
        get(f"{web.address}/rows.jsonl", tmp_path / str(number), sha256=SHA256)
        assert (tmp_path / str(number) / "rows.jsonl").read_bytes() == ROWS


def test_part_that_is_complete_already_is_recognised(web: Web, tmp_path: Path) -> None:
    url, path = f"{web.address}/rows.jsonl", tmp_path / "rows.jsonl"
    (tmp_path / "rows.jsonl.part").write_bytes(ROWS)
    (tmp_path / "rows.jsonl.json").write_text(json.dumps({"url": url, "validator": '"one"'}))
    assert fetch(url, path, tmp_path, SHA256, SOON, print)["bytes"] == len(ROWS)
    path.unlink()
    (tmp_path / "rows.jsonl.part").write_bytes(ROWS + b"more")
    (tmp_path / "rows.jsonl.json").write_text(json.dumps({"url": url, "validator": '"one"'}))
    fetch(url, path, tmp_path, SHA256, SOON, print)
    assert path.read_bytes() == ROWS


def test_server_that_sends_another_part_is_an_error(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{web.address}/rows.jsonl"
    (tmp_path / "rows.jsonl.part").write_bytes(ROWS[:10])
    (tmp_path / "rows.jsonl.json").write_text(json.dumps({"url": url, "validator": '"one"'}))
    web.headers = {"Content-Range": "bytes 0-3/4"}
    monkeypatch.setattr(BaseHTTPRequestHandler, "send_header", keep_only_the_last_range)
    with pytest.raises(DataError, match=r"the server sends another part than it was asked for"):
        fetch(url, tmp_path / "rows.jsonl", tmp_path, SHA256, SOON, print)


def keep_only_the_last_range(
    self: BaseHTTPRequestHandler, name: str, value: str, real: Any = BaseHTTPRequestHandler.send_header
) -> None:
    if name != "Content-Range" or value == "bytes 0-3/4":
        real(self, name, value)


def test_wrong_checksum_is_an_error_and_nothing_is_kept(web: Web, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"has the SHA-256 {SHA256} instead of {'0' * 64}: it is damaged"):
        get(f"{web.address}/rows.jsonl", tmp_path / "in", sha256="0" * 64)
    assert not list((tmp_path / "in").rglob("rows.jsonl*"))


def test_refusal_is_final_but_a_busy_server_is_asked_again(web: Web, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot download .*/nothing\.jsonl: 404 Not Found$"):
        get(f"{web.address}/nothing.jsonl", tmp_path / "in", sha256=SHA256)
    assert len(web.requests) == 1
    web.status = [503, 429, 500]
    get(f"{web.address}/rows.jsonl", tmp_path / "in", sha256=SHA256)
    assert len(web.requests) == 5
    web.status = [503] * 9
    with pytest.raises(DataError, match=r"503 Service Unavailable; without a network, place the file at .*b/rows"):
        get(f"{web.address}/rows.jsonl", tmp_path / "b", sha256=SHA256)


def test_offline_error_names_the_file_to_place_and_the_next_run_takes_it(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/rows.jsonl"
        message = rf"refused; without a network, place the file at {tmp_path}/in/rows\.jsonl and run this again"
        with pytest.raises(DataError, match=message):
            get(url, tmp_path / "in", sha256=SHA256)
        (tmp_path / "in" / "rows.jsonl").write_bytes(b"something else")
        with pytest.raises(DataError, match=r"rows\.jsonl has the SHA-256 \w+ instead of \w+: remove it, or place the"):
            get(url, tmp_path / "in", sha256=SHA256)
        (tmp_path / "in" / "rows.jsonl").write_bytes(ROWS)
        get(url, tmp_path / "in", sha256=SHA256)
    assert record(tmp_path / "in")["sources"][url]["placed_by_hand"] is True


def test_silent_server_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/rows.jsonl"
        with pytest.raises(DataError, match=r"cannot download .*: timed out"):
            get(url, tmp_path / "in", sha256=SHA256, timeout_s=0.05, retries=1)


def test_way_without_encryption_needs_a_checksum(web: Web, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl could be changed on its way: give the file's sha256=…, or"):
        get(f"{web.address}/rows.jsonl", tmp_path / "in")
    web.redirects = {"/moved.jsonl": f"{web.address}/rows.jsonl"}
    with pytest.raises(DataError, match=r"moved\.jsonl leads to http://.*, which is not encrypted; give the sha256="):
        fetch(f"{web.address}/moved.jsonl", tmp_path / "rows.jsonl", tmp_path, None, SOON, print)
    get(f"{web.address}/moved.jsonl", tmp_path / "in", sha256=SHA256)
    assert (tmp_path / "in" / "moved.jsonl").read_bytes() == ROWS


def test_address_that_does_not_say_what_the_file_is_needs_a_name(web: Web, tmp_path: Path) -> None:
    web.files["/get"] = ROWS
    with pytest.raises(DataError, match=r"'get' does not say what it holds; accepted: \.txt.*; give name="):
        get(f"{web.address}/get?id=3", tmp_path / "in", sha256=SHA256)
    assert get(f"{web.address}/get?id=3", tmp_path / "in", sha256=SHA256, name="r.jsonl").files == ("r.jsonl",)


def test_file_that_does_not_fit_is_not_begun(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(DataError, match=r"rows\.jsonl has \d+ kB, but only 5 B are free"):
        get(f"{web.address}/rows.jsonl", tmp_path / "in", sha256=SHA256)


def test_long_download_says_how_long_it_will_take(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "_SAY_EVERY_S", 0.0)
    said: list[str] = []
    fetch(f"{web.address}/rows.jsonl", tmp_path / "rows.jsonl", tmp_path, None, SOON, said.append)
    assert all(re.fullmatch(r"\S+ \w?B of \S+ \w?B, \S+ \w?B/s, .+ left", line) for line in said)
    assert said


def test_finished_download_is_not_repeated(web: Web, tmp_path: Path) -> None:
    url = f"{web.address}/rows.jsonl"
    first = get(url, tmp_path / "in", sha256=SHA256)
    web.requests.clear()
    assert get(url, tmp_path / "in", sha256=SHA256) == first
    assert web.requests == []
    (tmp_path / "in" / "rows.jsonl").write_bytes(b"cut")
    with pytest.raises(DataError, match="instead of"):
        get(url, tmp_path / "in", sha256="0" * 64)


def test_sources_share_a_folder_but_not_a_name(web: Web, tmp_path: Path) -> None:
    web.files["/other/rows.jsonl"] = web.files["/more.jsonl"] = ROWS
    get(f"{web.address}/rows.jsonl", tmp_path / "in", sha256=SHA256)
    get(f"{web.address}/more.jsonl", tmp_path / "in", sha256=SHA256)
    assert len(record(tmp_path / "in")["sources"]) == 2
    with pytest.raises(DataError, match=r"in/rows\.jsonl is from http.*/rows\.jsonl already; choose another folder"):
        get(f"{web.address}/other/rows.jsonl", tmp_path / "in", sha256=SHA256)
    with pytest.raises(DataError, match=r"another process is writing"), exclusively(tmp_path / "in"):
        get(f"{web.address}/rows.jsonl", tmp_path / "in", sha256=SHA256)


@contextmanager
def exclusively(folder: Path) -> Iterator[None]:
    with download_module.exclusive(folder):  # type: ignore[attr-defined]
        yield


def local_folder(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("one")
    (folder / "sub" / "b.jsonl").write_text('{"text": "two"}\n')
    (folder / "sub" / "c.py").write_text("three = 3\n")
    (folder / "d.py").write_bytes(b"\xff not utf-8")
    (folder / "e.py").write_text("")
    return folder


def test_local_folder_is_linked_with_its_structure(tmp_path: Path) -> None:
    source = local_folder(tmp_path / "here")
    result = get(str(source), tmp_path / "in")
    assert result.files == ("a.txt", "sub/b.jsonl")
    assert (tmp_path / "in" / "sub" / "b.jsonl").samefile(source / "sub" / "b.jsonl")
    assert get(str(source), tmp_path / "in") == result
    assert get(str(source), tmp_path / "one", files="sub/*.jsonl").files == ("sub/b.jsonl",)
    assert get(str(source / "a.txt"), tmp_path / "file").files == ("a.txt",)
    assert get(str(source), source / "inside").files == result.files, "what is in the target is no source"
    (source / "later.txt").write_text("later")
    joined = get(str(source), source / "inside", files=["later.txt"])
    assert joined.files == ("later.txt", "a.txt", "sub/b.jsonl"), "what came before stays"


def test_local_files_are_copied_where_they_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*arguments: Any) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    source = local_folder(tmp_path / "here")
    get(str(source), tmp_path / "in")
    assert (tmp_path / "in" / "a.txt").read_text() == "one"
    assert not (tmp_path / "in" / "a.txt").samefile(source / "a.txt")
    (source / "a.txt").write_text("changed since")
    get(str(source), tmp_path / "in", files=["*.txt"])
    assert (tmp_path / "in" / "a.txt").read_text() == "changed since"


def test_file_that_is_in_the_way_is_kept(tmp_path: Path) -> None:
    source = local_folder(tmp_path / "here")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("mine")
    with pytest.raises(DataError, match=r"in/a\.txt is there already, and is another file than .*here/a\.txt; rem"):
        get(str(source), tmp_path / "in")
    assert (tmp_path / "in" / "a.txt").read_text() == "mine"


def test_any_files_become_rows_if_they_are_named_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = local_folder(tmp_path / "here")
    result = get(str(source), tmp_path / "in", documents="*.py")
    assert result.files == ("here-00000.parquet",)
    assert dict(result.skipped) == {"not_utf8": 1, "empty": 1}
    rows = parquet.read_table(tmp_path / "in" / "here-00000.parquet").to_pylist()
    assert rows == [{"text": "three = 3\n", "name": "sub/c.py"}]
    both = get(str(source), tmp_path / "both", documents=["sub/*.py"], files=["*.txt"])
    assert both.files == ("a.txt", "here-00000.parquet")
    with pytest.raises(DataError, match=r"no documents in .*; skipped: 1 not_utf8"):
        get(str(source), tmp_path / "none", documents="d.py")


def test_standard_library_becomes_rows_in_parts(tmp_path: Path) -> None:
    result = get("stdlib", tmp_path / "in", part_bytes=4_000_000)
    assert result.files == ("stdlib-00000.parquet", "stdlib-00001.parquet", "stdlib-00002.parquet")
    names = [name for file in result.files for name in parquet.read_table(tmp_path / "in" / file)["name"].to_pylist()]
    assert names == sorted(names) and "json/decoder.py" in names
    assert get("stdlib", tmp_path / "in").files == ("stdlib-00000.parquet",), "and the old parts are gone"
    assert len(list((tmp_path / "in").glob("*.parquet"))) == 1
    (entry,) = record(tmp_path / "in")["sources"].values()
    assert entry["python"] == ".".join(map(str, sys.version_info[:3]))


def test_source_that_is_nothing_says_what_would_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder allenai/c4; a data set of the hub is hf:owner/name"):
        get("allenai/c4", tmp_path / "in")
    source = local_folder(tmp_path / "here")
    with pytest.raises(DataError, match=r"none of the 5 files below .*here matches \*\.csv"):
        get(str(source), tmp_path / "in", files="*.csv")


COMMIT = "1234567890abcdef1234567890abcdef12345678"


def hub_web(files: dict[str, bytes]) -> Web:
    """Serve a data set ``team/texts`` as the hub does."""
    siblings = []
    for name, content in files.items():
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
        if name.endswith(".parquet"):
            sha256 = hashlib.sha256(content).hexdigest()
            sibling["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 130}
        siblings.append(sibling)
    info = {"id": "team/texts", "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0, "private": False}
    answers = {f"/datasets/team/texts/resolve/{COMMIT}/{name}": content for name, content in files.items()}
    answers["/api/datasets/team/texts/revision/main"] = json.dumps(info).encode()
    return Web(answers, headers={"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}, tag='"etag-of-the-hub"')


def parquet_bytes(rows: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"text": rows}), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    files = {f"en/train-{number}.parquet": parquet_bytes([f"row {number}"]) for number in range(3)}
    with serve(hub_web({**files, "README.md": b"# texts\n", "en/a.jsonl": ROWS})) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def test_data_set_of_the_hub_arrives_pinned_and_compared(hub_server: Web, tmp_path: Path) -> None:
    result = get("hf:team/texts", tmp_path / "in")
    assert result.files == ("en/a.jsonl", "en/train-0.parquet", "en/train-1.parquet", "en/train-2.parquet")
    entry = record(tmp_path / "in")["sources"]["hf:team/texts"]
    assert {file["commit"] for file in entry["files"]} == {COMMIT}
    assert [set(file) for file in entry["files"]] == [
        {"file", "bytes", "commit", "git"},
        *[{"file", "bytes", "commit", "sha256"}] * 3,
    ]
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["en", "provenance.json"]
    assert len(list(files_source(tmp_path / "in", "text").documents(Counter()))) == 4003
    hub_server.requests.clear()
    assert get("hf://datasets/team/texts", tmp_path / "in") == result
    assert hub_server.requests == []


def test_subset_of_a_data_set_is_all_that_is_downloaded(hub_server: Web, tmp_path: Path) -> None:
    assert get("hf:team/texts", tmp_path / "in", files="en/train-[01]*").files == (
        "en/train-0.parquet",
        "en/train-1.parquet",
    )
    asked = {path.rpartition("/")[2] for method, path, _ in hub_server.requests if "/resolve/" in path}
    assert asked == {"train-0.parquet", "train-1.parquet"}
    with pytest.raises(DataError, match=r"none of the 5 files of team/texts matches en/trian-1\.parquet; did you"):
        get("hf:team/texts", tmp_path / "in", files="en/trian-1.parquet")


def test_second_subset_joins_the_first_in_the_record(hub_server: Web, tmp_path: Path) -> None:
    get("hf:team/texts", tmp_path / "in", files="en/train-0*")
    result = get("hf:team/texts", tmp_path / "in", files="en/train-1*")
    assert result.files == ("en/train-1.parquet", "en/train-0.parquet")
    assert len(record(tmp_path / "in")["sources"]["hf:team/texts"]["files"]) == 2


def test_files_that_have_arrived_are_not_asked_for_again(hub_server: Web, tmp_path: Path) -> None:
    get("hf:team/texts", tmp_path / "in", files="en/train*")
    (tmp_path / "in" / "en" / "train-1.parquet").write_bytes(b"damaged")
    hub_server.requests.clear()
    get("hf:team/texts", tmp_path / "in", files="en/train*")
    asked = {path.rpartition("/")[2] for method, path, _ in hub_server.requests if "/resolve/" in path}
    assert asked == {"train-1.parquet"}
    assert (tmp_path / "in" / "en" / "train-1.parquet").read_bytes() == parquet_bytes(["row 1"])


def test_file_that_is_not_what_the_hub_says_is_an_error(hub_server: Web, tmp_path: Path) -> None:
    path = f"/datasets/team/texts/resolve/{COMMIT}/en/train-1.parquet"
    content = bytearray(hub_server.files[path])
    content[20] ^= 1
    hub_server.files[path] = bytes(content)
    with pytest.raises(DataError, match=r"en/train-1\.parquet of team/texts is not what the hub says; run this again"):
        get("hf:team/texts", tmp_path / "in")
    assert not (tmp_path / "in" / "en" / "train-1.parquet").exists()


def test_unknown_data_set_and_name_are_errors(hub_server: Web, tmp_path: Path) -> None:
    hub_server.headers = {"X-Error-Code": "RepoNotFound"}
    with pytest.raises(DataError, match=r"no data set 'team/other' on the hub, or it is private: .* set HF_TOKEN"):
        get("hf:team/other", tmp_path / "in")
    with pytest.raises(DataError, match=r"'a/b/c' is no name of a data set"):
        get("hf:a/b/c", tmp_path / "in")
    with pytest.raises(DataError, match=r"none of the 1 files of team/texts can hold documents"):
        hub_server.files["/api/datasets/team/texts/revision/main"] = json.dumps(
            {"id": "team/texts", "sha": COMMIT, "siblings": [{"rfilename": "README.md", "size": 3, "blobId": "0"}]}
        ).encode()
        get("hf:team/texts", tmp_path / "in")


def test_hub_that_refuses_is_an_error_and_one_that_fails_is_out_of_reach(hub_server: Web, tmp_path: Path) -> None:
    hub_server.status = [403]
    with pytest.raises(DataError, match=r"the hub refuses to list team/texts: .*403 Forbidden[^;]*$"):
        get("hf:team/texts", tmp_path / "in")
    hub_server.status = [500] * 9
    with pytest.raises(DataError, match=r"the hub refuses to list team/texts: .*500.*; without a network, place"):
        get("hf:team/texts", tmp_path / "in")


def test_token_of_the_environment_is_sent(hub_server: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    seen: list[str | None] = []
    real = BaseHTTPRequestHandler.parse_request

    def parse(self: BaseHTTPRequestHandler) -> bool:
        fine = real(self)
        seen.append(self.headers.get("Authorization"))
        return fine

    monkeypatch.setattr(BaseHTTPRequestHandler, "parse_request", parse)
    get("hf:team/texts", tmp_path / "in", files="en/train-0*")
    assert set(seen) == {"Bearer hf_secret"}
    assert "hf_secret" not in (tmp_path / "in" / "provenance.json").read_text()


def test_offline_hub_names_what_to_place_and_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        message = (
            r"cannot reach the hub for team/texts: .*; without a network, place en/train-0\* of "
            rf"https://huggingface\.co/datasets/team/texts below {tmp_path}/in and run this again"
        )
        with pytest.raises(DataError, match=message):
            get("hf:team/texts", tmp_path / "in", files="en/train-0*")
        (tmp_path / "in" / "en").mkdir()
        (tmp_path / "in" / "en" / "train-00.parquet").write_bytes(parquet_bytes(["placed"]))
        assert get("hf:team/texts", tmp_path / "in", files="en/train-0*").files == ("en/train-00.parquet",)
        with pytest.raises(DataError, match=r"place en/train-1\* of"):
            get("hf:team/texts", tmp_path / "in", files=["en/train-0*", "en/train-1*"])
    assert record(tmp_path / "in")["sources"]["hf:team/texts"]["placed_by_hand"] is True


def test_errors_of_the_hub_s_client_are_one_line_each(
    hub_server: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx2
    import huggingface_hub
    from huggingface_hub import errors

    response = httpx2.Response(403, request=httpx2.Request("GET", "https://hub"))

    def fail(error: Exception) -> Any:
        def raising(*arguments: Any, **settings: Any) -> Any:
            raise error

        return raising

    refusals: list[tuple[Exception, str]] = [
        (errors.GatedRepoError("no", response=response), r"team/texts wants its conditions accepted: .*set HF_TOKEN"),
        (errors.RevisionNotFoundError("no", response=response), r"team/texts has no revision 'main'"),
    ]
    for error, message in refusals:
        with monkeypatch.context() as patch, pytest.raises(DataError, match=message):
            patch.setattr(huggingface_hub.HfApi, "dataset_info", fail(error))
            get("hf:team/texts", tmp_path / "in")
    breaks: list[tuple[Exception, str]] = [
        (
            errors.LocalEntryNotFoundError("the line is cut"),
            r"cannot download en/\S+ of team/texts: the line is cut; witho",
        ),
        (errors.HfHubHTTPError("500\nmore", response=response), r"cannot download en/\S+ of team/texts: 500$"),
        (OSError(28, "No space left on device"), r"cannot write .*in: No space left on device; run the same command"),
    ]
    for error, message in breaks:
        with monkeypatch.context() as patch, pytest.raises(DataError, match=message):
            patch.setattr(huggingface_hub, "hf_hub_download", fail(error))
            get("hf:team/texts", tmp_path / "in")


def test_data_set_that_does_not_fit_is_not_begun(
    hub_server: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"\d+ kB are to be downloaded, but only 5 B are free in .*in"):
        get("hf:team/texts", tmp_path / "in")


def test_hub_without_its_client_says_which_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"the hub needs huggingface_hub; .*perjoule\[data\]"):
        get("hf:team/texts", tmp_path / "in")


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="pattern"):
        DownloadConfig(sha256="abc")
    with pytest.raises(ValueError, match="pattern"):
        DownloadConfig(name="../x.txt")
    config = DownloadConfig.model_validate({"files": "a/*.txt", "documents": [".py", "*.rst"]})
    assert (config.files, config.documents) == (("a/*.txt",), ("*.py", "*.rst"))


def test_a_folder_is_not_copied_into_itself(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(DataError, match="is the source itself; choose another folder"):
        download(str(tmp_path), tmp_path / "." / "", DownloadConfig(), print)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
