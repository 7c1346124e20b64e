"""From recipe, presets and overrides to one frozen config, with the source of every value.

Precedence: default < preset < file < ``key=value``. Every mistake is found before anything is reported, and all are
reported in one :class:`ConfigError`, each with its dotted key, where it was written, and what would be accepted.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from perjoule.config import yaml
from perjoule.config.base import Component, Config
from perjoule.core.errors import ConfigError, UnknownComponent, suggestion

C = TypeVar("C", bound=Config)
COMMAND_LINE = "command line"
DEFAULT = "default"
PYTHON = "Python"
_MOST_SHOWN = 20
"""Mistakes that are listed one by one; a file of another kind has thousands."""
"""The source of what was not read by :func:`load`."""
_SHORT = ""
"""Stands for the key that a bare word fills: ``kind`` of a component, ``preset`` of a section with presets."""


@dataclass(frozen=True)
class Resolved(Generic[C]):
    """A config and the source of each of its values (``default``, ``preset xs``, ``x.yaml:3``, ``command line``).

    Args:
        config: the whole configuration.
        sources: dotted key of a leaf, as :func:`flatten` names it, -> source.
    """

    config: C
    sources: Mapping[str, str]

    def as_json(self) -> dict[str, dict[str, Any]]:
        """Return ``{dotted key: {"value": …, "source": …}}`` for the run folder."""
        flat = flatten(self.config.model_dump(mode="json"))
        return {key: {"value": value, "source": self.sources.get(key, PYTHON)} for key, value in flat.items()}


@dataclass
class _Problems:
    """Collects mistakes; knows where each key and each section was written."""

    sources: dict[str, str]
    lines: list[str] = field(default_factory=list)

    def add(self, path: str, message: str) -> None:
        source = self._written(path)
        self.lines.append(f"{path or 'the recipe'}: {message}" + (f"  ({source})" if source else ""))

    def _written(self, path: str) -> str | None:
        """Return where a key or something inside it was written, or else the section around it."""
        while path:
            inside = (source for key, source in self.sources.items() if key.startswith(f"{path}."))
            source = self.sources.get(path) or next(inside, None)
            if source:
                return source
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.sources.get("")

    def expand(self, path: str, key: str) -> None:
        """Note that the bare word at ``path`` was written for ``key`` inside it."""
        if path in self.sources:
            self.sources[f"{path}.{key}"] = self.sources[path]


def load(cls: type[C], recipe: Path | None = None, overrides: Sequence[str] = ()) -> Resolved[C]:
    """Resolve a recipe file and overrides.

    Args:
        cls: the root config class.
        recipe: a YAML file, or None for the defaults.
        overrides: ``dotted.key=value`` strings; the value is YAML (``1e-3``, ``true``, ``[1, 2]``, ``{kind: x}``).

    Raises:
        ConfigError: listing every mistake.
    """
    data: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if recipe is not None:
        data, sources = _read_recipe(recipe)
    problems = _Problems(sources)
    for override in overrides:
        _apply(override, data, problems)
    config = _validate(cls, data, "", problems)
    if problems.lines or config is None:
        where = str(recipe) if recipe else "the configuration"
        if len(problems.lines) == 1:
            raise ConfigError(problems.lines[0])
        more = len(problems.lines) - _MOST_SHOWN
        shown = [*problems.lines[:_MOST_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        listing = "\n  ".join(shown)
        raise ConfigError(f"{where} has {len(problems.lines)} mistakes:\n  {listing}")
    leaves = flatten(config.model_dump(mode="json"))
    return Resolved(config, {key: sources.get(key, DEFAULT) for key in leaves})


def build_component(component: Component, value: str | dict[str, Any]) -> Config:
    """Build the instance that a kind or a mapping names, when a config is constructed in Python."""
    problems = _Problems({})
    config = _validate_component(component, value, None, "", problems)
    if config is None:
        raise ConfigError("; ".join(problems.lines))
    return config


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{dotted key: leaf}``; lists are leaves."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read_recipe(recipe: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a recipe file into plain data and the source of each key."""
    if not recipe.exists():
        folder = recipe.parent if recipe.parent.is_dir() else Path()
        near = suggestion(recipe.name, (path.name for path in folder.glob("*.yaml")))
        raise ConfigError(f"no recipe {recipe}; in {folder.resolve()}: {near}")
    document = yaml.load_file(recipe, "the recipe")
    if document.data is None:
        return {}, {}
    if not isinstance(document.data, dict):
        raise ConfigError(f"{recipe} must be a mapping of keys to values, not {type(document.data).__name__}")
    sources = {path: f"{recipe}:{line}" for path, line in document.lines.items()}
    return document.data, sources | {"": str(recipe)}


