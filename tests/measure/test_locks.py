"""Locks on devices: whose they are, and who else may have them."""

import errno
import fcntl
import os
from dataclasses import replace
from pathlib import Path

import pytest

from perjoule.core.file_lock import Holder
from perjoule.measure.contract import Unavailable
from perjoule.measure.locks import DeviceLocks


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_a_device_is_held_until_it_is_released(runtime: Path) -> None:
    one, other = DeviceLocks("runs/one"), DeviceLocks("runs/other")
    assert one.take("GPU-1") is None
    assert one.take("GPU-1") is None
    assert other.take("GPU-2") is None
    assert other.take("GPU-1") == Unavailable(
        f"GPU-1 is metered by process {os.getpid()} (run runs/one): its energy would be counted twice"
    )
    one.release()
    one.release()
    assert other.take("GPU-1") is None
    assert sorted(path.name for path in (runtime / "perjoule").iterdir()) == ["GPU-1.lock", "GPU-2.lock"]
    other.release()


def test_what_harms_nobody_needs_no_lock(runtime: Path) -> None:
    assert DeviceLocks("run").take("") is None
    assert not (runtime / "perjoule").exists()


def test_a_forked_process_does_not_keep_what_its_parent_released(runtime: Path) -> None:
    locks = DeviceLocks("run")
    assert locks.take("GPU-1") is None
    inherited = os.dup(locks._held["GPU-1"])
    locks.release()
    assert DeviceLocks("other").take("GPU-1") is None
    os.close(inherited)


def test_a_folder_that_others_may_write_to_is_not_used(runtime: Path) -> None:
    (runtime / "perjoule").mkdir()
    (runtime / "perjoule").chmod(0o777)
    found = DeviceLocks("run").take("GPU-1")
    assert found == Unavailable(
        f"GPU-1: cannot make sure that no other run meters it: {runtime / 'perjoule'} is not a folder that belongs "
        "to you alone",
        "let XDG_RUNTIME_DIR name a folder of your own",
    )


def test_a_link_planted_in_its_place_is_not_followed(runtime: Path) -> None:
    (runtime / "elsewhere").mkdir(mode=0o700)
    (runtime / "perjoule").symlink_to(runtime / "elsewhere")
    found = DeviceLocks("run").take("GPU-1")
    assert found is not None and "is not a folder that belongs to you alone" in found.reason


def test_without_a_runtime_folder_there_is_one_for_each_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    locks = DeviceLocks("run")
    assert locks.take("test-of-locks") is None
    path = Path(f"/tmp/perjoule-{os.getuid()}/test-of-locks.lock")
    assert path.read_text() == f"{Holder.here().text()}\nrun"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    locks.release()
    path.unlink()


def test_without_file_locks_a_device_is_held_by_a_living_process_only(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    one, other = DeviceLocks("runs/one"), DeviceLocks("runs/other")
    assert one.take("GPU-1") is None
    assert isinstance(other.take("GPU-1"), Unavailable)
    gone = replace(Holder.here(), started=1)
    (runtime / "perjoule" / "GPU-1.lock").write_text(f"{gone.text()}\nruns/one", encoding="utf-8")
    assert other.take("GPU-1") is None
    other.release()
    one.release()
