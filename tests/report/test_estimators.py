"""The figure of the estimators' errors."""

import re
import xml.etree.ElementTree as ET

import pytest

from perjoule.estimate.contract import Target
from perjoule.estimate.scores import Score
from perjoule.report.estimators import score_figure


def row(method: str, median: float, split: str = "device", target: Target = Target.ENERGY_PER_EPOCH) -> Score:
    return Score(split, "Zeus", method, target, 9, median, median, 3 * median, 0.0, 0.88, 0.5)


def test_every_method_stands_under_what_was_left_out_with_its_error_and_coverage() -> None:
    svg = score_figure([row("physical", 0.1), row("mlco2", 0.3), row("physical", 0.05, "configuration")])
    texts = [one.text for one in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    start = texts.index("device · Zeus")
    assert texts[start + 1 : start + 5] == ["physical", "10.0 %, 88 % in interval", "mlco2", "30.0 %, 88 % in interval"]
    assert texts[-3:] == ["configuration · Zeus", "physical", "5.0 %, 88 % in interval"]


def test_equal_factors_are_equal_lengths_and_what_is_beyond_the_axis_lies_at_its_end() -> None:
    svg = score_figure([row("a", 0.02), row("b", 0.2), row("c", 2.0), row("d", 500.0)])
    at = [float(x) for x in re.findall(r'<circle [^>]*cx="([\d.]+)"', svg)]
    assert at[1] - at[0] == pytest.approx(at[2] - at[1], abs=0.2)
    assert at[3] == 560


def test_what_is_no_energy_or_a_single_architecture_is_left_to_the_table() -> None:
    single, seconds = row("physical", 0.1, "device: ncf"), row("physical", 0.1, target=Target.SECONDS_PER_EPOCH)
    assert score_figure([single, seconds]) == ""
    whole = score_figure([row("first_epochs", 0.1, "rest of a run, 5 % seen", Target.TOTAL_ENERGY)])
    assert "first_epochs, total" in whole


def test_names_that_a_file_gives_are_escaped() -> None:
    svg = ET.fromstring(score_figure([row("<b>", 0.1, "other file: a & b")]))
    assert {"<b>", "other file: a & b · Zeus"} <= {one.text for one in svg.iter("{http://www.w3.org/2000/svg}text")}
