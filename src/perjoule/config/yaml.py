"""A strict YAML reader: no duplicate keys, ``1e-3`` is a number, only ``true`` and ``false`` are booleans.

YAML 1.1 reads ``no`` as false, ``1e-3`` as text, ``010`` as eight and ``1:30`` as ninety; and the last of two equal
keys wins. A recipe must mean what it looks like, so scalars are resolved here by four plain rules, everything else is
text, and tags (``!!int``) are refused. Each value's line is kept for error messages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from perjoule.core.errors import ConfigError
from perjoule.core.files import read_text

_INTEGER = re.compile(r"[-+]?(0|[1-9]\d*(_\d+)*)", re.ASCII)
"""No leading zeros: 007 is a name, and to some readers of YAML 010 is eight."""
_FLOAT = re.compile(r"[-+]?(\d+(_\d+)*(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_LEADING_ZERO = re.compile(r"[-+]?0[\d_]", re.ASCII)
_LONGEST_INTEGER = 4000
"""Digits; Python refuses to convert more than 4300."""
MOST_BYTES = 1 << 20
"""Of a file: far more than any recipe has, and read in seconds."""
_MOST_NODES = 100_000
"""Values, those that aliases repeat included: each alias of an alias can double what is there."""
_DEEPEST = 50
_UNTAGGED = ""
_UNQUOTABLE = frozenset("\x85\u2028\u2029\ufeff")
"""Line breaks that single quotes would not keep."""
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}


@dataclass(frozen=True)
class Document:
    """A parsed document and where its values stand.

    Args:
        data: mappings, lists and scalars.
        lines: dotted key -> line of the key, from 1; ``a[0]`` -> line of the item; ``""`` -> line of the first value.
    """

    data: Any
    lines: dict[str, int]


def load(text: str, name: str) -> Document:
    """Parse one YAML document.

    Args:
        text: the document.
        name: the file name for messages.

    Raises:
        ConfigError: if it is not YAML, repeats a key, uses a key that is not a name, has a tag, contains itself, or is
            far larger or deeper than a recipe.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{name}:{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: not valid YAML: nested too deeply") from error
    lines: dict[str, int] = {}
    return Document(None if node is None else _convert(node, "", name, lines, ()), lines)


def load_file(path: Path, what: str) -> Document:
    """Read a YAML file: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Args:
        path: the file.
        what: it is, for messages: ``the recipe``.

    Raises:
        ConfigError: if it cannot be read, or as :func:`load`.
    """
    return load(read_text(path, what, ConfigError, MOST_BYTES), str(path))


def load_value(text: str) -> Any:
    """Parse the right side of ``key=value``: a scalar, ``[a, b]`` or ``{a: 1}``."""
    return load(text, "the command line").data


def _convert(node: yaml.Node, path: str, name: str, lines: dict[str, int], above: tuple[int, ...]) -> Any:
    """Turn a node into plain data and note its line."""
    line = node.start_mark.line + 1
    lines[path] = line
    if len(lines) > _MOST_NODES:
        raise ConfigError(f"{name}:{line}: more than {_MOST_NODES:,} values; do aliases repeat one another?")
    if len(above) > _DEEPEST:
        raise ConfigError(f"{name}:{line}: nested more than {_DEEPEST} deep")
    if id(node) in above:
        raise ConfigError(f"{name}:{line}: an anchor contains itself")
    if node.tag != _UNTAGGED:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise ConfigError(f"{name}:{line}: the tag {tag} is not accepted; write the plain value")
    above = (*above, id(node))
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style is not None else scalar(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_convert(item, f"{path}[{i}]", name, lines, above) for i, item in enumerate(node.value)]
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, key_line = key_node.value, key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or not key:
            raise ConfigError(f"{name}:{key_line}: a key must be a name, not empty, a list or a mapping")
        if key in result:
            first = lines[f"{path}.{key}" if path else key]
            raise ConfigError(f"{name}:{key_line}: the key {key!r} stands already in line {first}")
        inner = f"{path}.{key}" if path else key
        result[key] = _convert(value_node, inner, name, lines, above)
        lines[inner] = key_line
    return result


def scalar(text: str) -> Any:
    """Return the value of an unquoted scalar: null, true, false, an integer, a float, or else the text."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text) and len(text) < _LONGEST_INTEGER:
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) and not _LEADING_ZERO.match(text) else text


def dump(data: Any) -> str:
    """Write plain data as YAML that :func:`load` reads back to equal data (numbers must be finite)."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Loader(yaml.SafeLoader):
    """Leaves every node without a tag of its own, so that a written tag shows."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        return _UNTAGGED


class _Dumper(yaml.SafeDumper):
    """Quotes every text that :func:`scalar`, or another program's YAML 1.1, would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if isinstance(scalar(text), str) else "'"
    if not _UNQUOTABLE.isdisjoint(text):
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
