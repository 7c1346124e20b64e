"""How attention learns where a token stands: ``rope``, ``xpos`` or ``none``.

    rope    turn the queries and keys of position t by t·theta^(-2i/head_dim)            (layers/rope.py)
    xpos    the same, and multiply queries by ζ_i^((t - c)/512), keys by ζ_i^-((t - c)/512)
    none    nothing: only the causal mask tells earlier from later

with ζ_i = (2i/head_dim + 0.4) / 1.4 for pair i of a head. A product of a query and a key then has the factor
ζ_i^(distance/512), so that fast-turning pairs fade with distance. The centre c cancels in every product. It is half of
the longest sequence here, for numbers near 1; torchscale's moves with the length of the input, which a cache of keys
could not follow.

``none`` has no longest sequence. Time and memory O(seq_len·head_dim) once per model, not per layer.

Sun et al., A Length-Extrapolatable Transformer, 2023; Kazemnejad et al., The Impact of Positional Encoding on Length
Generalization in Transformers, 2023, for ``none``.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from perjoule.core.errors import ConfigError
from perjoule.models.layers.rope import RotaryTable, Table, rotate

Positions = Literal["rope", "none", "xpos"]

XPOS_SCALE, XPOS_OFFSET = 512, 0.4
XPOS_LONGEST = 65536
"""Positions beyond which a scale leaves float32: (1.4/0.4)^(32768/512) is 6.6e34."""


class XPosTable(RotaryTable):
    """Cosines and sines for queries, then for keys: four parts.

    Args:
        seq_len: number of positions.
        head_dim: size of an attention head; even.
        theta: base of the wavelengths, which reach 2π·theta positions.

    Raises:
        ConfigError: if the scales of so many positions are not finite in float32.
    """

    def __init__(self, seq_len: int, head_dim: int, theta: float) -> None:
        if seq_len > XPOS_LONGEST:
            raise ConfigError(
                f"model.positions xpos has scales that float32 cannot hold at seq_len {seq_len}; "
                f"accepted: a seq_len of at most {XPOS_LONGEST}, or model.positions rope or none"
            )
        super().__init__(seq_len, head_dim, theta)

    def _fill(self, device: torch.device | None, dtype: torch.dtype) -> Float[Tensor, "parts seq half"]:
        turns = super()._fill(device, dtype)
        pairs = torch.arange(0, self.head_dim, 2, device=device, dtype=dtype) / self.head_dim
        positions = torch.arange(self.seq_len, device=device, dtype=dtype) - self.seq_len // 2
        scales = ((pairs + XPOS_OFFSET) / (1 + XPOS_OFFSET)) ** (positions / XPOS_SCALE).unsqueeze(1)
        return torch.cat((turns * scales, turns / scales))


class NoPositions(nn.Module):
    """Stands where a table would, and has none."""

    def forward(self, seq_len: int) -> Table | None:
        """Return None for a sequence of any length."""
        return None

    def at(self, positions: Int64[Tensor, " batch"], longest: int) -> Table | None:
        """Return None for rows at any positions."""
        return None


def position_table(kind: Positions, seq_len: int, head_dim: int, theta: float) -> RotaryTable | NoPositions:
    """Return what makes the table for :func:`place`.

    Args:
        kind: of positions.
        seq_len: number of positions.
        head_dim: size of an attention head; even, unless ``kind`` is none.
        theta: base of the wavelengths.

    Raises:
        ConfigError: if xpos cannot reach so far.
    """
    if kind == "none":
        return NoPositions()
    return (XPosTable if kind == "xpos" else RotaryTable)(seq_len, head_dim, theta)


def place(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv_heads seq head_dim"],
    table: Table | None,
) -> tuple[Float[Tensor, "batch heads seq head_dim"], Float[Tensor, "batch kv_heads seq head_dim"]]:
    """Return queries and keys that know their positions.

    Args:
        q: queries.
        k: keys.
        table: two parts that serve both (rope), four of which the last two are the keys' (xpos), or None.
    """
    if table is None:
        return q, k
    return rotate(q, table[:2]), rotate(k, table[-2:])