def _apply(override: str, data: dict[str, Any], problems: _Problems) -> None:
    """Set one ``dotted.key=value`` in the data."""
    key, separator, text = override.partition("=")
    *sections, last = key.split(".")
    if not separator or not all([*sections, last]):
        problems.lines.append(f"{override!r} is not an override; write key=value, such as stop.steps=200")
        return
    try:
        value = yaml.load_value(text)
    except ConfigError as error:
        problems.lines.append(f"{key}: {error}")
        return
    target = data
    for depth, section in enumerate(sections, 1):
        inner = target.get(section)
        if isinstance(inner, str):  # `model: retnet` is short for `model: {kind: retnet}`
            inner = {_SHORT: inner}
        if not isinstance(inner, dict | None):
            problems.add(".".join(sections[:depth]), f"is {inner!r} and not a section, so {key} cannot be set in it")
            return
        target[section] = inner or {}
        target = target[section]
    target[last] = value
    for path in [path for path in problems.sources if path.startswith((f"{key}.", f"{key}["))]:
        del problems.sources[path]
    problems.sources |= dict.fromkeys([key, *flatten({key: value})], COMMAND_LINE)


def _children(cls: type[Config]) -> Iterator[tuple[str, FieldInfo, Component | type[Config]]]:
    """Yield the fields of a config class that hold configs."""
    for name, info in cls.model_fields.items():
        marker = next((item for item in info.metadata if isinstance(item, Component)), None)
        if marker is not None:
            yield name, info, marker
        elif isinstance(info.annotation, type) and issubclass(info.annotation, Config):
            yield name, info, info.annotation


def _validate(cls: type[C], raw: Any, path: str, problems: _Problems) -> C | None:
    """Validate one section and everything below it; None after a mistake."""
    before = len(problems.lines)
    dot = f"{path}." if path else ""
    if isinstance(raw, str) and cls.PRESETS and "preset" in cls.model_fields:
        raw = {_SHORT: raw}
    if not isinstance(raw, dict):
        problems.add(path, f"must be a section with keys {', '.join(cls.model_fields)}, not {_show(raw)}")
        return None
    data = _with_preset(cls, raw, path, problems)
    for key in [key for key in data if key not in cls.model_fields]:
        problems.add(f"{dot}{key}", f"unknown key: {suggestion(key, cls.model_fields)}")
        del data[key]
    failed = _validate_children(cls, data, dot, problems)
    sound = len(problems.lines) == before
    try:
        config = cls(**data)
    except ValidationError as error:
        for place, message in _mistakes(cls, error):
            # A check across keys says nothing while one of them is wrong.
            if place not in failed and (place or sound):
                problems.add(f"{dot}{place}" if place else path, message)
        return None
    return config if sound else None


def _validate_children(cls: type[Config], data: dict[str, Any], dot: str, problems: _Problems) -> set[str]:
    """Replace the sections in ``data`` by configs; remove and return those with a mistake."""
    failed = set()
    child: Config | tuple[Config, ...] | None
    for name, info, kind in _children(cls):
        if isinstance(kind, Component) and kind.many:
            if name not in data:
                continue
            child = _validate_components(kind, data[name], f"{dot}{name}", problems)
        elif isinstance(kind, Component):
            child = _validate_component(kind, data.get(name, info.default), info.default, f"{dot}{name}", problems)
        elif name in data:
            child = _validate(kind, data[name], f"{dot}{name}", problems)
        else:
            continue
        data[name] = child
        if child is None:
            failed.add(name)
            del data[name]
    return failed


def _with_preset(cls: type[Config], raw: dict[str, Any], path: str, problems: _Problems) -> dict[str, Any]:
    """Return the section with its preset's values below its own."""
    if _SHORT in raw:
        raw = {"preset" if key == _SHORT else key: value for key, value in raw.items()}
        problems.expand(path, "preset")
    name = raw.get("preset")
    if name is None or "preset" not in cls.model_fields:
        return dict(raw)
    dot = f"{path}." if path else ""
    if not isinstance(name, str) or name not in cls.PRESETS:
        problems.add(f"{dot}preset", f"unknown preset {_show(name)}: {suggestion(str(name), cls.PRESETS)}")
        return {key: value for key, value in raw.items() if key != "preset"}
    preset = cls.PRESETS[name]
    for key in preset:
        problems.sources.setdefault(f"{dot}{key}", f"preset {name}")
    return {**preset, **raw}


