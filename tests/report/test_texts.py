import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from tests.report.ledgers import NO_ENERGY
from tests.runs.synthetic import MODEL, SyntheticRun, finished_run, two_rank_run

from perjoule.report import markdown, terminal, wording
from perjoule.report.charts import Chart, comparison_charts, loss_chart, run_charts
from perjoule.report.quantity import Quantity, Unavailable
from perjoule.report.summary import summarize
from perjoule.runs.tables import Run, load_run


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Quantity(125.0, "s", "", 1), "2 min 05 s"),
        (Quantity(5e8, "B", "", 1), "500 MB"),
        (Quantity(1234.0, "J", "", 1), "1.23 kJ"),
        (Quantity(1234.0, "J", "", 1, (1e3, 2e3), "modelled"), "1.23 kJ modelled"),
        (Quantity(280.0, "W", "", 1, None, "measured"), "280 W measured"),
        (Quantity(1.66e9, "FLOP/J", "", 1), "1.66 GFLOP/J"),
        (Quantity(0.132, "gCO2e", "", 1), "132 mg CO2e"),
        (Quantity(0.0021, "l", "", 1), "2.1 ml"),
        (Quantity(0.034, "EUR", "", 1), "0.034 EUR"),
        (Quantity(4.0, "nats", "", 1), "4.0000"),
        (Quantity(0.2261, "fraction", "", 1), "22.6 %"),
        (Quantity(0.0, "fraction", "", 1), "0 %"),
        (Quantity(0.0001, "fraction", "", 1), "< 0.1 %"),
        (Quantity(40960.0, "", "", 1), "40,960"),
        (Quantity(54.598, "", "", 1), "54.60"),
        (Quantity(20480.0, "tokens/s", "", 1), "20.5k tokens/s"),
        (Quantity(0.25, "samples/s", "", 1), "0.25 samples/s"),
        (Unavailable("because"), "–"),
    ],
)
def test_figures_are_shown_with_their_unit(figure: Quantity | Unavailable, text: str) -> None:
    assert wording.show(figure) == text


def test_how_a_figure_was_obtained_is_said() -> None:
    assert wording.why(Quantity(1.0, "s", "wall clock", 1200)) == "wall clock (n = 1,200)"
    assert (
        wording.why(Quantity(1.0, "J", "counter", 1, (0.9, 1.2), "measured")) == "95 % interval 0.9 to 1.2 J; counter"
    )
    assert wording.interval(Quantity(1.0, "s", "clock", 1)) == wording.interval(Unavailable("no meter")) == "–"
    assert wording.why(Unavailable("no meter")) == "not available: no meter"


def compared(*runs: Run) -> list[Chart]:
    return comparison_charts([run.name for run in runs], runs, [summarize(run, NO_ENERGY) for run in runs])


