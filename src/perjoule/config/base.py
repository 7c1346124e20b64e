"""The base of every configuration class, and the marker of a field whose class is looked up on a shelf."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationInfo, field_validator, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from perjoule.core.errors import suggestion
from perjoule.core.registry import Shelf


class Config(BaseModel):
    """Frozen, strict about names and types, and owner of what it configures.

    A subclass stands beside its consumer. ``PRESETS`` names partial settings that a ``preset`` field selects; they
    rank above the defaults and below the file. A subclass that builds something has ``build(…)``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, data: Any) -> Any:
        """Put the preset's values below those given, for a config made in Python as for one read from a recipe."""
        if not cls.PRESETS or "preset" not in cls.model_fields:
            return data
        if isinstance(data, str):
            data = {"preset": data}
        name = data.get("preset") if isinstance(data, dict) else None
        if name is None:
            return data
        if name not in cls.PRESETS:
            raise ValueError(f"unknown preset {name!r}: {suggestion(str(name), cls.PRESETS)}")
        return {**cls.PRESETS[name], **data}

    @field_validator("*", mode="before")
    @classmethod
    def _reject_lookalikes(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what pydantic would convert: ``"5"`` and ``true`` to a number, ``"yes"`` and ``1`` to a boolean."""
        types_, words = _accepted(cls.model_fields[str(info.field_name)].annotation)
        numbers, booleans = bool(types_ & {int, float}), bool in types_
        if isinstance(value, bool):
            fits = booleans or not numbers
        elif isinstance(value, int | float):
            fits = numbers or not booleans
        elif isinstance(value, str):
            only_numbers = (numbers or booleans) and types_ <= {int, float, bool, type(None)}
            fits = value in words or not only_numbers
        else:
            fits = True
        if not fits:
            number = f"a number{_unit(str(info.field_name))}"
            choices = [*words, *[number] * numbers, *["true or false"] * booleans]
            raise PydanticCustomError("lookalike", "must be {choices}", {"choices": " or ".join(choices)})
        return value


_C = TypeVar("_C", bound=Config)


def with_absolute_paths(config: _C) -> _C:
    """Return a configuration that means the same in every working folder: its relative paths start from this one."""
    values = {name: getattr(config, name) for name in type(config).model_fields}
    changed = {name: absolute for name, value in values.items() if (absolute := _absolute(value)) is not value}
    return config.model_copy(update=changed)


def _absolute(value: Any) -> Any:
    """Return a value with the paths in it made absolute; ``~`` is left for whoever opens the path."""
    match value:
        case Path():
            return value if value.is_absolute() or str(value).startswith("~") else value.absolute()
        case Config():
            return with_absolute_paths(value)
        case tuple():
            return tuple(map(_absolute, value))
        case _:
            return value


_UNITS = {"s": "seconds", "seconds": "seconds", "j": "joules", "w": "watts", "bytes": "bytes", "kwh": "kWh"}


def _unit(name: str) -> str:
    """Return what a field's number is of, if the end of its name says so."""
    unit = _UNITS.get(name.rpartition("_")[2])
    return f" of {unit}" if unit else ""


def _accepted(annotation: Any) -> tuple[set[Any], list[str]]:
    """Return the types that an annotation admits, with unions opened, and the texts that its literals name."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _accepted(arguments[0])
    if origin is typing.Literal:
        texts = [argument for argument in arguments if isinstance(argument, str)]
        return {type(argument) for argument in arguments if argument not in texts}, texts
    if origin in {typing.Union, types.UnionType}:
        found = [_accepted(argument) for argument in arguments]
        return set().union(*(types_ for types_, _ in found)), [text for _, texts in found for text in texts]
    return {annotation}, []


@dataclass(frozen=True)
class Component:
    """Mark a field as ``{kind: …, …}`` or just ``kind``, where ``kind`` is on ``shelf``.

    Use as ``Annotated[Config, Component(models.SHELF)] = "transformer"``; the default is a kind, so that importing
    the class imports no component. In Python an instance is accepted as well. The accepted keys are those of the
    class on the shelf. With ``many`` the field is a list of such: ``[rapl, {kind: cpu_time, idle_w: 20}]``, and a
    single one may stand without its brackets; use as ``Annotated[tuple[Config, ...], Component(SHELF, many=True)]``.
    """

    shelf: Shelf
    many: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Accept an instance, a kind, or a mapping with a kind; dump the fields of the actual class."""
        one = core_schema.is_instance_schema(Config)
        return core_schema.no_info_before_validator_function(
            self.instantiate,
            core_schema.tuple_variable_schema(one) if self.many else one,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value, info: (
                    [item.model_dump(mode=info.mode) for item in value]
                    if self.many
                    else value.model_dump(mode=info.mode)
                ),
                info_arg=True,
            ),
        )

    def instantiate(self, value: Any) -> Any:
        """Build the config instance that a kind or a mapping names; other values pass through to be refused."""
        from perjoule.config.resolve import build_component

        if self.many:
            one = Component(self.shelf)
            return tuple(map(one.instantiate, value if isinstance(value, list | tuple) else [value]))
        return build_component(self, value) if isinstance(value, str | dict) else value
