"""Weights from a file: those of this model, from a safetensors file, or a refusal that changes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from perjoule.core.errors import CheckpointError
from perjoule.models.weights import load_weights, unique_tensors


def _model(seed: int) -> nn.Module:
    """Return a module with tied weights."""
    torch.manual_seed(seed)
    embedding, norm, output = nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 11)
    output.weight = embedding.weight
    nn.init.normal_(norm.bias)
    return nn.ModuleDict({"embedding": embedding, "norm": norm, "output": output})


def _pickle(path: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save(weights, path)


def _old_pickle(path: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save(weights, path, _use_new_zipfile_serialization=False)


def _text(path: Path, weights: dict[str, torch.Tensor]) -> None:
    path.write_text("no weights at all, but some text")


def _cut(path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, path)
    path.write_bytes(path.read_bytes()[:-10])


def _missing(path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor for name, tensor in weights.items() if name != "norm.bias"}, path)


def _foreign(path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file({**weights, "norm.extra": torch.zeros(1)}, path)


def _reshaped(path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file({**weights, "norm.bias": torch.zeros(9)}, path)


def _nothing(path: Path, weights: dict[str, torch.Tensor]) -> None:
    path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_pickle, "is a pickle (torch.save), and reading one runs any code in it: convert it to .safetensors"),
        (_old_pickle, "is a pickle (torch.save), and reading one runs any code in it: convert it to .safetensors"),
        (_text, "is not a safetensors file: "),
        (_cut, "is not a safetensors file: "),
        (_missing, "is of another model: norm.bias is missing"),
        (_foreign, "is of another model: norm.extra is not in the model"),
        (_reshaped, "is of another model: norm.bias has another shape"),
        (_nothing, ": No such file or directory"),
    ],
)
def test_unfit_weights_are_refused_and_change_nothing(
    write: Callable[[Path, dict[str, torch.Tensor]], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    write(path, {name: tensor.detach().clone() + 1 for name, tensor in unique_tensors(_model(0)).items()})
    model = _model(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(path, model)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_are_loaded_whatever_the_length_of_the_header(tmp_path: Path) -> None:
    source, target = _model(0), _model(1)
    weights = {name: tensor.detach().clone() for name, tensor in unique_tensors(source).items()}
    first_bytes = set()
    for padding in range(0, 256, 8):
        save_file(weights, tmp_path / "weights.safetensors", {"note": "x" * padding})
        first_bytes.add((tmp_path / "weights.safetensors").read_bytes()[0])
        load_weights(tmp_path / "weights.safetensors", target)
    assert 0x80 in first_bytes
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in source.state_dict().items())
