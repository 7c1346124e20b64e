"""A memory of where thinking ended, to go on from there: chains of steps longer than one batch can pay for.

Every batch takes some of the remembered samples along, starts them where they were left, and puts them back, one
visit older, until they are too old; fresh samples take the free places, then any others. The released code
never puts a sample back, so that its chains are two visits long at most.

The memory consists of buffers of the model: a checkpoint holds it, and a resumed run goes on with it. Draws come from
torch's default generator, whose state is in the checkpoint as well. States are bfloat16, 2·vocab_size bytes for each
position. On several ranks each has its own.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor, nn


@dataclass(frozen=True)
class Recalled:
    """Samples taken from the memory.

    Args:
        slots: (samples,) their places.
        input_ids: (samples, seq).
        labels: (samples, seq).
        documents: (samples, seq) of the tokens; 0 if they were not kept apart.
        states: (samples, seq, vocab) logits where thinking ended last time.
    """

    slots: Tensor
    input_ids: Tensor
    labels: Tensor
    documents: Tensor
    states: Tensor


class Replay(nn.Module):
    """Remember samples and their states.

    Args:
        capacity: samples.
        seq_len: tokens of each; batches of another length are neither recalled into nor remembered.
        vocab_size: of the states.
        max_age: visits after which a sample is forgotten; the fresh one is the first.
    """

    input_ids: Tensor
    labels: Tensor
    documents: Tensor
    states: Tensor
    ages: Tensor

    def __init__(self, capacity: int, seq_len: int, vocab_size: int, max_age: int) -> None:
        super().__init__()
        self.max_age = max_age
        self.register_buffer("input_ids", torch.zeros(capacity, seq_len, dtype=torch.int64))
        self.register_buffer("labels", torch.zeros(capacity, seq_len, dtype=torch.int64))
        self.register_buffer("documents", torch.zeros(capacity, seq_len, dtype=torch.int32))
        self.register_buffer("states", torch.zeros(capacity, seq_len, vocab_size, dtype=torch.bfloat16))
        self.register_buffer("ages", torch.zeros(capacity, dtype=torch.int64))

    def forget(self) -> None:
        """Empty the memory."""
        for buffer in self.buffers():
            buffer.zero_()

    def recall(self, samples: int, seq_len: int) -> Recalled | None:
        """Draw remembered samples without repetition; None if there are too few of this length.

        Args:
            samples: how many.
            seq_len: of the batch that they shall join.
        """
        filled = (self.ages > 0).nonzero().squeeze(1)
        if samples == 0 or seq_len != self.input_ids.shape[1] or len(filled) < samples:
            return None
        slots = filled[torch.randperm(len(filled))[:samples].to(filled.device)]
        tokens = (self.input_ids[slots], self.labels[slots], self.documents[slots])
        return Recalled(slots, *tokens, self.states[slots].float())

    @torch.no_grad()
    def remember(
        self,
        input_ids: Int64[Tensor, "batch seq"],
        labels: Int64[Tensor, "batch seq"],
        states: Float[Tensor, "batch seq vocab"],
        recalled: Recalled | None,
        documents: Int32[Tensor, "batch seq"] | None = None,
    ) -> None:
        """Put a batch back.

        Args:
            input_ids: the fresh samples, then the recalled ones.
            labels: in the same order.
            states: where thinking ended, in the same order.
            recalled: what :meth:`recall` gave; None if nothing.
            documents: of the tokens, in the same order; None if they are not kept apart.
        """
        if input_ids.shape[1] != self.input_ids.shape[1]:
            return
        fresh = len(input_ids)
        if recalled is not None:
            fresh -= len(recalled.slots)
            self.states[recalled.slots] = states[fresh:].to(self.states.dtype)
            older = self.ages[recalled.slots] + 1
            self.ages[recalled.slots] = torch.where(older > self.max_age, 0, older)
        # Free places first, then any: to prefer the oldest would cut the long chains that this is for.
        chance = torch.rand(len(self.ages)).to(self.ages.device)
        chance[self.ages == 0] = -1.0
        if recalled is not None:
            chance[recalled.slots] += 1.0  # those that stayed are the last to go
        slots = chance.argsort()[:fresh]
        fresh = len(slots)
        self.input_ids[slots], self.labels[slots] = input_ids[:fresh], labels[:fresh]
        self.documents[slots] = 0 if documents is None else documents[:fresh]
        self.states[slots] = states[:fresh].to(self.states.dtype)
        self.ages[slots] = 1
