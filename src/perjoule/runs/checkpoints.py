"""Checkpoint folders on disk: names, checksums, what is whole, what is newest. Knows nothing of tensors.

::

    checkpoints/
      00000200/
        model.safetensors       weights, by parameter name
        training.safetensors    optimizer state and random states
        state.json              progress, versions, what the run was
        SHA256SUMS              as `sha256sum -c` reads it; written last
      best.json                 {"step": 150, "loss": 4.21}, or what else checkpoints are ranked by

A checkpoint is written under a temporary name and renamed when all of it is on the disk. One whose sums do not fit is
damaged, and the one before it is taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from perjoule.core.errors import CheckpointError, RunFolderError
from perjoule.runs.files import flush, flush_folder, read_json, write_json

MODEL, TRAINING, STATE, SUMS, BEST = (
    "model.safetensors",
    "training.safetensors",
    "state.json",
    "SHA256SUMS",
    "best.json",
)
BY_LOSS = "lowest held_out_loss"
"""What checkpoints are ranked by, unless a recipe asks for something else."""


def publish(folder: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a temporary folder, add the checksums, flush everything, and give it its name.

    Raises:
        RunFolderError: if the disk is full or the folder cannot be written; what had the final name before is kept.
    """
    final, temporary = folder / f"{step:08d}", folder / f".{step:08d}.{os.getpid()}.tmp"
    before = folder / f".{step:08d}.before.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        sums = "".join(f"{file_sha256(path)}  {path.name}\n" for path in sorted(temporary.iterdir()))
        (temporary / SUMS).write_text(sums, encoding="utf-8")
        for path in temporary.iterdir():
            with path.open("rb") as file:
                flush(file)
        flush_folder(temporary)
        if final.exists():  # a resumed run passes the same step again
            final.rename(before)  # if the process is killed here, clean() gives a name to one of the two
        temporary.rename(final)
        flush_folder(folder)
    except OSError as error:
        raise RunFolderError(f"cannot write the checkpoint {final}: {error.strerror or error}") from error
    finally:
        if before.exists() and not final.exists():
            before.rename(final)
        shutil.rmtree(before, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def restate(folder: Path, step: int, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write the state of a checkpoint anew; its other files are kept, not copied.

    Args:
        folder: the run's ``checkpoints`` folder.
        step: of the checkpoint, which must be there.
        change: changes what ``state.json`` says.

    Raises:
        RunFolderError: as :func:`publish`; the checkpoint is as it was.
    """
    before = folder / f"{step:08d}"
    state = read_json(before / STATE)
    change(state)

    def write(temporary: Path) -> None:
        for path in before.iterdir():
            if path.name == STATE:
                write_json(temporary / STATE, state)
            elif path.name != SUMS:
                _link_or_copy(path, temporary / path.name)

    return publish(folder, step, write)


def _link_or_copy(path: Path, other: Path) -> None:
    """Give a file a second name, or copy it where the file system has no such names."""
    try:
        other.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, other)


def prune(folder: Path, keep: int, kept_besides: Collection[int], newest: int) -> None:
    """Delete all but the ``keep`` newest checkpoints and some besides.

    Args:
        folder: the run's ``checkpoints`` folder.
        keep: how many.
        kept_besides: steps that are kept as well, such as the best.
        newest: the step that was written last. What claims to be later was passed over as damaged, or belongs to steps
            that were thrown away.
    """
    steps = listed_steps(folder)
    kept = {*[step for step in steps if step <= newest][-keep:], newest, *kept_besides}
    for step in steps:
        if step not in kept:
            shutil.rmtree(folder / f"{step:08d}", ignore_errors=True)


def clean(folder: Path) -> None:
    """Tidy up after an interrupted write: name a checkpoint that lacked nothing but its name, delete the rest."""
    for leftover in list(folder.glob(".*.tmp")):
        final = folder / leftover.name.split(".")[1]
        if leftover.is_dir() and not final.exists():
            with contextlib.suppress(CheckpointError):
                verify(leftover)
                leftover.rename(final)
                continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def listed_steps(folder: Path) -> list[int]:
    """Return the steps of all checkpoints, whole or damaged, in ascending order."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.is_dir() and path.name.isdigit())


def mark_best(folder: Path, step: int, value: float, ranked_by: str = BY_LOSS) -> None:
    """Note which checkpoint, which is on the disk, is the best, and its value of what checkpoints are ranked by."""
    figure = {"loss": value} if ranked_by == BY_LOSS else {"value": value, "ranked_by": ranked_by}
    write_json(folder / BEST, {"step": step, **figure})


def remark_best(folder: Path, step: int | None, value: float | None, ranked_by: str = BY_LOSS) -> None:
    """Note the best checkpoint of a run that goes on, or take back a note that stems from steps that were thrown away.

    Args:
        folder: the run's ``checkpoints`` folder.
        step: of the best, as the run knows it; None if it knows none.
        value: its value of what checkpoints are ranked by.
        ranked_by: what that is, such as ``lowest held_out_loss``.
    """
    if step is not None and value is not None and (folder / f"{step:08d}").is_dir():
        mark_best(folder, step, value, ranked_by)
    else:
        (folder / BEST).unlink(missing_ok=True)


def best_step(folder: Path) -> int | None:
    """Return the step of the best checkpoint, or None if none was marked.

    Raises:
        RunFolderError: if the note is damaged.
    """
    if not (folder / BEST).is_file():
        return None
    try:
        return int(read_json(folder / BEST)["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{folder / BEST} is damaged: it names no step") from error


def verify(checkpoint: Path) -> None:
    """Compare every file of a checkpoint with its checksum.

    Raises:
        CheckpointError: naming the first file that is missing or differs.
    """
    sums = checkpoint / SUMS
    if not sums.is_file():
        raise CheckpointError(f"{checkpoint} is incomplete: it has no {SUMS}")
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines:
        raise CheckpointError(f"{checkpoint} is damaged: {SUMS} is empty")
    for line in lines:
        expected, _, name = line.partition("  ")
        path = checkpoint / name
        if not name:
            raise CheckpointError(f"{checkpoint} is damaged: {SUMS} cannot be read")
        if not path.is_file():
            raise CheckpointError(f"{checkpoint} is damaged: {name} is missing")
        if file_sha256(path) != expected:
            raise CheckpointError(f"{checkpoint} is damaged: the checksum of {name} does not fit its content")


def newest_whole(folder: Path, say: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint that is whole, or None if there is no checkpoint at all.

    Args:
        folder: the run's ``checkpoints`` folder.
        say: takes one line for each damaged checkpoint that is passed over.

    Raises:
        CheckpointError: if there are checkpoints and all are damaged.
    """
    steps = listed_steps(folder)
    for step in reversed(steps):
        checkpoint = folder / f"{step:08d}"
        try:
            verify(checkpoint)
        except CheckpointError as error:
            say(f"{error}; trying the one before")
            continue
        return checkpoint
    if steps:
        raise CheckpointError(f"all {len(steps)} checkpoints in {folder} are damaged; start the run anew")
    return None


def refuse_pickle(path: Path) -> None:
    """Refuse a file that only unpickling could read.

    Raises:
        CheckpointError: if the file is missing, or is a pickle or a torch.save archive.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    # A safetensors file begins with the length of its header, whose first byte is 0x80 as well in one of 32 files,
    # in eight bytes, and then the header: JSON.
    if head[8:] != b"{" and (head[:1] == b"\x80" or head[:4] == b"PK\x03\x04"):
        raise CheckpointError(
            f"{path} is a pickle (torch.save), and reading one runs any code in it: convert it to .safetensors"
        )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
