import pytest
import torch
from torch import Tensor

from perjoule.core.errors import ConfigError
from perjoule.models.layers.positions import NoPositions, XPosTable, place, position_table
from perjoule.models.layers.rope import RotaryTable, rotate


def products(table: Tensor | None, seq_len: int = 40) -> Tensor:
    """Return the product of one query with one key at all pairs of positions."""
    q, k = torch.randn(2, 1, 1, 1, 16).expand(2, 1, 1, seq_len, 16)
    q, k = place(q, k, table)
    return (q @ k.transpose(-1, -2))[0, 0]


def test_rope_turns_queries_and_keys_alike() -> None:
    table = position_table("rope", 40, 16, 1e4)(40)
    q, k = torch.randn(2, 2, 3, 40, 16)
    placed = place(q, k, table)
    expected = RotaryTable(40, 16, 1e4)(40)
    assert torch.equal(placed[0], rotate(q, expected))
    assert torch.equal(placed[1], rotate(k, expected))


def test_none_leaves_queries_and_keys_alone_at_any_length() -> None:
    positions = position_table("none", 8, 15, 1e4)
    assert isinstance(positions, NoPositions)
    q, k = torch.randn(2, 2, 3, 40, 15)
    assert place(q, k, positions.forward(9000)) == (q, k)
    assert place(q, k, positions.at(torch.tensor([7000, 2]), 7000)) == (q, k)


@pytest.mark.parametrize("kind", ["rope", "xpos"])
def test_product_depends_on_the_distance_only(kind: str) -> None:
    found = products(position_table(kind, 700, 16, 1e4)(700), 700)  # type: ignore[arg-type]
    for distance in (-13, 0, 1, 500):
        diagonal = found.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found.diagonal(0)[0], found.diagonal(-13)[0], atol=1e-2)


def test_xpos_is_rope_with_a_factor_that_decays_with_distance_by_its_formula() -> None:
    seq_len, head_dim = 600, 8
    rope, xpos = RotaryTable(seq_len, head_dim, 1e4)(seq_len), XPosTable(seq_len, head_dim, 1e4)(seq_len)
    assert xpos.shape == (4, seq_len, head_dim // 2)
    for pair in range(head_dim // 2):
        x = torch.zeros(1, 1, seq_len, head_dim)
        x[..., pair] = 1.0
        q, k = place(x, x, xpos)
        plain = rotate(x, rope)
        # A query at 512 and a key at 0 are 512 apart: the factor is ζ itself.
        zeta = (2 * pair / head_dim + 0.4) / 1.4
        torch.testing.assert_close(q[0, 0, 512] @ k[0, 0, 0], zeta * plain[0, 0, 512] @ plain[0, 0, 0])
        torch.testing.assert_close(q[0, 0, 300] @ k[0, 0, 300], torch.tensor(1.0))


def test_xpos_equals_the_reference_formulation_with_a_centre_that_moves() -> None:
    """Follow torchscale's description: the scale's exponent counts from the middle of the sequence at hand."""
    seq_len, head_dim = 33, 16
    q, k = torch.randn(2, 1, 1, seq_len, head_dim)
    zeta = (torch.arange(0, head_dim, 2) + 0.4 * head_dim) / (1.4 * head_dim)
    scale = (zeta ** ((torch.arange(seq_len) - (seq_len + 1) // 2) / 512)[:, None]).repeat(1, 2)
    table = RotaryTable(seq_len, head_dim, 1e4)(seq_len)
    expected = (rotate(q, table) * scale) @ (rotate(k, table) / scale).transpose(-1, -2)
    ours_q, ours_k = place(q, k, XPosTable(4096, head_dim, 1e4)(seq_len))
    torch.testing.assert_close(ours_q @ ours_k.transpose(-1, -2), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["rope", "xpos"])
def test_rows_at_their_own_positions_are_rotated_as_in_a_sequence(kind: str) -> None:
    positions = position_table(kind, 50, 16, 1e4)  # type: ignore[arg-type]
    q, k = torch.randn(2, 3, 2, 50, 16)
    whole = place(q, k, positions(50))
    chosen = torch.tensor([7, 49, 0])
    rows = torch.arange(3)
    single = place(q[rows, :, chosen].unsqueeze(2), k[rows, :, chosen].unsqueeze(2), positions.at(chosen, longest=49))
    for one, all_of_them in zip(single, whole, strict=True):
        assert torch.equal(one[:, :, 0], all_of_them[rows, :, chosen])


@pytest.mark.parametrize("kind", ["rope", "xpos"])
def test_position_behind_the_table_is_refused(kind: str) -> None:
    positions = position_table(kind, 8, 4, 1e4)  # type: ignore[arg-type]
    positions.at(torch.tensor([7]), longest=7)
    with pytest.raises(ConfigError, match=r"9 tokens does not fit .* built for seq_len 8; accepted: 1 to 8 tokens"):
        positions.at(torch.tensor([8]), longest=8)


def test_xpos_is_finite_as_far_as_it_is_offered_and_refused_beyond() -> None:
    table = XPosTable(65536, 4, 1e4)
    assert table.table.isfinite().all()
    assert table.bfloat16().table.dtype == torch.float32
    with pytest.raises(ConfigError, match=r"xpos .* seq_len 65537; accepted: a seq_len of at most 65536"):
        XPosTable(65537, 4, 1e4)
