"""RetNet computes what torchscale does: see tests/golden/README.md for where the numbers are from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.golden.retnet import FORMS, compare

FILE = Path(__file__).parents[1] / "golden" / "retnet_torchscale.safetensors"


@pytest.fixture
def golden() -> tuple[dict[str, Any], dict[str, str]]:
    with safe_open(FILE, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def test_every_form_reproduces_logits_loss_and_gradients_of_torchscale(golden: Any) -> None:
    errors = dict(compare(*golden))
    for form in FORMS:
        assert sum(name.startswith("grad of") and name.endswith(form) for name in errors) == 15
        assert {
            f"logits.{'recurrent' if form == 'recurrent' else 'parallel'}, {form}",
            f"loss, {form}",
        } <= errors.keys()
    assert max(errors.values()) < 1e-5
    assert errors["our parallel logits, chunkwise"] < 1e-5
    assert errors["logits.recurrent, decoded"] < 1e-5


@pytest.mark.parametrize(
    "name", ["weights.layers.0.retention.k_proj.weight", "logits.recurrent", "grad.layers.1.ffn.gate.weight"]
)
def test_a_wrong_number_is_an_error_in_the_comparison(golden: Any, name: str) -> None:
    tensors, metadata = golden
    tensors[name] = tensors[name] * 1.01
    assert max(error for _, error in compare(tensors, metadata)) > 1e-4


def test_published_chunkwise_logits_are_of_another_function(golden: Any) -> None:
    tensors, _ = golden
    assert (tensors["logits.chunkwise16"] - tensors["logits.parallel"]).abs().max() > 1e-3


def test_scaled_embeddings_are_taken_into_the_weights(golden: Any) -> None:
    tensors, metadata = golden
    metadata["config"] = metadata["config"].replace("'no_scale_embedding': 'True'", "'no_scale_embedding': 'False'")
    tensors["weights.embed_tokens.weight"] /= 32**0.5
    tensors["grad.embed_tokens.weight"] *= 32**0.5
    assert max(error for _, error in compare(tensors, metadata)) < 1e-5


def test_tied_and_scaled_embeddings_are_refused(golden: Any) -> None:
    tensors, metadata = golden
    metadata["config"] = metadata["config"].replace("'no_scale_embedding': 'True'", "'no_scale_embedding': 'False'")
    del tensors["weights.output_projection.weight"]
    with pytest.raises(ValueError, match="scaled and tied"):
        compare(tensors, metadata)


def test_flags_weights_and_decays_of_another_function_are_refused(golden: Any) -> None:
    tensors, metadata = golden
    other = {"config": metadata["config"].replace("'deepnorm': 'False'", "'deepnorm': 'True'")}
    with pytest.raises(ValueError, match="deepnorm is True; only False is the function of perjoule's RetNet"):
        compare(tensors, other)
    with pytest.raises(ValueError, match=r"weights that perjoule's RetNet has not: layers.0.retention.bias"):
        compare(tensors | {"weights.layers.0.retention.bias": torch.ones(1)}, metadata)
    with pytest.raises(ValueError, match="no decay schedule of perjoule has ln γ = "):
        compare(tensors | {"weights.retnet_rel_pos.decay": torch.full((4,), -0.5)}, metadata)
