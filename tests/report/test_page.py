import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.report.ledgers import NO_ENERGY, account, bucket, ledger
from tests.runs.synthetic import DATA, MODEL, SyntheticRun, finished_run, interrupted_and_resumed_run, two_rank_run

from perjoule.measure.contract import Form, Sensor
from perjoule.measure.contract import Unavailable as NotMeasured
from perjoule.measure.ledger import Ledger, Timeline
from perjoule.report import page
from perjoule.report.elements import prose, table
from perjoule.report.summary import summarize
from perjoule.report.wording import run_labels
from perjoule.runs.tables import Run, load_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">\"'&"


def hostile_run(path: Path) -> Run:
    """Write a run in which everything that people or machines name is an attack."""
    resolved = {HOSTILE: {"value": HOSTILE, "source": HOSTILE}, "long": {"value": "x" * 3000, "source": "default"}}
    splits = {HOSTILE: {"documents": 1, "unavailable": HOSTILE}}
    data = DATA | {"kind": HOSTILE, HOSTILE: HOSTILE, "splits": splits, "path": f"/{HOSTILE * 9}", "hash": "a" * 400}
    run = SyntheticRun(path, resolved, id=HOSTILE, recipe=HOSTILE, model=MODEL | {"kind": HOSTILE}, data=data)
    run.segment(
        device=HOSTILE,
        host={HOSTILE: HOSTILE},
        peak={"unavailable": HOSTILE},
        fence=HOSTILE,
        backend={"chosen": {HOSTILE: HOSTILE}, "why": [HOSTILE * 20]},
    )
    run.train(1, 99)
    run.train_with_evaluation(100, 3.0)
    return load_run(run.end(status=HOSTILE, reason=HOSTILE))


def hostile_ledger() -> Ledger:
    """Return a ledger in which every text is an attack."""
    sensor = Sensor(HOSTILE, Form.COUNTER, HOSTILE, HOSTILE, "µJ", 0.1)
    shares = {HOSTILE: np.ones(2)}
    timeline = Timeline(np.arange(3.0), np.ones(2), shares)
    whole = account(sensor, [bucket(HOSTILE, 1.0, why=HOSTILE)], node=HOSTILE, notes=(HOSTILE,), timeline=timeline)
    return ledger(whole, replace(whole, node="there"), unavailable={HOSTILE: NotMeasured(HOSTILE, HOSTILE)})


