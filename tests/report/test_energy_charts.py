import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tests.report.ledgers import NO_ENERGY, account, bucket, cpu, gpu, ledger, mig, timeline
from tests.runs.synthetic import SyntheticRun, finished_run

from perjoule.measure.ledger import Tier, Timeline
from perjoule.report.charts import comparison_charts, joules_chart, phase_colors
from perjoule.report.energy_charts import bucket_bars, energy_charts, ledger_bar, run_bars, unit_bars, unit_figure
from perjoule.report.energy_figures import Part, energy_bar
from perjoule.report.figures import Line, Strip, line_chart
from perjoule.report.summary import Summary, summarize
from perjoule.runs.tables import Run, load_run


def rects(svg: str) -> list[tuple[float, float]]:
    """Return the begin and the length of every part of a bar, and check that it is well-formed."""
    ET.fromstring(svg)
    return [(float(x), float(width)) for x, width in re.findall(r'<rect [^>]*x="([\d.]+)"[^>]* width="([\d.]+)"', svg)]


def whisker(svg: str) -> tuple[float, float]:
    found = re.search(r'class="whisker" d="M([\d.]+) 1V19M([\d.]+) 1V19', svg)
    assert found is not None
    return float(found[1]), float(found[2])


def hatches(svg: str) -> list[int]:
    """Return how many lines the hatching of each part has."""
    return [found.count("M") for found in re.findall(r'class="hatch" d="([^"]*)"', svg)]


def summary_of(run: Run) -> Summary:
    return summarize(run, ledger())


def test_parts_of_an_energy_bar_follow_one_another_to_scale() -> None:
    parts = [Part(30.0, "c0", Tier.DIRECT), Part(10.0, "c1", Tier.SHARED)]
    svg = energy_bar(parts, "d", whole=50.0, start=5.0, interval=(20.0, 50.0))
    assert rects(svg) == [(25.0, 150.0), (175.0, 50.0)]
    assert whisker(svg) == (100.0, 249.0)
    assert 'class="energy"' in svg and 'class="energy whole"' in energy_bar(parts, "d", 50.0, long=True)


def test_only_what_is_measured_has_no_hatching_and_no_two_tiers_have_the_same() -> None:
    parts = [Part(100.0, "c0", tier) for tier in Tier]
    counts = hatches(energy_bar(parts, "d", whole=500.0, long=True))
    assert counts[0] == 0
    assert len(set(counts)) == len(Tier)


def test_hatching_stays_within_its_part() -> None:
    svg = energy_bar([Part(7.0, "c0", Tier.DIRECT), Part(5.0, "c1", Tier.SHARED)], "d", whole=20.0)
    (_, (begin, length)) = rects(svg)
    numbers = re.findall(r"[ML]([\d.]+) ([\d.]+)", re.findall(r'class="hatch" d="([^"]+)"', svg)[0])
    assert len(numbers) > 4
    assert all(begin - 0.1 <= float(x) <= begin + length + 0.1 and 3 <= float(y) <= 17 for x, y in numbers)


def test_a_bar_of_nothing_is_drawn() -> None:
    assert rects(energy_bar([Part(0.0, "c0", Tier.MODELLED)], "d", whole=0.0, interval=(0.0, 0.0))) == [(0.0, 0.0)]


def test_text_of_a_bar_is_escaped() -> None:
    hostile = '"><script>alert(1)</script>'
    svg = energy_bar([Part(1.0, hostile, Tier.DIRECT)], hostile, 1.0)
    ET.fromstring(svg)
    assert "<script" not in svg


