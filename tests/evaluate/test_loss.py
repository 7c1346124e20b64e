"""The held-out loss is the mean over useful positions, not over batches."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from perjoule.core.errors import DataError
from perjoule.data.contract import Batch
from perjoule.evaluate.loss import HeldOutLoss, held_out_loss
from perjoule.models.contract import Output


class Echo(nn.Module):
    """Takes the batch's own number for its loss, and notes how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, tensors: dict[str, torch.Tensor]) -> Output:
        self.modes.append((self.training, torch.is_grad_enabled()))
        return Output(tensors["loss"] * self.weight)


def batches(*pairs: tuple[float, int]) -> Iterator[Batch]:
    """Yield batches of a loss and a number of useful positions."""
    for loss, num_useful in pairs:
        yield Batch({"loss": torch.tensor(loss)}, num_samples=1, num_tokens=10, num_useful=num_useful)


def evaluate(model: nn.Module, *pairs: tuple[float, int], others: tuple[float, float] = (0.0, 0.0)) -> HeldOutLoss:
    return held_out_loss(model, batches(*pairs), lambda tensors: tensors, lambda sums: sums + torch.tensor(others))


def test_loss_is_weighted_by_useful_positions() -> None:
    result = evaluate(Echo(), (1.0, 9), (5.0, 1))
    assert result.loss == pytest.approx((9 * 1.0 + 5.0) / 10)
    assert result.useful == 10
    assert 0 <= result.seconds < 5


def test_loss_is_the_mean_over_all_ranks() -> None:
    assert evaluate(Echo(), (1.0, 10), others=(30.0, 10.0)).loss == pytest.approx(2.0)


def test_a_rank_without_a_batch_gets_the_loss_of_the_others() -> None:
    assert evaluate(Echo(), others=(30.0, 10.0)) == HeldOutLoss(3.0, 10, pytest.approx(0.0, abs=1.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_evaluated_without_gradients_and_gets_its_mode_back(training: bool) -> None:
    model = Echo().train(training)
    evaluate(model, (1.0, 1))
    assert model.modes == [(False, False)]
    assert model.training is training


def test_batches_with_nothing_to_predict_are_refused() -> None:
    with pytest.raises(DataError, match=r"no label that is not ignored; raise evaluate\.batches$"):
        evaluate(Echo(), (0.0, 0), (0.0, 0))


def test_the_tensors_are_moved_to_the_device() -> None:
    moved = held_out_loss(Echo(), batches((1.0, 4)), lambda tensors: {"loss": tensors["loss"] * 2}, lambda sums: sums)
    assert moved.loss == 2.0


class Stubborn(nn.Module):
    """Has a frozen part in evaluation mode, and may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.trained = nn.Dropout(0.5), nn.Dropout(0.5)
        self.fails = False

    def forward(self, tensors: dict[str, torch.Tensor]) -> Output:
        assert not (self.training or self.frozen.training or self.trained.training)
        if self.fails:
            raise RuntimeError("no")
        return Output(tensors["loss"])


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_gets_its_own_mode_back_whatever_happens(fails: bool) -> None:
    model = Stubborn().train()
    model.frozen.eval()
    model.fails = fails
    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
        held_out_loss(model, batches((1.0, 4)), lambda tensors: tensors, lambda sums: sums)
    assert (model.training, model.frozen.training, model.trained.training) == (True, False, True)


def test_a_batch_of_ignored_labels_only_does_not_count() -> None:
    found = held_out_loss(Echo(), batches((1.0, 4), (float("nan"), 0)), lambda tensors: tensors, lambda sums: sums)
    assert (found.loss, found.useful) == (1.0, 4)
