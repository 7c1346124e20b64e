"""Every entry of every shelf keeps the contract, without a test of its own."""

import ast
import importlib
import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

import perjoule
from perjoule import data, estimate, models
from perjoule.config import Config
from perjoule.config.resolve import load
from perjoule.core.registry import Shelf
from perjoule.measure import SHELF as METERS
from perjoule.train.config import BackendConfig, TrainConfig

SHELVES = (models.SHELF, data.SHELF, METERS, estimate.SHELF)
ENTRIES = [pytest.param(shelf, kind, id=f"{shelf.name}-{kind}") for shelf in SHELVES for kind in shelf.names()]
SOURCE = Path(perjoule.__file__).parent
RECIPES = sorted((SOURCE.parents[1] / "recipes").rglob("*.yaml"))


def _config_class(shelf: Shelf, kind: str) -> type[Config]:
    loaded = shelf.load(kind)
    assert issubclass(loaded, Config)
    return loaded


def test_these_are_all_shelves() -> None:
    with_a_shelf = {
        path.parent.name
        for path in SOURCE.rglob("*.py")
        if re.search(r"^\w+ = Shelf\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert with_a_shelf == {shelf.name for shelf in SHELVES}
    assert all(shelf.names() for shelf in SHELVES)


@pytest.mark.parametrize(("shelf", "kind"), ENTRIES)
def test_class_is_named_by_its_kind_field_and_builds(shelf: Shelf, kind: str) -> None:
    cls = _config_class(shelf, kind)
    annotation = cls.model_fields["kind"].annotation
    assert next(iter(cls.model_fields)) == "kind"
    assert get_origin(annotation) is Literal
    assert get_args(annotation) == (kind,)
    assert cls.model_fields["kind"].default == kind
    assert callable(getattr(cls, "build", None))
    assert cls.__name__.endswith("Config")


@pytest.mark.parametrize(("shelf", "kind"), ENTRIES)
def test_description_is_the_first_line_of_the_modules_docstring(shelf: Shelf, kind: str) -> None:
    docstring = importlib.import_module(shelf.load(kind).__module__).__doc__
    assert docstring
    first = docstring.splitlines()[0]
    assert len(first) > 10
    assert first.endswith(".")
    assert shelf.describe(kind) == first


@pytest.mark.parametrize(("shelf", "kind"), ENTRIES)
def test_every_field_says_what_it_is_or_needs_no_words(shelf: Shelf, kind: str) -> None:
    fields = _config_class(shelf, kind).model_fields
    plain = {"kind", "tokenizer", "fractions"}  # the first two lines of their classes say it
    assert [name for name, info in fields.items() if not info.description and name not in plain] == []


@pytest.mark.parametrize("cls", [BackendConfig, *(_config_class(*entry.values) for entry in ENTRIES)])  # type: ignore[arg-type]
def test_presets_are_settings_of_plain_fields_and_are_accepted(cls: type[Config]) -> None:
    for name, preset in cls.PRESETS.items():
        assert preset.keys() <= cls.model_fields.keys() - {"kind", "preset"}
        assert not any(isinstance(value, dict) for value in preset.values()), "a section would hide its other defaults"
        config = load(cls, None, [f"preset='{name}'"]).config
        assert {key: getattr(config, key) for key in preset} == preset
        assert cls.model_validate({"preset": name}) == config


def test_there_are_recipes() -> None:
    assert SOURCE.parents[1] / "recipes" / "default.yaml" in RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_resolves_and_opens_with_what_it_is_for(recipe: Path) -> None:
    resolved = load(TrainConfig, recipe)
    assert any(source.startswith(f"{recipe}:") for source in resolved.sources.values())
    assert recipe.read_text(encoding="utf-8").startswith("# ")


def test_kinds_are_lower_case_words() -> None:
    for shelf in SHELVES:
        assert [kind for kind in shelf.names() if not re.fullmatch(r"[a-z][a-z0-9_]*", kind)] == []


def test_entries_of_a_shelf_are_literal_text() -> None:
    for shelf in SHELVES:
        tree = ast.parse((SOURCE / shelf.name / "__init__.py").read_text(encoding="utf-8"))
        (table,) = (node for node in ast.walk(tree) if isinstance(node, ast.Dict))
        assert ast.literal_eval(table) == shelf.entries
