import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from perjoule.models.layers.readout import chunked_read_out_loss, read_out, soft_target_loss


def parts(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a base, a move, a candidates' embedding, and labels of which two are ignored."""
    labels = torch.randint(9, (7,))
    labels[[1, 4]] = -100
    return torch.rand(7, 9, dtype=dtype), torch.randn(7, 4, dtype=dtype), torch.randn(9, 4, dtype=dtype), labels


def test_read_out_subtracts_the_move_through_the_embedding() -> None:
    base, move, weight, _ = parts()
    torch.testing.assert_close(read_out(base[None], move[None], weight), (base - move @ weight.T)[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_soft_target_loss_is_the_mean_over_useful_rows(smoothing: float, dtype: torch.dtype) -> None:
    logits, _, _, labels = parts(dtype)
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(soft_target_loss(logits, labels, smoothing), expected)
    nothing = soft_target_loss(logits, torch.full_like(labels, -100), smoothing)
    assert nothing == 0


def test_soft_targets_widen_half_precision() -> None:
    logits, _, _, labels = parts(torch.float32)
    rough = soft_target_loss(logits.bfloat16(), labels, 0.3)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, soft_target_loss(logits, labels, 0.3), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("chunk_rows", [1, 3, 7, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_chunks_change_neither_loss_nor_gradients(smoothing: float, chunk_rows: int) -> None:
    base, move, weight, labels = parts()
    results = []
    for chunked in (False, True):
        inputs = [move.clone().requires_grad_(), weight.clone().requires_grad_()]
        if chunked:
            loss = chunked_read_out_loss(base, inputs[0], inputs[1], labels, smoothing, chunk_rows)
        else:
            loss = soft_target_loss(read_out(base, inputs[0], inputs[1]), labels, smoothing)
        results.append([loss, *torch.autograd.grad(3 * loss, inputs)])
    torch.testing.assert_close(results[1], results[0])


def test_chunks_without_a_useful_label_give_zero() -> None:
    base, move, weight, labels = parts()
    move.requires_grad_()
    loss = chunked_read_out_loss(base, move, weight, torch.full_like(labels, -100), 0.1, 3)
    (gradient,) = torch.autograd.grad(loss, move)
    assert loss == 0
    assert torch.count_nonzero(gradient) == 0


def test_chunks_multiply_in_the_type_of_autocast() -> None:
    base, move, weight, labels = parts(torch.float32)
    exact = chunked_read_out_loss(base, move, weight, labels, 0.0, 3)
    with torch.autocast("cpu", torch.bfloat16):
        rough = chunked_read_out_loss(base, move, weight, labels, 0.0, 3)
    assert rough.dtype == torch.float32
    assert rough != exact
    torch.testing.assert_close(rough, exact, rtol=2e-2, atol=2e-2)