class Tags(HTMLParser):
    """Collect what a browser would build."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def parsed(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    return tags


def comparison(runs: list[Run]) -> str:
    return page.comparison_page(run_labels(runs), runs, [summarize(run, NO_ENERGY) for run in runs])


def test_nothing_that_a_run_says_becomes_markup(tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "a")
    summary = summarize(run, hostile_ledger())
    pages = [page.run_page(run, summarize(run, NO_ENERGY)), comparison([run, run]), page.run_page(run, summary)]
    for html in [*pages, page.comparison_page([HOSTILE, "b"], [run, run], [summary, summary])]:
        tags = parsed(html)
        assert "script" not in tags.tags and "img" not in tags.tags
        assert not [name for name, _ in tags.attributes if name.startswith("on")]
        assert "&lt;script&gt;" in html


def test_the_page_asks_for_nothing_and_forbids_it(finished: Run) -> None:
    html = page.run_page(finished, summarize(finished, NO_ENERGY))
    assert [(name, value) for name, value in parsed(html).attributes if name in ("src", "href")] == [("href", "data:,")]
    assert "url(" not in html and "@import" not in html
    assert re.search(r"default-src 'none'; style-src 'sha256-[\w+/=]{44}'; img-src data:", html)
    assert not [name for name, _ in parsed(html).attributes if name == "style"]


def test_the_page_shows_figures_phases_and_configuration(finished: Run) -> None:
    html = page.run_page(finished, summarize(finished, NO_ENERGY))
    for text in ("20.5k", "no meter in this run", "Where the time went", "Configuration, 1 values", "20  (default)"):
        assert text in html
    assert parsed(html).tags.count("svg") == 5
    assert html.count('role="img" aria-label="') == 5


def test_warnings_stand_on_the_page(resumed: Run) -> None:
    html = page.run_page(resumed, summarize(resumed, NO_ENERGY))
    assert '<ul class="card warnings"><li>segment 0: 0000-rank0.bin ends within a step' in html


def test_a_run_without_steps_has_a_page(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a", resolved={})
    run.segment()
    loaded = load_run(run.kill())
    html = page.run_page(loaded, summarize(loaded, NO_ENERGY))
    assert "interrupted" in html and "no step was timed" in html
    assert "svg" not in parsed(html).tags
    assert "Configuration" not in html
    assert "Where the time went" not in comparison([loaded, loaded])


def test_a_comparison_draws_one_bar_and_one_curve_per_run(finished: Run, resumed: Run) -> None:
    html = comparison([finished, resumed])
    assert html.count('<svg class="bar"') == 2
    assert html.count("<polyline") == 12
    assert html.count('<polyline class="dashed') == 6
    assert "132 ms per step" in html and "130 ms per step" in html
    assert "Every configuration value is the same." in html


def test_what_differs_in_the_configuration_is_a_table(finished: Run, tmp_path: Path) -> None:
    other = load_run(finished_run(tmp_path / "b", resolved={"steps": {"value": 30, "source": "command line"}}))
    html = comparison([finished, other])
    assert '<th scope="row" class=text>steps</th><td class=text>20</td><td class=text>30</td>' in html


def test_what_ran_shows_splits_as_rows_paths_as_code_and_reasons_as_items(tmp_path: Path) -> None:
    splits = {name: {"documents": 3, "tokens": 1000, "num_samples": 5} for name in ("train", "test")}
    facts = {"splits": splits, "hash": "0123456789abcdef0123", "store": {"path": "/data/<x>"}}
    run = load_run(finished_run(tmp_path / "a", data=DATA | {"facts": facts}))
    html = page.run_page(run, summarize(run, NO_ENERGY))
    assert '<th scope="row" class=text>train</th><td class=number>3</td><td class=number>1,000</td>' in html
    assert '<code title="0123456789abcdef0123">0123456789ab…</code>' in html
    assert "<code>/data/&lt;x&gt;</code>" in html
    assert "<p>why this backend</p><ul><li>the CPU has AMX</li></ul>" in html


def test_the_page_shows_ledgers_power_and_what_the_words_mean(finished: Run) -> None:
    summary = summarize(finished, ledger(unavailable={"rapl": NotMeasured("not readable")}))
    html = page.run_page(finished, summary)
    tags = parsed(html)
    num_buckets = sum(len(sheet.account.buckets) for sheet in summary.sheets)
    assert tags.tags.count("svg") == 5 + 3 + num_buckets + 3
    assert html.count("Where the energy went") == 1
    assert "<figcaption>mig-0, measured, not added to the total</figcaption>" in html
    assert '<i class="hatched shared"></i><span>shared: split by time' in html
    assert "<dd>1.1 kJ<small>partly modelled, 95 % interval 1 to 1.25 kJ</small></dd>" in html
    assert "not metered: rapl: not readable" in html
    assert [value for name, value in tags.attributes if name == "id"] == ["place"]
    for word in ("calibrated", "regressed", "shared", "measured", "modelled"):
        assert f"<td class=text>{word}</td>" in html


def test_every_energy_on_the_page_has_its_word_beside_it(finished: Run) -> None:
    html = page.run_page(finished, summarize(finished, ledger()))
    rows = re.findall(r'<tr><th scope="row"[^>]*>(?:<i[^>]*></i>)?[^<]*</th>(.*?)</tr>', html)
    energies = [re.sub("<svg.*?</svg>", "", row) for row in rows if re.search(r">[\d.]+ [km]?J[ <]", row)]
    assert len(energies) > 20
    assert all(re.search("measured|calibrated|regressed|shared|modelled", row) for row in energies)


def test_a_comparison_draws_the_energy_of_those_runs_that_have_one(finished: Run, tmp_path: Path) -> None:
    runs = [finished, load_run(finished_run(tmp_path / "other"))]
    html = page.comparison_page(["a", "b"], runs, [summarize(finished, ledger()), summarize(runs[1], NO_ENERGY)])
    assert html.count('<svg class="energy whole"') == 1
    assert "1.1 kJ partly modelled" in html and "Energy – not available: no meter in this run" in html
    both = page.comparison_page(["a", "b"], runs, [summarize(run, ledger()) for run in runs])
    assert both.count('<svg class="energy whole"') == 4
    assert "<figcaption>Energy per token</figcaption>" in both
    assert "b as much, by the same sensors" in both
    assert "<h2>Energy</h2>" not in comparison(runs)


def test_ranks_have_a_table_only_if_there_are_several(finished: Run, tmp_path: Path) -> None:
    several = load_run(two_rank_run(tmp_path / "ranks"))
    html = page.run_page(several, summarize(several, NO_ENERGY))
    assert "Rank by rank" in html and "furthest apart in backward: 400 ms" in html
    assert "Rank by rank" not in page.run_page(finished, summarize(finished, NO_ENERGY))


@contextmanager
def browser_page(width: int, height: int, scheme: Any) -> Iterator["Page"]:
    """Open a page in Debian's Chromium, or skip if it is not installed."""
    if not CHROMIUM.exists():
        reason = f"{CHROMIUM} is not installed: apt-get install -y --no-install-recommends chromium"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        try:
            yield browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        finally:
            browser.close()


