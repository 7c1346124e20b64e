"""Rows of different lengths in one rectangle: moved to its left, run, and put back.

Every one of our models is causal and counts positions from the first column, so a row that begins in column 0 sees
nothing of the padding behind it. Left padding, right padding and both become that.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from perjoule.core.errors import ConfigError
from perjoule.core.labels import IGNORED


@dataclass(frozen=True)
class Rows:
    """Where the tokens of each row are.

    Args:
        mask: (batch, columns) True for tokens.
        begin: (batch,) column of the first one.
        lengths: (batch,) how many there are.
    """

    mask: Tensor
    begin: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, input_ids: Int[Tensor, "batch columns"], mask: Tensor | None) -> Rows | None:
        """Return the rows of an attention mask; None if all columns are tokens.

        Args:
            input_ids: what is masked.
            mask: of the same shape, true for tokens; None if all are.

        Raises:
            ConfigError: if the shape is another one; if a row has no token, or padding between two.
        """
        if mask is None:
            return None
        if mask.shape != input_ids.shape:
            raise ConfigError(
                f"attention_mask has shape {tuple(mask.shape)}; accepted: that of input_ids, {tuple(input_ids.shape)}"
            )
        if bool(mask.all()):
            return None
        real = mask.bool()
        rows = cls(real, real.int().argmax(1), real.sum(1))
        columns = torch.arange(real.shape[1], device=real.device) - rows.begin[:, None]
        wrong = ((columns >= 0) & (columns < rows.lengths[:, None])).ne(real).any(1) | (rows.lengths == 0)
        if wrong.any():
            raise ConfigError(
                f"attention_mask of row {int(wrong.nonzero()[0])} of {len(real)} is not 1 on one stretch of at least "
                "one token; accepted: padding on the left, on the right, or both"
            )
        return rows

    @property
    def end_together(self) -> bool:
        """Return whether all padding is on the left."""
        return bool(self.mask[:, -1].all())

    def take(self, tensor: Shaped[Tensor, "batch columns"]) -> Shaped[Tensor, "batch longest"]:
        """Move every row to the left; what is behind a shorter one is arbitrary."""
        columns = torch.arange(int(self.lengths.max()), device=tensor.device) + self.begin[:, None]
        return tensor.gather(1, columns.clamp(max=tensor.shape[1] - 1))

    def put_back(self, tensor: Shaped[Tensor, "batch longest vocab"]) -> Shaped[Tensor, "batch columns vocab"]:
        """Move every row to where it was, with zeros where there is no token."""
        columns = torch.arange(self.mask.shape[1], device=tensor.device) - self.begin[:, None]
        columns = columns.clamp(0, tensor.shape[1] - 1)
        row = torch.arange(len(columns), device=tensor.device)[:, None]
        return tensor[row, columns].masked_fill(~self.mask[..., None], 0)


def shifted(labels: Int[Tensor, "batch columns"], rows: Rows | None) -> Int[Tensor, "batch columns"]:
    """Return labels as our models take them: column t has what is to be predicted from the token of column t.

    Args:
        labels: as Hugging Face has them: column t has the token of column t, or -100.
        rows: where the tokens are; neither padding nor what it would predict is judged.
    """
    following = labels[:, 1:] if rows is None else labels[:, 1:].masked_fill(~rows.mask[:, 1:], IGNORED)
    judged = F.pad(following, (0, 1), value=IGNORED)
    return judged if rows is None else judged.masked_fill(~rows.mask, IGNORED)
