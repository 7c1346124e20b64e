"""From run folders to tables, figures and one HTML page; runs on a machine without torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perjoule.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console


def build(runs: Sequence[Path], output: Path | None = None, console: Console | None = None) -> tuple[Path, ...]:
    """Print the report of one run or the comparison of several, and write it as HTML, Markdown and tables of energy.

    Args:
        runs: run folders.
        output: the HTML file; the Markdown goes beside it, ending in ``.md``. Left out, one run's report goes into its
            own folder, with CSV files of its energy if it was metered, and a comparison is only printed.
        console: where to print; standard output if left out.

    Returns:
        The files that were written.

    Raises:
        ConfigError: if no run is given, or ``output`` does not end in ``.html``.
        RunFolderError: if a folder is no run folder or a file cannot be written.
    """
    if not runs:
        raise ConfigError("report needs at least one run folder: perjoule report RUN…")
    if output is not None and output.suffix != ".html":
        raise ConfigError(f"the report's output {output} must end in .html")
    from rich.console import Console

    from perjoule.core.streams import drawing
    from perjoule.measure.book import build_ledger
    from perjoule.report import markdown, page, terminal
    from perjoule.report.emissions import write_emissions
    from perjoule.report.summary import summarize
    from perjoule.report.wording import run_labels
    from perjoule.runs.files import write_atomically
    from perjoule.runs.folder import REPORT_HTML, REPORT_MARKDOWN
    from perjoule.runs.tables import load_run

    console = console or Console(file=drawing(sys.stdout))
    loaded = [load_run(path) for path in runs]
    ledgers = [build_ledger(run) for run in loaded]
    summaries = [summarize(run, ledger) for run, ledger in zip(loaded, ledgers, strict=True)]
    if len(loaded) == 1:
        run, summary = loaded[0], summaries[0]
        terminal.print_run(console, run, summary)
        html, text = page.run_page(run, summary), markdown.run_markdown(run, summary)
        target = output or run.path / REPORT_HTML
    else:
        labels = run_labels(loaded)
        terminal.print_comparison(console, labels, loaded, summaries)
        if output is None:
            return ()
        html = page.comparison_page(labels, loaded, summaries)
        text, target = markdown.comparison_markdown(labels, loaded, summaries), output
    beside = target.with_name(REPORT_MARKDOWN) if output is None else target.with_suffix(".md")
    write_atomically(target, html)
    write_atomically(beside, text)
    return target, beside, *(write_emissions(loaded[0], ledgers[0]) if output is None else ())
