import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from tests.report.ledgers import CPU, GERMANY, NO_ENERGY, SHORT, account, bucket, cpu, gpu, ledger, mig
from tests.runs.synthetic import SyntheticRun, finished_run

from perjoule.measure.contract import Unavailable as NotMeasured
from perjoule.measure.ledger import Ledger, Tier
from perjoule.report import markdown, terminal
from perjoule.report.energy import Sheet, sheets
from perjoule.report.ledger_table import (
    footnoted,
    ledger_caption,
    ledger_headings,
    ledger_rows,
    ledger_title,
    provenance_key,
    sides,
)
from perjoule.report.summary import summarize
from perjoule.report.wording import between, joules
from perjoule.runs.tables import Run, load_run


@pytest.fixture
def located(tmp_path: Path) -> Run:
    """Return a run of 20 steps in Germany."""
    run = SyntheticRun(tmp_path / "located")
    run.segment(warmup_steps=5, carbon=GERMANY)
    run.train(1, 20)
    return load_run(run.end())


def sheet(run: Run, energy: Ledger) -> Sheet:
    return sheets(run, energy)[0]


@pytest.mark.parametrize(
    ("low", "high", "unit", "text"),
    [
        (0.02, 0.04, "EUR", "0.02 to 0.04 EUR"),
        (0.12, 0.15, "gCO2e", "120 to 150 mg CO2e"),
        (1100.0, 1300.0, "J", "1.1 to 1.3 kJ"),
        (950.0, 1050.0, "J", "0.95 to 1.05 kJ"),
        (0.0, 90.0, "J", "0 to 90 J"),
        (0.0, 0.0, "J", "0 to 0 J"),
        (0.0164, 0.0205, "J", "16.4 to 20.5 mJ"),
        (5e-8, 9.0, "J", "50 nJ to 9 J"),
        (999.6e3, 2e6, "J", "1 to 2 MJ"),
    ],
)
def test_both_ends_of_an_interval_have_the_same_prefix(low: float, high: float, unit: str, text: str) -> None:
    assert between(low, high, unit) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(359e3, "359 kJ"), (360e3, "360 kJ (0.1 kWh)"), (1.23e6, "1.23 MJ (0.342 kWh)"), (36e9, "36 GJ (10 MWh)")],
)
def test_energies_from_a_tenth_of_a_kilowatt_hour_on_say_so(value: float, text: str) -> None:
    assert joules(value) == text


def test_a_ledger_has_a_row_per_bucket_and_its_sum_is_the_total(located: Run) -> None:
    found = sheet(located, ledger())
    rows = ledger_rows(found)
    assert ledger_headings(found) == tuple(
        "Bucket|Energy|How|95 % interval|Time|Share|Per step|Idle|CO2e|Why".split("|")
    )
    assert rows[1] == (
        *("forward", "250 J", "calibrated", "225 to 275 J", "1 s"),
        *("25 %", "12.5 J", "60 J", "25 mg", "bursts of 3 s"),
    )
    assert rows[0][:4] == ("data", "40 J", "shared", "0 to 90 J") and rows[0][-1] == SHORT
    assert rows[-1][:7] == ("sum", "1 kJ", "measured", "0.95 to 1.05 kJ", "13.5 s", "100 %", "")
    assert [row[0] for row in rows[-3:]] == ["outside", "unknown", "sum"]
    assert [row[6] for row in rows[-3:-1]] == ["–", "–"], "what lies outside the steps has no energy per step"


def test_a_ledger_whose_buckets_are_not_its_total_is_refused(located: Run) -> None:
    wrong = ledger(account(CPU, [bucket("forward", 1.0)], total_uj=999_999))
    with pytest.raises(AssertionError, match="a ledger's buckets are its total"):
        ledger_rows(sheet(located, wrong))


def test_columns_that_nobody_knows_are_left_out(finished: Run, located: Run) -> None:
    assert "Idle" not in ledger_headings(sheet(located, ledger(cpu())))
    assert "CO2e" not in ledger_headings(sheet(finished, ledger()))
    narrow = ledger_headings(sheet(located, ledger()), narrow=True)
    assert narrow == ("Bucket", "Energy", "How", "95 % interval", "Share", "Why")
    assert sides(narrow) == "lrlrrw"
    for energy in (ledger(), ledger(cpu())):
        one = sheet(finished, energy)
        assert {len(row) for row in ledger_rows(one, narrow=True)} == {len(ledger_headings(one, narrow=True))}


def test_the_idle_part_of_the_sum_is_known_if_that_of_every_bucket_is(located: Run) -> None:
    known = [bucket("forward", 10.0, idle_uj=3_000_000), bucket("outside", 5.0, idle_uj=1_000_000)]
    assert ledger_rows(sheet(located, ledger(account(CPU, known))))[-1][7] == "4 J"
    assert ledger_rows(sheet(located, ledger()))[-1][7] == "–"


def test_a_domain_without_energy_has_no_shares(located: Run) -> None:
    rows = ledger_rows(sheet(located, ledger(account(CPU, [bucket("forward", 0.0)]))))
    assert rows[0][1:6] == ("0 J", "measured", "0 to 0 J", "1 s", "–")


def test_reasons_become_footnotes_once_each(located: Run) -> None:
    notes = {"an earlier one": 1}
    headings, rows = footnoted(sheet(located, ledger()), notes)
    assert headings[-1] == "CO2e"
    assert [row[2] for row in rows] == [
        *("shared [2]", "calibrated [3]", "regressed [4]", "calibrated [3]", "shared [2]"),
        *("measured [5]", "measured [5]", "measured"),
    ]
    assert notes == {"an earlier one": 1, SHORT: 2, "bursts of 3 s": 3, "R² 0.99": 4, "nothing to say": 5}
    assert {len(row) for row in rows} == {len(headings)}


