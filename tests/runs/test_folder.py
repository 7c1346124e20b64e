import errno
import fcntl
import json
import os
import re
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perjoule.core.errors import RunFolderError
from perjoule.core.file_lock import Holder
from perjoule.runs import checkpoints, files
from perjoule.runs.files import write_json
from perjoule.runs.folder import FINISHED, RUNNING, RunFolder, is_live, new_run_id, read_manifest, read_resolved


def create(path: Path, **facts: Any) -> RunFolder:
    return RunFolder.create(path, "steps: 3\n", {"steps": {"value": 3, "source": "default"}}, facts)


def test_a_run_folder_round_trips(tmp_path: Path) -> None:
    run = create(tmp_path / "runs" / "a", model={"kind": "transformer"})
    assert run.begin_segment({"device": "cpu"}) == 0
    run.append('{"kind":"step","segment":0,"step":1}')
    run.append_event("note", step=1, text="hello")
    run.update_segment(first_step=1)
    assert run.event_path(0).name == "0000-rank0.bin"
    run.end(FINISHED, "reached steps=3", last_step=3)
    run.close()
    run.close()
    manifest = read_manifest(run.path)
    assert (manifest["schema"], manifest["id"], manifest["status"]) == (1, "a", FINISHED)
    assert manifest["model"] == {"kind": "transformer"}
    (segment,) = manifest["segments"]
    assert segment["first_step"] == 1 and segment["last_step"] == 3 and segment["reason"] == "reached steps=3"
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["step", "note"]


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    create(tmp_path / "a").close()
    with pytest.raises(RunFolderError, match=r"exists already: continue it with `perjoule train --resume .*/a`"):
        create(tmp_path / "a")


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot create the run folder .*: Not a directory"):
        create(tmp_path / "file" / "a")
    with pytest.raises(RunFolderError, match="cannot create the run folder /proc/perjoule/a"):
        create(Path("/proc/perjoule/a"))


def test_only_one_process_may_write(tmp_path: Path) -> None:
    run = create(tmp_path / "a")
    assert is_live(run.path)
    with pytest.raises(RunFolderError, match=f"is being written by process {os.getpid()}; wait for it or stop it"):
        RunFolder.reopen(run.path)
    run.close()
    assert not is_live(run.path)
    again = RunFolder.reopen(run.path)
    assert again.begin_segment({}) == 0
    again.close()


def test_a_reader_that_looks_whether_a_run_is_live_does_not_lock_out_its_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path / "a").close()
    reader = os.open(tmp_path / "a" / "lock", os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)
    monkeypatch.setattr("perjoule.runs.folder.time.sleep", lambda _: os.close(reader))
    run = RunFolder.reopen(tmp_path / "a")
    assert is_live(run.path)
    run.close()


def test_a_killed_writer_releases_its_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from perjoule.runs.folder import RunFolder\n"
        "run = RunFolder.create(Path(sys.argv[1]), '', {}, {}); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert is_live(tmp_path / "a")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not is_live(tmp_path / "a")
    assert read_manifest(tmp_path / "a")["status"] == RUNNING
    RunFolder.reopen(tmp_path / "a").close()


def test_a_line_torn_by_a_kill_does_not_swallow_the_next(tmp_path: Path) -> None:
    run = create(tmp_path / "a")
    run.append('{"step":1}')
    run.close()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step":2,"lo')
    again = RunFolder.reopen(run.path)
    again.append('{"step":2}')
    again.close()
    assert (run.path / "metrics.jsonl").read_text().splitlines() == ['{"step":1}', '{"step":2,"lo', '{"step":2}']


def test_what_is_no_run_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no run folder .*/missing"):
        read_manifest(tmp_path / "missing")
    with pytest.raises(RunFolderError, match=r"is not a run folder: it has no manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 2}', "has schema 2; this perjoule reads 1 to 1: upgrade perjoule"),
        ("{}", "has schema None"),
        ("[]", "is damaged: it holds no JSON object"),
        ('{"schema"', "is damaged"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RunFolderError, match=message):
        read_manifest(tmp_path)


def test_a_full_disk_is_an_error_for_a_metrics_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda *_: 1)
        with pytest.raises(RunFolderError, match=r"cannot write .*metrics\.jsonl: the disk is full"):
            run.append("{}")
    run.close()
    run._metrics = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(RunFolderError, match=r"cannot write .*metrics\.jsonl: No space left on device"):
        run.append("{}")
    run.close()