def test_a_strip_fills_its_height_and_lies_below_the_line() -> None:
    shares = [("c0", np.array([1.0, 0.25])), ("c1", np.array([0.0, 0.75])), ("c2", np.zeros(2))]
    strip = Strip(np.array([0.0, 5.0, 10.0]), shares)
    svg = line_chart([Line(np.array([2.5, 7.5]), np.array([1.0, 2.0]))], "d", "seconds", strip=strip)
    ET.fromstring(svg)
    assert 'viewBox="0 0 400 246"' in svg
    first, second = (
        [tuple(map(float, pair.split(","))) for pair in points.split()]
        for points in re.findall(r'<polygon class="fill c\d" points="([^"]+)"', svg)
    )
    assert first[:4] == [(64, 224), (227, 224), (227, 224), (390, 224)]
    assert first[4:] == [(390, 229.5), (227, 229.5), (227, 246), (64, 246)]
    assert [y for _, y in second] == [246, 246, 229.5, 229.5, 246, 246, 246, 246]


def test_power_is_drawn_for_the_domains_that_are_counted_with_gaps_where_nothing_was_read(finished: Run) -> None:
    summary = summary_of(finished)
    charts = energy_charts(finished, summary, phase_colors([summary]))
    assert [chart.title for chart in charts] == ["Power of gpu-0, measured", "Power of cpu, modelled", "Loss by energy"]
    assert charts[0].svg.count('<polyline class="line ink"') == 2
    assert charts[0].caption.endswith("not what each of them used; no line: no reading")
    assert [name for _, name in charts[0].legend] == ["data", "forward", "forward/think", "backward", "outside"]
    assert charts[0].legend[-1] == ("outside", "outside")


def test_a_long_timeline_keeps_its_line_and_groups_its_strip(finished: Run) -> None:
    summary = summarize(finished, ledger(gpu(timeline=timeline(num_bins=2000))))
    (chart, _) = energy_charts(finished, summary, phase_colors([summary]))
    polygons = re.findall(r'<polygon [^>]* points="([^"]+)"', chart.svg)
    assert len(polygons) == 5
    assert all(len(points.split()) == 2 * 2 * 120 for points in polygons)
    bottom = [float(pair.split(",")[1]) for pair in polygons[-1].split()[240:]]
    assert bottom == pytest.approx([246.0] * 240)
    assert len(chart.svg) < 60_000


def test_a_domain_without_a_timeline_has_no_drawing(finished: Run) -> None:
    none = Timeline(np.zeros(1), np.empty(0), {})
    summary = summarize(finished, ledger(gpu(timeline=none)))
    assert [one.title for one in energy_charts(finished, summary, phase_colors([summary]))] == ["Loss by energy"]


def test_the_power_of_a_resumed_run_says_which_segment_it_shows(finished: Run) -> None:
    steady = replace(timeline(), power_w=np.full(200, 100.0))
    summary = summarize(finished, ledger(gpu(), gpu(segment=1, timeline=steady)))
    chart = energy_charts(finished, summary, phase_colors([summary]))[0]
    assert chart.caption.endswith("; the last segment")
    assert "no reading" not in chart.caption


def test_the_loss_stands_where_the_energy_was_after_each_step(finished: Run) -> None:
    chart = joules_chart(finished, summary_of(finished))
    training, validation = (
        [float(pair.split(",")[0]) for pair in points.split()]
        for points in re.findall(r'<polyline [^>]*points="([^"]*)"', chart.svg)
    )
    assert training == pytest.approx(np.linspace(64, 390, 20), abs=0.11)
    assert validation == [training[9], training[19]]
    assert chart.caption.startswith("energy: partly modelled; nats")
    assert joules_chart(finished, summarize(finished, NO_ENERGY)).svg == ""


def test_runs_are_compared_by_joules_if_any_was_metered(finished: Run, tmp_path: Path) -> None:
    runs = [finished, load_run(finished_run(tmp_path / "b"))]
    metered = [summary_of(finished), summarize(runs[1], NO_ENERGY)]
    chart = comparison_charts(["a", "b"], runs, metered)[-1]
    assert chart.title == "Loss by energy, start-up included"
    assert [name for _, name in chart.legend] == ["a"]
    assert chart.caption.startswith("energy: a partly modelled; nats")
    assert "c1" not in chart.svg
    without = comparison_charts(["a", "b"], runs, [summarize(run, NO_ENERGY) for run in runs])
    assert [one.title for one in without] == ["Loss by step", "Loss by tokens", "Loss by seconds of training"]


