"""Checkpoint folders: whole or absent, newest whole first, nothing unpickled."""

import json
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from perjoule.core.errors import CheckpointError, RunFolderError
from perjoule.runs.checkpoints import (
    BEST,
    SUMS,
    best_step,
    clean,
    listed_steps,
    mark_best,
    newest_whole,
    prune,
    publish,
    refuse_pickle,
    remark_best,
    restate,
    verify,
)


def _writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_text(text)
        (folder / "state.json").write_text("{}")

    return write


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _no_message(line: str) -> None:
    raise AssertionError(line)


def test_published_checkpoint_is_whole_and_has_only_its_name(tmp_path: Path) -> None:
    path = publish(tmp_path / "checkpoints", 200, _writer("weights"))
    assert path == tmp_path / "checkpoints" / "00000200"
    verify(path)
    assert _names(tmp_path / "checkpoints") == ["00000200"]
    assert _names(path) == [SUMS, "model.safetensors", "state.json"]


def test_checksums_are_read_by_sha256sum(tmp_path: Path) -> None:
    path = publish(tmp_path, 1, _writer("weights"))
    check = ["sha256sum", "--strict", "-c", SUMS]
    assert subprocess.run(check, cwd=path, capture_output=True, check=False).returncode == 0
    (path / "state.json").write_text("[]")
    assert subprocess.run(check, cwd=path, capture_output=True, check=False).returncode == 1


def test_same_step_again_replaces_the_checkpoint(tmp_path: Path) -> None:
    publish(tmp_path, 1, _writer("old"))
    path = publish(tmp_path, 1, _writer("new"))
    assert (path / "model.safetensors").read_text() == "new"
    assert _names(tmp_path) == ["00000001"]
    verify(path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError("model: no space"), ValueError("x")])
def test_error_half_way_keeps_the_checkpoint_before_and_no_temporary_folder(error: Exception, tmp_path: Path) -> None:
    publish(tmp_path, 1, _writer("before"))

    def fail(folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise error

    expected = RunFolderError if isinstance(error, OSError) else ValueError
    with pytest.raises(expected) as caught:
        publish(tmp_path, 1, fail)
    if isinstance(error, OSError):
        assert str(caught.value) == f"cannot write the checkpoint {tmp_path}/00000001: {error.strerror or error}"
    assert _names(tmp_path) == ["00000001"]
    assert (tmp_path / "00000001" / "model.safetensors").read_text() == "before"


def test_error_while_renaming_gives_the_checkpoint_before_its_name_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, 1, _writer("before"))
    rename = Path.rename

    def fail_for_the_new_one(self: Path, target: Path) -> Path:
        if (self / "model.safetensors").read_text() == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail_for_the_new_one)
        with pytest.raises(RunFolderError, match="Input/output error"):
            publish(tmp_path, 1, _writer("new"))
    assert _names(tmp_path) == ["00000001"]
    assert (tmp_path / "00000001" / "model.safetensors").read_text() == "before"


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"cannot write the checkpoint .*file/00000001: Not a directory"):
        publish(tmp_path / "file", 1, _writer("x"))


