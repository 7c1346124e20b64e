"""Saving and restoring: the next step computes the same bits; a full disk or a damaged file costs one checkpoint."""

import contextlib
import errno
import random
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from perjoule.core.errors import CheckpointError, RunFolderError
from perjoule.models.weights import unique_tensors
from perjoule.runs import checkpoints
from perjoule.runs.files import read_json, write_json
from perjoule.train import checkpoint
from perjoule.train.checkpoint import (
    Checkpointer,
    Saved,
    optimizer_tensors,
    random_state,
    restore,
    restore_random_state,
)
from perjoule.train.optimizer import OptimizerConfig
from perjoule.train.stopping import Progress


class Tied(nn.Module):
    """A small language model with tied weights, dropout, a buffer and something frozen."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, dim)
        self.norm = nn.BatchNorm1d(dim)
        self.frozen = nn.Linear(dim, dim).requires_grad_(False)
        self.output = nn.Linear(dim, 11)
        self.output.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = F.dropout(self.norm(self.frozen(self.embedding(ids))), 0.2)
        return F.cross_entropy(self.output(hidden), (ids + 1) % 11)


def _pair(seed: int = 0, fused: bool = False) -> tuple[Tied, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = Tied()
    return model, OptimizerConfig(lr=0.05).build(model, fused)


def _train(model: Tied, optimizer: torch.optim.AdamW, steps: int) -> list[float]:
    """Train on random ids from torch's global generator; return the losses."""
    losses = []
    for _ in range(steps):
        loss = model(torch.randint(11, (16,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _bits(model: Tied) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def _checkpointer(folder: Path, asynchronous: bool = False, **more: Any) -> Checkpointer:
    model, optimizer = more.pop("pair", None) or _pair()
    return Checkpointer(folder, model, optimizer, more.pop("keep", 2), asynchronous, more.pop("done", lambda _: None))


def _hold(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold back every write until the event is set."""
    go = threading.Event()

    def slow(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        assert go.wait(20)
        save_file(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", slow)
    return go


def _full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the second file of a checkpoint, after the first has been written."""

    def fail(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        if path.name == checkpoints.TRAINING:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", fail)


@contextlib.contextmanager
def _largest_file(num_bytes: int) -> Iterator[None]:
    """Let the kernel refuse larger files, so that the real writers fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_restored_training_continues_bit_for_bit(fused: bool, asynchronous: bool, tmp_path: Path) -> None:
    model, optimizer = _pair(0, fused)
    _train(model, optimizer, 3)
    progress = Progress(step=3, samples=48, tokens=48, useful=40, seconds=0.1, best_loss=2.3, best_step=2)
    checkpointer = Checkpointer(tmp_path, model, optimizer, 2, asynchronous, lambda _: None)
    checkpointer.save(progress, [random_state()])
    losses = _train(model, optimizer, 4)
    checkpointer.wait()

    other, other_optimizer = _pair(99, fused)
    _train(other, other_optimizer, 1)
    saved = checkpoints.newest_whole(tmp_path, pytest.fail)
    assert saved is not None
    assert restore(saved, other, other_optimizer, rank=0) == (progress, True)
    assert other.output.weight is other.embedding.weight
    assert _train(other, other_optimizer, 4) == losses
    assert _equal(_bits(other), _bits(model))
    assert _equal(optimizer_tensors(other, other_optimizer)[0], optimizer_tensors(model, optimizer)[0])


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_another_kind_of_optimizer_step_takes_up_the_state(before: bool, after: bool, tmp_path: Path) -> None:
    model, optimizer = _pair(0, before)
    _train(model, optimizer, 3)
    _checkpointer(tmp_path, pair=(model, optimizer)).save(Progress(step=3), [random_state()])
    losses = _train(model, optimizer, 4)
    other, other_optimizer = _pair(1, after)
    restore(tmp_path / "00000003", other, other_optimizer, rank=0)
    assert other_optimizer.param_groups[0]["fused"] is after
    assert _train(other, other_optimizer, 4) == pytest.approx(losses, rel=1e-5)


def test_checkpoint_before_the_first_step_has_no_optimizer_state(tmp_path: Path) -> None:
    pair = _pair()
    _checkpointer(tmp_path, pair=pair).save(Progress(), [random_state()])
    losses = _train(*pair, 2)
    other = _pair(1)
    restore(tmp_path / "00000000", *other, rank=0)
    assert other[1].state == {}
    assert _train(*other, 2) == losses


def test_files_hold_tied_weights_once_and_no_pickle(tmp_path: Path) -> None:
    pair = _pair()
    _train(*pair, 1)
    _checkpointer(tmp_path, pair=pair).save(Progress(step=1), [random_state()])
    weights = load_file(tmp_path / "00000001" / checkpoints.MODEL)
    assert "embedding.weight" in weights
    assert "output.weight" not in weights
    assert weights.keys() == unique_tensors(pair[0]).keys()
    training = load_file(tmp_path / "00000001" / checkpoints.TRAINING)
    assert torch.equal(training["optimizer.embedding.weight.exp_avg"], pair[1].state[pair[0].output.weight]["exp_avg"])
    assert not any("frozen" in name for name in training)
    assert sorted(path.suffix for path in (tmp_path / "00000001").iterdir()) == ["", ".json"] + [".safetensors"] * 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_saved_says_what_was_written_and_what_it_cost(asynchronous: bool, tmp_path: Path) -> None:
    reports: list[Saved] = []
    threads: list[str] = []

    def done(saved: Saved) -> None:
        reports.append(saved)
        threads.append(threading.current_thread().name)

    checkpointer = _checkpointer(tmp_path, asynchronous, done=done)
    checkpointer.save(Progress(step=7), [random_state()])
    checkpointer.wait()
    (saved,) = reports
    assert (saved.path, saved.step) == (tmp_path / "00000007", 7)
    assert saved.num_bytes == sum(path.stat().st_size for path in saved.path.iterdir()) > 5000
    assert saved.blocked_s > 0
    assert saved.write_s > 0
    assert threads == ["perjoule-checkpoint" if asynchronous else threading.current_thread().name]


def test_asynchronous_save_does_not_see_what_training_does_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = _hold(monkeypatch)
    pair = _pair()
    _train(*pair, 2)
    before, moments = _bits(pair[0]), {name: value.clone() for name, value in optimizer_tensors(*pair)[0].items()}
    progress = Progress(step=2)
    checkpointer = _checkpointer(tmp_path, asynchronous=True, pair=pair)
    checkpointer.save(progress, [random_state()])
    _train(*pair, 2)
    progress.step = 4
    assert not (tmp_path / "00000002").exists()
    go.set()
    checkpointer.wait()
    other = _pair(1)
    assert restore(tmp_path / "00000002", *other, rank=0) == (Progress(step=2), True)
    assert _equal(_bits(other[0]), before)
    assert not _equal(_bits(pair[0]), before)
    assert _equal(optimizer_tensors(*other)[0], moments)


def test_next_save_waits_for_the_one_before_and_uses_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = _hold(monkeypatch)
    pair = _pair()
    checkpointer = _checkpointer(tmp_path, asynchronous=True, pair=pair)
    checkpointer.save(Progress(step=1), [random_state()])
    places = {name: tensor.data_ptr() for name, tensor in checkpointer._memory.items()}
    first = _bits(pair[0])
    _train(*pair, 1)
    threading.Timer(0.05, go.set).start()
    checkpointer.save(Progress(step=2), [random_state()])
    assert (tmp_path / "00000001").exists()
    checkpointer.wait()
    assert places.items() <= {name: tensor.data_ptr() for name, tensor in checkpointer._memory.items()}.items()
    weights = load_file(tmp_path / "00000001" / checkpoints.MODEL)
    assert all(torch.equal(tensor, first[name]) for name, tensor in weights.items())
    checkpoints.verify(tmp_path / "00000002")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_full_disk_leaves_the_checkpoint_before_and_surfaces(
    asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[Saved] = []
    checkpointer = _checkpointer(tmp_path, asynchronous, done=reports.append)
    checkpointer.save(Progress(step=1), [random_state()])
    checkpointer.wait()
    _full_disk(monkeypatch)
    with pytest.raises(RunFolderError) as caught:
        checkpointer.save(Progress(step=2), [random_state()])
        assert asynchronous, "a synchronous save raises at once"
        checkpointer.wait()
    assert str(caught.value) == f"cannot write the checkpoint {tmp_path}/00000002: No space left on device"
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
    assert [saved.step for saved in reports] == [1]
    checkpoints.verify(tmp_path / "00000001")
    checkpointer.wait()  # an error is raised once


def test_error_of_an_asynchronous_save_surfaces_at_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = _checkpointer(tmp_path, asynchronous=True)
    with monkeypatch.context() as patch:
        _full_disk(patch)
        checkpointer.save(Progress(step=1), [random_state()])
        with pytest.raises(RunFolderError, match="00000001: No space left on device"):
            checkpointer.save(Progress(step=2), [random_state()])
    checkpointer.save(Progress(step=3), [random_state()])
    checkpointer.wait()
    assert checkpoints.listed_steps(tmp_path) == [3]


def test_refusal_by_the_kernel_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    checkpointer = _checkpointer(tmp_path)
    expected = r"^cannot write the checkpoint .*00000001: training.safetensors: .*large"
    with _largest_file(4096), pytest.raises(RunFolderError, match=expected):
        checkpointer.save(Progress(step=1), [random_state()])
    assert list(tmp_path.iterdir()) == []


def test_only_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpointer = _checkpointer(tmp_path, keep=2)
    progress = Progress(best_step=2, best_loss=1.0, top=((1.0, 2),))
    for progress.step in range(1, 6):
        checkpointer.save(progress, [random_state()])
    assert checkpoints.listed_steps(tmp_path) == [2, 4, 5]


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    pair = _pair()
    checkpointer = _checkpointer(tmp_path, pair=pair)
    checkpointer.save(Progress(step=1), [random_state()])
    first = _bits(pair[0])
    _train(*pair, 1)
    checkpointer.save(Progress(step=2), [random_state()])
    newest = tmp_path / "00000002" / checkpoints.MODEL
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content)
    said: list[str] = []
    whole = checkpoints.newest_whole(tmp_path, said.append)
    assert len(said) == 1
    assert whole is not None
    assert restore(whole, *pair, rank=0)[0].step == 1
    assert _equal(_bits(pair[0]), first)


def test_random_states_of_python_numpy_and_torch_are_restored() -> None:
    def draw() -> tuple[float, float, float, float]:
        return random.random(), random.gauss(0, 1), float(np.random.standard_normal()), torch.rand(()).item()

    random.gauss(0, 1)
    np.random.standard_normal()  # both keep a second value for the next call
    state = random_state()
    expected = [draw() for _ in range(3)]
    assert [draw() for _ in range(3)] != expected
    restore_random_state(state)
    assert [draw() for _ in range(3)] == expected


def test_each_rank_gets_its_own_random_state_and_a_new_rank_none(tmp_path: Path) -> None:
    pair = _pair()
    states, draws = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        states.append(random_state())
        draws.append((torch.rand(()).item(), random.random(), float(np.random.random())))
    _checkpointer(tmp_path, pair=pair).save(Progress(step=1), states)
    for rank in (1, 0):
        assert restore(tmp_path / "00000001", *pair, rank=rank)[1]
        assert (torch.rand(()).item(), random.random(), float(np.random.random())) == draws[rank]
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    assert restore(tmp_path / "00000001", *pair, rank=2) == (Progress(step=1), False)
    assert torch.equal(torch.rand(()), expected)


def test_checkpoint_of_another_schema_is_refused(tmp_path: Path) -> None:
    pair = _pair()
    _checkpointer(tmp_path, pair=pair).save(Progress(step=1), [random_state()])
    state = tmp_path / "00000001" / checkpoints.STATE
    write_json(state, {**read_json(state), "schema": 99})
    with pytest.raises(CheckpointError, match=r"00000001 has schema 99; this version reads 1"):
        restore(tmp_path / "00000001", *pair, rank=0)
