"""What the page says of transformers' own suites is what their last run counted."""

import json

from tests.foreign.transformers_suites import COUNTS, KINDS, PAGE, with_table


def test_page_has_the_counts_of_transformers_suites() -> None:
    found = json.loads(COUNTS.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page, found)
    for kind in KINDS:
        assert found[kind]["failed"] == []
        assert found[kind]["passed"] >= 92