def _validate_component(component: Component, raw: Any, default: Any, path: str, problems: _Problems) -> Config | None:
    """Validate ``kind`` or ``{kind: …}`` against the class on the shelf."""
    if isinstance(raw, Config):
        return raw
    section = {_SHORT: raw} if isinstance(raw, str) else {} if raw is PydanticUndefined else raw
    if not isinstance(section, dict):
        names = ", ".join(component.shelf.names())
        problems.add(path, f"must be a kind or a section with a kind ({names}), not {_show(raw)}")
        return None
    if _SHORT in section:
        section = {"kind" if key == _SHORT else key: value for key, value in section.items()}
        problems.expand(path, "kind")
    if "kind" not in section and isinstance(default, str):
        section = {"kind": default, **section}
    if "kind" not in section:
        problems.add(path, f"needs a kind: {', '.join(component.shelf.names())}")
        return None
    try:
        cls = component.shelf.load(str(section["kind"]))
    except UnknownComponent as error:
        problems.add(f"{path}.kind" if path else "kind", str(error))
        return None
    return _validate(cls, section, path, problems)


def _validate_components(component: Component, raw: Any, path: str, problems: _Problems) -> tuple[Config, ...] | None:
    """Validate a list of kinds or sections; one alone needs no brackets."""
    items = raw if isinstance(raw, list | tuple) else [raw]
    one = Component(component.shelf)
    built = [_validate_component(one, item, None, f"{path}[{row}]", problems) for row, item in enumerate(items)]
    whole = [config for config in built if config is not None]
    return tuple(whole) if len(whole) == len(built) else None


def _mistakes(cls: type[Config], error: ValidationError) -> Iterator[tuple[str, str]]:
    """Yield the place in the section and a sentence for each mistake; ``""`` is the section itself.

    Pydantic reports each member of a union by itself, under a label; here that is one mistake.
    """
    found: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors():
        location = detail["loc"]
        if len(location) > 1 and _has_alternatives(cls.model_fields[str(location[0])].annotation):
            location = location[:1]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
        found.setdefault(place.removeprefix("."), []).append(detail)
    for place, details in found.items():
        given = _show(details[0]["input"])
        if len(details) == 1 and details[0]["type"] in {"literal_error", "enum"}:
            expected = str(details[0]["ctx"]["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
            yield place, f"{given} is not accepted: {suggestion(str(details[0]['input']), expected)}"
            continue
        info = cls.model_fields.get(place)
        message = " or ".join(dict.fromkeys(_explain(detail, info) for detail in details))
        complete = details[0]["type"] in {"missing", "value_error"} or len(given) > 60
        yield place, message if complete else f"{message}, not {given}"


def _has_alternatives(annotation: Any) -> bool:
    """Return whether an annotation is a union of more than a type and None."""
    union = typing.get_origin(annotation) in {typing.Union, types.UnionType}
    return union and len([item for item in typing.get_args(annotation) if item is not type(None)]) > 1


_PLAIN = {
    "missing": "is required",
    "string_type": "must be text (in quotes if it looks like a number: '\"7\"')",
    "is_instance_of": "must be a kind or a section with a kind",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a section of keys and values",
    "mapping_type": "must be a section of keys and values",
    "model_type": "must be a section of keys and values",
    "path_type": "must be a path",
}
"""What replaces sentences of pydantic's that name its classes."""


def _explain(detail: ErrorDetails, info: FieldInfo | None) -> str:
    """Turn pydantic's sentence into one that continues ``key: …``.

    A field with a pattern says in words what it accepts: ``json_schema_extra={"accepted": "64 hexadecimal digits"}``.
    """
    if detail["type"] == "string_pattern_mismatch":
        extra = info.json_schema_extra if info is not None else None
        return f"must be {extra['accepted'] if isinstance(extra, dict) else 'of another form'}"
    if detail["type"] in _PLAIN:
        return _PLAIN[detail["type"]]
    message = re.sub(r"^\w+ should", "must", detail["msg"].removeprefix("Value error, "))
    return message[:1].lower() + message[1:]


def _show(value: Any) -> str:
    """Return a value as a recipe would have it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
