"""A model on one page before anything is trained: its modules with their numbers of parameters.

The model is built on torch's ``meta`` device, which has shapes and no memory, so a model of any size can be looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import nn

from perjoule.core.errors import ConfigError, PerjouleError
from perjoule.core.units import si
from perjoule.data.tokenizer import TextTokenizer
from perjoule.train.config import TrainConfig


class Row(NamedTuple):
    """A module.

    Args:
        depth: 0 for the model itself.
        name: within its parent; ``0-3`` stands for four alike.
        kind: its class.
        parameters: of the module and all below it, tied ones where they come first.
        alike: how many modules the row stands for; ``parameters`` is that of one.
    """

    depth: int
    name: str
    kind: str
    parameters: int
    alike: int = 1


def outline(config: TrainConfig) -> list[str]:
    """Return a table of the recipe's model as lines.

    Raises:
        ConfigError: if the sizes of the data are known only once it is prepared, or the model needs memory to be built.
    """
    shape = _known_shape(config)
    try:
        with torch.device("meta"):
            module: nn.Module = config.model.build(shape)  # type: ignore[attr-defined]
    except PerjouleError:
        raise
    except Exception as error:
        kind = getattr(config.model, "kind", "?")
        raise ConfigError(f"--model: a model of kind {kind} cannot be built without memory: {error}") from error
    rows = list(rows_of(module))
    texts = [
        (
            f"{'  ' * row.depth}{row.name}  {row.kind}" + (f"  ({row.alike} alike, each)" if row.alike > 1 else ""),
            f"{row.parameters:,}",
            si(row.parameters),
        )
        for row in rows
    ]
    widths = [max(len(text[column]) for text in texts) for column in range(3)]
    lines = [f"{name:<{widths[0]}}  {exact:>{widths[1]}}  {short:>{widths[2]}}" for name, exact, short in texts]
    sizes = ", ".join(f"{name} {size:,}" for name, size in shape.items())
    tied = [f"{name} is tied: counted once" for name in tied_parameters(module)]
    return [f"parameters of the model for {sizes}", *lines, *tied]


def rows_of(module: nn.Module) -> Iterator[Row]:
    """Yield the modules that have parameters from the outside in; neighbours that are alike are one row."""
    first: dict[int, int] = {}  # parameter to the module that has it first
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            first.setdefault(id(parameter), id(part))
    yield from _rows(module, "model", 0, first)


def tied_parameters(module: nn.Module) -> list[str]:
    """Return the names of the parameters that another name comes before."""
    firsts = {name for name, _ in module.named_parameters()}
    return [name for name, _ in module.named_parameters(remove_duplicate=False) if name not in firsts]


def _rows(module: nn.Module, name: str, depth: int, first: dict[int, int]) -> list[Row]:
    """Return the row of a module and those below it; none if it has no parameters of its own."""
    below: list[list[Row]] = [
        _rows(child, child_name, depth + 1, first) for child_name, child in module.named_children()
    ]
    own = sum(one.numel() for one in module.parameters(recurse=False) if first[id(one)] == id(module))
    total = own + sum(rows[0].parameters for rows in below if rows)
    if not total:
        return []
    rows = [Row(depth, name, type(module).__name__, total)]
    for _, group in groupby(filter(None, below), _without_name):
        alike = list(group)
        head, last = alike[0][0], alike[-1][0]
        if len(alike) > 1:
            head = head._replace(name=f"{head.name}-{last.name}", alike=len(alike))
        rows += [head, *alike[0][1:]]
    return rows


def _without_name(rows: list[Row]) -> tuple[object, ...]:
    """Return what makes neighbours alike: everything but a number for a name."""
    head = rows[0]
    return (head.name.isdigit() or head.name, head._replace(name=""), *rows[1:])


def _known_shape(config: TrainConfig) -> dict[str, int]:
    """Return the sizes that the model is built from, without preparing the data.

    Raises:
        ConfigError: if they are not known yet, or the tokenizer's file cannot be used.
    """
    data, model = config.data, config.model
    seq_len = getattr(data, "seq_len", None)
    vocab_size = getattr(model, "vocab_size", None) or getattr(data, "vocab_size", None)
    file = getattr(getattr(data, "tokenizer", None), "file", None)
    if vocab_size is None and file is not None:
        vocab_size = TextTokenizer.load(file.expanduser()).vocab_size
    if not isinstance(seq_len, int) or not isinstance(vocab_size, int):
        raise ConfigError(
            f"--model: the vocabulary of data={getattr(data, 'kind', '?')} is known only once the data is prepared; "
            "accepted: a recipe with model.vocab_size or data.tokenizer.file, or data that is drawn, such as dyck"
        )
    return {"vocab_size": vocab_size, "seq_len": seq_len}
