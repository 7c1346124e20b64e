"""Compare golden files with what our models compute: ``python tests/golden/check.py FILE…``.

A file holds weights, inputs and outputs of an original implementation (see README.md beside this). Sizes and flags are
read from it, so that any file of these kinds will do. Exit code 1 if an error is above 1e-4 of the largest number of
its tensor, or a file cannot be compared.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LIMIT = 1e-4
SHOWN = 5
KINDS = {"energies.step0": "ebt", "energy.step0": "ebt", "logits.parallel": "retnet", "logits": "longnet"}
"""Output that only files of this kind have -> module beside this one."""


def kind_of(names: Sequence[str]) -> str:
    """Return the module that compares a file with these tensors.

    Raises:
        ValueError: if there is none.
    """
    for output, kind in KINDS.items():
        if output in names:
            return kind
    raise ValueError(f"not a golden file: it has none of {', '.join(KINDS)}")


def compare(path: Path) -> list[tuple[str, float]]:
    """Return every compared number's name and relative error, the largest first.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it cannot be compared.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata: Mapping[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    module = importlib.import_module(f"tests.golden.{kind_of(list(tensors))}")
    errors: list[tuple[str, float]] = module.compare(tensors, metadata)
    return sorted(errors, key=lambda item: (item[1] <= LIMIT, -item[1]))  # NaN is not within the limit: first


def main(arguments: Sequence[str]) -> int:
    """Compare files and print the largest errors of each; return the exit code."""
    if not arguments:
        print(__doc__)
        return 1
    bad = 0
    for argument in arguments:
        try:
            errors = compare(Path(argument))
        except (OSError, ValueError, KeyError) as error:
            bad += 1
            print(f"{argument}: cannot be compared: {error}")
            continue
        above = sum(not relative <= LIMIT for _, relative in errors)
        bad += above > 0
        print(f"{argument}: {len(errors)} compared, {above} above {LIMIT:g}, largest relative errors:")
        for name, relative in errors[:SHOWN]:
            print(f"  {relative:.1e}  {name}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    raise SystemExit(main(sys.argv[1:]))
