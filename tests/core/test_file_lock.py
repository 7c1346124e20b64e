"""Locks: only "would block" means that somebody has one; without locks the dead are told from the living."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from perjoule.core import file_lock
from perjoule.core.file_lock import Busy, Holder, held_lock, is_held, take

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF)


@pytest.fixture(params=NO_LOCKS, ids=lambda number: errno.errorcode[number])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(file_lock, "_SETTLE_S", 0.001)
    monkeypatch.setattr(file_lock, "_told", set())


@contextmanager
def somebody_else() -> Iterator[Holder]:
    """A process that waits, and is named as a holder would be."""
    process = subprocess.Popen(["sleep", "60"])
    try:
        yield replace(Holder.here(), pid=process.pid, started=file_lock._started(process.pid))
    finally:
        process.kill()
        process.wait()


def test_one_process_holds_a_file_or_a_folder_at_a_time(tmp_path: Path) -> None:
    for path in (tmp_path / "lock", tmp_path):
        with held_lock(path):
            with pytest.raises(Busy):
                take(path)
            assert is_held(path)
        assert not is_held(path)
        take(path).release()


def test_a_lock_that_is_busy_can_be_waited_for(tmp_path: Path) -> None:
    lock = take(tmp_path / "lock")
    threading.Timer(0.1, lock.release).start()
    begun = time.monotonic()
    take(tmp_path / "lock", wait=True).release()
    assert time.monotonic() - begun > 0.05


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_file_or_a_folder_is_held_by_who_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (tmp_path / "lock", tmp_path / "folder"):
        if path.name == "folder":
            path.mkdir()
        lock = take(path)
        with pytest.raises(Busy, match=str(os.getpid())):
            take(path)
        if path.name == "lock":
            assert is_held(path)
        lock.release()
        assert not is_held(path)
        take(path).release()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["folder", "lock"]
    assert len(caplog.messages) == 1 and "keeps no file locks" in caplog.text


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_dead_hold_nothing_and_the_living_do(tmp_path: Path) -> None:
    path, beside = tmp_path / "lock", tmp_path / ".lock.holder"
    with somebody_else() as holder:
        for named in (beside, path):  # beside by a process without locks, within by one that had them
            named.write_text(holder.text(), encoding="utf-8")
            path.touch()
            assert is_held(path)
            with pytest.raises(Busy, match=str(holder.pid)):
                take(path)
            named.unlink()
        rebooted = replace(holder, where="another-boot pid:[1]")
        reused = replace(holder, started=holder.started - 1)
        for gone in (rebooted, reused):
            beside.write_text(gone.text(), encoding="utf-8")
            assert not is_held(path)
            take(path).release()
    beside.write_text(holder.text(), encoding="utf-8")
    assert not is_held(path), "it was killed"


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_holder_elsewhere_counts_until_the_caller_knows_better(tmp_path: Path) -> None:
    path, beside = tmp_path / "lock", tmp_path / ".lock.holder"
    path.touch()
    elsewhere = (replace(Holder.here(), host="node7"), replace(Holder.here(), where=f"{Holder.here().where}1"))
    for holder in elsewhere:
        beside.write_text(holder.text(), encoding="utf-8")
        assert is_held(path)
        for wait in (False, True):  # waiting for it could last for ever
            with pytest.raises(Busy) as caught:
                take(path, wait=wait)
            assert f"on {holder.host}" in str(caught.value) and f"delete {beside}" in str(caught.value)
        assert not is_held(path, ended=lambda: True)
        take(path, ended=lambda: True).release()


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_living_holder_is_waited_for(tmp_path: Path) -> None:
    lock = take(tmp_path / "lock")
    threading.Timer(0.05, lock.release).start()
    mine = take(tmp_path / "lock", wait=True)
    assert is_held(tmp_path / "lock")
    mine.release()
    assert not is_held(tmp_path / "lock")


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("rest", ["", "{", json.dumps({"pid": "x"})])
def test_without_locks_a_name_that_cannot_be_read_is_not_waited_for_for_ever(tmp_path: Path, rest: str) -> None:
    (tmp_path / ".lock.holder").write_text(rest, encoding="utf-8")
    mine = take(tmp_path / "lock")
    assert (tmp_path / ".lock.holder").read_text(encoding="utf-8") == Holder.here().text()
    mine.release()


def test_a_file_that_cannot_be_opened_is_an_error_and_not_held(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        take(tmp_path / "missing" / "lock")
    assert not is_held(tmp_path / "missing" / "lock")


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from perjoule.core.file_lock import take\n"
    code += "lock = take(Path(sys.argv[1])); print('ready', flush=True); time.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(Busy, match=str(process.pid)):
            take(tmp_path / "lock")
        process.kill()
    take(tmp_path / "lock").release()
