"""Small drawings as SVG text: curves, a stacked bar, a histogram.

Colours are CSS classes (``c0`` … ``c7``, ``grey``, …), so that the page decides them for light and dark. Text is a few
tick labels only; titles, legends and everything that can be long stand in the HTML around a drawing, where it can wrap.
A drawing holds at most ``MAX_POINTS`` points per line, whatever the length of the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MAX_POINTS = 1000
NUM_COLORS = 8
_WIDTH, _HEIGHT = 400, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 10, 10, 40
_STRIP = 26


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        x: (num_points,) ascending.
        y: (num_points,); points that are not finite are left out.
        color: CSS class.
        style: ``line``, ``faint`` (raw values behind a smoothed line), or ``dots`` and ``dashed`` (few points, each of
            them drawn).
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    color: str = "c0"
    style: str = "line"

    def finite(self) -> tuple[Floats, Floats]:
        """Return the points that can be drawn."""
        good = np.isfinite(self.x) & np.isfinite(self.y)
        return self.x[good].astype(np.float64), self.y[good].astype(np.float64)


@dataclass(frozen=True)
class Strip:
    """What shared the time, drawn as a band below the x axis of a chart.

    Args:
        edges: (num_bins + 1,) ascending, in the unit of the x axis.
        shares: CSS class and (num_bins,) share of each bin; the shares of a bin add up to 1.
    """

    edges: Floats
    shares: Sequence[tuple[str, Floats]]


def color(index: int) -> str:
    """Return the CSS class of the line or part with this number."""
    return f"c{index % NUM_COLORS}"


def decimate(x: Floats, y: Floats, limit: int = MAX_POINTS) -> tuple[Floats, Floats]:
    """Return at most ``limit`` of the points: the lowest and the highest of each of ``limit / 2`` stretches."""
    if len(x) <= limit:
        return x, y
    num_rows = limit // 2
    edges = np.linspace(0, len(x), num_rows + 1).astype(np.int64)
    chosen = [edge + pick(y[edge:end]) for edge, end in pairwise(edges) for pick in (np.argmin, np.argmax)]
    rows = np.unique(np.asarray(chosen))
    return x[rows], y[rows]


def smooth(numerator: Floats, denominator: Floats | None = None, share: float = 0.08) -> Floats:
    """Return the ratio of trailing sums; each point looks back over ``share`` of the points before it.

    The window grows with the position, as on a logarithmic axis: the steep start of a loss curve keeps its shape, and
    its long flat end loses its noise. With ``denominator`` left out this is the trailing mean.
    """
    below = np.ones(len(numerator)) if denominator is None else denominator
    position = np.arange(len(numerator))
    start = position - (share * position).astype(np.int64)
    above_sum, below_sum = (np.concatenate([[0.0], np.cumsum(part)]) for part in (numerator, below))
    ratio: Floats = (above_sum[position + 1] - above_sum[start]) / (below_sum[position + 1] - below_sum[start])
    return ratio


def smooth_loss(loss: Floats, num_labels: NDArray[np.int64]) -> Floats:
    """Return the trailing mean of batch losses over labels, not over batches of different sizes.

    Args:
        loss: (num_steps,) mean of each batch.
        num_labels: (num_steps,) that this mean is over; unless all are known, batches count alike.
    """
    weights = num_labels.astype(np.float64) if (num_labels > 0).all() else np.ones(len(loss))
    return smooth(loss * weights, weights)


def ticks(low: float, high: float, num: int = 5) -> list[float]:
    """Return about ``num`` round numbers within ``low`` to ``high``."""
    raw = (high - low) / num
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= raw * 0.999)
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def plain(value: float) -> str:
    """Format a tick without a unit."""
    return f"{value:.6g}"


def line_chart(
    lines: Sequence[Line],
    description: str,
    x_label: str,
    *,
    x_format: Callable[[float], str] = plain,
    y_format: Callable[[float], str] = plain,
    from_zero: bool = False,
    top: float = math.inf,
    strip: Strip | None = None,
) -> str:
    """Draw lines over one pair of axes; "" if there is no finite point.

    Args:
        lines: drawn in order, the last on top.
        description: read out instead of the drawing.
        x_label: what the x axis is, with its unit.
        x_format: formats a tick of the x axis.
        y_format: formats a tick of the y axis.
        from_zero: whether the y axis starts at 0, as it must where lengths are compared.
        top: points above are left out; the caller says so beside the drawing.
        strip: drawn below the x axis, which it makes as long as itself.
    """
    points = [(x[y <= top], y[y <= top]) for x, y in (line.finite() for line in lines)]
    if not any(len(x) for x, _ in points):
        return ""
    all_x, all_y = (np.concatenate(parts) for parts in zip(*points, strict=True))
    if strip is not None:
        all_x = strip.edges
    x_range = _padded(float(all_x.min()), float(all_x.max()), 0.0)
    y_range = _padded(0.0 if from_zero else float(all_y.min()), float(all_y.max()), 0.06)
    if from_zero:
        y_range = (0.0, y_range[1])
    body = [_axes(x_range, y_range, x_label, x_format, y_format)]
    for line, (x, y) in zip(lines, points, strict=True):
        body.append(_draw(line, *decimate(x, y), x_range, y_range))
    if strip is not None:
        body.append(_draw_strip(strip, x_range))
    return _svg("".join(body), description, _HEIGHT if strip is None else _HEIGHT + _STRIP)


def histogram(
    values_s: Floats, description: str, markers: Sequence[tuple[float, str]], x_format: Callable[[float], str]
) -> str:
    """Draw how ``values_s`` spread, up to the 99.5th percentile, with marked positions; "" if there is no value.

    Args:
        values_s: (num_values,) seconds.
        description: read out instead of the drawing.
        markers: positions and the CSS class of each.
        x_format: formats a tick of the x axis.
    """
    if not len(values_s):
        return ""
    low, high = _padded(float(values_s.min()), float(np.quantile(values_s, 0.995)), 0.0)
    counts, edges = np.histogram(values_s, bins=min(40, max(8, math.isqrt(len(values_s)))), range=(low, high))
    top = float(counts.max()) * 1.06 or 1.0
    x_range, y_range = (low, high), (0.0, top)
    body = [_axes(x_range, y_range, "seconds per step", x_format, plain, whole_y=True)]
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        x, y = _x(left, x_range), _y(float(count), y_range)
        width, height = _x(right, x_range) - x, _y(0, y_range) - y
        body.append(
            f'<rect class="fill c0" x="{x:.1f}" y="{y:.1f}" width="{max(width - 0.6, 0.4):.1f}" height="{height:.1f}"/>'
        )
    for at, css in markers:
        if low <= at <= high:
            x = _x(at, x_range)
            body.append(
                f'<line class="marker {escape(css)}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
            )
    return _svg("".join(body), description)


def stacked_bar(parts: Sequence[tuple[float, str]], description: str, whole: float = 1.0) -> str:
    """Draw parts of a whole as one bar, without text.

    Args:
        parts: size and CSS class of each part, from left to right.
        description: read out instead of the drawing.
        whole: the size that fills the width.
    """
    body, at = [], 0.0
    for size, css in parts:
        width = size / whole * 1000 if whole > 0 else 0.0
        body.append(f'<rect class="fill {escape(css)}" x="{at:.2f}" y="0" width="{max(width, 0):.2f}" height="10"/>')
        at += width
    return (
        f'<svg class="bar" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(description)}">{"".join(body)}</svg>'
    )


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    """Return a range that is never empty, a ``share`` wider at both ends."""
    spread = high - low
    if spread <= 1e-12 * max(abs(low), abs(high), 1e-12):
        half = abs(low) * 0.1 or 1.0
        return low - half, high + half
    return low - share * spread, high + share * spread


def _x(value: float, limits: tuple[float, float]) -> float:
    return _LEFT + (value - limits[0]) / (limits[1] - limits[0]) * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, limits: tuple[float, float]) -> float:
    return _HEIGHT - _BOTTOM - (value - limits[0]) / (limits[1] - limits[0]) * (_HEIGHT - _TOP - _BOTTOM)


def _axes(
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    x_label: str,
    x_format: Callable[[float], str],
    y_format: Callable[[float], str],
    whole_y: bool = False,
) -> str:
    """Draw the grid, the tick labels and the name of the x axis."""
    parts, right, bottom = [], _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for value in ticks(*y_range):
        if whole_y and value != int(value):
            continue
        y = _y(value, y_range)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(y_format(value))}</text>')
    for value in ticks(*x_range):
        x = _x(value, x_range)
        anchor = "end" if x > right - 12 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{escape(x_format(value))}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text class="label" x="{middle:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return "".join(parts)


def _draw(line: Line, x: Floats, y: Floats, x_range: tuple[float, float], y_range: tuple[float, float]) -> str:
    """Draw one line, and its points if it has few."""
    if not len(x):
        return ""
    points = [f"{_x(float(a), x_range):.1f},{_y(float(b), y_range):.1f}" for a, b in zip(x, y, strict=True)]
    css = f"{escape(line.style)} {escape(line.color)}"
    drawn = f'<polyline class="{css}" points="{" ".join(points)}"/>'
    if line.style in ("dots", "dashed") or len(points) == 1:
        for point in points if len(points) <= 60 else points[-1:]:
            a, _, b = point.partition(",")
            drawn += f'<circle class="fill {escape(line.color)}" cx="{a}" cy="{b}" r="2.6"/>'
    return drawn


def _draw_strip(strip: Strip, x_range: tuple[float, float]) -> str:
    """Draw the shares as bands that fill the strip from its top to its bottom."""
    x = np.repeat([_x(float(edge), x_range) for edge in strip.edges], 2)[1:-1]
    above, body = np.full(len(x), float(_HEIGHT + 4)), ""
    for css, shares in strip.shares:
        below = above + np.repeat(shares, 2) * (_STRIP - 4)
        if shares.any():
            outline = zip([*x, *x[::-1]], [*above, *below[::-1]], strict=True)
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in outline)
            body += f'<polygon class="fill {escape(css)}" points="{points}"/>'
        above = below
    return body


def _svg(body: str, description: str, height: int = _HEIGHT) -> str:
    label = escape(description)
    return f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}">{body}</svg>'
