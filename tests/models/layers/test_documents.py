import torch
from hypothesis import given
from hypothesis import strategies as st

from perjoule.models.layers.documents import hiding, places_within, visible_tokens

ROW = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0]], dtype=torch.int32)


def test_a_token_sees_the_earlier_ones_of_its_document_and_itself() -> None:
    first, second = visible_tokens(ROW)
    expected = [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]]
    assert first.int().tolist() == [*expected, [0, 0, 0, 0, 0, 1]]
    assert torch.equal(second, torch.ones(6, 6, dtype=torch.bool).tril())


def test_bias_leaves_only_what_is_visible() -> None:
    visible = visible_tokens(ROW)
    scores = torch.randn(2, 6, 6)
    shares = (scores + hiding(visible)).softmax(-1)
    assert torch.equal(shares > 0, visible)


def test_places_count_from_the_beginning_of_each_document() -> None:
    assert places_within(ROW).tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_places_of_documents_of_any_length(lengths: list[int]) -> None:
    documents = torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int32), torch.tensor(lengths))
    assert places_within(documents[None]).tolist() == [[place for length in lengths for place in range(length)]]