def test_a_folder_whose_files_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    create(tmp_path / "a").close()
    (tmp_path / "a" / "metrics.jsonl").unlink()
    (tmp_path / "a" / "metrics.jsonl").mkdir()
    with pytest.raises(RunFolderError, match=r"cannot write .*metrics\.jsonl: Is a directory"):
        RunFolder.reopen(tmp_path / "a")
    assert not is_live(tmp_path / "a")


def test_run_ids_are_readable_and_unique() -> None:
    ids = {new_run_id("default") for _ in range(20)}
    assert len(ids) == 20
    assert all(re.fullmatch(r"default-\d{8}-\d{6}-[0-9a-f]{4}", one) for one in ids)


@pytest.mark.parametrize(
    ("stem", "begins"),
    [
        ("we\x1b[31mird\nname", "we_31mird_name-2"),
        ("../a b", "_a_b-2"),
        ("--help", "help-2"),
        ("größe.v2", "größe.v2-2"),
        ("é" * 300, "é" * 40 + "-2"),
        ("..", "run-2"),
    ],
)
def test_a_run_named_after_a_program_is_a_plain_name(stem: str, begins: str) -> None:
    assert new_run_id(stem).startswith(begins) and len(new_run_id(stem).encode()) < 255


def test_a_failed_write_keeps_the_old_content_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunFolderError, match=r"cannot write .*a\.json: No space left on device"):
        files.replace_atomically(path, fail)
    assert files.read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_writing_beneath_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot write .*: Not a directory"):
        files.write_atomically(tmp_path / "file" / "a.json", b"{}")


def test_unreadable_json_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"cannot read .*: No such file"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "a.json", float("nan"))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_file_locks_a_run_is_written_by_one_and_its_dead_writer_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    run = create(tmp_path / "a")
    assert is_live(run.path)
    with pytest.raises(RunFolderError, match=f"is being written by process {os.getpid()}"):
        RunFolder.reopen(run.path)
    holder = Holder.parse((run.path / ".lock.holder").read_text(encoding="utf-8"))
    assert holder == Holder.here()
    run.close()
    assert not is_live(run.path)
    for gone in (replace(holder, where="an earlier boot"), replace(holder, host="node7")):
        (run.path / ".lock.holder").write_text(gone.text(), encoding="utf-8")
        elsewhere = gone.host == "node7"
        assert is_live(run.path) == elsewhere, "what a living process elsewhere wrote lately cannot be told"
        if elsewhere:
            for file in (run.path / "lock", run.path / "metrics.jsonl", run.path / "manifest.json"):
                os.utime(file, (0, 0))
            assert not is_live(run.path)
        RunFolder.reopen(run.path).close()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EISDIR])
def test_a_folder_that_cannot_be_flushed_is_no_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    flushed = []

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    path = checkpoints.publish(tmp_path, 3, lambda folder: write_json(folder / "state.json", {}))
    checkpoints.verify(path)
    assert {"state.json", "SHA256SUMS"} <= set(flushed), "the files themselves were"


def test_a_disk_that_fails_is_an_error_for_folders_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        files.flush_folder(tmp_path)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"segments": "x"}, "segments must be a list of objects"),
        ({"segments": [1]}, "segments must be a list of objects"),
        ({"status": 3}, "status must be text"),
        ({"model": []}, "model must be an object"),
        ({"data": "text"}, "data must be an object"),
    ],
)
def test_a_manifest_with_parts_of_another_kind_is_one_line(tmp_path: Path, part: dict[str, Any], named: str) -> None:
    run = create(tmp_path / "a")
    run.close()
    (run.path / "manifest.json").write_text(json.dumps({**run.manifest, **part}), encoding="utf-8")
    with pytest.raises(RunFolderError, match=f"manifest.json is damaged: {named}"):
        read_manifest(run.path)


@pytest.mark.parametrize("text", ["[]", '{"a": 1}', "{"])
def test_damaged_values_with_sources_are_one_line(tmp_path: Path, text: str) -> None:
    run = create(tmp_path / "a")
    run.close()
    (run.path / "resolved.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"resolved\.json is damaged"):
        read_resolved(run.path)
