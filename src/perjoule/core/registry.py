"""Shelves: lazy tables ``name -> "module:ConfigClass"``.

Only the chosen entry is imported, so that listing a shelf costs nothing and never imports torch. The one line that
describes an entry is the first line of its module's docstring, read from the source without running it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from perjoule.core.errors import BrokenComponent, PerjouleError, UnknownComponent, suggestion


@dataclass(frozen=True)
class Shelf:
    """A named table of components.

    Args:
        name: the shelf's plural noun, also the folder (``models``).
        entries: ``kind -> "module:ConfigClass"``.

    Third parties add entries through the entry-point group ``perjoule.<name>`` of the same shape.
    """

    name: str
    entries: Mapping[str, str]

    @property
    def table(self) -> dict[str, str]:
        """Return our entries and those that installed packages add; ours win on a clash."""
        points = entry_points(group=f"perjoule.{self.name}")
        added = {point.name: f"{point.module}:{point.attr}" for point in points}
        return {**added, **self.entries}

    def names(self) -> list[str]:
        """Return every kind on the shelf, sorted."""
        return sorted(self.table)

    def load(self, kind: str) -> type:
        """Import and return the config class of ``kind``.

        Raises:
            UnknownComponent: if ``kind`` is not on the shelf.
            BrokenComponent: if the package that adds it cannot be imported or does not have it.
        """
        module, attribute = self._target(kind)
        try:
            loaded: type = getattr(importlib.import_module(module), attribute)
        except PerjouleError:
            raise
        except Exception as error:
            if kind in self.entries:
                raise
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise BrokenComponent(
                f"{self.name} kind {kind!r} of another package ({module}:{attribute}) cannot be loaded: {said}; "
                "update or remove that package"
            ) from error
        return loaded

    def describe(self, kind: str) -> str:
        """Return the first line of the docstring of the entry's module, without importing it.

        Raises:
            UnknownComponent: if ``kind`` is not on the shelf.
        """
        module, _ = self._target(kind)
        try:
            spec = importlib.util.find_spec(module)
        except Exception:  # a package above it, which this imports, is missing or broken
            spec = None
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            return "(source not found)"
        try:
            docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_bytes()))
        except (OSError, SyntaxError, ValueError) as error:
            return f"(broken: {type(error).__name__}: {str(error).splitlines()[0]})"
        return (docstring or "(no description)").splitlines()[0]

    def _target(self, kind: str) -> tuple[str, str]:
        """Return the module and the class name of ``kind``."""
        target = self.table.get(kind)
        if target is None:
            raise UnknownComponent(f"unknown {self.name} kind {kind!r}: {suggestion(kind, self.table)}")
        module, _, attribute = target.partition(":")
        return module, attribute
