"""The code files of a saved model, so that it loads where perjoule is not installed.

transformers takes only files that lie flat beside the weights, and finds them by relative imports. So each module of
ours that the model needs is copied as one file, ``perjoule.models.layers.rope`` as ``perjoule_models_layers_rope.py``,
and what is changed in it are its imports. Where perjoule is installed, that is used instead.
"""

from __future__ import annotations

import ast
import importlib.util
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

CODE, PACKAGE, SHAPES = "modeling_perjoule", "perjoule", "perjoule_shapes"
STANDS_IN = '''"""Stands in for jaxtyping, whose annotations of shapes nothing checks here."""


class Float:
    """Any tensor."""

    def __class_getitem__(cls, item: object) -> type:
        return object


Bool = Int = Int32 = Int64 = Shaped = Float
'''
ENTRY = '''"""{model} and its configuration, for `trust_remote_code=True`.

The files perjoule_*.py beside this one are copies of perjoule's modules; with perjoule installed, they are not used.
"""

import pydantic  # which is all that is needed beside torch and transformers

try:
    from perjoule.models.huggingface import {config}, {model}
except ImportError:
    # transformers takes along what is named here.
{copies}
    {start}{module} import {config}, {model}

__all__ = ["{config}", "{model}"]
'''


def write_code(folder: Path, module: str, config: str, model: str) -> None:
    """Write the files that ``auto_map`` names and those that they import.

    Args:
        folder: of the saved model.
        module: that has both classes.
        config: name of the configuration's class.
        model: name of the model's class.
    """
    if not module.startswith(f"{PACKAGE}."):  # these are such copies already
        for path in Path(__file__).parent.glob("*.py"):
            if path.stem == CODE or path.stem.startswith(f"{PACKAGE}_"):
                shutil.copyfile(path, folder / path.name)
        return
    files = copies_of(module)
    start = "from ."  # apart from the template, in which transformers would find an import
    copies = "\n".join(f"    {start}{name} import __name__ as _" for name in sorted(files))
    entry = ENTRY.format(config=config, model=model, module=_flat(module), copies=copies, start=start)
    for name, text in {**files, CODE: entry}.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")


@lru_cache
def copies_of(module: str) -> Mapping[str, str]:
    """Return the text of a module's copy and of all that it imports of perjoule, by their flat names."""
    texts, waiting = {SHAPES: STANDS_IN}, [module]
    while waiting:
        name = waiting.pop()
        if _flat(name) not in texts:
            texts[_flat(name)], imported = _rewritten(_source(name))
            waiting += imported
    return texts


def _rewritten(source: str) -> tuple[str, list[str]]:
    """Return a module's source with relative imports of flat names, and the modules that it imports."""
    lines, imported = source.splitlines(), []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or node.module is None or node.end_lineno is None:
            continue
        if node.module == "jaxtyping":
            new = [f"from .{SHAPES} import {_names(node.names)}"]
        elif node.module.split(".")[0] == PACKAGE:
            modules = [alias for alias in node.names if _is_module(f"{node.module}.{alias.name}")]
            others = [alias for alias in node.names if alias not in modules]
            new = [f"from .{_flat(node.module)} import {_names(others)}"] if others else []
            for alias in modules:
                new.append(f"from . import {_flat(f'{node.module}.{alias.name}')} as {alias.asname or alias.name}")
                imported.append(f"{node.module}.{alias.name}")
            imported += [node.module] if others else []
        else:
            continue
        first = lines[node.lineno - 1]
        indent = first[: len(first) - len(first.lstrip())]
        lines[node.lineno - 1 : node.end_lineno] = [
            "\n".join(indent + line for line in new),
            *[""] * (node.end_lineno - node.lineno),
        ]
    return "\n".join(lines) + "\n", imported


def _names(aliases: list[ast.alias]) -> str:
    return ", ".join(f"{alias.name} as {alias.asname}" if alias.asname else alias.name for alias in aliases)


def _flat(module: str) -> str:
    return module.replace(".", "_")


def _is_module(name: str) -> bool:
    parent = importlib.util.find_spec(name.rpartition(".")[0])
    return bool(parent and parent.submodule_search_locations) and importlib.util.find_spec(name) is not None


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return Path(spec.origin).read_text(encoding="utf-8")
