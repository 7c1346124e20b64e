"""What ``stats: …`` in a recipe names: one of our own stats, or ``module:Class`` of the user."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import AfterValidator

from perjoule.core.errors import ConfigError, suggestion
from perjoule.measure.bridges.course_conf import build_conf

BUILT_IN = {
    "noop": "perjoule.measure.bridges.trainer_stats:NoOpStats",
    "no-op": "perjoule.measure.bridges.trainer_stats:NoOpStats",
    "simple": "perjoule.measure.bridges.simple_stats:SimpleStats",
    "codecarbon": "perjoule.measure.bridges.codecarbon_stats:CodeCarbonStats",
}
_CONSTRUCTOR = "construct_trainer_stats"
"""The function by which the course toolkit finds stats."""


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


def build_stats(
    name: str,
    offered: Mapping[str, Any],
    flags: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Import and build the stats that ``name`` says.

    A class or function gets those of the ``offered`` arguments and ``options`` that its signature names, all of them
    if it takes ``**kwargs``. The course toolkit's ``construct_trainer_stats`` gets what its own trainer hands it: its
    configuration object, the device and the number of steps.

    Args:
        name: as in a recipe.
        offered: by name; the loop offers ``device``, ``num_train_steps``, ``run``, ``output_dir``, ``fence``, ``conf``,
            ``say``, ``run_num``, ``project_name``.
        flags: what the toolkit's configuration object is told of the run, such as ``batch_size``.
        options: the user's own, which replace both.

    Raises:
        ConfigError: if the module or the class is missing, needs an argument that is not offered, or fails.
    """
    module_name, _, attribute = BUILT_IN.get(name, name).partition(":")
    module = _import(module_name)
    make: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(make):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"stats: {module_name} has no {attribute}: {suggestion(attribute, public)}")
    given = dict(options or {})
    try:
        if attribute == _CONSTRUCTOR:
            conf = build_conf(make, flags or {}, given)
            return make(conf, **{key: offered[key] for key in ("device", "num_train_steps") if key in offered})
        return make(**_arguments(name, make, offered, given))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(failure(name, "cannot be built", error)) from error


def failure(name: str, what: str, error: BaseException) -> str:
    """Return one line about stats that are not ours, with the place in their own files where they failed."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if "site-packages" not in one.filename]
    where = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in frames[-1:])
    return f"stats: {name} {what}: {type(error).__name__}: {' '.join(str(error).split())}{where}"


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        here = error.name == package and (Path(package).is_dir() or Path(f"{package}.py").is_file())
        remedy = "; it lies in this folder, which Python does not search: set PYTHONPATH=." if here else ""
        raise ConfigError(f"stats: cannot import {name}: {error}{remedy}") from error
    except Exception as error:
        raise ConfigError(failure(name, "cannot be imported", error)) from error


def _arguments(
    name: str, make: Callable[..., Any], offered: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the constructor names of the options and of what is offered."""
    parameters = inspect.signature(make).parameters.values()
    accepts_all = any(one.kind == one.VAR_KEYWORD for one in parameters)
    named = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    unknown = [one for one in options if one not in named and not accepts_all]
    if unknown:
        raise ConfigError(f"stats_options: {name} takes no {unknown[0]}: {suggestion(unknown[0], named)}")
    known = {**offered, **options}
    optional = {one.name for one in parameters if one.default is not one.empty}
    missing = [one for one in named if one not in known and one not in optional]
    if missing:
        raise ConfigError(
            f"stats: {name} needs {', '.join(missing)}; the loop offers {', '.join(offered)}; "
            f"give others by stats_options.{missing[0]}=…"
        )
    return known if accepts_all else {one: known[one] for one in named if one in known}
