from typing import Any

import pytest
import torch
from pydantic import ValidationError

from perjoule.config.resolve import load
from perjoule.core.errors import ConfigError
from perjoule.models import SHELF
from perjoule.models.contract import count_parameters
from perjoule.models.retnet import RetNet, RetNetConfig
from perjoule.models.transformer import TransformerConfig


def build_on_meta(config: RetNetConfig, vocab_size: int = 1000) -> RetNet:
    with torch.device("meta"):
        return config.build({"vocab_size": vocab_size, "seq_len": 16})


def test_shelf_loads_the_retnet_and_describes_it() -> None:
    assert SHELF.load("retnet") is RetNetConfig
    assert SHELF.describe("retnet").startswith("Retentive network")


@pytest.mark.parametrize(
    ("preset", "million", "digits"),
    [
        ("base", 19.1, 1),
        ("medium", 203.5, 1),
        ("xl", 1220.6, 1),
        ("3b", 2523, 0),
        ("7b", 6510, 0),
        ("13b", 12616, 0),
        ("65b", 52078, 0),
    ],
)
def test_preset_is_as_large_as_published(preset: str, million: float, digits: int) -> None:
    model = build_on_meta(RetNetConfig(preset=preset))
    body = count_parameters(model) - 2 * 1000 * model.config.dim
    assert body == model.config.num_body_parameters
    assert round(body / 1e6, digits) == million
    assert model.config.head_dim == 256


def test_size_that_torchscale_builds_unless_told_otherwise_is_refused() -> None:
    """768/1280 with 3 heads: 1280 is not divisible by 3, and torchscale's heads do not fit either."""
    with pytest.raises(ValidationError, match=r"1280 is not divisible by num_heads 3 \(nearest: 1278, 1281\)"):
        RetNetConfig(dim=768, value_dim=1280, ffn_dim=1280, num_layers=12, num_heads=3)


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_benchmarked_size_has_the_parameters_of_its_peers(tie_embeddings: bool) -> None:
    model = build_on_meta(RetNetConfig(value_dim=512, ffn_dim=512, tie_embeddings=tie_embeddings), 4096)
    assert count_parameters(model) == 5_769_472 - tie_embeddings * 4096 * 256


@pytest.mark.parametrize("dim", [256, 384, 512, 768, 1024])
def test_default_widths_make_a_body_as_large_as_the_transformers(dim: int) -> None:
    retnet = RetNetConfig(dim=dim).num_body_parameters
    transformer = TransformerConfig(dim=dim).num_body_parameters
    assert retnet == pytest.approx(transformer, rel=0.025)


@pytest.mark.parametrize(("num_heads", "width"), [(4, 432), (3, 480), (32, 448)])
def test_default_value_width_suits_the_heads(num_heads: int, width: int) -> None:
    config = RetNetConfig(dim=768 if num_heads == 3 else 256, num_heads=num_heads)
    assert config.value_width % num_heads == 0
    assert config.value_width == config.ffn_width == (1296 if num_heads == 3 else width)


def test_keys_beside_a_preset_win() -> None:
    in_recipe = load(RetNetConfig, overrides=("preset=medium", "num_layers=3"))
    assert in_recipe.config == RetNetConfig(preset="medium", num_layers=3)
    assert in_recipe.sources["value_dim"] == "preset medium"


def test_dumped_config_loads_to_an_equal_one() -> None:
    config = RetNetConfig(preset="65b", tie_embeddings=True, positions="none")
    assert RetNetConfig(**config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["num_heads=5"], r"num_heads: 5 does not divide dim 256 \(nearest: 1, 2, 4, 8\).*\(command line\)"),
        (
            ["dim=12"],
            r"num_heads: 4 leaves heads of size 3, and positions rotation needs an even size \(nearest: 1, 2, 3, 6",
        ),
        (["dim=129"], r"num_heads: no number of heads .* of even size, as positions rotation needs; make dim even"),
        (["dim=129", "positions=none"], r"num_heads: 4 does not divide dim 129 \(nearest: 1, 3, 43, 129\)"),
        (["value_dim=430"], r"value_dim: 430 is not divisible by num_heads 4 \(nearest: 428, 432\)"),
        (["value_dim=3"], r"value_dim: 3 is not divisible by num_heads 4 \(nearest: 4\)"),
        (["dim=-256"], r"dim: must be greater than 0, not -256"),
        (["num_layers=0"], r"num_layers: must be greater than 0, not 0"),
        (["chunk_len=0"], r"chunk_len: must be greater than 0, not 0"),
        (["preset=bsae"], r"preset: .*'bsae'.* did you mean 'base'\?"),
        (["retention=chunk"], r"retention: .*'chunk'.*chunkwise"),
        (["decay=fast"], r"decay: .*'fast'.*halving"),
        (["positions=rope"], r"positions: .*'rope'.*rotation"),
        (["activation=relu"], r"activation: .*'relu'.*gelu"),
        (["value_dims=2"], r"value_dims: unknown key.* did you mean 'value_dim'\?"),
    ],
)
def test_mistake_in_the_config_is_one_clear_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(RetNetConfig, overrides=overrides)
    assert "\n" not in str(caught.value)


def test_unknown_preset_is_refused_in_python_too() -> None:
    with pytest.raises(ValidationError, match="unknown preset '6b'"):
        RetNetConfig(preset="6b")


def test_heads_of_odd_size_are_accepted_where_nothing_is_rotated() -> None:
    assert RetNetConfig(dim=12, positions="none").head_dim == 3


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        (
            {"vocab_size": 999},
            {"vocab_size": 1000, "seq_len": 16},
            "vocab_size 999 is smaller than the data's 1000; accepted: null .* or at least 1000",
        ),
        ({}, {"height": 8, "width": 8}, "retnet needs data with vocab_size and seq_len.*this data has height, width"),
        ({}, {}, "needs data with vocab_size and seq_len.*this data has neither"),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(
    settings: dict[str, Any], shape: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        RetNetConfig(**settings).build(shape)


@pytest.mark.parametrize(("vocab_size", "rows"), [(None, 1000), (1000, 1000), (1024, 1024)])
def test_vocabulary_is_the_data_s_or_larger(vocab_size: int | None, rows: int) -> None:
    model = build_on_meta(RetNetConfig(vocab_size=vocab_size))
    assert model.output is not None
    assert model.embedding.weight.shape == model.output.weight.shape == (rows, 256)