def test_a_phase_has_the_same_color_in_time_and_energy(finished: Run) -> None:
    summary = summary_of(finished)
    colors = phase_colors([summary])
    assert [colors[name] for name in ("data", "transfer", "other", "outside")] == ["c0", "c1", "grey", "outside"]
    assert (colors["monitor"], colors["unknown"]) == ("monitor", "unknown")
    extra = summarize(finished, ledger(account(gpu().sensor, [bucket("calibrate", 1.0)])))
    assert phase_colors([extra])["calibrate"] == "c7", "not that of a phase of training"
    assert phase_colors([summary])["forward"] == phase_colors([extra, summary])["forward"] == "c2"


def test_the_bar_of_a_ledger_is_as_long_as_its_total_and_has_its_interval(finished: Run) -> None:
    summary = summary_of(finished)
    svg = ledger_bar(summary.sheets[0], phase_colors([summary]))
    parts = rects(svg)
    assert sum(width for _, width in parts) == pytest.approx(700 / 1.05, abs=0.1)
    assert whisker(svg) == pytest.approx((700 * 0.95 / 1.05, 699), abs=0.1)
    assert "forward 250 J calibrated, forward/think 130 J regressed" in svg


def test_every_bucket_begins_where_the_one_before_ended(finished: Run) -> None:
    summary = summary_of(finished)
    bars = [rects(svg)[0] for svg in bucket_bars(summary.sheets[0], phase_colors([summary]))]
    assert len(bars) == len(summary.sheets[0].account.buckets)
    for (begin, length), (later, _) in pairwise(bars):
        assert begin + length == pytest.approx(later, abs=0.02)
    ends = [whisker(svg) for svg in bucket_bars(summary.sheets[0], phase_colors([summary]))]
    assert ends[0][0] == 1.0, "a bound of 0 is at the very left"
    assert max(high for _, high in ends) == 249.0


def test_runs_have_bars_to_one_scale_hatched_by_their_weakest_tier(finished: Run, tmp_path: Path) -> None:
    runs = [load_run(finished_run(tmp_path / name)) for name in "abc"]
    ledgers = [ledger(), ledger(gpu(2.0), mig()), NO_ENERGY]
    found = [summarize(run, one) for run, one in zip(runs, ledgers, strict=True)]
    first, second, third = run_bars(found, phase_colors(found))
    assert third == ""
    assert sum(width for _, width in rects(first)) == pytest.approx(700 * 1100 / 2100, abs=0.1)
    assert sum(width for _, width in rects(second)) == pytest.approx(700 * 2000 / 2100, abs=0.1)
    assert "forward 270 J" in first and "forward 500 J" in second
    assert hatches(first)[1] > 2 * hatches(second)[1], "calibrated and modelled together are modelled"


def test_the_finest_figure_that_all_runs_have_is_drawn(finished: Run, tmp_path: Path) -> None:
    images = SyntheticRun(tmp_path / "images")
    images.segment(warmup_steps=5)
    images.train(1, 20, tokens=0, useful=0)
    other = summarize(load_run(images.end()), ledger(gpu()))
    text = summarize(finished, ledger(cpu()))
    assert unit_figure([text, text]) == "energy_per_token_j"
    assert unit_figure([text, other]) == "energy_per_sample_j"
    assert unit_figure([text, summarize(finished, NO_ENERGY)]) == ""
    modelled, measured = unit_bars("energy_per_sample_j", [text, other])
    assert hatches(modelled)[0] > 0 and hatches(measured) == [0]
    assert rects(measured)[0][1] == pytest.approx(10 * rects(modelled)[0][1], rel=0.01)
    assert "417 mJ modelled, 95 %: 208 to 833 mJ" in modelled
