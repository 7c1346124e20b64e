"""Keys and values of the tokens that were read, for decoding; and prompts of different lengths, brought into line.

Prompts come padded on the left. Here they are moved to the left instead, so that every row begins at position 0 and
what is behind a shorter row is hidden by the causal mask: slot t of a cache is position t of every row, whatever
divides positions (segments, chunks) divides those of every row alike, and nothing is ever computed on padding that
could be seen. The next token of row b goes to slot ``positions[b]``, over whatever the prompt's padding left there.

Reading costs O(slots) per token. Memory is 2·batch·kv_heads·slots·head_dim numbers per layer; slots grow by doubling.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from perjoule.core.errors import ConfigError

SMALLEST_GROWTH = 64
"""Slots that are added at least, so that a short prompt is not copied for each of its first tokens."""


@dataclass(frozen=True)
class Prompts:
    """Rows that begin at position 0.

    Args:
        input_ids: (batch, longest), or (batch, longest, dim) embedded; what is behind a row's own length is arbitrary.
        lengths: (batch,) tokens of each row.
        longest: the largest length.
    """

    input_ids: Tensor
    lengths: Tensor
    longest: int


Tokens = Int64[Tensor, "batch seq"] | Float[Tensor, "batch seq dim"]
"""Ids, or what an embedding would make of them."""


def align(input_ids: Tokens, mask: Bool[Tensor, "batch seq"] | None) -> Prompts:
    """Move prompts that are padded on the left to the left.

    Args:
        input_ids: tokens.
        mask: True for real tokens; None if all are.

    Raises:
        ConfigError: if a row has no token, or padding behind one.
    """
    batch, seq_len = input_ids.shape[:2]
    if mask is None:
        mask = torch.ones(batch, seq_len, dtype=torch.bool, device=input_ids.device)
    lengths = mask.sum(1)
    padding = seq_len - lengths
    positions = torch.arange(seq_len, device=input_ids.device)
    wrong = ((positions >= padding.unsqueeze(1)) != mask).any(1) | (lengths == 0)
    if wrong.any():
        raise ConfigError(
            f"prompt {int(wrong.nonzero()[0])} of {batch} is not padded on the left; "
            f"accepted: a mask that is False, then True at least once, up to the end of the row"
        )
    longest = int(lengths.max()) if batch else 0
    index = (positions[:longest] + padding.unsqueeze(1)).clamp(max=seq_len - 1)
    if input_ids.ndim > index.ndim:
        index = index.unsqueeze(2).expand(-1, -1, input_ids.shape[2])
    return Prompts(input_ids.gather(1, index), lengths, longest)


@dataclass(frozen=True)
class Past:
    """What one more token of each row may look back at, itself included.

    Args:
        keys: (batch, kv_heads, slots, head_dim).
        values: like the keys.
        positions: (batch,) slot of the new token; those behind it hold nothing of this row.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor


class LayerCache:
    """Keys and values of one layer.

    Args:
        positions: (batch,) where the next token of each row goes; shared by all layers.
    """

    def __init__(self, positions: Int64[Tensor, " batch"]) -> None:
        self.positions = positions
        self.num_slots = 0
        self._keys = self._values = torch.empty(0)

    def extend(
        self, k: Float[Tensor, "batch kv_heads seq head_dim"], v: Float[Tensor, "batch kv_heads seq head_dim"]
    ) -> Past | None:
        """Keep keys and values: first those of whole prompts, then those of one token at a time.

        Returns:
            None for the prompts, which look back at nothing but themselves.
        """
        if self.num_slots == 0:
            # Copies: a view would keep the queries alive, and another layer's values if they were one projection.
            self._keys, self._values, self.num_slots = k.clone(), v.clone(), k.shape[2]
            return None
        if self.num_slots == self._keys.shape[2]:
            more = max(self.num_slots, SMALLEST_GROWTH)
            self._keys, self._values = F.pad(self._keys, (0, 0, 0, more)), F.pad(self._values, (0, 0, 0, more))
        rows = torch.arange(len(self.positions), device=k.device)
        self._keys[rows, :, self.positions], self._values[rows, :, self.positions] = k[:, :, 0], v[:, :, 0]
        self.num_slots += 1
        return Past(self._keys[:, :, : self.num_slots], self._values[:, :, : self.num_slots], self.positions)

    def select(self, rows: Int64[Tensor, " batch"]) -> None:
        """Go on with these rows, in this order."""
        self._keys, self._values = self._keys[rows], self._values[rows]


class KeyValueCache:
    """Keys and values of a model.

    Args:
        num_layers: of the model, at least 1.
        prompts: that it is about to read.
    """

    def __init__(self, num_layers: int, prompts: Prompts) -> None:
        self.positions = prompts.lengths.clone()
        self.longest = prompts.longest
        self.layers = [LayerCache(self.positions) for _ in range(num_layers)]

    @property
    def begun(self) -> bool:
        """Return whether the prompts have been read."""
        return self.layers[0].num_slots > 0

    def advance(self) -> None:
        """Note that every row has one token more."""
        self.positions += 1
        self.longest += 1

    def select(self, rows: Int64[Tensor, " batch"]) -> KeyValueCache:
        """Go on with these rows, in this order; as beam search does. Returns itself."""
        self.positions.copy_(self.positions[rows])  # which the layers share
        for layer in self.layers:
            layer.select(rows)
        return self


def recall(q: Float[Tensor, "batch heads 1 head_dim"], past: Past) -> Float[Tensor, "batch heads 1 head_dim"]:
    """Attend to everything up to the token itself."""
    slots = torch.arange(past.keys.shape[2], device=q.device)
    seen = slots <= past.positions[:, None, None, None]
    grouped = q.shape[1] != past.keys.shape[1]
    return F.scaled_dot_product_attention(q, past.keys, past.values, attn_mask=seen, enable_gqa=grouped)
