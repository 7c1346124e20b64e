"""From run folders to tables, figures and one HTML page; runs on a machine without torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perjoule.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console


def build(
    runs: Sequence[Path], output: Path | None = None, console: Console | None = None, carbon: Sequence[str] = ()
) -> tuple[Path, ...]:
    """Write the report of one run or the comparison of several as HTML, Markdown and tables of energy, and print it.

    Args:
        runs: run folders.
        output: the HTML file; the Markdown goes beside it, ending in ``.md``. Left out, one run's report goes into its
            own folder, with CSV files of its energy if it was metered, and a comparison is only printed.
        console: where to print; standard output if left out.
        carbon: ``carbon.key=value`` that was not known, or another, when the runs trained; the runs stay as they are.

    Returns:
        The files that were written.

    Raises:
        ConfigError: if no run is given, ``output`` does not end in ``.html``, or ``carbon`` has a mistake.
        RunFolderError: if a folder is no run folder or a file cannot be written.
    """
    if not runs:
        raise ConfigError("report needs at least one run folder: perjoule report RUN…")
    if output is not None and output.suffix != ".html":
        raise ConfigError(f"the report's output {output} must end in .html")
    from rich.console import Console

    from perjoule.core.printable import printable
    from perjoule.core.streams import drawing
    from perjoule.measure.book import build_ledger
    from perjoule.report import markdown, page, terminal
    from perjoule.report.carbon import with_carbon
    from perjoule.report.emissions import write_emissions
    from perjoule.report.summary import summarize
    from perjoule.report.wording import run_labels
    from perjoule.runs.files import write_atomically
    from perjoule.runs.folder import REPORT_HTML, REPORT_MARKDOWN
    from perjoule.runs.tables import load_run

    console = console or Console(file=drawing(sys.stdout))
    loaded = [with_carbon(load_run(path), carbon) for path in runs]
    ledgers = [build_ledger(run) for run in loaded]
    summaries = [summarize(run, ledger) for run, ledger in zip(loaded, ledgers, strict=True)]
    labels, target = run_labels(loaded), output
    if len(loaded) == 1:
        run, summary = loaded[0], summaries[0]
        html, target = page.run_page(run, summary), output or run.path / REPORT_HTML
        text = markdown.run_markdown(run, summary)
    else:
        html = page.comparison_page(labels, loaded, summaries)
        text = markdown.comparison_markdown(labels, loaded, summaries)
    written: tuple[Path, ...] = ()
    if target is not None:  # before anything is printed, which may fail
        beside = target.with_name(REPORT_MARKDOWN) if output is None else target.with_suffix(".md")
        for path, content in ((target, html), (beside, text)):
            write_atomically(path, printable(content))
        written = target, beside, *(write_emissions(loaded[0], ledgers[0]) if output is None else ())
    if len(loaded) == 1:
        terminal.print_run(console, loaded[0], summaries[0])
    else:
        terminal.print_comparison(console, labels, loaded, summaries)
    return written
