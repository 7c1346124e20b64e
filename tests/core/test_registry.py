"""Shelves: lazy loading, descriptions without an import, entries of third parties."""

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from perjoule.core import registry
from perjoule.core.errors import BrokenComponent, UnknownComponent
from perjoule.core.registry import Shelf

SHELF = Shelf("models", {"fraction": "fractions:Fraction", "decimal": "decimal:Decimal"})


def _install(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    def installed(group: str) -> EntryPoints:
        return EntryPoints(EntryPoint(name, value, group) for name, value in points.items())

    monkeypatch.setattr(registry, "entry_points", installed)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module that cannot be imported, only read."""
    (tmp_path / "perjoule_plugin_of_a_test.py").write_text(
        '"""A model of a stranger.\n\nMore."""\nraise RuntimeError\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "perjoule_plugin_of_a_test"


def test_load_returns_the_class_that_the_table_names() -> None:
    from fractions import Fraction

    assert SHELF.load("fraction") is Fraction


def test_names_are_sorted() -> None:
    assert SHELF.names() == ["decimal", "fraction"]


@pytest.mark.parametrize("ask", [SHELF.load, SHELF.describe])
def test_unknown_kind_names_the_shelf_and_the_nearest(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(UnknownComponent) as caught:
        ask("fractoin")
    expected = "unknown models kind 'fractoin': did you mean 'fraction'? (accepted: decimal, fraction)"
    assert str(caught.value) == expected


def test_description_is_read_without_importing_the_module(plugin: str) -> None:
    assert Shelf("models", {"stranger": f"{plugin}:X"}).describe("stranger") == "A model of a stranger."
    assert plugin not in sys.modules


def test_description_of_a_module_without_docstring_or_source_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "perjoule_plugin_without_words.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    table = {"silent": "perjoule_plugin_without_words:X", "gone": "no_package.module:X", "lost": "no_such_module:X"}
    shelf = Shelf("models", {**table, "compiled": "sys:version_info"})
    assert shelf.describe("silent") == "(no description)"
    assert {shelf.describe(kind) for kind in ("gone", "lost", "compiled")} == {"(source not found)"}


def test_installed_packages_add_entries(plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, stranger=f"{plugin}:X [extra]")
    assert SHELF.names() == ["decimal", "fraction", "stranger"]
    assert SHELF.describe("stranger") == "A model of a stranger."


def test_our_entry_wins_over_an_installed_one_of_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, decimal="fractions:Fraction", ratio="fractions:Fraction")
    from decimal import Decimal
    from fractions import Fraction

    assert SHELF.load("decimal") is Decimal
    assert SHELF.load("ratio") is Fraction


def test_only_the_group_of_the_shelf_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def installed(group: str) -> EntryPoints:
        asked.append(group)
        return EntryPoints()

    monkeypatch.setattr(registry, "entry_points", installed)
    assert Shelf("data", {}).names() == []
    assert asked == ["perjoule.data"]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("import no_such_module_of_anyone", "ModuleNotFoundError: No module named"),
        ("def broken(:", "SyntaxError: "),
        ("Y = 1", "AttributeError: "),
    ],
)
def test_a_broken_package_is_one_line_where_it_is_named_and_ends_nothing_else(
    source: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "perjoule_broken_plugin.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "perjoule_broken_plugin", raising=False)
    _install(monkeypatch, stranger="perjoule_broken_plugin:X")
    with pytest.raises(BrokenComponent, match=r"models kind 'stranger' of another package") as caught:
        SHELF.load("stranger")
    assert why in str(caught.value) and "\n" not in str(caught.value)
    assert SHELF.load("decimal") and "stranger" in SHELF.names()
    assert SHELF.describe("stranger").startswith("(")


def test_a_description_is_asked_of_packages_that_break_when_they_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "perjoule_broken_package").mkdir()
    (tmp_path / "perjoule_broken_package" / "__init__.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    assert Shelf("models", {"x": "perjoule_broken_package.inner:X"}).describe("x") == "(source not found)"
