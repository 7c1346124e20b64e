"""Several text data sets in one stream, in given proportions.

``data.kind=mixture`` has ``components``, each a data set of its own and a weight::

    data:
      kind: mixture
      components:
        - {weight: 0.9, data: {kind: store, path: /data/web, seq_len: 1024}}
        - {weight: 0.1, data: {kind: store, path: /data/code, seq_len: 1024}}

A weight is a share of the rows that are trained on, not of the documents; how often each component is read meanwhile is
in the facts. Training rows are mixed as :mod:`perjoule.data.mixing` describes. The splits ``validation`` and ``test``
have all rows of the components' own, each once, in a fixed order in which they are mixed, so that a component counts
there with its size and not with its weight. ``validation.0`` and so on are those of one component alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, field_validator

from perjoule.config import Config
from perjoule.config.base import Component
from perjoule.core.errors import ConfigError, DataError, suggestion
from perjoule.core.seeding import derive
from perjoule.data import SHELF
from perjoule.data.contract import DataSet, Samples
from perjoule.data.mixing import PERIOD, JoinedSamples, Mix, MixedSamples, shares
from perjoule.data.split import SPLITS, TRAIN
from perjoule.data.tokenizer import TextTokenizer

_PLACE = "data.components[{}]"


class TextSet(DataSet, Protocol):
    """A data set whose rows are text."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """Return what made the tokens."""


class MixtureComponent(Config):
    """A part of a mixture."""

    data: Annotated[Config, Component(SHELF)]
    """A text data set: ``{kind: …}`` with its own settings, or just the kind."""
    weight: float = Field(default=1.0, gt=0)
    """Its share of the training rows is this over the sum of all weights."""

    @field_validator("data", mode="before")
    @classmethod
    def _place_the_mistake(cls, data: Any) -> Any:
        """Turn a mistake in the component into one that pydantic gives a place to."""
        try:
            return Component(SHELF).instantiate(data)
        except ConfigError as error:
            raise ValueError(str(error)) from error


class MixtureConfig(Config):
    """What is mixed."""

    kind: Literal["mixture"] = "mixture"
    components: tuple[MixtureComponent, ...] = Field(min_length=1)
    """Text data sets with one tokenizer and one ``seq_len``, each with its weight."""

    @field_validator("components")
    @classmethod
    def _each_has_rows(cls, components: tuple[MixtureComponent, ...]) -> tuple[MixtureComponent, ...]:
        for number, share in enumerate(shares([component.weight for component in components])):
            if share == 0:
                least = sum(component.weight for component in components) / PERIOD
                raise ValueError(
                    f"the weight of component {number} is less than one row in {PERIOD}: {least:.3g} is one"
                )
        return components

    def build(self, seed: int) -> Mixture:
        """Prepare every component.

        Args:
            seed: of the training split's order.

        Raises:
            DataError: if a component cannot be prepared, is no text, or does not fit the first one.
            MissingExtra: if one needs a library that is not installed.
        """
        parts: list[TextSet] = []
        for number, component in enumerate(self.components):
            try:
                part = component.data.build(derive(seed, "component", number))  # type: ignore[attr-defined]
            except DataError as error:
                raise DataError(f"{_PLACE.format(number)}: {error}") from error
            if not hasattr(part, "tokenizer"):
                kind = getattr(component.data, "kind", "?")
                raise DataError(
                    f"{_PLACE.format(number)}: a mixture is of text data sets, and {kind!r} has no tokenizer"
                )
            parts.append(part)
        _check_alike(parts)
        return Mixture(parts, Mix(shares([component.weight for component in self.components]), seed))


def _check_alike(parts: Sequence[TextSet]) -> None:
    """Refuse components whose rows cannot stand in one batch.

    Raises:
        DataError: naming the first that differs from component 0, and in what.
    """
    hints = {
        "tokenizer": "give all the same tokenizer.file, or stores that were made with one",
        "seq_len": "give all the same seq_len",
        "tensors": "mask documents in all or in none",
    }
    for number, part in enumerate(parts):
        here, first = _likeness(part), _likeness(parts[0])
        for name, hint in hints.items():
            if here[name] != first[name]:
                raise DataError(
                    f"{_PLACE.format(number)} has {name} {here[name]}, but {_PLACE.format(0)} has {first[name]}; {hint}"
                )


def _likeness(part: TextSet) -> dict[str, object]:
    """Return what must be the same of all components."""
    tensors = ", ".join(sorted(part.split(TRAIN).batch(0, 1).tensors))
    return {"tokenizer": part.tokenizer.content_hash, "seq_len": part.shape["seq_len"], "tensors": tensors}


class Mixture:
    """Several text data sets as one.

    Args:
        parts: the components.
        mix: their proportions.
    """

    def __init__(self, parts: Sequence[TextSet], mix: Mix) -> None:
        self._parts, self._mix = parts, mix

    @property
    def tokenizer(self) -> TextTokenizer:
        """Return what made the tokens of every component."""
        return self._parts[0].tokenizer

    @property
    def shape(self) -> Mapping[str, int]:
        """Return ``vocab_size`` and ``seq_len``."""
        return self._parts[0].shape

    def split(self, name: str) -> Samples:
        """Return the split ``train``, ``validation`` or ``test``; or that of one component, such as ``test.0``.

        Raises:
            DataError: if there is no such split, or no component has a row of it.
        """
        if name == TRAIN:
            return MixedSamples([part.split(TRAIN) for part in self._parts], self._mix)
        split, dot, number = name.partition(".")
        if dot and split in SPLITS and number in map(str, range(len(self._parts))):
            return self._parts[int(number)].split(split)
        if name not in SPLITS:
            accepted = [*SPLITS, *(f"{split}.{part}" for split in SPLITS for part in range(len(self._parts)))]
            raise DataError(f"no split {name!r}: {suggestion(name, accepted)}")
        held_out, errors = [], []
        for place, part in enumerate(self._parts):
            try:
                held_out.append(part.split(name))
            except DataError as error:
                errors.append(f"{_PLACE.format(place)}: {error}")
        if not held_out:
            raise DataError("; ".join(errors))
        return JoinedSamples(held_out)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return the components' facts, how often each is read, and counts for the run's manifest (JSON)."""
        mixed = MixedSamples([part.split(TRAIN) for part in self._parts], self._mix)
        components = {str(number): part.facts for number, part in enumerate(self._parts)}
        mix = {
            name: {"kind": components[name].get("kind"), "share": share / PERIOD, "epochs_per_epoch": epochs}
            for name, share, epochs in zip(components, self._mix.shares, mixed.epochs, strict=True)
        }
        recipe = json.dumps([[components[name]["identity"], part["share"]] for name, part in mix.items()])
        return {
            "kind": "mixture",
            "identity": f"mixture-{hashlib.blake2b(recipe.encode(), digest_size=12).hexdigest()}",
            "mix": mix,
            "splits": {name: self._split_facts(name, list(components.values())) for name in SPLITS},
            "tokenizer": {"hash": self.tokenizer.content_hash, "vocab_size": self.tokenizer.vocab_size},
            "components": components,
        }

    def _split_facts(self, name: str, components: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the counts of a split over all components, and its rows or why there are none."""
        splits = [component["splits"][name] for component in components]
        counts = {key: sum(split[key] for split in splits) for key in ("documents", "bytes", "tokens")}
        try:
            num_samples = self.split(name).num_samples
        except DataError as error:
            return {**counts, "unavailable": str(error)}
        return {**counts, "num_samples": num_samples, "num_labels": num_samples * self.shape["seq_len"]}
