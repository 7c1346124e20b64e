"""The memory of where thinking ended: chains grow old, are forgotten, and survive a checkpoint."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.models.ebt_cases import tiny_ebt, tokens
from torch import Tensor

from perjoule.models.ebt import EBT
from perjoule.models.ebt_body import Context
from perjoule.models.ebt_replay import Replay
from perjoule.models.thinking import Energy
from perjoule.models.thinking import Path as ThinkingPath
from perjoule.models.weights import load_weights, unique_tensors


def replaying(max_age: int = 4, capacity: int = 8, fraction: float = 0.5) -> EBT:
    thinking = {"replay_fraction": fraction, "replay_capacity": capacity, "replay_max_age": max_age}
    return tiny_ebt(thinking)


def batch_of(samples: int, seq_len: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return *torch.randint(5, (2, samples, seq_len)), torch.randn(samples, seq_len, 5)


def test_samples_return_until_they_are_too_old() -> None:
    replay, seen = Replay(capacity=4, seq_len=3, vocab_size=5, max_age=3), []
    for _ in range(5):
        recalled = replay.recall(1, 3)
        if recalled is None:
            replay.remember(*batch_of(1), None)
        else:
            replay.remember(recalled.input_ids, recalled.labels, recalled.states + 1, recalled)
        seen.append(int(replay.ages.max()))
    assert seen == [1, 2, 3, 0, 1]


def test_recalled_states_are_where_thinking_ended() -> None:
    replay, (input_ids, labels, states) = Replay(4, 3, 5, 3), batch_of(2)
    replay.remember(input_ids, labels, states, None)
    recalled = replay.recall(2, 3)
    assert recalled is not None
    for place in range(2):
        origin = (input_ids == recalled.input_ids[place]).all(1).nonzero()[0, 0]
        assert torch.equal(recalled.labels[place], labels[origin])
        torch.testing.assert_close(recalled.states[place], states[origin], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("samples", "seq_len"), [(0, 3), (3, 3), (2, 4)])
def test_nothing_is_recalled_where_there_is_too_little_or_of_another_length(samples: int, seq_len: int) -> None:
    replay = Replay(4, 3, 5, 3)
    replay.remember(*batch_of(2), None)
    assert replay.recall(samples, seq_len) is None


def test_batches_of_another_length_are_not_remembered_and_too_many_are_cut() -> None:
    replay = Replay(4, 3, 5, 3)
    replay.remember(*batch_of(2, seq_len=2), None)
    assert replay.ages.tolist() == [0, 0, 0, 0]
    replay.remember(*batch_of(9), None)
    assert replay.ages.tolist() == [1, 1, 1, 1]
    replay.forget()
    assert replay.ages.sum() == 0


def test_training_adds_recalled_samples_and_chains_grow_older_than_two_visits() -> None:
    model, rows, oldest = replaying(), [], 0
    assert model.replay is not None
    for _ in range(12):
        output = model(tokens(4), with_logits=True)
        rows.append(len(output.logits))
        oldest = max(oldest, int(model.replay.ages.max()))
    assert set(rows) == {4}  # of the batch alone
    assert oldest >= 3


def test_recalled_rows_start_where_they_were_left() -> None:
    model, batch, starts = replaying(), tokens(4), []
    original = model.think

    def spy(energy: Energy, start: Tensor, last_state: bool, weight: Tensor | None = None) -> ThinkingPath:
        starts.append(start)
        return original(energy, start, last_state, weight)

    model.think = spy  # type: ignore[method-assign]
    model(batch)
    model(batch)
    assert [len(start) for start in starts] == [4, 6]
    assert model.replay is not None
    remembered = model.replay.states.float()
    assert starts[1][4:].std() != pytest.approx(1.0, abs=1e-3)
    assert remembered.isfinite().all()


def test_evaluation_and_given_starts_leave_the_memory_alone() -> None:
    model = replaying()
    model(tokens(4), start=torch.zeros(4, 12, 20))
    model.eval()(tokens(4))
    assert model.replay is not None
    assert model.replay.ages.sum() == 0


def test_recalled_samples_keep_their_documents_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = replaying(), []
    assert model.replay is not None
    documents = torch.tensor([[0] * 7 + [1] * 5, [0] * 12, [0, 1] + [2] * 10, [0] * 11 + [1]], dtype=torch.int32)
    batch = tokens(4)
    read = model.body.read

    def spy(embedded: Tensor, landscape: int, documents: Tensor) -> Context:
        seen.append(documents)
        return read(embedded, landscape, documents=documents)

    monkeypatch.setattr(model.body, "read", spy)
    model(batch | {"documents": documents})
    of_sample = {tuple(ids.tolist()): numbers for ids, numbers in zip(batch["input_ids"], documents, strict=True)}
    for ids, numbers in zip(model.replay.input_ids[:4], model.replay.documents[:4], strict=True):
        assert torch.equal(of_sample[tuple(ids.tolist())], numbers)
    model(tokens(4) | {"documents": documents})
    assert [len(numbers) for numbers in seen] == [4, 6]
    assert all((numbers == documents).all(1).any() for numbers in seen[1][4:])


def test_samples_without_documents_are_remembered_as_one() -> None:
    replay = Replay(4, 3, 5, 3)
    replay.remember(*batch_of(4), None, torch.tensor([[0, 1, 2]] * 4, dtype=torch.int32))
    replay.remember(*batch_of(4), None)
    assert (replay.documents == 0).all()


def test_a_checkpoint_holds_the_memory_and_a_resumed_model_goes_on_alike(tmp_path: Path) -> None:
    model, batch = replaying(), tokens(4)
    model(batch)
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.detach().clone() for name, tensor in unique_tensors(model).items()}, path)
    generator = torch.get_rng_state()
    expected = [model(batch).loss.item() for _ in range(3)]
    resumed = replaying()
    load_weights(path, resumed)
    torch.set_rng_state(generator)
    assert [resumed(batch).loss.item() for _ in range(3)] == expected
