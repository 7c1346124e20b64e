"""From recipe, presets and overrides to one frozen config, with the source of every value.

Precedence: default < preset < file < ``key=value``. Every mistake is found before anything is reported, and all are
reported in one :class:`ConfigError`, each with its dotted key, where it was written, and what would be accepted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from perjoule.config import yaml
from perjoule.config.base import Component, Config
from perjoule.core.errors import ConfigError, UnknownComponent, suggestion

C = TypeVar("C", bound=Config)
COMMAND_LINE = "command line"
DEFAULT = "default"


@dataclass(frozen=True)
class Resolved(Generic[C]):
    """A config and the source of each of its values (``default``, ``preset xs``, ``x.yaml:3``, ``command line``)."""

    config: C
    sources: Mapping[str, str]

    def as_json(self) -> dict[str, dict[str, Any]]:
        """Return ``{dotted key: {"value": …, "source": …}}`` for the run folder."""
        flat = flatten(self.config.model_dump(mode="json"))
        return {key: {"value": value, "source": source_of(key, self.sources)} for key, value in flat.items()}


def source_of(key: str, sources: Mapping[str, str]) -> str:
    """Return where the value of a dotted key came from; a value inside a given mapping has the mapping's source."""
    while key:
        if key in sources:
            return sources[key]
        key = key.rpartition(".")[0]
    return DEFAULT


@dataclass
class _Problems:
    """Collects mistakes; knows where each key was written."""

    sources: dict[str, str]
    lines: list[str] = field(default_factory=list)

    def add(self, path: str, message: str) -> None:
        source = source_of(path, self.sources)
        self.lines.append(f"{path or 'the recipe'}: {message}" + ("" if source == DEFAULT else f"  ({source})"))


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
        listing = "\n  ".join(problems.lines)
        raise ConfigError(f"{where} has {len(problems.lines)} mistakes:\n  {listing}")
    return Resolved(config, sources)


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
    try:
        text = recipe.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        folder = recipe.parent if recipe.parent.is_dir() else Path()
        near = suggestion(recipe.name, (path.name for path in folder.glob("*.yaml")))
        raise ConfigError(f"no recipe {recipe}; in {folder.resolve()}: {near}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the recipe {recipe}: {error}") from error
    document = yaml.load(text, str(recipe))
    if document.data is None:
        return {}, {}
    if not isinstance(document.data, dict):
        raise ConfigError(f"{recipe} must be a mapping of keys to values, not {type(document.data).__name__}")
    return document.data, {path: f"{recipe}:{line}" for path, line in document.lines.items() if path}


def _apply(override: str, data: dict[str, Any], problems: _Problems) -> None:
    """Set one ``dotted.key=value`` in the data."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        problems.add("", f"{override!r} is not an override; write key=value, such as steps=200")
        return
    *sections, last = key.split(".")
    target = data
    for section in sections:
        inner = target.get(section)
        if isinstance(inner, str):  # `model: retnet` is short for `model: {kind: retnet}`
            inner = {"kind": inner}
        target[section] = inner if isinstance(inner, dict) else {}
        target = target[section]
    try:
        target[last] = yaml.load_value(text)
    except ConfigError as error:
        problems.add(key, str(error))
    for path in [path for path in problems.sources if path.startswith(f"{key}.")]:
        del problems.sources[path]
    problems.sources[key] = COMMAND_LINE


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
    if not isinstance(raw, dict):
        problems.add(path, f"must be a section with keys {', '.join(cls.model_fields)}, not {raw!r}")
        return None
    data = _with_preset(cls, raw, path, problems)
    for key in [key for key in data if key not in cls.model_fields]:
        problems.add(f"{dot}{key}", f"unknown key: {suggestion(key, cls.model_fields)}")
        del data[key]
    failed: set[str] = set()
    for name, info, kind in _children(cls):
        if isinstance(kind, Component):
            child = _validate_component(kind, data.get(name, info.default), info.default, f"{dot}{name}", problems)
        elif name in data:
            child = _validate(kind, data[name], f"{dot}{name}", problems)
        else:
            continue
        data[name] = child
        if child is None:
            failed.add(name)
            del data[name]
    try:
        config = cls(**data)
    except ValidationError as error:
        for detail in error.errors():
            location = [str(part) for part in detail["loc"]]
            if not (location and location[0] in failed):
                problems.add(dot + ".".join(location) if location else path, _explain(detail))
        return None
    return config if len(problems.lines) == before else None


def _with_preset(cls: type[Config], raw: dict[str, Any], path: str, problems: _Problems) -> dict[str, Any]:
    """Return the section with its preset's values below its own."""
    name = raw.get("preset")
    if name is None or "preset" not in cls.model_fields:
        return dict(raw)
    dot = f"{path}." if path else ""
    if name not in cls.PRESETS:
        problems.add(f"{dot}preset", f"unknown preset {name!r}: {suggestion(str(name), cls.PRESETS)}")
        return {key: value for key, value in raw.items() if key != "preset"}
    preset = cls.PRESETS[name]
    for key in preset:
        problems.sources.setdefault(f"{dot}{key}", f"preset {name}")
    return {**preset, **raw}


def _validate_component(component: Component, raw: Any, default: Any, path: str, problems: _Problems) -> Config | None:
    """Validate ``kind`` or ``{kind: …}`` against the class on the shelf."""
    if isinstance(raw, Config):
        return raw
    section = {"kind": raw} if isinstance(raw, str) else raw
    if not isinstance(section, dict):
        problems.add(path, f"must be a kind or a section with a kind: {', '.join(component.shelf.names())}")
        return None
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


def _explain(detail: Mapping[str, Any]) -> str:
    """Turn pydantic's error into a sentence that continues ``key: …``."""
    message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message.replace("Input should be", "must be")
    message = message[:1].lower() + message[1:]
    given = detail["input"]
    if detail["type"] == "missing":
        return "is required"
    if detail["type"] == "literal_error" and isinstance(given, str):
        accepted = str(detail["ctx"]["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
        return f"{given!r} is not accepted: {suggestion(given, accepted)}"
    shown = repr(given)
    return message if isinstance(given, dict | Config) or len(shown) > 60 else f"{message}, not {shown}"
