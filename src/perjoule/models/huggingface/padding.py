"""Rows of different lengths in one rectangle: their tokens moved together, run, and put back.

Every one of our models is causal and counts positions from the first column, so a row that begins in column 0 sees
nothing of the padding behind it. Padding on the left, on the right, on both sides and between tokens becomes that:
what is masked is as if it were not there.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Int32, Shaped
from torch import Tensor
from torch.nn import functional as F

from perjoule.core.errors import ConfigError
from perjoule.core.labels import IGNORED


@dataclass(frozen=True)
class Rows:
    """Where the tokens of each row are.

    Args:
        mask: (batch, columns) True for tokens.
        lengths: (batch,) how many there are.
        longest: the most of them, in tokens.
    """

    mask: Tensor
    lengths: Tensor
    longest: int

    @classmethod
    def of(cls, mask: Tensor | None, batch: int, columns: int) -> Rows | None:
        """Return the rows of an attention mask; None if all columns are tokens.

        Args:
            mask: (batch, columns), not 0 for tokens; None if all are.
            batch: rows of the input.
            columns: of the input.

        Raises:
            ConfigError: if the shape is another one, or a row has no token.
        """
        if mask is None:
            return None
        if mask.shape != (batch, columns):
            raise ConfigError(
                f"attention_mask has shape {tuple(mask.shape)}; accepted: that of the tokens, {(batch, columns)}"
            )
        real = mask.bool()
        lengths = real.sum(1)
        shortest, longest = torch.stack((lengths.min(), lengths.max())).tolist() if batch else (columns, columns)
        if shortest == columns:
            return None
        if shortest == 0:
            raise ConfigError(
                f"attention_mask of row {int((lengths == 0).nonzero()[0])} of {batch} has no token; "
                "accepted: at least one 1 in each row"
            )
        return cls(real, lengths, longest)

    def begin_together(self, tensor: Shaped[Tensor, "batch columns *rest"]) -> Shaped[Tensor, "batch longest *rest"]:
        """Move each row's tokens to the left; what is behind a shorter one is arbitrary."""
        return _gather(tensor, (~self.mask).int().argsort(dim=1, stable=True)[:, : self.longest])

    def end_together(self, tensor: Shaped[Tensor, "batch columns *rest"]) -> Shaped[Tensor, "batch longest *rest"]:
        """Move each row's tokens to the right; what is in front of a shorter one is arbitrary."""
        return _gather(tensor, self.mask.int().argsort(dim=1, stable=True)[:, -self.longest :])

    @property
    def left_padded(self) -> Bool[Tensor, "batch longest"]:
        """Return where the tokens are after :meth:`end_together`."""
        columns = torch.arange(self.longest, device=self.mask.device)
        return columns >= (self.longest - self.lengths)[:, None]

    def put_back(self, tensor: Shaped[Tensor, "batch longest rest"]) -> Shaped[Tensor, "batch columns rest"]:
        """Undo :meth:`begin_together`: padding gets what the last token before it has, or zeros if there is none."""
        place = self.mask.cumsum(1) - 1
        return _gather(tensor, place.clamp(min=0)).masked_fill((place < 0)[..., None], 0)


def _gather(tensor: Tensor, columns: Tensor) -> Tensor:
    """Return these columns of each row."""
    rows = torch.arange(len(columns), device=columns.device)[:, None]
    return tensor[rows, columns]


def targets_of(labels: Int[Tensor, "batch columns"], rows: Rows | None, shifted: bool) -> Int[Tensor, "batch longest"]:
    """Return labels as our models take them: column t has what is to be predicted from the row's token t.

    Args:
        labels: column t has the token of column t, or -100.
        rows: where the tokens are; neither padding nor what it would predict is judged.
        shifted: column t has what is to be predicted there already.
    """
    targets = labels if rows is None else rows.begin_together(labels)
    if not shifted:
        targets = F.pad(targets[:, 1:], (0, 1), value=IGNORED)
    if rows is None:
        return targets
    columns = torch.arange(rows.longest, device=targets.device)
    return targets.masked_fill(columns >= (rows.lengths if shifted else rows.lengths - 1)[:, None], IGNORED)


def documents_of(
    position_ids: Int[Tensor, "#batch columns"], batch: int, rows: Rows | None
) -> Int32[Tensor, "batch longest"] | None:
    """Return the number of each token's document: one begins wherever positions start again at 0. None if there is one.

    Only distances count in our models, so that a row may begin at any position.

    Args:
        position_ids: of the columns.
        batch: rows of the input.
        rows: where the tokens are.

    Raises:
        ConfigError: if positions neither go up by one from token to token nor start again at 0.
    """
    positions = position_ids.expand(batch, -1)
    if rows is not None:
        positions = rows.begin_together(positions)
    begins = positions[:, 1:] == 0
    wrong = (positions.diff(dim=1) != 1) & ~begins
    if rows is not None:
        behind = torch.arange(1, rows.longest, device=positions.device) >= rows.lengths[:, None]
        begins, wrong = begins & ~behind, wrong & ~behind
    found, several = torch.stack((wrong.any(), begins.any())).tolist()
    if found:
        raise ConfigError(
            f"position_ids of row {int(wrong.any(1).nonzero()[0])} of {batch} are not those of a text; accepted: "
            "numbers that go up by one from token to token, starting again at 0 where a document begins"
        )
    return F.pad(begins.cumsum(1), (1, 0)).to(torch.int32) if several else None
