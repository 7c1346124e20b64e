"""Documents that share a packed row and shall not see each other.

A batch may carry ``documents``, int32 (batch, seq): the number of the document that a token belongs to, counted within
its row. A document is contiguous, and numbers grow along a row. What mixes positions then mixes those of one document
only, so that a document's logits are those it has alone. Positions need not begin anew with a document: rope, xpos and
the rotation and decay of retention know distances only.

Attention adds a bias to its scores, quadratic in the length; it is made once for a batch and shared by all layers.
Everything here has the shapes of the batch, wherever documents begin: a compiled model is not compiled again.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor


def visible_tokens(documents: Int32[Tensor, "*batch seq"]) -> Bool[Tensor, "*batch seq seq"]:
    """Return which tokens (last axis) each token may see: earlier ones of its own document and itself."""
    return (documents.unsqueeze(-1) == documents.unsqueeze(-2)).tril()


def hiding(visible: Bool[Tensor, "*batch seq columns"]) -> Float[Tensor, "*batch seq columns"]:
    """Return what to add to scores: 0 where a column is visible, and -∞ where it is not."""
    return torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, float("-inf"))


def places_within(documents: Int32[Tensor, "batch seq"]) -> Int64[Tensor, "batch seq"]:
    """Return where each token stands in its document, counted from 0."""
    # Numbers grow along a row, so that looking up a number finds its first token.
    starts = torch.searchsorted(documents, documents)
    return torch.arange(documents.shape[1], device=documents.device) - starts
