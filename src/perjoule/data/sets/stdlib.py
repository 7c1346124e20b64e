"""The Python standard library's own source, 11 MB of code that is on every machine, for language modelling."""

from __future__ import annotations

from typing import Literal

from perjoule.data.sets.text import TextConfig
from perjoule.data.sources import Source, stdlib_source


class StdlibConfig(TextConfig):
    """The modules of the running interpreter; the Python version is part of the facts."""

    kind: Literal["stdlib"] = "stdlib"

    def source(self) -> Source:
        """Return the documents.

        Raises:
            DataError: if this interpreter keeps its library elsewhere than in files.
        """
        return stdlib_source()
