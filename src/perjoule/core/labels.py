"""What data and models must agree on about labels, without knowing each other."""

IGNORED = -100
"""The label of a position that is not trained on."""
