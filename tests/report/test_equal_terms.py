import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tests.report.ledgers import NO_ENERGY, cpu, gpu, ledger
from tests.runs.synthetic import SyntheticRun, finished_run

from perjoule.measure.ledger import Ledger
from perjoule.report import markdown, page, terminal
from perjoule.report.equal_terms import Terms, all_terms, equal_rows, size_rows
from perjoule.report.summary import Summary, summarize
from perjoule.runs.tables import Run, load_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [load_run(finished_run(tmp_path / name)) for name in ("low", "near", "high")]


def summaries(runs: list[Run], *ledgers: Ledger) -> list[Summary]:
    return [summarize(run, one) for run, one in zip(runs, ledgers, strict=True)]


def energy(runs: list[Run], found: list[Summary]) -> Terms:
    (terms,) = (one for one in all_terms(runs, found) if one.name == "energy")
    return terms


def test_losses_are_compared_at_the_energy_that_every_run_reached(runs: list[Run]) -> None:
    found = summaries(runs, ledger(gpu()), ledger(gpu()), ledger(gpu(1.5)))
    assert energy(runs, found).equal == pytest.approx(1000)
    rows = equal_rows(runs, found)
    (index,) = (
        number for number, row in enumerate(rows) if row[0] == "Smoothed training loss at equal energy, 1 kJ measured"
    )
    assert rows[index][1] == rows[index][2] < rows[index][3]
    assert rows[index + 1] == ("Validation loss there", "4.0000", "4.0000", "4.3704 (interpolated, 4.0000 to 4.5000)")


def test_the_loss_at_equal_energy_is_that_of_the_last_step_paid_for(runs: list[Run]) -> None:
    found = summaries(runs[:2], ledger(gpu()), ledger(gpu(4.0)))
    paid = int((found[1].cumulative_j <= 1000).sum())
    rows = equal_rows(runs[:2], found)
    assert rows[-2][2] == f"{runs[1].steps.loss[:paid][-1]:.4f}"
    assert rows[-1] == ("Validation loss there", "4.0000", "4.5000 at 220 % of it, not evaluated before")


def test_an_evaluation_just_after_the_cut_is_not_replaced_by_an_older_one(runs: list[Run]) -> None:
    """Two budgets of the same size end a step apart: both last evaluations count."""
    found = summaries(runs[:2], ledger(gpu(1.0005)), ledger(gpu()))
    assert equal_rows(runs[:2], found)[-1] == ("Validation loss there", "4.0000", "4.0000")
    found = summaries(runs[:2], ledger(gpu(1.05)), ledger(gpu()))
    early = equal_rows(runs[:2], found)[-1][1]
    assert re.fullmatch(r"4\.0\d{3} \(interpolated, 4\.0000 to 4\.5000\)", early)


def test_a_run_that_was_evaluated_long_before_says_how_stale_its_loss_is(tmp_path: Path) -> None:
    early = SyntheticRun(tmp_path / "early")
    early.segment()
    early.train_with_evaluation(1, 4.2)
    early.train(2, 10)
    runs = [load_run(early.end()), load_run(finished_run(tmp_path / "half", steps=10))]
    (row,) = (row for row in equal_rows(runs, summaries(runs, NO_ENERGY, NO_ENERGY))[:2] if row[0].startswith("Val"))
    assert row[1] == "4.2000 at 10 % of it, not evaluated after"


def test_a_run_that_had_no_step_yet_at_the_equal_energy_has_no_loss_there(runs: list[Run]) -> None:
    rows = equal_rows(runs[:2], summaries(runs[:2], ledger(gpu()), ledger(gpu(20.0))))
    assert (rows[-2][0], rows[-2][2]) == ("Smoothed training loss at equal energy, 1 kJ measured", "–")


def test_the_word_of_the_equal_energy_is_that_of_all_runs(runs: list[Run]) -> None:
    names = [row[0] for row in equal_rows(runs[:2], summaries(runs[:2], ledger(cpu()), ledger(gpu())))]
    assert "Smoothed training loss at equal energy, 100 J partly modelled" in names


def test_there_is_no_equal_energy_unless_every_run_was_metered(runs: list[Run], tmp_path: Path) -> None:
    assert energy(runs[:1], summaries(runs[:1], ledger(gpu()))).equal is None
    assert energy(runs[:2], summaries(runs[:2], ledger(gpu()), NO_ENERGY)).equal is None
    unborn = SyntheticRun(tmp_path / "unborn")
    unborn.segment()
    both = [runs[0], load_run(unborn.kill())]
    found = summaries(both, ledger(gpu()), ledger(gpu()))
    assert [terms.equal for terms in all_terms(both, found)] == [None, None, None]
    assert equal_rows(both, found) == []


def test_losses_are_compared_at_the_tokens_and_the_time_of_the_shortest_run(tmp_path: Path) -> None:
    runs = [load_run(finished_run(tmp_path / "whole")), load_run(finished_run(tmp_path / "half", steps=10))]
    found = summaries(runs, NO_ENERGY, NO_ENERGY)
    tokens, time, _ = all_terms(runs, found)
    assert tokens.equal == runs[1].steps.kept.tokens.sum() < runs[0].steps.kept.tokens.sum()
    rows = equal_rows(runs, found)
    names = [row[0] for row in rows if row[0].startswith("Smoothed")]
    assert len(names) == 2
    assert names[0].startswith("Smoothed training loss at equal tokens, ")
    assert names[1].startswith("Smoothed training loss at equal time of training, ")
    losses = runs[0].steps.kept.loss
    assert tokens.equal is not None
    reached = int((tokens.spent[0] <= tokens.equal).sum())
    assert reached == 10
    assert rows[0][1] == f"{losses[reached - 1]:.4f}"
    assert time.equal == pytest.approx(float(np.nansum(runs[1].steps.kept.training_s)))


def test_sizes_of_the_models_head_the_table_and_what_nobody_knows_is_left_out(runs: list[Run]) -> None:
    first, second = runs[0], runs[1]
    sizes = {"parameters": 5_300_000, "parameters_non_embedding": 3_200_000}
    known = replace(first, manifest={**first.manifest, "model": sizes})
    blind = replace(second, manifest={**second.manifest, "model": {}})
    assert size_rows([known, blind]) == [
        ("Parameters", "5,300,000", "–"),
        ("Parameters, non-embedding", "3,200,000", "–"),
    ]
    assert size_rows([blind]) == []


def test_terminal_markdown_and_page_show_the_losses_on_equal_terms(runs: list[Run]) -> None:
    found = summaries(runs, ledger(gpu()), ledger(gpu(1.05)), ledger(gpu(2.0)))
    console = Console(file=io.StringIO(), width=110, color_system=None)
    labels = ["low", "near", "high"]
    terminal.print_comparison(console, labels, runs, found)
    assert isinstance(console.file, io.StringIO)
    assert re.search(r"Smoothed training loss at( equal)? .*\d\.\d{4}", console.file.getvalue())
    text = markdown.comparison_markdown(labels, runs, found)
    assert "## On equal terms\n\n| Figure | low | near | high |\n" in text
    assert "<h2>On equal terms</h2>" in page.comparison_page(labels, runs, found)
