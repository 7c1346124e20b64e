"""The base of every configuration class, and the marker of a field whose class is looked up on a shelf."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationInfo, field_validator
from pydantic_core import CoreSchema, core_schema

from perjoule.core.registry import Shelf


class Config(BaseModel):
    """Frozen, strict about names and types, and owner of what it configures.

    A subclass stands beside its consumer. ``PRESETS`` names partial settings that a ``preset`` field selects; they
    rank above the defaults and below the file. A subclass that builds something has ``build(…)``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    @field_validator("*", mode="before")
    @classmethod
    def _reject_lookalikes(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``"5"`` and ``true`` where a number is meant, which pydantic would convert."""
        accepted = _plain_types(cls.model_fields[str(info.field_name)].annotation)
        numeric = accepted & {int, float}
        if numeric and isinstance(value, bool) and bool not in accepted:
            raise ValueError(f"must be a number, not {str(value).lower()}")
        if numeric and isinstance(value, str) and str not in accepted:
            raise ValueError("must be a number, not text")
        return value


def _plain_types(annotation: Any) -> set[Any]:
    """Return the types that an annotation admits, with unions opened and literals replaced by their type."""
    origin = typing.get_origin(annotation)
    if origin in {typing.Union, types.UnionType}:
        return set().union(*(_plain_types(argument) for argument in typing.get_args(annotation)))
    if origin is typing.Annotated:
        return _plain_types(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return {type(argument) for argument in typing.get_args(annotation)}
    return {annotation}


@dataclass(frozen=True)
class Component:
    """Mark a field as ``{kind: …, …}`` or just ``kind``, where ``kind`` is on ``shelf``.

    Use as ``Annotated[Config, Component(models.SHELF)] = "transformer"``; the default is a kind, so that importing
    the class imports no component. In Python an instance is accepted as well. The accepted keys are those of the
    class on the shelf.
    """

    shelf: Shelf

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Accept an instance, a kind, or a mapping with a kind; dump the fields of the actual class."""
        return core_schema.no_info_before_validator_function(
            self.instantiate,
            core_schema.is_instance_schema(Config),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value, info: value.model_dump(mode=info.mode), info_arg=True
            ),
        )

    def instantiate(self, value: Any) -> Any:
        """Build the config instance that a kind or a mapping names; other values pass through to be refused."""
        from perjoule.config.resolve import build_component

        return build_component(self, value) if isinstance(value, str | dict) else value
