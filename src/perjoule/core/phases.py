"""The phases of a training step, and what a phase name may look like.

``STEP`` covers one whole iteration of the loop. The other phases lie inside it, do not overlap, and partition it
together with the computed remainder ``other``. A nested phase names its parent: ``forward/think``.
"""

from __future__ import annotations

STEP = "step"
DATA = "data"
TRANSFER = "transfer"
FORWARD = "forward"
BACKWARD = "backward"
OPTIMIZER = "optimizer"
EVALUATE = "evaluate"
CHECKPOINT = "checkpoint"
OTHER = "other"
"""Computed when a run is read: the step without its phases. Never recorded."""

TRAINING = (DATA, TRANSFER, FORWARD, BACKWARD, OPTIMIZER)
"""What every training step goes through."""
ON_SCHEDULE = (EVALUATE, CHECKPOINT)
"""What happens only at some steps; excluded from the step-time distribution."""
RECORDED = (STEP, *TRAINING, *ON_SCHEDULE)
"""The order fixes the numbers in the journal."""


def parent(phase: str) -> str:
    """Return the phase that ``phase`` is nested in: ``forward`` for ``forward/think``, ``step`` for the others."""
    head, separator, _ = phase.rpartition("/")
    return head if separator else STEP
