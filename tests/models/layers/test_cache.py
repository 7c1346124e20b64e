import pytest
import torch

from perjoule.core.errors import ConfigError
from perjoule.models.layers.cache import KeyValueCache, LayerCache, Prompts, align, recall


def mask_of(*rows: str) -> torch.Tensor:
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


def test_rows_are_moved_to_the_left_and_common_padding_is_dropped() -> None:
    tokens = torch.tensor([[0, 0, 1, 2, 3], [0, 0, 0, 0, 4]])
    prompts = align(tokens, mask_of("..xxx", "....x"))
    assert prompts.longest == 3
    assert prompts.lengths.tolist() == [3, 1]
    assert prompts.input_ids[0].tolist() == [1, 2, 3]
    assert prompts.input_ids[1, 0] == 4


def test_prompts_without_a_mask_stay_as_they_are() -> None:
    tokens = torch.tensor([[5, 6], [7, 8]])
    prompts = align(tokens, None)
    assert torch.equal(prompts.input_ids, tokens)
    assert prompts.lengths.tolist() == [2, 2]


@pytest.mark.parametrize("wrong", ["x...", ".x.x", "...."])
def test_padding_elsewhere_than_on_the_left_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"prompt 1 of 2 is not padded on the left; accepted: a mask that is False"):
        align(torch.zeros(2, 4, dtype=torch.int64), mask_of("..xx", wrong))


def test_cache_writes_each_row_where_it_ends_and_grows() -> None:
    positions = torch.tensor([2, 1])
    cache = LayerCache(positions)
    k, v = torch.randn(2, 2, 3, 2, 4)
    assert cache.extend(k, v) is None
    written: list[list[torch.Tensor]] = [[*k[0, 0, :2]], [*k[1, 0, :1]]]
    for _ in range(150):
        k, v = torch.randn(2, 2, 3, 1, 4)
        past = cache.extend(k, v)
        assert past is not None
        for row in (0, 1):
            written[row].append(k[row, 0, 0])
            torch.testing.assert_close(past.keys[row, 0, : int(positions[row]) + 1], torch.stack(written[row]))
            assert torch.equal(past.values[row, :, positions[row]], v[row, :, 0])
        positions += 1
    assert cache.num_slots == 152


def test_layers_share_the_positions_of_their_model() -> None:
    cache = KeyValueCache(2, Prompts(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3, 1]), 3))
    begun = [cache.begun]
    cache.layers[0].extend(*torch.zeros(2, 2, 1, 3, 4))
    begun.append(cache.begun)
    assert begun == [False, True]
    cache.advance()
    assert [layer.positions.tolist() for layer in cache.layers] == [[4, 2], [4, 2]]
    assert cache.longest == 4


def test_recall_sees_nothing_behind_a_rows_own_position() -> None:
    cache = LayerCache(torch.tensor([1, 3]))
    cache.extend(*torch.randn(2, 2, 1, 4, 8))
    k, v = torch.randn(2, 2, 1, 1, 8)
    past = cache.extend(k, v)
    assert past is not None
    q = torch.randn(2, 2, 1, 8)
    before = recall(q, past)
    past.keys[0, :, 2:], past.values[0, :, 2:] = 7.0, 7.0
    assert torch.equal(recall(q, past)[0], before[0])
    past.values[0, :, 1] = 7.0
    assert not torch.equal(recall(q, past)[0], before[0])
