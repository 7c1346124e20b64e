from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from perjoule.models.layers.documents import visible_tokens
from perjoule.models.layers.own_key import attend_with_own_key
from perjoule.models.layers.positions import Positions, place, position_table
from perjoule.models.layers.two_stream import TwoStreamAttention

merge: Any = attend_with_own_key  # which is given its tensors as one list


def tensors(rows: int = 5, columns: int = 7, scale: float = 1.0) -> list[Tensor]:
    shapes = (rows, columns, columns, rows, rows)  # q, k, v, and the candidates' own keys and values
    return [scale * torch.randn(2, 3, size, 4, dtype=torch.float64) for size in shapes]


def one_softmax(parts: list[Tensor], visible: Tensor | None) -> Tensor:
    """Attend with all keys side by side: the definition."""
    q, k, v, own_k, own_v = parts
    rows, columns = q.shape[2], k.shape[2]
    scores = q @ torch.cat((k, own_k), dim=2).transpose(-1, -2)
    seen = torch.ones(1, 1, rows, columns, dtype=torch.bool) if visible is None else visible
    mask = torch.cat((seen.expand(-1, -1, rows, -1), torch.eye(rows, dtype=torch.bool)[None, None]), dim=-1)
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ torch.cat((v, own_v), dim=2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_merging_the_own_key_is_one_softmax_over_all_keys(causal: bool, scale: float) -> None:
    parts = tensors(scale=scale)
    visible = torch.ones(1, 1, 5, 7, dtype=torch.bool).tril(2) if causal else None
    torch.testing.assert_close(merge(*parts, visible), one_softmax(parts, visible))


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_a_loss_and_of_a_slope_are_those_of_the_definition(causal: bool) -> None:
    visible = torch.ones(1, 1, 5, 7, dtype=torch.bool).tril(2) if causal else None
    leaves, weights = [part.requires_grad_() for part in tensors()], tensors()
    results = []
    for function in (lambda parts: merge(*parts, visible), lambda parts: one_softmax(parts, visible)):
        out = function(leaves).tanh()
        at_candidate = [leaves[index] for index in (0, 3, 4)]
        slopes = torch.autograd.grad(out.sum(), at_candidate, create_graph=True)
        learned = sum((slope * weights[index]).sum() for slope, index in zip(slopes, (0, 3, 4), strict=True))
        first = torch.autograd.grad(function(leaves).tanh().sum(), leaves)
        results.append([out, *slopes, *first, *torch.autograd.grad(learned + out.sum(), leaves)])
    torch.testing.assert_close(results[0], results[1])


def test_slope_is_one_of_the_candidate_and_not_of_the_context() -> None:
    leaves = [part.requires_grad_() for part in tensors()]
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        torch.autograd.grad(merge(*leaves, None).sum(), leaves[1], create_graph=True)


class Places:
    """Positions of a kind, from one to before another.

    Args:
        kind: rope, xpos or none.
    """

    def __init__(self, kind: Positions) -> None:
        self.table: Tensor | None = position_table(kind, 30, 4, 1e4).double()(30)

    def __getitem__(self, between: slice) -> Tensor | None:
        return None if self.table is None else self.table[:, between]


def attention() -> TwoStreamAttention:
    return TwoStreamAttention(8, 2).double()


@pytest.mark.parametrize("kind", get_args(Positions))
@pytest.mark.parametrize("front", [0, 1])
@pytest.mark.parametrize("smallest", [1, 256])
def test_two_streams_equal_one_mask_over_both(
    kind: Positions, front: int, smallest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perjoule.models.layers.two_stream.SMALLEST_BLOCK", smallest)
    layer, places = attention(), Places(kind)
    context, candidates = torch.randn(2, 9 + front, 8).double(), torch.randn(2, 9, 8).double()
    size, columns = 9, 9 + front
    mixed, kept = layer.context(context, places[:columns], None, None)
    read = layer.candidates(candidates, places[front + 1 : columns + 1], kept, None)
    # One attention over all columns and rows, where a row sees columns up to its token and, of the rows, itself.
    both = layer.qkv(torch.cat((context, candidates), dim=1)).view(2, columns + size, 3, 2, 4)
    q, k, v = both.permute(2, 0, 3, 1, 4)
    before, behind = places[:columns], places[front + 1 : columns + 1]
    q, k = place(q, k, None if before is None or behind is None else torch.cat((before, behind), dim=1))
    mask = torch.zeros(columns + size, columns + size, dtype=torch.bool)
    mask[:columns, :columns] = torch.ones(columns, columns).tril().bool()
    mask[columns:, :columns] = torch.ones(size, columns).tril(front).bool()
    mask[columns:, columns:] = torch.eye(size).bool()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    expected = layer.output(expected.transpose(1, 2).flatten(2))
    torch.testing.assert_close(torch.cat((mixed, read), dim=1), expected)


@pytest.mark.parametrize("smallest", [1, 256])
@pytest.mark.parametrize("front", [0, 1])
def test_candidates_see_their_own_document_in_every_block_of_queries(
    front: int, smallest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perjoule.models.layers.two_stream.SMALLEST_BLOCK", smallest)
    layer, places = attention(), Places("rope")
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0] * 9], dtype=torch.int32)
    visible = F.pad(visible_tokens(documents), (front, 0), value=True)[:, None]
    kept, candidates = torch.randn(2, 2, 2, 9 + front, 4).double(), torch.randn(2, 9, 8).double()
    together = layer.candidates(candidates, places[front + 1 : front + 10], kept, visible)
    for row in range(9):  # one by one: what one row sees is not cut into blocks
        position = row + front + 1
        alone = layer.candidates(
            candidates[:, row : row + 1], places[position : position + 1], kept, visible[:, :, row : row + 1]
        )
        torch.testing.assert_close(together[:, row : row + 1], alone)


@pytest.mark.parametrize("kind", get_args(Positions))
def test_context_is_extended_without_being_read_again(kind: Positions) -> None:
    layer, places = attention(), Places(kind)
    x = torch.randn(2, 6, 8).double()
    whole, kept = layer.context(x, places[:6], None, None)
    _, past = layer.context(x[:, :5], places[:5], None, None)
    seen = torch.ones(1, 1, 1, 6, dtype=torch.bool)
    last, extended = layer.context(x[:, 5:], places[5:6], past, seen)
    torch.testing.assert_close(last, whole[:, 5:])
    torch.testing.assert_close(extended, kept)
    torch.testing.assert_close(layer.keys_and_values(x, places[:6]), kept)


def test_bfloat16_scores_are_merged_in_float32() -> None:
    parts = [part.bfloat16() for part in tensors()]
    merged = merge(*parts, None)
    assert merged.dtype == torch.bfloat16
    exact = one_softmax([part.double() for part in parts], None)
    torch.testing.assert_close(merged.double(), exact, rtol=0.05, atol=0.05)
