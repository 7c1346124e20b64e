"""Configurations hold every field of our own, and survive JSON."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.models.huggingface.cases import CASES, KINDS, SEQ_LEN, VOCAB_SIZE, new_model
from transformers import AutoConfig, LlamaConfig

from perjoule.core.errors import ConfigError
from perjoule.models.huggingface import (
    ARCHITECTURES,
    EBTForCausalLM,
    PerjouleEBTConfig,
    PerjouleLongNetConfig,
    PerjouleRetNetConfig,
    PerjouleTransformerConfig,
    RetNetForCausalLM,
)
from perjoule.models.retnet import RetNetConfig


def facts(config: Any) -> dict[str, Any]:
    """Return what a configuration says, but for where it was read."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


@pytest.mark.parametrize("case", CASES)
def test_config_is_the_same_after_a_round_trip_through_json(case: str, tmp_path: Path) -> None:
    config = new_model(case).config
    config.save_pretrained(tmp_path)
    read = type(config).from_pretrained(tmp_path)
    assert facts(read) == facts(config)
    assert read.own == config.own
    assert facts(AutoConfig.from_pretrained(tmp_path)) == facts(config)


@pytest.mark.parametrize("kind", KINDS)
def test_config_file_has_every_field_of_our_own(kind: str, tmp_path: Path) -> None:
    config = ARCHITECTURES[kind].config_class()
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert set(type(config.own).model_fields) - {"kind"} <= set(written)
    assert written["model_type"] == f"perjoule_{kind}"
    assert {"seq_len", "bos_token_id", "eos_token_id", "pad_token_id"} <= set(written)


def test_own_config_is_what_the_fields_say_even_if_they_are_set_later() -> None:
    config = PerjouleRetNetConfig(dim=64, num_heads=2, vocab_size=50)
    config.num_layers = 3
    assert config.own == RetNetConfig(dim=64, num_heads=2, vocab_size=50, num_layers=3)


def test_preset_gives_what_is_not_given() -> None:
    config = PerjouleEBTConfig(preset="4xs", num_layers=3, thinking={"preset": "s2"})
    assert (config.dim, config.num_layers, config.thinking["max_steps"]) == (128, 3, 3)


def test_names_of_hugging_face_are_accepted_and_answered() -> None:
    config = PerjouleTransformerConfig(hidden_size=64, num_hidden_layers=3, max_position_embeddings=99)
    assert (config.dim, config.num_layers, config.seq_len) == (64, 3, 99)
    assert (config.hidden_size, config.num_attention_heads) == (64, 4)


def test_config_may_be_an_instance_a_path_or_nothing(tmp_path: Path) -> None:
    config = PerjouleRetNetConfig(dim=32, num_layers=1, vocab_size=50)
    config.save_pretrained(tmp_path)
    for given in (config, tmp_path, str(tmp_path), tmp_path / "config.json"):
        assert facts(RetNetForCausalLM(given).config) == facts(config)
    for architecture in ARCHITECTURES.values():
        assert facts(architecture().config) == facts(architecture.config_class())


@pytest.mark.parametrize("kind", KINDS)
def test_get_params_returns_the_hyperparameters(kind: str) -> None:
    params = new_model(kind, num_layers=3).get_params()
    assert json.loads(json.dumps(params)) == params
    assert (params["kind"], params["num_layers"], params["vocab_size"], params["seq_len"]) == (
        kind,
        3,
        VOCAB_SIZE,
        SEQ_LEN,
    )
    own = ARCHITECTURES[kind].config_class(**{name: value for name, value in params.items() if name != "kind"}).own
    assert own == new_model(kind, num_layers=3).config.own


def test_wrong_field_is_refused_with_our_own_message() -> None:
    with pytest.raises(ConfigError, match=r"num_heads.*3 does not divide dim 32"):
        PerjouleLongNetConfig(dim=32, num_heads=3)


def test_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration at .*nowhere; accepted: a folder with a config.json"):
        RetNetForCausalLM(tmp_path / "nowhere")


def test_config_of_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"RetNetForCausalLM takes .* of model_type perjoule_retnet, not llama"):
        RetNetForCausalLM(LlamaConfig())  # type: ignore[arg-type]
    PerjouleEBTConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"{tmp_path}: RetNetForCausalLM takes .*, not perjoule_ebt"):
        RetNetForCausalLM(tmp_path)


def test_step_size_is_not_learned_if_the_config_says_so() -> None:
    model = EBTForCausalLM(PerjouleEBTConfig(dim=32, thinking={"learn_step_size": False}))
    assert not model.model.step_size_factor.requires_grad


def test_missing_transformers_names_the_extra() -> None:
    script = "import sys; sys.modules['transformers'] = None; import perjoule.models.huggingface"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "MissingExtra: perjoule.models.huggingface needs transformers: pip install 'perjoule[huggingface]'" in (
        done.stderr
    )
