"""What one training step does, in numbers that depend on the recipe alone and not on the machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

_PER_MICRO_BATCH = (
    "float32_flops",
    "bf16_flops",
    "attention_flops",
    "bf16_attention_flops",
    "product_bytes",
    "moved_bytes",
    "bf16_bytes",
    "strided_bytes",
    "num_calls",
)


@dataclass(frozen=True)
class Work:
    """One optimizer step: all its micro-batches forward and backward, and the optimizer.

    Args:
        float32_flops: FLOPs of matrix products (and convolutions) in float32.
        bf16_flops: of those in bfloat16.
        attention_flops: of fused attention kernels in float32.
        bf16_attention_flops: of those in bfloat16.
        product_bytes: bytes that the products read and write, if each operand passes once.
        moved_bytes: bytes that the other operations read and write: float32 and integers, contiguous.
        bf16_bytes: the same where a half-precision type takes part, casts included.
        strided_bytes: the same where an operand is not contiguous.
        num_calls: operations that are called, views included.
        trained_parameters: weights that the optimizer updates.
        forward_share: share of the forward pass in the FLOPs, 0 to 1.
        weight_bytes: weights and the optimizer's state.
        activation_bytes: what the forward pass leaves for the backward pass, of one micro-batch.
        peak_bytes: most memory at once besides ``weight_bytes``, gradients included.
        computes_in: ``float32`` or ``bfloat16``.
    """

    float32_flops: float
    bf16_flops: float
    attention_flops: float
    bf16_attention_flops: float
    product_bytes: float
    moved_bytes: float
    bf16_bytes: float
    strided_bytes: float
    num_calls: float
    trained_parameters: float
    forward_share: float
    weight_bytes: float
    activation_bytes: float
    peak_bytes: float
    computes_in: str

    @property
    def flops(self) -> float:
        """Return all FLOPs."""
        return self.float32_flops + self.bf16_flops + self.attention_flops + self.bf16_attention_flops

    @property
    def all_bytes(self) -> float:
        """Return the bytes that all operations read and write."""
        return self.product_bytes + self.moved_bytes + self.bf16_bytes + self.strided_bytes

    @property
    def memory_bytes(self) -> float:
        """Return the most memory that the step needs at once."""
        return self.weight_bytes + self.peak_bytes

    def times(self, num_micro: int) -> Work:
        """Return the work of as many micro-batches in a step; memory and optimizer are those of one."""
        return replace(self, **{name: getattr(self, name) * num_micro for name in _PER_MICRO_BATCH})