@pytest.mark.parametrize(("width", "height", "scheme"), [(360, 740, "light"), (1280, 800, "dark")])
def test_a_browser_shows_every_page_whole_and_silently(tmp_path: Path, width: int, height: int, scheme: str) -> None:
    hostile = hostile_run(tmp_path / "hostile")
    written = (finished_run(tmp_path / "a"), interrupted_and_resumed_run(tmp_path / "b"), two_rank_run(tmp_path / "c"))
    runs = [*map(load_run, written), hostile]
    pages = [page.run_page(run, summarize(run, NO_ENERGY)) for run in runs] + [comparison(runs)]
    pages += [page.run_page(runs[0], summarize(runs[0], ledger()))]
    pages += [page.run_page(hostile, summarize(hostile, hostile_ledger()))]
    pages += [page.comparison_page(run_labels(runs), runs, [summarize(run, ledger()) for run in runs])]
    with browser_page(width, height, scheme) as tab:
        said: list[str] = []
        asked: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        for number, html in enumerate(pages):
            file = tmp_path / f"{number}.html"
            file.write_text(html, encoding="utf-8")
            tab.goto(file.as_uri())
            for details in tab.locator("details").all():
                details.locator("summary").click()
            assert tab.title().endswith("· perjoule")
            inner, outer = tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
            assert inner <= outer == width
            drawings = tab.locator("svg").all()
            assert len(drawings) == html.count("<svg") >= 5
            for drawing in drawings:
                box = drawing.bounding_box()
                assert drawing.is_visible() and box is not None
                in_table = drawing.evaluate("one => one.closest('.scroll') !== null")
                assert box["x"] >= 0 and box["height"] >= 18
                assert in_table or box["x"] + box["width"] <= width, "only tables scroll"
            for pair in tab.locator("article .pairs > div").all():
                name, value = pair.locator("dt").bounding_box(), pair.locator("dd").bounding_box()
                assert name is not None and value is not None
                assert name["y"] == value["y"] and name["x"] + name["width"] <= value["x"], "a value stands by its name"
                assert value["width"] > 100 and value["x"] + value["width"] <= width
            assert tab.evaluate("getComputedStyle(document.querySelector('.card')).borderTopWidth") == "1px"
        assert said == []
        assert {url for url in asked if not url.startswith(tmp_path.as_uri())} <= {"data:,"}


def test_code_in_a_sentence_is_set_as_code_and_nothing_else_becomes_markup() -> None:
    assert prose("run `perjoule doctor` <b>once") == "run <code>perjoule doctor</code> &lt;b&gt;once"


def test_a_long_cell_may_wrap() -> None:
    cells = table(("Figure", "a", "b"), [("loss", "2.5", "2.5 (interpolated, 2.4 to 2.6)")], "t", "l")
    assert "<td class=number>2.5</td>" in cells and '<td class="number long">2.5 (interpolated' in cells
