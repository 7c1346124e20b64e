"""Saved and loaded again: the same weights, the same numbers, in a process that knows nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tests.models.huggingface.cases import CASES, KINDS, VOCAB_SIZE, assert_same_numbers, new_model, tokens
from torch.testing import assert_close
from transformers.utils import logging

from perjoule.core.errors import PerjouleError
from perjoule.models.ebt import EBTConfig
from perjoule.models.huggingface import ARCHITECTURES, EBTForCausalLM
from perjoule.models.transformer import TransformerConfig

LOAD = """
import os, sys, torch
from transformers import AutoModelForCausalLM, GenerationMixin

own, again, *folders = sys.argv[1:]
for place in folders:
    child = os.fork()  # importing transformers is what takes time: once for all ways
    if not child:
        if place == "alone":  # as if perjoule were not installed; jaxtyping comes with it
            sys.modules["perjoule"] = sys.modules["jaxtyping"] = None
        elif place == "imported":
            import perjoule.models.huggingface
        for folder in sorted(os.listdir(own)):
            arguments = {} if place == "imported" else {"trust_remote_code": True}
            model = AutoModelForCausalLM.from_pretrained(f"{own}/{folder}", **arguments)
            expected = torch.load(f"{own}/{folder}/logits.pt")
            torch.testing.assert_close(model(torch.arange(2, 12)[None]).logits, expected, rtol=1e-3, atol=1e-3)
            written = model.generate(torch.arange(2, 10)[None], max_new_tokens=5, do_sample=False)
            print(place, type(model).__module__.split(".")[0], type(model).__name__, written.shape[1], flush=True)
            if place == "alone":
                model.save_pretrained(f"{again}/{folder}")
                torch.save(expected, f"{again}/{folder}/logits.pt")
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(autouse=True)
def no_progress_bar() -> None:
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("case", CASES)
def test_loading_what_was_saved_gives_the_same_numbers(case: str, tmp_path: Path) -> None:
    model, ids = new_model(case), tokens()
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    weights = model.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in loaded.state_dict().items())
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in loaded.named_parameters()} == wanted
    assert_same_numbers(loaded(ids).logits, model(ids).logits)


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    model = new_model("transformer-tied")
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "model.embedding.weight" in names
    assert not any("output.weight" in name and "attention" not in name for name in names)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.get_output_embeddings() is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_are_loaded_in_the_type_that_is_asked_for(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, ids = new_model(kind), tokens()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert loaded(ids).logits.isfinite().all()
    if dtype == torch.float64:
        assert_close(loaded(ids).logits, model.double()(ids).logits)


def test_a_fresh_process_loads_a_folder_with_perjoule_and_without(tmp_path: Path, own_cache: Path) -> None:
    own, again = tmp_path / "own", tmp_path / "again"
    for kind in KINDS:
        model = new_model(kind, eos_token_id=None)
        model.save_pretrained(own / kind)
        torch.save(model(torch.arange(2, 12)[None]).logits.detach(), own / kind / "logits.pt")

    def loads(folder: Path, *ways: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(folder), str(again), *ways],
            capture_output=True,
            text=True,
            check=False,
            env={"OMP_NUM_THREADS": "1", "HF_HOME": str(own_cache / "hugging-face"), "HF_HUB_OFFLINE": "1"},
        )
        assert done.stdout, done.stderr
        return done.stdout.splitlines()

    names = [ARCHITECTURES[kind].__name__ for kind in sorted(KINDS)]
    packages = {"trusted": "perjoule", "imported": "perjoule", "alone": "transformers_modules"}
    expected = [f"{way} {package} {name} 13" for way, package in packages.items() for name in names]
    assert loads(own, *packages) == expected
    assert loads(again, "alone") == expected[-len(KINDS) :]  # what was saved from such copies loads as well


