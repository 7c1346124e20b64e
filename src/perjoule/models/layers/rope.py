"""Rotary position embedding in real arithmetic, in the layout of Llama's Hugging Face weights.

Element i of the first half of a head and element i of its second half are a point in the plane, and position t turns
it by the angle t·theta^(-2i/head_dim):

    (a, b) -> (a·cos - b·sin, b·cos + a·sin)

so that the product of a query and a key depends on their distance only. The paper and Llama's first release pair
*neighbouring* elements instead; the two differ by a fixed permutation of the rows of the query and key projections.

Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from perjoule.core.errors import ConfigError

Table = Float[Tensor, "parts seq half"] | Float[Tensor, "parts batch 1 seq half"]
"""Cosines and sines of a sequence's positions, of which each row of a batch may have its own."""


class RotaryTable(nn.Module):
    """The cosines and sines of every position, shared by all layers.

    Args:
        seq_len: number of positions.
        head_dim: size of an attention head; even.
        theta: base of the wavelengths, which reach 2π·theta positions.
    """

    table: Tensor

    def __init__(self, seq_len: int, head_dim: int, theta: float) -> None:
        super().__init__()
        self.seq_len, self.head_dim, self.theta = seq_len, head_dim, theta
        self.register_buffer("table", self._fill(None, torch.float32), persistent=False)

    def forward(self, seq_len: int) -> Float[Tensor, "parts seq half"]:
        """Return the cosines and the sines of the first ``seq_len`` positions.

        Raises:
            ConfigError: if there are fewer positions.
        """
        self._check(seq_len)
        return self.table[:, :seq_len]

    def at(self, positions: Int64[Tensor, " batch"], longest: int) -> Float[Tensor, "parts batch 1 1 half"]:
        """Return the cosines and the sines of one position per row, to be used as those of a sequence are.

        Args:
            positions: counted from 0.
            longest: the largest of them, known without asking the device.

        Raises:
            ConfigError: if there are fewer positions.
        """
        self._check(longest + 1)
        return self.table[:, positions, None, None]

    def _check(self, seq_len: int) -> None:
        if seq_len > self.seq_len:
            raise ConfigError(
                f"a sequence of {seq_len} tokens does not fit the model, which was built for seq_len {self.seq_len}; "
                f"accepted: 1 to {self.seq_len} tokens"
            )

    def _fill(self, device: torch.device | None, dtype: torch.dtype) -> Float[Tensor, "parts seq half"]:
        exponents = torch.arange(0, self.head_dim, 2, device=device, dtype=dtype) / self.head_dim
        positions = torch.arange(self.seq_len, device=device, dtype=dtype)
        angles = torch.outer(positions, 1.0 / self.theta**exponents)
        return torch.stack((angles.cos(), angles.sin()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryTable:
        # The model may be moved, cast to bfloat16, or emptied from the meta device. Angles need float32 at least
        # (bfloat16 cannot tell position 256 from 257), so the table is made anew where it lands, not converted.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.table = self._fill(self.table.device, torch.promote_types(self.table.dtype, torch.float32))
        return self


def rotate(x: Float[Tensor, "*batch seq head_dim"], table: Table) -> Float[Tensor, "*batch seq head_dim"]:
    """Turn every head of every position by its angles, in float32 at least; return the dtype of ``x``.

    Args:
        x: heads.
        table: the two parts that turn ``x``.
    """
    cos, sin = table[0], table[1]
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
