"""Pieces of HTML that several parts of the page are made of. They escape what they are given, drawings apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from perjoule.report.charts import Chart

_LONG = 24
"""Characters of a cell from which it may wrap."""
_SIDES = {"l": "text", "r": "number", "w": "wrap"}


def section(title: str, content: str) -> str:
    """Return a part of the page under its heading; ``content`` is HTML."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def prose(text: str) -> str:
    """Return a sentence as HTML, in which `` `words` `` between grave accents are code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Return what the colours stand for: CSS class and name."""
    items = "".join(f'<li><i class="{escape(css)}"></i>{escape(name)}</li>' for css, name in entries)
    return f"<ul class=legend>{items}</ul>" if items else ""


def figure(chart: Chart) -> str:
    """Return a drawing with its title, legend and caption."""
    caption = f"<p class=note>{prose(chart.caption)}</p>" if chart.caption else ""
    return (
        f"<figure class=card><figcaption>{escape(chart.title)}</figcaption>{legend(chart.legend)}{chart.svg}{caption}"
        "</figure>"
    )


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    name: str,
    sides: str,
    marks: Sequence[str] = (),
    bars: Sequence[str] = (),
) -> str:
    """Return a table that scrolls by itself if it is too wide.

    Args:
        headings: one per column.
        rows: cells as text.
        name: read out before the table.
        sides: a letter for each of the first columns: ``l`` left, ``r`` right, ``w`` text that wraps; the others are
            aligned right.
        marks: CSS class of the square before each row, "" for none.
        bars: drawings that stand behind the names of the first rows.
    """
    css = [_SIDES[side] for side in sides.ljust(len(headings), "r")]
    head = [f'<th scope="col" class={side}>{escape(one)}</th>' for one, side in zip(headings, css, strict=True)]
    if bars:
        head.insert(1, "<td class=bar></td>")
    body = []
    for number, row in enumerate(rows):
        mark = f'<i class="{escape(marks[number])}"></i>' if marks and marks[number] else ""
        cells = "".join(
            f"<td class={_cell_css(cell, side)}>{escape(cell)}</td>"
            for cell, side in zip(row[1:], css[1:], strict=True)
        )
        if bars:
            cells = f"<td class=bar>{bars[number] if number < len(bars) else ''}</td>{cells}"
        body.append(f'<tr><th scope="row" class=text>{mark}{escape(row[0])}</th>{cells}</tr>')
    return (
        f'<div class=scroll role="region" tabindex="0" aria-label="{escape(name)}">'
        f"<table><thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell_css(cell: str, side: str) -> str:
    return f'"{side} long"' if side == "number" and len(cell) > _LONG else side
