"""What a training step of an Energy-Based Transformer multiplies, from its sizes."""

from __future__ import annotations

from perjoule.models.contract import FlopsPerToken
from perjoule.models.ebt_sizes import EBTSizes
from perjoule.models.thinking import Schedule

FORWARD, SLOPE = 2, 2
"""FLOPs per weight: of a forward pass, and of the slope, which goes back through the inputs alone."""
LEARNED = 12
"""Of a step that is learned from: both, and twice as much again to differentiate each with respect to its operands."""


def flops_per_token(sizes: EBTSizes, vocab_size: int, seq_len: int) -> FlopsPerToken:
    """Return the training FLOPs of matrix products per token.

    For each landscape the context's blocks, and of the last one the keys and values, cost as in a Transformer: 6 per
    weight. For each step the candidates' blocks cost 12 per weight if the step is learned from, and 4 otherwise. Each
    attention layer has 4·dim·seq_len FLOPs forward for what has 2 per weight, half of them needed. A step embeds and
    reads out (4·vocab_size·dim); learning adds the gradients of both (6), and 2 where the state before it learns, too.
    Modulations act once per sequence and are left out. A random number of steps counts as the largest.

    Args:
        sizes: the model's.
        vocab_size: rows of the candidates' embedding.
        seq_len: tokens of a sequence.
    """
    thinking, dim = sizes.thinking, sizes.dim
    schedule = Schedule.of(thinking.most_steps, thinking.detach)
    block = 4 * dim**2 + 3 * dim * sizes.ffn_width
    weights = vocabulary = pairs = 0
    learned_landscapes, landscapes = set(), set()
    for step in range(schedule.steps):
        judged = thinking.loss_on == "all" or step == schedule.steps - 1
        reached = schedule.with_graph(step) and (judged or schedule.joint)
        factor = LEARNED if reached else FORWARD + SLOPE
        weights += factor * (sizes.num_layers * block + dim)
        pairs += factor * sizes.num_layers
        vocabulary += 10 if reached else 4
        vocabulary += 2 * (reached and not schedule.cuts(step))
        landscape = min(step, sizes.num_landscapes - 1)
        landscapes.add(landscape)
        if reached:
            learned_landscapes.add(landscape)
    for landscape in landscapes:
        factor = 3 * FORWARD if landscape in learned_landscapes else FORWARD
        weights += factor * ((sizes.num_layers - 1) * block + 2 * dim**2)
        pairs += factor * (sizes.num_layers - 1)
    attention = 2 * pairs * dim * seq_len
    matrices = weights + vocabulary * vocab_size * dim
    return FlopsPerToken(full=matrices + attention, causal=matrices + attention // 2)