def test_everything_is_on_the_disk_before_the_checkpoint_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []

    def flush(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        flushed.append(name if not (tmp_path / "00000001").exists() else "named")

    monkeypatch.setattr(os, "fsync", flush)
    publish(tmp_path, 1, _writer("x"))
    assert sorted(flushed[:3]) == [SUMS, "model.safetensors", "state.json"]
    assert flushed[3].endswith(".tmp")
    assert flushed[4:] == ["named"]


@pytest.mark.parametrize(
    ("keep", "best", "left"), [(2, None, [3, 4]), (2, 1, [1, 3, 4]), (1, 4, [4]), (9, None, [1, 2, 3, 4])]
)
def test_prune_keeps_the_newest_and_the_best(keep: int, best: int | None, left: list[int], tmp_path: Path) -> None:
    for step in (3, 1, 4, 2):
        publish(tmp_path, step, _writer(str(step)))
    prune(tmp_path, keep, [] if best is None else [best], 4)
    assert listed_steps(tmp_path) == left


def test_prune_keeps_what_was_written_last_and_not_what_claims_to_be_later(tmp_path: Path) -> None:
    for step in (5, 6, 10):
        publish(tmp_path, step, _writer(str(step)))
    prune(tmp_path, 1, [], 6)
    assert listed_steps(tmp_path) == [6]


def test_the_state_of_a_checkpoint_is_written_anew_and_its_other_files_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = publish(tmp_path, 5, _writer("weights"))
    before = (path / "model.safetensors").stat().st_ino
    for number in range(2):
        restate(tmp_path, 5, lambda state: state.update(seen=True))
        verify(path)
        assert json.loads((path / "state.json").read_text(encoding="utf-8"))["seen"]
        assert (path / "model.safetensors").read_text(encoding="utf-8") == "weights"
        assert ((path / "model.safetensors").stat().st_ino == before) == (number == 0)
        # a file system without second names gets a copy
        monkeypatch.setattr(Path, "hardlink_to", lambda self, target: os.link("/nowhere", self))


def test_the_mark_of_the_best_is_taken_back_with_the_steps_that_it_is_of(tmp_path: Path) -> None:
    publish(tmp_path, 5, _writer("x"))
    mark_best(tmp_path, 10, 1.0)
    remark_best(tmp_path, 5, 2.0)
    assert best_step(tmp_path) == 5
    for step, loss in ((7, 2.0), (None, None)):
        mark_best(tmp_path, 10, 1.0)
        remark_best(tmp_path, step, loss)
        assert best_step(tmp_path) is None


@pytest.mark.parametrize("text", ["[]", "{}", '{"step": null}', '{"step": "x"}', "3"])
def test_a_damaged_mark_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "best.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"best\.json is damaged"):
        best_step(tmp_path)


def test_listed_steps_are_ascending_and_only_checkpoints(tmp_path: Path) -> None:
    for step in (1000, 20, 100_000_000):
        publish(tmp_path, step, _writer(""))
    mark_best(tmp_path, 20, 1.5)
    (tmp_path / "00000007").touch()
    (tmp_path / "00000008.old").mkdir()
    assert listed_steps(tmp_path) == [20, 1000, 100_000_000]
    assert listed_steps(tmp_path / "missing") == []


def test_best_checkpoint_is_remembered(tmp_path: Path) -> None:
    assert best_step(tmp_path) is None
    mark_best(tmp_path, 150, 4.25)
    mark_best(tmp_path, 200, 4.125)
    assert best_step(tmp_path) == 200
    assert json.loads((tmp_path / BEST).read_text()) == {"step": 200, "loss": 4.125}


def test_clean_deletes_what_an_interrupted_write_left(tmp_path: Path) -> None:
    publish(tmp_path, 1, _writer("whole"))
    (tmp_path / ".00000002.77.tmp").mkdir()
    (tmp_path / ".00000002.77.tmp" / "model.safetensors").write_text("half")
    (tmp_path / ".best.json.77.tmp").write_text("{")
    clean(tmp_path)
    clean(tmp_path / "missing")
    assert _names(tmp_path) == ["00000001"]


@pytest.mark.parametrize("leftover", [".00000002.77.tmp", ".00000002.before.tmp"])
def test_clean_names_a_checkpoint_that_lacked_only_its_name(leftover: str, tmp_path: Path) -> None:
    publish(tmp_path, 2, _writer("whole")).rename(tmp_path / leftover)
    clean(tmp_path)
    assert _names(tmp_path) == ["00000002"]
    verify(tmp_path / "00000002")


def test_clean_prefers_the_checkpoint_that_has_its_name(tmp_path: Path) -> None:
    publish(tmp_path, 2, _writer("old")).rename(tmp_path / ".00000002.before.tmp")
    publish(tmp_path / "elsewhere", 2, _writer("new")).rename(tmp_path / "00000002")
    (tmp_path / "elsewhere").rmdir()
    clean(tmp_path)
    assert _names(tmp_path) == ["00000002"]
    assert (tmp_path / "00000002" / "model.safetensors").read_text() == "new"


def _flip(path: Path) -> None:
    (path / "model.safetensors").write_text("flipped")


def _remove(path: Path) -> None:
    (path / "state.json").unlink()


def _unlist(path: Path) -> None:
    (path / SUMS).unlink()


def _garble(path: Path) -> None:
    (path / SUMS).write_bytes(b"\xff\xff\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flip, "00000002 is damaged: the checksum of model.safetensors does not fit its content"),
        (_remove, "00000002 is damaged: state.json is missing"),
        (_unlist, "00000002 is incomplete: it has no SHA256SUMS"),
        (_garble, "00000002 is damaged: SHA256SUMS cannot be read"),
    ],
)
def test_damaged_newest_checkpoint_is_passed_over_with_one_line(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    publish(tmp_path, 1, _writer("one"))
    damage(publish(tmp_path, 2, _writer("two")))
    said: list[str] = []
    assert newest_whole(tmp_path, said.append) == tmp_path / "00000001"
    assert said == [f"{tmp_path}/{message}; trying the one before"]


def test_empty_list_of_checksums_is_damage(tmp_path: Path) -> None:
    path = publish(tmp_path, 1, _writer("one"))
    (path / SUMS).write_text("")
    with pytest.raises(CheckpointError, match="00000001 is damaged: SHA256SUMS is empty"):
        verify(path)


def test_newest_whole_checkpoint_is_taken_silently(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "missing", _no_message) is None
    for step in (9, 10):
        publish(tmp_path, step, _writer(str(step)))
    assert newest_whole(tmp_path, _no_message) == tmp_path / "00000010"


def test_checkpoints_that_are_all_damaged_are_an_error(tmp_path: Path) -> None:
    for step in (1, 2):
        _flip(publish(tmp_path, step, _writer("x")))
    said: list[str] = []
    with pytest.raises(CheckpointError) as caught:
        newest_whole(tmp_path, said.append)
    assert str(caught.value) == f"all 2 checkpoints in {tmp_path} are damaged; start the run anew"
    assert len(said) == 2


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_is_refused(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps({"a": list(range(100))}, protocol))
    with pytest.raises(CheckpointError) as caught:
        refuse_pickle(path)
    assert str(caught.value) == (
        f"{path} is a pickle (torch.save), and reading one runs any code in it: convert it to .safetensors"
    )


def test_archive_of_torch_save_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointError, match="is a pickle"):
        refuse_pickle(tmp_path / "weights.pt")


@pytest.mark.parametrize("header_bytes", [128, 0x0280, 0x0480, 256, 0x4B50])
def test_safetensors_file_is_not_taken_for_a_pickle_whatever_its_length(header_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(header_bytes.to_bytes(8, "little") + b"{}".ljust(header_bytes))
    refuse_pickle(path)
    assert load_file(path) == {}, "and it is one"


def test_missing_weights_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*gone: No such file or directory"):
        refuse_pickle(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"cannot read .*: Is a directory"):
        refuse_pickle(tmp_path)
