import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.report.ledgers import NO_ENERGY, cpu, gpu, ledger
from tests.runs.synthetic import finished_run

from perjoule.measure.ledger import Account, Ledger
from perjoule.report import markdown, terminal
from perjoule.report.energy_comparison import _verdict, energy_rows, verdicts
from perjoule.report.summary import Summary, summarize
from perjoule.runs.tables import Run, load_run

ROWS = [
    "Energy",
    "95 % interval",
    "Energy per step",
    "95 % interval",
    "Energy per sample",
    "95 % interval",
    "Energy per token",
    "95 % interval",
]


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [load_run(finished_run(tmp_path / name)) for name in ("low", "near", "high")]


def summaries(runs: list[Run], *ledgers: Ledger) -> list[Summary]:
    return [summarize(run, one) for run, one in zip(runs, ledgers, strict=True)]


def test_every_figure_of_energy_has_its_word_and_a_row_of_intervals(runs: list[Run]) -> None:
    found = energy_rows(summaries(runs, ledger(gpu()), ledger(cpu()), NO_ENERGY))
    assert [row[0] for row in found] == [*ROWS, "Mean power", "95 % interval", "FLOPs per joule", "95 % interval"]
    assert found[0] == ("Energy", "1 kJ measured", "100 J modelled", "–")
    assert found[1] == ("95 % interval", "0.95 to 1.05 kJ", "50 to 200 J", "–")


def test_without_any_energy_there_is_no_row(runs: list[Run]) -> None:
    assert energy_rows(summaries(runs, *[NO_ENERGY] * 3)) == []
    assert verdicts(["a", "b", "c"], summaries(runs, *[NO_ENERGY] * 3)) == []
    assert "## Energy" not in markdown.comparison_markdown(["a", "b", "c"], runs, summaries(runs, *[NO_ENERGY] * 3))


def test_what_the_same_sensors_have_in_common_cancels(runs: list[Run]) -> None:
    found = verdicts(["low", "near", "high"], summaries(runs, ledger(gpu()), ledger(gpu(1.05)), ledger(gpu(2.0))))
    assert found == [
        "Energy, energy per step, energy per sample, energy per token: least in low; near 1.05 times as much, by the "
        "same sensors, whose common error cancels; high 2 times as much, by the same sensors, whose common error "
        "cancels."
    ]
    (line,) = verdicts(["low", "high"], summaries(runs[:2], ledger(cpu()), ledger(cpu(1.93))))
    assert "high 1.93 times as much, by the same sensors" in line


def elsewhere(one: Account) -> Account:
    return replace(one, node="elsewhere")


def test_runs_of_different_machines_whose_intervals_overlap_cannot_be_told_apart(runs: list[Run]) -> None:
    there = ledger(elsewhere(gpu(1.05))), ledger(elsewhere(gpu(2.0)))
    found = verdicts(["low", "near", "high"], summaries(runs, ledger(gpu()), *there))
    assert found == [
        "Energy, energy per step, energy per sample, energy per token: least in low; near cannot be told apart from "
        "it, the 95 % intervals overlap; high 1.81 to 2.21 times as much."
    ]


def test_a_figure_that_may_be_nothing_gives_no_upper_ratio(runs: list[Run]) -> None:
    nothing = cpu(0.1, low_uj=0, high_uj=20_000_000)
    (line,) = verdicts(["a", "b"], summaries(runs[:2], ledger(nothing), ledger(cpu())))
    assert line.endswith("least in a; b 2.5 or more times as much.")


def test_nothing_against_something_is_more() -> None:
    assert _verdict("a", {"a": (0.0, 0.0), "b": (1.0, 2.0)}, ["b"]) == "least in a; b more"


def test_one_metered_run_is_not_judged(runs: list[Run]) -> None:
    assert verdicts(["a", "b", "c"], summaries(runs, ledger(gpu()), NO_ENERGY, NO_ENERGY)) == []


def test_runs_of_which_different_parts_were_metered_are_not_compared_silently(runs: list[Run]) -> None:
    lines = verdicts(["a", "b", "c"], summaries(runs, ledger(gpu()), ledger(gpu(), cpu()), NO_ENERGY))
    assert lines[0] == (
        "These energies are not of the same parts of a machine: a: gpu (measured); b: gpu (measured), process "
        "(modelled)."
    )
    assert len(lines) > 1


def test_terminal_and_markdown_show_the_comparison(runs: list[Run]) -> None:
    found = summaries(runs, ledger(gpu()), ledger(gpu(1.05)), ledger(gpu(2.0)))
    console = Console(file=io.StringIO(), width=100, color_system=None)
    terminal.print_comparison(console, ["low", "near", "high"], runs, found)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert re.search(r"Energy per token +16.3 mJ measured +17.1 mJ measured +32.6 mJ measured\n95 % interval ", text)
    assert "near 1.05 times as much" in re.sub(r"\s+", " ", text)
    text = markdown.comparison_markdown(["low", "near", "high"], runs, found)
    assert "## Energy\n\n| Figure | low | near | high |\n" in text
    assert "| Energy | 1 kJ measured | 1.05 kJ measured | 2 kJ measured |\n| 95 % interval | " in text
    assert "near 1.05 times as much" in text
