"""The weights of a model as a safetensors file, tied ones once."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from perjoule.core.errors import CheckpointError
from perjoule.runs import checkpoints


def load_weights(path: Path, model: nn.Module) -> None:
    """Load a safetensors file of weights.

    Raises:
        CheckpointError: if the file is missing, a pickle, not safetensors, or of another model.
    """
    checkpoints.refuse_pickle(path)
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    own = model.state_dict()
    missing = sorted(unique_tensors(model).keys() - weights.keys())
    foreign = sorted(weights.keys() - own.keys())
    shapes = [name for name in weights.keys() & own.keys() if weights[name].shape != own[name].shape]
    if missing or foreign or shapes:
        name = (missing + foreign + sorted(shapes))[0]
        fault = "is missing" if missing else "is not in the model" if foreign else "has another shape"
        raise CheckpointError(f"{path} is of another model: {name} {fault}")
    model.load_state_dict(weights, strict=False)


def unique_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of a module by name, tied tensors once, under their first name."""
    seen: set[int] = set()
    unique: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor
    return unique