def test_a_ledger_without_reasons_has_no_column_for_them(located: Run) -> None:
    plain = sheet(located, ledger(account(CPU, [bucket("forward", 1.0, why="")])))
    notes: dict[str, int] = {}
    assert "Why" not in ledger_headings(plain)
    assert footnoted(plain, notes) == (ledger_headings(plain), ledger_rows(plain))
    assert notes == {}


def test_the_caption_says_what_has_to_be_known(located: Run, finished: Run) -> None:
    assert ledger_caption(sheet(located, ledger())) == (
        "Energy counter, scope gpu; its value changes every 100 ms; per step: over all 20 steps, warm-up and "
        "recomputed ones included; 200 ms at the ends were not read, their energy is in no bucket; measured over "
        "calibrated: 1.03; idle: what an idle device would have used in that time, contained in the energy."
    )
    narrow = ledger_caption(sheet(located, ledger()), narrow=True)
    assert "per step" not in narrow and "idle" not in narrow, "their columns are left out"
    assert "no carbon" not in ledger_caption(sheet(finished, ledger()), narrow=True)
    inside = next(one for one in sheets(located, ledger()) if not one.counted)
    assert "part of another domain, so it is not added to the total" in ledger_caption(inside)
    assert "no carbon: no location given" in ledger_caption(sheet(finished, ledger()))
    modelled = ledger(cpu(refresh_s=0.1))
    assert "changes every" not in ledger_caption(sheet(located, modelled)), "a model has no refresh"
    resumed = ledger(gpu(), gpu(segment=1, notes=("the counter was reset once",)))
    assert "; 2 segments added up; " in ledger_caption(sheet(located, resumed))
    assert ledger_caption(sheet(located, resumed)).endswith("; the counter was reset once.")


def test_the_title_names_the_machine_if_there_are_several(located: Run) -> None:
    one = summarize(located, ledger())
    assert [ledger_title(found, one) for found in one.sheets] == [
        *("gpu-0, measured", "cpu, modelled", "mig-0, measured, not added to the total")
    ]
    two = summarize(located, ledger(gpu(), gpu(node="there")))
    assert [ledger_title(found, two) for found in two.sheets] == ["gpu-0 on here, measured", "gpu-0 on there, measured"]


def test_the_words_that_occur_are_explained(located: Run) -> None:
    every = provenance_key([summarize(located, ledger())])
    assert [line.partition(":")[0] for line in every] == "measured calibrated regressed shared modelled".split()
    assert provenance_key([summarize(located, ledger(cpu()))]) == ["modelled: from a model, not from a sensor"]
    assert provenance_key([summarize(located, NO_ENERGY)]) == []
    assert len(every) == len(Tier)


def printed(run: Run, energy: Ledger, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    terminal.print_run(console, run, summarize(run, energy))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_terminal_shows_every_bucket_on_one_line_with_its_word(located: Run, width: int) -> None:
    text = printed(located, ledger(), width)
    assert max(map(len, text.splitlines())) <= width
    one, whole = (" +1 s", " +13.5 s") if width >= 100 else ("", "")
    assert re.search(rf"data +40 J +shared \[1\] +0 to 90 J{one} +4 %", text)
    assert re.search(rf"forward/think +130 J +regressed \[3\] +117 to 143 J{one} +13 %", text)
    assert re.search(rf"sum +1 kJ +measured +0.95 to 1.05 kJ{whole} +100 %", text)
    assert re.search(r"sum +100 J +modelled +50 to 200 J ", text)
    assert text.count("\n[1] the phase is shorter than five refreshes") == 1
    assert "shared: split by time; the interval is what is possible at all" in text
    assert re.search(r"Energy +1.1 kJ partly modelled +95 % interval 1 to 1.25 kJ", text)


def test_a_meter_that_could_not_be_read_is_named_beside_those_that_could(located: Run) -> None:
    energy = ledger(cpu(), unavailable={"rapl": NotMeasured("not readable", "ask the administrator")})
    line = "not metered: rapl: not readable (remedy: ask the administrator)"
    assert line in printed(located, energy, 120)
    assert markdown.escape(line) in markdown.run_markdown(located, summarize(located, energy))


def test_without_energy_one_line_says_why(tmp_path: Path) -> None:
    run = load_run(finished_run(tmp_path / "a"))
    text = printed(run, NO_ENERGY, 100)
    assert text.count("no meter in this run") == 1
    assert "Energy per step" not in text and "Water" not in text
    assert "Where the energy went" not in markdown.run_markdown(run, summarize(run, NO_ENERGY))


def test_markdown_shows_ledgers_with_their_reasons(located: Run) -> None:
    text = markdown.run_markdown(located, summarize(located, ledger(gpu(), cpu(), mig())))
    assert "## Where the energy went\n\n### gpu-0, measured\n\n| Bucket | Energy | How | 95 % interval |" in text
    assert "| forward | 250 J | calibrated | 225 to 275 J | 1 s | 25 % | 12.5 J | 60 J | 25 mg | bursts" in text
    assert "| sum | 1 kJ | measured | 0.95 to 1.05 kJ | 13.5 s | 100 % |  | – | 100 mg |  |" in text
    assert "- modelled: from a model, not from a sensor" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
