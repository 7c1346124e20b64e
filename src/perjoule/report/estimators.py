"""Draw what ``perjoule estimate --score`` found: the error of every method, split by split, in one figure.

A dot is the median of the absolute errors of the energy, its line ends at their 95th percentile; the axis is
logarithmic, as methods differ by factors. Beside each stands how often its intervals held the true figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from perjoule.estimate.contract import Target
from perjoule.estimate.scores import Score
from perjoule.estimate.splits import Split
from perjoule.report.figures import color

_TICKS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_LEFT, _RIGHT, _WIDTH = 150, 560, 720
_ROW, _TOP = 17, 34
_TARGETS = (Target.ENERGY_PER_EPOCH, Target.TOTAL_ENERGY)


def score_figure(scores: Sequence[Score]) -> str:
    """Return the figure as a file of its own (SVG); "" if no energy was estimated.

    Args:
        scores: rows of the table; those of single architectures are left to it.
    """
    groups: dict[tuple[str, str], list[Score]] = {}
    for one in scores:
        if one.target in _TARGETS and not any(one.split.startswith(f"{split.value}: ") for split in Split):
            groups.setdefault((one.study, one.split), []).append(one)
    if not groups:
        return ""
    methods = list(dict.fromkeys(one.method for group in groups.values() for one in group))
    body, y = list[str](), _TOP
    for (study, split), group in groups.items():
        y += _ROW // 2
        body.append(f'<text x="4" y="{y + 4}" font-weight="600">{escape(split)} · {escape(study)}</text>')
        for one in group:
            y += _ROW
            body.append(_row(one, y, color(methods.index(one.method))))
        y += _ROW
    return _document("".join([_axis(y), *body]), y + 8)


def _row(one: Score, y: int, css: str) -> str:
    """Draw one method: its name, its errors, and what its intervals were worth."""
    name = one.method + (", total" if one.target is Target.TOTAL_ENERGY else "") + (" *" if one.note else "")
    shown = f"{100 * one.median:.1f} %, {100 * one.coverage:.0f} % in interval"
    start, end = _x(one.median), _x(one.p95)
    return (
        f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(name)}</text>'
        f'<line class="{css}" stroke-width="2" x1="{start:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}"/>'
        f'<circle class="fill {css}" cx="{start:.1f}" cy="{y}" r="4"/>'
        f'<text x="{_RIGHT + 10}" y="{y + 4}">{escape(shown)}</text>'
    )


def _axis(bottom: int) -> str:
    """Draw the grid with its labels on top, and what the marks mean."""
    parts = ['<text x="4" y="12">error of the energy: median to 95th percentile; * given more than a plan</text>']
    for tick in _TICKS:
        x = _x(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{_TOP - 6}" text-anchor="middle">{100 * tick:g} %</text>')
    return "".join(parts)


def _x(error: float) -> float:
    """Return where an error lies; what is beyond the axis lies at its end."""
    low, high = _TICKS[0], _TICKS[-1]
    share = math.log(min(max(error, low), high) / low) / math.log(high / low)
    return _LEFT + share * (_RIGHT - _LEFT)


def _document(body: str, height: int) -> str:
    """Return a file with the colours of the reports, light and dark."""
    style = files("perjoule.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="Errors of the estimators, split by split">'
        f"<style>{escape(style, quote=False)} svg {{ background: var(--card); }}</style>{body}</svg>\n"
    )
