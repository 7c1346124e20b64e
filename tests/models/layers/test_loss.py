import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from perjoule.core.labels import IGNORED
from perjoule.models.layers.loss import chunked_next_token_loss, next_token_loss

ROWS, VOCAB_SIZE, DIM = 64, 50, 8


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(ROWS, DIM, requires_grad=True)


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(VOCAB_SIZE, DIM, requires_grad=True)


@pytest.fixture
def labels() -> Tensor:
    labels = torch.randint(VOCAB_SIZE, (ROWS,))
    labels[::3] = IGNORED
    return labels


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the number of elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_loss_of_equal_logits_is_the_logarithm_of_the_vocabulary() -> None:
    loss = next_token_loss(torch.zeros(4, VOCAB_SIZE), torch.tensor([0, 1, 2, IGNORED]))
    assert loss.item() == pytest.approx(math.log(VOCAB_SIZE))


def test_loss_is_the_mean_over_rows_that_are_not_ignored(hidden: Tensor, weight: Tensor, labels: Tensor) -> None:
    logits = (hidden @ weight.T).double()
    terms = [
        torch.logsumexp(logits[row], 0).item() - logits[row, label].item()
        for row, label in enumerate(labels.tolist())
        if label != IGNORED
    ]
    assert next_token_loss(logits, labels).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_ignored_rows_have_no_gradient(labels: Tensor) -> None:
    logits = torch.randn(ROWS, VOCAB_SIZE, requires_grad=True)
    (gradient,) = torch.autograd.grad(next_token_loss(logits, labels), logits)
    moved = gradient.abs().sum(dim=1) > 0
    assert torch.equal(moved, labels != IGNORED)


@pytest.mark.parametrize("chunk_rows", [None, 10])
def test_loss_without_any_label_is_zero_with_zero_gradient(
    chunk_rows: int | None, hidden: Tensor, weight: Tensor
) -> None:
    labels = torch.full((ROWS,), IGNORED)
    if chunk_rows is None:
        loss = next_token_loss(hidden @ weight.T, labels)
    else:
        loss = chunked_next_token_loss(hidden, weight, labels, chunk_rows)
    (gradient,) = torch.autograd.grad(loss, weight)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(weight))


def test_loss_of_bfloat16_logits_is_formed_in_float32(labels: Tensor) -> None:
    logits = torch.randn(ROWS, VOCAB_SIZE).bfloat16()
    loss = next_token_loss(logits, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == next_token_loss(logits.float(), labels).item()


@pytest.mark.parametrize("chunk_rows", [1, 10, 64, 1000])
def test_chunked_loss_equals_the_plain_one_with_gradients(
    chunk_rows: int, hidden: Tensor, weight: Tensor, labels: Tensor
) -> None:
    plain = 3 * next_token_loss(hidden @ weight.T, labels)
    chunked = 3 * chunked_next_token_loss(hidden, weight, labels, chunk_rows)
    torch.testing.assert_close(chunked, plain, rtol=1e-6, atol=0)
    expected = torch.autograd.grad(plain, (hidden, weight))
    actual = torch.autograd.grad(chunked, (hidden, weight))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk_rows", [10, 1000])
def test_chunked_loss_equals_the_plain_one_without_gradients(
    chunk_rows: int, hidden: Tensor, weight: Tensor, labels: Tensor
) -> None:
    with torch.no_grad():
        chunked = chunked_next_token_loss(hidden, weight, labels, chunk_rows)
    assert not chunked.requires_grad
    torch.testing.assert_close(chunked, next_token_loss(hidden @ weight.T, labels).detach(), rtol=1e-6, atol=0)


def test_chunked_loss_under_autocast_is_close_and_returns_float32(
    hidden: Tensor, weight: Tensor, labels: Tensor
) -> None:
    expected = torch.autograd.grad(next_token_loss(hidden @ weight.T, labels), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_next_token_loss(hidden, weight, labels, 1000)
    actual = torch.autograd.grad(loss, (hidden, weight))
    assert {loss.dtype, *(gradient.dtype for gradient in actual)} == {torch.float32}
    for rough, exact in zip(actual, expected, strict=True):
        assert torch.cosine_similarity(rough.flatten(), exact.flatten(), dim=0) > 0.9999


def test_chunked_loss_never_forms_all_logits(hidden: Tensor, weight: Tensor, labels: Tensor) -> None:
    whole, chunked = LargestTensor(), LargestTensor()  # type: ignore[no-untyped-call]
    with whole:
        next_token_loss(hidden @ weight.T, labels).backward()  # type: ignore[no-untyped-call]
    with chunked:
        chunked_next_token_loss(hidden, weight, labels, 10).backward()  # type: ignore[no-untyped-call]
    assert whole.numel == ROWS * VOCAB_SIZE
    assert chunked.numel == max(10 * VOCAB_SIZE, ROWS * DIM)


def test_loss_equals_torch_cross_entropy_with_gradient(labels: Tensor) -> None:
    logits = torch.randn(ROWS, VOCAB_SIZE, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED)
    actual = next_token_loss(logits, labels)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(2 * loss, logits)[0] for loss in (actual, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-8)