def printed(run: Run, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    terminal.print_run(console, run, summarize(run, NO_ENERGY))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_leads_with_five_figures_and_shows_every_phase(finished: Run) -> None:
    text = printed(finished)
    assert "transformer, 5,264,640 weights (5.26M) · text, seq_len 256 · cpu" in text
    assert re.search(r"Tokens per second +20.5k tokens/s +over the training time", text)
    assert re.search(r"Energy +– +not available: no meter in this run", text)
    assert re.search(r"backward +750 ms +37.9 % +1.5 s +50 ms +50 ms +50 ms +15", text)
    assert re.search(r"All \d+ figures, with how each was obtained", text)
    lead, _, rest = text.partition("\n\n")[2].partition("\n\n")
    names = [line.split("  ")[0] for line in lead.splitlines() if not line.startswith(" ")]
    assert names == ["Figure", "Time in steps", "Energy", "Carbon", "Best validation loss", "Tokens per second"]
    assert rest.startswith("Phase ")


def test_no_line_is_wider_than_the_terminal(resumed: Run) -> None:
    assert max(map(len, printed(resumed, 80).splitlines())) <= 80
    assert "warning: resumed: segment 0" in printed(resumed, 80)


def test_a_name_is_not_read_as_markup(tmp_path: Path) -> None:
    run = load_run(finished_run(tmp_path / "[red]a[|b]", model=MODEL | {"kind": "[bold]x"}))
    assert "[red]a[|b]" in printed(run)
    assert "[bold]x, 5,264,640 weights" in printed(run)
    table = markdown.run_markdown(run, summarize(run, NO_ENERGY))
    assert table.startswith("# \\[red\\]a\\[\\|b\\]\n")


def test_markdown_tables_have_as_many_cells_as_headings(resumed: Run) -> None:
    text = markdown.run_markdown(resumed, summarize(resumed, NO_ENERGY))
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 9
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "| Recomputed after resume | 300 ms | steps 11 to 13 were computed again after a resume (n = 3) |" in text
    assert "### Segment 1\n" in text
    assert "why this backend:\n\n- the CPU has AMX\n" in text
    assert "> segment 0: 0000-rank0.bin ends within a step" in text


def test_markdown_shows_hostile_text_as_it_is() -> None:
    assert markdown.escape("<b>a|b\nc</b> *x*") == "\\<b\\>a\\|b c\\</b\\> \\*x\\*"


def test_a_comparison_has_one_row_per_run_and_the_reasons(finished: Run, resumed: Run) -> None:
    runs = [finished, resumed]
    summaries = [summarize(run, NO_ENERGY) for run in runs]
    text = markdown.comparison_markdown(wording.run_labels(runs), runs, summaries)
    assert "| finished | finished | 20 | 2.48 s | 100 ms | 20.5k | 3.3416 | 4.0000 | 54.60 | 22.8 % | 400 MB |" in text
    assert "- Energy – not available: no meter in this run" in text
    assert "- resumed: segment 0: 0000-rank0.bin ends within a step" in text


def test_a_terminal_comparison_shows_a_few_runs_beside_each_other(finished: Run) -> None:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    labels = [f"run{number}" for number in range(5)]
    terminal.print_comparison(console, labels, [finished] * 5, [summarize(finished, NO_ENERGY)] * 5)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert re.search(r"run0 +run1\n", text)
    assert len(re.findall("Perplexity", text)) == 3


def test_runs_of_the_same_name_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    first, second = (load_run(finished_run(tmp_path / name / "same")) for name in "ab")
    assert wording.run_labels([first, second]) == [str(first.path), str(second.path)]


def test_only_configuration_values_that_differ_are_compared(tmp_path: Path) -> None:
    shared = {"steps": {"value": 20}, "model.bias": {"value": True}}
    first = {"name": {"value": "a"}, "model.kind": {"value": "retnet"}, "model.heads": {"value": 4}}
    second = {"name": {"value": "b"}, "model.kind": {"value": "transformer"}, "model.bias": {"value": None}}
    runs = [
        load_run(finished_run(tmp_path / name, resolved=shared | own)) for name, own in (("a", first), ("b", second))
    ]
    rows = [("model.bias", "true", "null"), ("model.kind", "retnet", "transformer"), ("model.heads", "4", "–")]
    assert wording.differences(runs) == rows
    assert wording.differences(runs[:1] * 2) == []
    unread = load_run(finished_run(tmp_path / "c", resolved={}))
    assert wording.differences([*runs[:1], unread]) == []
    assert wording.differences([unread, *runs])[0] == ("model.bias", "–", "true", "null")
    text = markdown.comparison_markdown(["a|x", "b"], runs, [summarize(run, NO_ENERGY) for run in runs])
    assert "| Key | a\\|x | b |\n| --- | --- | --- |\n| model.bias | true | null |\n" in text
    console = Console(file=io.StringIO(), width=80, color_system=None)
    terminal.print_comparison(console, ["a", "b"], runs, [summarize(run, NO_ENERGY) for run in runs])
    assert isinstance(console.file, io.StringIO)
    assert re.search(r"model.kind +retnet +transformer\n", console.file.getvalue())


def test_runs_of_one_configuration_are_said_to_have_it(finished: Run) -> None:
    text = markdown.comparison_markdown(["a", "b"], [finished] * 2, [summarize(finished, NO_ENERGY)] * 2)
    assert text.endswith("## What differs in the configuration\n\nEvery configuration value is the same.\n")


def test_the_terminal_and_markdown_show_every_rank(tmp_path: Path) -> None:
    run = load_run(two_rank_run(tmp_path / "a"))
    assert re.search(
        r"Rank +0 +1 *\n.*\nbackward +400 ms +800 ms *\n.*CPU time +1.6 s +3.2 s *\n", printed(run), re.DOTALL
    )
    text = markdown.run_markdown(run, summarize(run, NO_ENERGY))
    assert "## Ranks\n\n| Rank | data | transfer | forward | forward/think | backward" in text
    assert "The ranks are furthest apart in backward: 400 ms." in text


def test_several_ranks_are_named(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment(world_size=2, device="cuda")
    assert wording.headline(load_run(run.kill())).endswith("2 × cuda")


def test_a_run_has_the_drawings_it_has_data_for(finished: Run, tmp_path: Path) -> None:
    charts = run_charts(finished, summarize(finished, NO_ENERGY))
    assert [chart.title for chart in charts] == ["Loss", "Tokens per second", "Time per step", "Memory"]
    run = SyntheticRun(tmp_path / "a")
    run.segment()
    run.train(1, 3, tokens=0, useful=0, memory_bytes=None)
    loaded = load_run(run.end())
    titles = [chart.title for chart in run_charts(loaded, summarize(loaded, NO_ENERGY))]
    assert titles == ["Loss", "Samples per second", "Time per step"]


def test_a_long_loss_curve_says_what_is_not_drawn(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment()
    run.train(1, 500)
    run.train(501, 502, loss=None)
    chart = loss_chart(load_run(run.end()))
    assert "the start, up to 8, is not drawn" in chart.caption
    assert "2 losses were not finite" in chart.caption
    assert chart.legend == (("c0", "training, batch by batch"),)


def test_compared_curves_are_drawn_by_step_tokens_and_time(finished: Run, tmp_path: Path) -> None:
    slow = SyntheticRun(tmp_path / "slow")
    slow.segment()
    slow.train(1, 400, slow=dict.fromkeys(range(1, 401), 6.0))
    charts = compared(finished, load_run(slow.end()))
    assert [chart.title for chart in charts] == ["Loss by step", "Loss by tokens", "Loss by minutes of training"]
    assert all(chart.svg.count("<polyline") == 3 for chart in charts)
    assert all(chart.svg.count('<polyline class="dashed c0"') == 1 for chart in charts)
    assert all("dashed, with dots: validation" in chart.caption for chart in charts)


def test_a_validation_loss_stands_where_the_training_was_after_its_step(finished: Run) -> None:
    for chart in compared(finished):
        solid, dashed = re.findall(r'points="([^"]*)"', chart.svg)
        training = [float(pair.split(",")[0]) for pair in solid.split()]
        validation = [float(pair.split(",")[0]) for pair in dashed.split()]
        assert validation == [training[9], training[19]]


def test_runs_without_validation_are_compared_by_training_alone(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment()
    run.train(1, 5)
    charts = compared(load_run(run.end()))
    assert all("dashed" not in chart.caption and "dashed" not in chart.svg for chart in charts)
