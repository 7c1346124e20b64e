"""Write runs as Markdown tables, for a lab note or a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from perjoule.report import wording
from perjoule.report.summary import Summary
from perjoule.runs.tables import Run

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def run_markdown(run: Run, summary: Summary) -> str:
    """Return the report of one run."""
    lines = [f"# {escape(run.name)}", "", f"**{escape(run.status)}** {escape(run.reason)}".rstrip(), ""]
    lines += [escape(wording.headline(run)), ""]
    lines += [f"> {escape(warning)}\n" for warning in run.warnings]
    lines += [
        "## Figures",
        "",
        *_table(("Figure", "Value", "How it was obtained"), wording.figure_rows(summary), "lrl"),
    ]
    if summary.phases:
        lines += ["", "## Where the time went", ""]
        lines += _table(wording.PHASE_HEADINGS, wording.phase_rows(summary), "l" + "r" * 7)
        lines += ["", escape(wording.phase_caption(summary))]
    lines += ["", "## What ran", "", *_table(("What", "Value"), wording.facts(run), "ll")]
    return "\n".join(lines) + "\n"


def comparison_markdown(labels: Sequence[str], runs: Sequence[Run], summaries: Sequence[Summary]) -> str:
    """Return the comparison of several runs."""
    headings = wording.compared_headings()
    rows = wording.compared_rows(labels, runs, summaries)
    lines = ["# Comparison", "", *_table(headings, rows, "ll" + "r" * (len(headings) - 2)), ""]
    lines += [f"- {escape(line)}" for line in wording.compared_reasons(summaries)]
    lines += [f"- {escape(run.name)}: {escape(warning)}" for run in runs for warning in run.warnings]
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """Return ``text`` so that Markdown shows it as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    rule = ["---:" if side == "r" else "---" for side in sides]
    return [f"| {' | '.join(cells)} |" for cells in (headings, rule, *([escape(cell) for cell in row] for row in rows))]
