import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from perjoule.core.units import si
from perjoule.report.figures import (
    MAX_POINTS,
    Line,
    decimate,
    histogram,
    line_chart,
    smooth,
    smooth_loss,
    stacked_bar,
    ticks,
)


def points(svg: str) -> list[list[tuple[float, float]]]:
    """Return the points of every line of a drawing, and check that it is well-formed."""
    ET.fromstring(svg)
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in found.split())]
        for found in re.findall(r'points="([^"]*)"', svg)
    ]


def test_decimation_keeps_the_extremes_and_the_order() -> None:
    x = np.arange(100_003, dtype=np.float64)
    y = np.sin(x / 5000)
    y[77_777], y[33_333] = 9.0, -9.0
    few_x, few_y = decimate(x, y)
    assert len(few_x) <= MAX_POINTS
    assert (few_y.max(), few_y.min()) == (9.0, -9.0)
    assert few_x[few_y.argmax()] == 77_777
    assert (np.diff(few_x) > 0).all()


def test_few_points_are_not_decimated() -> None:
    x = np.arange(MAX_POINTS, dtype=np.float64)
    assert decimate(x, x)[0] is x


def test_smoothing_equals_the_trailing_mean_by_hand() -> None:
    y = np.arange(1.0, 31.0)
    smoothed = smooth(y, share=0.1)
    assert smoothed[:10].tolist() == y[:10].tolist()
    assert smoothed[10] == pytest.approx((10 + 11) / 2)
    assert smoothed[25] == pytest.approx((24 + 25 + 26) / 3)


def test_a_smoothed_loss_is_a_mean_over_labels() -> None:
    loss, labels = np.array([4.0] * 13 + [1.0]), np.array([1] * 13 + [3])
    assert smooth_loss(loss, labels)[-1] == pytest.approx((1 * 4.0 + 3 * 1.0) / 4), "a window of the last two batches"
    assert smooth_loss(loss, labels * 0).tolist() == smooth(loss).tolist(), "unknown numbers weigh alike"


def test_a_smoothed_rate_weighs_by_time() -> None:
    rate = smooth(np.array([10.0] * 11 + [10.0]), np.array([1.0] * 11 + [9.0]), share=0.1)
    assert rate[-1] == pytest.approx(20 / 10)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (1, 2000, [500, 1000, 1500, 2000])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_a_line_lies_where_its_values_say() -> None:
    svg = line_chart([Line(np.array([0.0, 5.0, 10.0]), np.array([0.0, 5.0, 10.0]))], "d", "step", from_zero=True)
    ((first, middle, last),) = points(svg)
    assert first == (64.0, 180.0)
    assert last[0] == 390.0 and 10 < last[1] < 30
    assert middle[0] == pytest.approx((first[0] + last[0]) / 2, abs=0.1)
    assert middle[1] == pytest.approx((first[1] + last[1]) / 2, abs=0.1)


def test_points_that_are_not_finite_or_above_the_top_are_left_out() -> None:
    y = np.array([100.0, 3.0, np.nan, 2.0, np.inf])
    svg = line_chart([Line(np.arange(5.0), y)], "d", "step", top=50.0)
    (line,) = points(svg)
    assert len(line) == 2


def test_nothing_to_draw_is_an_empty_text() -> None:
    assert line_chart([Line(np.empty(0), np.empty(0))], "d", "step") == ""
    assert line_chart([Line(np.arange(2.0), np.full(2, np.nan))], "d", "step") == ""
    assert histogram(np.empty(0), "d", [], si) == ""


def test_a_single_or_constant_value_is_drawn() -> None:
    for svg in (
        line_chart([Line(np.array([3.0]), np.array([0.0]))], "d", "step"),
        line_chart([Line(np.array([1.0, 2.0]), np.array([4.0, 4.0]))], "d", "step"),
        histogram(np.full(5, 0.1), "d", [(0.1, "c1")], si),
    ):
        ET.fromstring(svg)
        assert "nan" not in svg


def test_a_million_points_make_a_small_drawing() -> None:
    x = np.arange(1e6)
    assert len(line_chart([Line(x, np.sin(x), style="faint")], "d", "step", x_format=si)) < 30_000


def test_a_histogram_counts_every_value_below_its_end() -> None:
    values = np.array([0.1] * 50 + [0.2] * 100)
    svg = histogram(values, "d", [(0.2, "c1"), (9.0, "c3")], lambda value: si(value, "s"))
    heights = [float(found) for found in re.findall(r'<rect [^>]*height="([\d.]+)"', svg)]
    assert max(heights) == pytest.approx(2 * heights[0], abs=0.2)
    assert sum(height > 0 for height in heights) == 2
    assert svg.count('class="marker') == 1


def test_the_parts_of_a_bar_fill_it_in_proportion() -> None:
    svg = stacked_bar([(0.5, "c0"), (0.25, "c1"), (0.25, "grey")], "d")
    assert re.findall(r'x="([\d.]+)" y="0" width="([\d.]+)"', svg) == [
        ("0.00", "500.00"),
        ("500.00", "250.00"),
        ("750.00", "250.00"),
    ]
    assert 'width="0.00"' in stacked_bar([(1.0, "c0")], "d", whole=0.0)


def test_text_in_a_drawing_is_escaped() -> None:
    hostile = '"><script>alert(1)</script>'
    chart = line_chart([Line(np.arange(3.0), np.arange(3.0), hostile, hostile)], hostile, hostile)
    for svg in (chart, stacked_bar([(1.0, hostile)], hostile), histogram(np.ones(3), hostile, [(1.0, hostile)], si)):
        assert "<script" not in svg
        ET.fromstring(svg)
