"""The configuration object that the course toolkit's trainer hands to ``construct_trainer_stats(conf, …)``.

If the stats come with the toolkit's own ``Config`` (a class with ``add_arguments`` and ``parse_arguments``, named by
the annotation of ``conf`` or found as ``src.config.Config`` beside ``src.trainer.stats.…``), that is built as its
launcher builds it: from the flags of a command line, with their types and defaults. Else an object with the same
attributes is made. The run's own batch size, learning rate, model, data and folder are filled in, and then what the
recipe's ``stats_options`` say: ``trainer_stats_configs.codecarbon.run_num: 3``, or ``run_num: 3`` for a flag of the
stats themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

from perjoule.config.resolve import flatten
from perjoule.core.errors import ConfigError, suggestion

_OF_STATS = "trainer_stats_configs"


def build_conf(make: Callable[..., Any], own: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Return the toolkit's configuration object.

    Args:
        make: the function that is to be given it; its module may have a ``trainer_stats_name``.
        own: what the run says: flag -> value; of the stats' own flags only the last part.
        options: as the recipe says, nested or with dots.

    Raises:
        ConfigError: if the toolkit's class fails, or an option is none of its flags.
    """
    module = importlib.import_module(make.__module__)
    stats = str(getattr(module, "trainer_stats_name", module.__name__.rpartition(".")[2]))
    config_class = _config_class(make, module)
    if config_class is None:
        values = {"trainer": "simple", "trainer_stats": stats, **own, **flatten(options)}
        of_stats = {f"{_OF_STATS}.{stats}.{name}": value for name, value in values.items() if "." not in name}
        return _nested({**of_stats, **values})
    conf, parser = config_class(), _Parser(allow_abbrev=False, add_help=False)
    conf.add_arguments(parser)
    flags = vars(parser.parse_args([]))
    values = {"trainer": "simple", "trainer_stats": stats, **own}
    given = {found: value for name, value in values.items() if (found := _flag(name, stats, flags)) is not None}
    for name, value in flatten(options).items():
        flag = _flag(name, stats, flags)
        if flag is None:
            raise ConfigError(f"stats_options: {config_class.__name__} has no {name}: {suggestion(name, flags)}")
        given[flag] = value
    words = [f"--{flag}={value}" for flag, value in given.items() if isinstance(value, str | int | float)]
    parsed = parser.parse_args([word for word in words if not word.endswith(("=True", "=False"))])
    for flag, value in given.items():
        if isinstance(value, bool | list):  # flags without a word, or with several
            setattr(parsed, flag, value)
    conf.parse_arguments(parsed)
    return conf


class _Parser(argparse.ArgumentParser):
    """Refuses in one line instead of ending the program."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"stats_options: {message}")


def _config_class(make: Callable[..., Any], module: ModuleType) -> Any:
    """Return the toolkit's class, None if there is none."""
    return next((one for one in _candidates(make, module) if _is_config(one)), None)


def _candidates(make: Callable[..., Any], module: ModuleType) -> Iterator[Any]:
    with contextlib.suppress(NameError):  # an annotation that only type checkers see
        yield from (one.annotation for one in inspect.signature(make, eval_str=True).parameters.values())
    try:
        yield getattr(importlib.import_module(f"{module.__name__.partition('.')[0]}.config"), "Config", None)
    except ImportError:
        return


def _is_config(candidate: Any) -> bool:
    return isinstance(candidate, type) and all(hasattr(candidate, one) for one in ("add_arguments", "parse_arguments"))


def _flag(name: str, stats: str, flags: Mapping[str, Any]) -> str | None:
    """Return the flag that a name stands for: itself, or one of the stats' own."""
    return next((one for one in (f"{_OF_STATS}.{stats}.{name}", name) if one in flags), None)


def _nested(flat: Mapping[str, Any]) -> SimpleNamespace:
    """Return dotted names as attributes of attributes."""
    inner: dict[str, dict[str, Any]] = {}
    whole = SimpleNamespace()
    for name, value in flat.items():
        section, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(section, {})[rest] = value
        else:
            setattr(whole, section, value)
    for section, values in inner.items():
        setattr(whole, section, _nested(values))
    return whole
