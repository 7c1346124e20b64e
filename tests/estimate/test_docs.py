"""The page on estimation says what is true."""

from pathlib import Path

from perjoule.estimate import SHELF
from perjoule.estimate.devices import DEVICES
from perjoule.estimate.step_model import LATENTS

PAGE = Path(__file__).parents[2] / "docs" / "estimate.md"


def test_the_counts_of_the_page_are_those_of_the_code() -> None:
    text = " ".join(PAGE.read_text().split())
    assert f"{len(DEVICES)} GPUs have one" in text
    assert f"Each of its {len(LATENTS)} quantities" in text


def test_every_estimator_has_one_line_that_describes_it() -> None:
    for kind in SHELF.names():
        line = SHELF.describe(kind)
        assert 20 < len(line) < 120 and line[0].isupper(), kind
