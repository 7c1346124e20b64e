r"""Text of foreign origin, fit for a terminal and a file that is read in one.

Folder names, reasons, generated text and error messages may hold escape sequences, which a terminal obeys: they can
move the cursor, hide what was printed, change the window's title. They are shown instead: ``\x1b[31m``.
"""

from __future__ import annotations

import re

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and line feed, delete, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the order of what follows
    "\ud800-\udfff]"  # half a character, which no encoding can write
)


def printable(text: str) -> str:
    """Replace what a terminal would obey or cannot show by its escape; tabs and line feeds stay."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """Replace control characters as :func:`printable` does, and every run of white space by one blank."""
    return printable(" ".join(text.split()))
