import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from perjoule.config.resolve import load
from perjoule.core.errors import ConfigError, UnknownComponent
from perjoule.models import SHELF
from perjoule.models.contract import count_parameters
from perjoule.models.transformer import Transformer, TransformerConfig

TEXT = {"vocab_size": 1000, "seq_len": 16}


def build_on_meta(config: TransformerConfig, vocab_size: int = 1000) -> Transformer:
    with torch.device("meta"):
        return config.build({"vocab_size": vocab_size, "seq_len": 16})


def test_shelf_loads_the_transformer_and_describes_it() -> None:
    assert SHELF.load("transformer") is TransformerConfig
    assert SHELF.describe("transformer").startswith("Decoder-only Transformer")
    with pytest.raises(UnknownComponent, match="did you mean 'transformer'"):
        SHELF.load("transfomer")


def test_default_size_is_the_one_of_the_published_baselines() -> None:
    config = TransformerConfig()
    assert (config.dim, config.num_layers, config.num_heads, config.ffn_width) == (256, 4, 4, 688)
    assert count_parameters(build_on_meta(config, vocab_size=4096)) == 5_261_568


@pytest.mark.parametrize(
    ("preset", "million", "digits"),
    [
        ("4xs", 0.23, 2),
        ("3xs", 1.8, 1),
        ("2xs", 6.2, 1),
        ("xs", 12.4, 1),
        ("small", 49.5, 1),
        ("medium", 176, 0),
        ("large", 396, 0),
        ("xl", 705, 0),
    ],
)
def test_matrices_of_preset_are_as_many_as_published(preset: str, million: float, digits: int) -> None:
    config = TransformerConfig(preset=preset)
    norms = (2 * config.num_layers + 1) * config.dim
    assert round((config.num_body_parameters - norms) / 1e6, digits) == million


def test_body_of_xxs_equals_the_one_of_the_released_transformer_plus_plus() -> None:
    model = build_on_meta(TransformerConfig(preset="xxs"), vocab_size=50277)
    assert model.config.num_body_parameters == 6_198_144
    assert count_parameters(model) == 44_810_880


def test_8b_has_the_parameters_and_the_ffn_width_of_its_reference() -> None:
    model = build_on_meta(TransformerConfig(preset="8b"))
    assert count_parameters(model) == 8_053_329_920
    assert model.config.ffn_width == 1024 * math.ceil(int(1.3 * int(2 * 4 * 4096 / 3)) / 1024)


@pytest.mark.parametrize("preset", TransformerConfig.PRESETS)
@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_counted_parameters_equal_the_formula(preset: str, tie_embeddings: bool) -> None:
    model = build_on_meta(TransformerConfig(preset=preset, tie_embeddings=tie_embeddings))
    tables = model.vocab_size * model.config.dim * (1 if tie_embeddings else 2)
    assert count_parameters(model) == model.config.num_body_parameters + tables


def test_keys_beside_a_preset_win_in_python_and_in_a_recipe() -> None:
    in_python = TransformerConfig(preset="xs", num_layers=3)
    in_recipe = load(TransformerConfig, overrides=("preset=xs", "num_layers=3"))
    assert in_python == in_recipe.config
    assert (in_python.dim, in_python.num_layers) == (384, 3)
    assert in_recipe.sources["dim"] == "preset xs"
    assert in_recipe.sources["num_layers"] == "command line"


def test_dumped_config_loads_to_an_equal_one() -> None:
    config = TransformerConfig(preset="8b", tie_embeddings=True)
    assert TransformerConfig(**config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["num_heads=5"], r"num_heads: 5 does not divide dim 256 \(nearest: 1, 2, 4, 8\).*\(command line\)"),
        (["dim=130"], r"num_heads: 4 does not divide dim 130 \(nearest: 1, 5, 13, 65\)"),
        (
            ["dim=12"],
            r"num_heads: 4 leaves heads of size 3, and positions rope needs an even size \(nearest: 1, 2, 3, 6\)",
        ),
        (["dim=129"], r"num_heads: no number of heads divides dim 129 into heads of even size.*; make dim even"),
        (["num_kv_heads=3"], r"num_kv_heads: 3 does not divide num_heads 4 \(nearest: 1, 2, 4\)"),
        (["dim=-256"], r"dim: must be greater than 0, not -256"),
        (["num_layers=0"], r"num_layers: must be greater than 0, not 0"),
        (["ffn_dim=1.5"], r"ffn_dim: must be a valid integer"),
        (["preset=xsmall"], r"preset: .*'xsmall'.* did you mean 'small'\?"),
        (["attention=flash"], r"attention: .*'flash'.*auto, blocked, sdpa"),
        (["num_layer=2"], r"num_layer: unknown key.* did you mean 'num_layers'\?"),
    ],
)
def test_mistake_in_the_config_is_one_clear_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(TransformerConfig, overrides=overrides)
    assert "\n" not in str(caught.value)


def test_unknown_preset_is_refused_in_python_too() -> None:
    with pytest.raises(ValidationError, match="unknown preset 'medum': did you mean 'medium'"):
        TransformerConfig(preset="medum")


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        (
            {"vocab_size": 999},
            TEXT,
            "vocab_size 999 is smaller than the data's 1000; accepted: null .* or at least 1000",
        ),
        ({}, {"height": 8, "width": 8}, "needs data with vocab_size and seq_len.*this data has height, width"),
        ({}, {}, "needs data with vocab_size and seq_len.*this data has neither"),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(
    settings: dict[str, Any], shape: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TransformerConfig(**settings).build(shape)


@pytest.mark.parametrize(("vocab_size", "rows"), [(None, 1000), (1000, 1000), (1024, 1024)])
def test_vocabulary_is_the_data_s_or_larger(vocab_size: int | None, rows: int) -> None:
    model = build_on_meta(TransformerConfig(vocab_size=vocab_size))
    assert model.output is not None
    assert model.embedding.weight.shape == model.output.weight.shape == (rows, 256)
