"""Saving and restoring everything that decides what the next step computes.

Weights, optimizer state, progress and every random state go into safetensors and JSON; nothing is pickled. Saving
copies the tensors into memory that is kept from one checkpoint to the next, and a thread writes that copy while
training goes on; only the copy blocks.
"""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from perjoule.core.errors import CheckpointError, RunFolderError
from perjoule.models.weights import load_weights, unique_tensors
from perjoule.runs import checkpoints
from perjoule.runs.files import read_json, write_json
from perjoule.train.stopping import Progress

STATE_SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Saved:
    """What is known of a checkpoint when it is on the disk.

    Args:
        path: its folder.
        step: optimizer steps taken.
        num_bytes: size of its files.
        blocked_s: how long training waited.
        write_s: how long writing took, beside training.
    """

    path: Path
    step: int
    num_bytes: int
    blocked_s: float
    write_s: float


class Checkpointer:
    """Writes the checkpoints of one run.

    Args:
        folder: the run's ``checkpoints`` folder.
        model: the module whose weights are saved.
        optimizer: its optimizer.
        keep: how many of the newest to keep, besides the best.
        asynchronous: write in a thread.
        done: called with a :class:`Saved` when one is on the disk, from the writing thread.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        keep: int,
        asynchronous: bool,
        done: Callable[[Saved], None],
    ) -> None:
        self.folder, self.model, self.optimizer = folder, model, optimizer
        self.keep, self.asynchronous, self.done = keep, asynchronous, done
        self._memory: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, progress: Progress, random_states: list[dict[str, Any]]) -> None:
        """Save the current state. Returns when training may go on.

        Args:
            progress: where the run is.
            random_states: one per rank, from :func:`random_state`.

        Raises:
            RunFolderError: if this or the previous checkpoint cannot be written (a full disk).
        """
        started = time.monotonic()
        self.wait()
        weights = self._copy("model", unique_tensors(self.model))
        training, scalars = optimizer_tensors(self.model, self.optimizer)
        training = self._copy("optimizer", training)
        for rank, state in enumerate(random_states):
            training |= {f"random.{rank}.{name}": tensor for name, tensor in state["tensors"].items()}
        state = {
            "schema": STATE_SCHEMA,
            "progress": dataclasses.asdict(progress),
            "optimizer_scalars": scalars,
            "random": [state["plain"] for state in random_states],
        }
        now = dataclasses.replace(progress)
        blocked_s = time.monotonic() - started

        def write() -> None:
            begun = time.monotonic()
            path = checkpoints.publish(self.folder, now.step, write_files)
            num_bytes = sum(file.stat().st_size for file in path.iterdir())
            self._note_best(now)
            self.done(Saved(path, now.step, num_bytes, blocked_s, time.monotonic() - begun))

        def write_files(folder: Path) -> None:
            _write_tensors(weights, folder / checkpoints.MODEL)
            _write_tensors(training, folder / checkpoints.TRAINING)
            write_json(folder / checkpoints.STATE, state)

        if self.asynchronous:
            self._thread = threading.Thread(target=self._guarded, args=(write,), name="perjoule-checkpoint")
            self._thread.start()
        else:
            self._guarded(write)
            self.wait()

    def _guarded(self, write: Callable[[], None]) -> None:
        """Run, and keep the error for the training thread."""
        try:
            write()
        except Exception as error:
            self._error = error

    def restate(self, progress: Progress) -> None:
        """Write into the checkpoint of this step what has become known since it was saved: an evaluation.

        Raises:
            RunFolderError: if this or the previous checkpoint cannot be written.
        """
        self.wait()
        checkpoints.restate(
            self.folder, progress.step, lambda state: state.update(progress=dataclasses.asdict(progress))
        )
        self._note_best(progress)

    def _note_best(self, progress: Progress) -> None:
        """Mark the best checkpoint, which is on the disk, and delete those that are kept no longer."""
        if progress.top and progress.top[0][1] == progress.step:
            checkpoints.mark_best(self.folder, progress.step, progress.top[0][0], progress.ranked_by)
        checkpoints.prune(self.folder, self.keep, [step for _, step in progress.top], progress.step)

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk; raise what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, OSError):
                raise RunFolderError(f"cannot write a checkpoint below {self.folder}: {error.strerror}") from error
            raise error

    def _copy(self, section: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copy tensors into memory that is allocated once."""
        copies: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            key = f"{section}/{name}"
            kept = self._memory.get(key)
            if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
                kept = self._memory[key] = torch.empty(tensor.shape, dtype=tensor.dtype)
            copies[name] = kept.copy_(tensor.detach())
        return copies


def _write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file; its writer's own error for a full disk becomes the system's."""
    path.touch()
    mode = path.stat().st_mode  # as the umask wants it; the writer lets nobody else read its file
    try:
        save_file(tensors, path, {"format": "pt"})
        path.chmod(mode)
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error


def restore(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> tuple[Progress, bool]:
    """Load a verified checkpoint into a model, its optimizer and this process's random states.

    Returns:
        The progress, and whether this rank's random states were among the saved ones (they are not when a run is
        continued with more ranks than it had).

    Raises:
        CheckpointError: if another version wrote it, or it does not fit the model.
    """
    state = read_json(checkpoint / checkpoints.STATE)
    if state["schema"] != STATE_SCHEMA:
        raise CheckpointError(f"{checkpoint} has schema {state['schema']}; this version reads {STATE_SCHEMA}")
    load_weights(checkpoint / checkpoints.MODEL, model)
    training = load_file(checkpoint / checkpoints.TRAINING)
    load_optimizer(model, optimizer, training, state["optimizer_scalars"])
    known = rank < len(state["random"])
    if known:
        prefix = f"random.{rank}."
        tensors = {key.removeprefix(prefix): value for key, value in training.items() if key.startswith(prefix)}
        restore_random_state({"tensors": tensors, "plain": state["random"][rank]})
    return Progress.revive(state["progress"]), known


def optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """Return the optimizer's state as ``optimizer.<parameter>.<entry>`` tensors, and its plain values."""
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{name}.{key}"] = value
            else:
                scalars.setdefault(name, {})[key] = value
    return tensors, scalars


def load_optimizer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    scalars: Mapping[str, Mapping[str, Any]],
) -> None:
    """Set the optimizer's state from what :func:`optimizer_tensors` gave."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ordered = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for index, name in enumerate(ordered):
        prefix = f"optimizer.{name}."
        entries = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        entries |= scalars.get(name, {})
        if entries:
            state[index] = entries
    # torch puts each entry on the device and in the type that the optimizer's own kind of step wants.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state() -> dict[str, Any]:
    """Return the state of every generator of this process: Python, NumPy, torch, and each CUDA device."""
    version, integers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if torch.cuda.is_available():
        tensors |= {f"cuda{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    plain = {
        "python": [version, list(integers), gauss],
        "numpy": [str(name), int(position), int(has_gauss), float(cached)],
    }
    return {"tensors": tensors, "plain": plain}


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set every generator of this process to a state from :func:`random_state`."""
    tensors, plain = state["tensors"], state["plain"]
    version, integers, gauss = plain["python"]
    random.setstate((version, tuple(integers), gauss))
    name, position, has_gauss, cached = plain["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda{index}"], index)
