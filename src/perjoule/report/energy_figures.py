"""Drawings of energy: bars whose hatching says how a part was found, with the ends of its interval.

A bar stretches with the page, so it holds no text; names, values and words stand in the HTML around it. Hatching and
whiskers keep the width of their lines (``vector-effect`` in the style sheet).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from perjoule.measure.ledger import Tier

_HEIGHT = 20
_SPACING = {Tier.BURST: 24, Tier.REGRESSION: 12, Tier.SHARED: 14, Tier.MODELLED: 6}
"""Distance of the lines of each hatching; what is measured directly has none."""
_CROSSED = (Tier.SHARED,)


@dataclass(frozen=True)
class Part:
    """A part of a bar.

    Args:
        size: its length.
        color: CSS class.
        tier: decides the hatching.
    """

    size: float
    color: str
    tier: Tier


def energy_bar(
    parts: Sequence[Part],
    description: str,
    whole: float,
    start: float = 0.0,
    interval: tuple[float, float] | None = None,
    long: bool = False,
) -> str:
    """Draw parts one behind the other, and a whisker over the ends of an interval.

    Args:
        parts: from left to right.
        description: read out instead of the drawing.
        whole: the length that fills the width.
        start: where the first part begins.
        interval: ends of the whisker.
        long: whether it goes over the whole width of a page and not of a column.
    """
    units = 700 if long else 250  # about as many as pixels, so that the hatching leans as it should
    scale = units / whole if whole > 0 else 0.0
    body, at = [], start * scale
    for part in parts:
        width = max(part.size * scale, 0.0)
        body.append(
            f'<rect class="fill {escape(part.color)}" x="{at:.2f}" y="3" width="{width:.2f}" height="{_HEIGHT - 6}"/>'
            f'<path class="hatch" d="{_hatching(at, width, part.tier)}"/>'
        )
        at += width
    if interval is not None:
        low, high = (min(max(end * scale, 1.0), units - 1.0) for end in interval)
        middle = _HEIGHT // 2
        body.append(
            f'<path class="whisker" d="M{low:.1f} 1V{_HEIGHT - 1}M{high:.1f} 1V{_HEIGHT - 1}'
            f'M{low:.1f} {middle}H{high:.1f}"/>'
        )
    return (
        f'<svg class="energy{" whole" * long}" viewBox="0 0 {units} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(description)}">{"".join(body)}</svg>'
    )


def _hatching(left: float, width: float, tier: Tier) -> str:
    """Return lines across a part, cut off at its ends."""
    if tier not in _SPACING:
        return ""
    right, top, bottom, lean = left + width, 3.0, _HEIGHT - 3.0, _HEIGHT - 6.0
    lines, x = [], left - lean
    while x < right:
        begin, end = max(x, left), min(x + lean, right)
        low, high = bottom - (begin - x), bottom - (end - x)
        lines.append(f"M{begin:.1f} {low:.1f}L{end:.1f} {high:.1f}")
        if tier in _CROSSED:
            lines.append(f"M{begin:.1f} {top + bottom - low:.1f}L{end:.1f} {top + bottom - high:.1f}")
        x += _SPACING[tier]
    return "".join(lines)