def test_weights_that_a_file_lacks_are_drawn_and_reported(tmp_path: Path) -> None:
    model = new_model("ebt", num_layers=1)
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, num_layers=2, output_loading_info=True)
    assert report["missing_keys"]
    assert all(name.startswith("model.body.blocks.1.") for name in report["missing_keys"])
    assert loaded(tokens()).logits.isfinite().all()
    state = {name: tensor for name, tensor in loaded.state_dict().items() if "alpha" not in name}
    loaded.save_pretrained(tmp_path, state_dict=state)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {"model.alpha.factor"}
    assert again.model.step_size_factor.item() == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_wrapping_a_trained_module_copies_it(kind: str) -> None:
    model, ids = new_model(kind), tokens()
    copy = type(model).from_perjoule(model.model, seq_len=24, bos_token_id=0, pad_token_id=1)
    assert_same_numbers(copy(ids).logits, model(ids).logits)
    assert (copy.config.eos_token_id, copy.config.pad_token_id, copy.training) == (0, 1, False)
    before = copy(ids).logits
    with torch.no_grad():
        model.model.embedding.weight.zero_()
    assert_same_numbers(copy(ids).logits, before)
    wide = type(model).from_perjoule(model.model.double().train(), seq_len=24)
    assert (wide.dtype, wide.training, wide.config.bos_token_id) == (torch.float64, True, None)


def test_replay_is_configured_and_neither_kept_nor_saved(tmp_path: Path) -> None:
    config = EBTConfig(dim=32, num_layers=1, num_heads=2, thinking={"preset": "s2"})
    own = config.build({"vocab_size": VOCAB_SIZE, "seq_len": 24})
    assert any("replay" in name for name in own.state_dict())
    model = EBTForCausalLM.from_perjoule(own, seq_len=24)
    assert model.config.thinking["replay_fraction"] == 0.5
    assert not any("replay" in name for name in model.state_dict())
    model.save_pretrained(tmp_path)
    assert EBTForCausalLM.from_pretrained(tmp_path).config.own == config.model_copy(update={"vocab_size": VOCAB_SIZE})


def test_wrapping_another_architecture_is_refused() -> None:
    own = TransformerConfig(dim=32).build({"vocab_size": VOCAB_SIZE, "seq_len": 24})
    with pytest.raises(PerjouleError, match="RetNetForCausalLM wraps a model of kind retnet, not transformer"):
        ARCHITECTURES["retnet"].from_perjoule(own, seq_len=24)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("case", [*KINDS, "transformer-tied", "ebt-adaln"])
@pytest.mark.parametrize("rows", [VOCAB_SIZE + 5, VOCAB_SIZE - 5])
def test_other_vocabulary_keeps_what_the_old_tokens_do(case: str, rows: int, tmp_path: Path) -> None:
    model, ids = new_model(case), tokens().clamp(max=VOCAB_SIZE - 6)
    before = model(ids).logits
    model.resize_token_embeddings(rows, mean_resizing=False)
    after = model(ids)
    assert after.logits.shape[-1] == rows == model.config.vocab_size == model.model.vocab_size
    if not case.startswith("ebt"):  # whose candidates are distributions over all tokens, old and new
        both = min(rows, VOCAB_SIZE)
        assert_close(after.logits[..., :both], before[..., :both])
    model.save_pretrained(tmp_path)
    assert_same_numbers(type(model).from_pretrained(tmp_path)(ids).logits, after.logits)


@pytest.mark.parametrize("case", [*KINDS, "transformer-tied"])
def test_embeddings_can_be_replaced(case: str) -> None:
    model, ids = new_model(case), tokens()
    before = model(ids).logits
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    model.set_input_embeddings(torch.nn.Embedding(VOCAB_SIZE, 32))
    assert not torch.equal(model(ids).logits, before)
    model.set_input_embeddings(inputs)
    assert_same_numbers(model(ids).logits, before)
    if outputs is not None:
        model.set_output_embeddings(torch.nn.Linear(32, VOCAB_SIZE, bias=False))
        assert not torch.equal(model(ids).logits, before)
