import math

import pytest
import torch

from perjoule.core.errors import ConfigError
from perjoule.models.layers.rope import RotaryTable, rotate


def test_rotation_turns_each_pair_by_position_times_frequency() -> None:
    table = RotaryTable(seq_len=7, head_dim=4, theta=100.0)(7)
    x = torch.randn(1, 1, 7, 4)
    turned = rotate(x, table)
    for position in range(7):
        for pair, frequency in enumerate((1.0, 0.1)):
            before = complex(*x[0, 0, position, [pair, pair + 2]].tolist())
            after = complex(*turned[0, 0, position, [pair, pair + 2]].tolist())
            angle = position * frequency
            assert abs(after - before * complex(math.cos(angle), math.sin(angle))) < 1e-5


def test_product_of_rotated_query_and_key_depends_on_their_distance_only() -> None:
    table = RotaryTable(seq_len=50, head_dim=16, theta=1e4)(50)
    q, k = torch.randn(2, 16)
    everywhere = rotate(torch.stack((q, k))[None, :, None].expand(1, 2, 50, 16), table)
    products = everywhere[0, 0] @ everywhere[0, 1].T
    for distance in (0, 1, 13):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-4)
    assert not torch.allclose(products.diagonal(0)[0], products.diagonal(13)[0], atol=1e-2)


def test_rotation_keeps_bfloat16_but_rounds_once_only() -> None:
    table = RotaryTable(seq_len=300, head_dim=8, theta=1e4)(300)
    x = torch.randn(1, 2, 300, 8).bfloat16()
    assert rotate(x, table).dtype == torch.bfloat16
    torch.testing.assert_close(rotate(x, table), rotate(x.float(), table).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("change", [lambda m: m.bfloat16(), lambda m: m.to("meta").to_empty(device="cpu")])
def test_table_survives_casts_and_the_meta_device(change: object) -> None:
    rope = RotaryTable(seq_len=300, head_dim=8, theta=1e4)
    before = rope.table.clone()
    assert callable(change)
    after = change(rope).table
    assert after.dtype == torch.float32
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_table_of_a_float64_model_is_exact_and_narrows_again() -> None:
    rope = RotaryTable(seq_len=300, head_dim=8, theta=1e4)
    before = rope.table.clone()
    cos, sin = rope.double().table
    angle = 299 * 1e4 ** (-2 / 8)
    assert abs(cos[299, 1].item() - math.cos(angle)) < 1e-13
    assert abs(sin[299, 1].item() - math.sin(angle)) < 1e-13
    assert torch.equal(rope.float().table, before)


def test_longer_sequence_than_positions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"9 tokens .* built for seq_len 8; accepted: 1 to 8 tokens"):
        RotaryTable(seq_len=8, head_dim=4, theta=1e4)(9)
