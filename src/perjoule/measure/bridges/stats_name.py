"""What ``stats: …`` in a recipe names: one of our own stats, or ``module:Class`` of the user."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from perjoule.core.errors import ConfigError, suggestion

BUILT_IN = {
    "noop": "perjoule.measure.bridges.trainer_stats:NoOpStats",
    "no-op": "perjoule.measure.bridges.trainer_stats:NoOpStats",
    "simple": "perjoule.measure.bridges.simple_stats:SimpleStats",
    "codecarbon": "perjoule.measure.bridges.codecarbon_stats:CodeCarbonStats",
}


def check_name(name: str) -> str:
    """Return ``name`` if it is a built-in or looks like ``module:Class``.

    Raises:
        ValueError: naming what is accepted.
    """
    module, _, attribute = name.partition(":")
    if name in BUILT_IN or (attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        return name
    raise ValueError(f"{name!r} names no stats: {suggestion(name, BUILT_IN)}, or module:Class of your own")


StatsName = Annotated[str, AfterValidator(check_name)]
"""The type of a recipe's ``stats``."""


def build_stats(name: str, offered: Mapping[str, Any]) -> Any:
    """Import and build the stats that ``name`` says.

    A class, or a function such as the toolkit's ``construct_trainer_stats``, gets those of the ``offered`` arguments
    that its signature names, all of them if it takes ``**kwargs``.

    Args:
        name: as in a recipe.
        offered: by name; the loop offers ``device``, ``num_train_steps``, ``run``, ``output_dir``, ``fence``, ``conf``.

    Raises:
        ConfigError: if the module or the class is missing, or needs an argument that is not offered.
    """
    module_name, _, attribute = BUILT_IN.get(name, name).partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"stats: cannot import {module_name}: {error}") from error
    make: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(make):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"stats: {module_name} has no {attribute}: {suggestion(attribute, public)}")
    parameters = inspect.signature(make).parameters.values()
    if any(one.kind == one.VAR_KEYWORD for one in parameters):
        return make(**offered)
    positional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [one.name for one in parameters if one.default is one.empty and one.kind not in positional]
    missing = [one for one in needed if one not in offered]
    if missing:
        raise ConfigError(f"stats: {name} needs {', '.join(missing)}; the loop offers {', '.join(offered)}")
    return make(**{one.name: offered[one.name] for one in parameters if one.name in offered})
