"""``past_key_values``: our decoders' own caches, behind the few methods that ``generate`` asks for.

A recurrent state cannot forget its last tokens, so that generation which takes tokens back (assisted decoding) is not
offered for any of the models; transformers says so itself.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor


class DecoderCache:
    """What a model remembers of the tokens it has read.

    Args:
        inner: the model's own cache.
        num_tokens: columns that it has read, padding included.
    """

    is_compileable: ClassVar[bool] = False
    """Asked by ``generate``."""

    def __init__(self, inner: Any, num_tokens: int) -> None:
        self.inner = inner
        self.num_tokens = num_tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the columns read so far, which are the same for every layer."""
        return self.num_tokens

    def reorder_cache(self, beam_idx: Int[Tensor, " batch"]) -> None:
        """Let row i go on from what row ``beam_idx[i]`` was, as beam search does between tokens."""
        self.inner = self.inner.select(beam_idx)
