"""LongNet is torchscale's function, is causal, trains, and counts its FLOPs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.golden import longnet as golden
from tests.models.every_model import counted_flops_per_token
from torch import Tensor
from torch.nn import functional as F

from perjoule.config.resolve import load
from perjoule.core.errors import ConfigError
from perjoule.models import SHELF
from perjoule.models.contract import Trainable, count_parameters
from perjoule.models.layers import dilated, fused
from perjoule.models.longnet import LongNet, LongNetConfig
from perjoule.models.transformer import TransformerConfig

FILE = Path(__file__).parents[1] / "golden" / "longnet_torchscale.safetensors"
SIZES: dict[str, Any] = {"dim": 32, "num_layers": 2, "num_heads": 4, "ffn_dim": 48}
PATTERNS: dict[str, Any] = {"segment_lengths": [3, 7, 16], "dilations": [1, 2, 4]}
MAGNETO: dict[str, Any] = {"norm": "layer", "bias": True, "sub_norm": True, "ffn": "gelu"}


def tiny(vocab_size: int = 48, seq_len: int = 24, **settings: Any) -> LongNet:
    return LongNetConfig(**(SIZES | PATTERNS | settings)).build({"vocab_size": vocab_size, "seq_len": seq_len})


@pytest.fixture(scope="module")
def file() -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(FILE, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        return tensors, opened.metadata()


def test_logits_loss_and_gradients_are_those_of_torchscale(file: tuple[dict[str, Tensor], dict[str, str]]) -> None:
    errors = dict(golden.compare(*file))
    assert {"logits", "loss", "grad.blocks.1.attention.qkv.bias", "grad.embedding.weight"} <= errors.keys()
    assert len(errors) == 2 + len(list(golden.model_of(golden.flags_of(file[1]), file[0]).parameters()))
    assert max(errors.values()) < 1e-5


def test_golden_comparison_notices_a_changed_weight(file: tuple[dict[str, Tensor], dict[str, str]]) -> None:
    tensors, metadata = file
    name = "weights.layers.1.self_attn.k_proj.weight"
    errors = dict(golden.compare(tensors | {name: tensors[name] * 1.01}, metadata))
    assert errors["logits"] > 1e-4


@pytest.mark.parametrize(
    ("flag", "before", "after", "message"),
    [
        ("multiway", "False", "True", "our LongNet has no multiway=True"),
        ("xpos_scale_base", "512', 'xpos_rel_pos': 'True", "256', 'xpos_rel_pos': 'True", "our xPos has no scale base"),
        ("subln", "True", "False", r"our LongNet has no layers\.0\.ffn\.ffn_layernorm\.bias, "),
    ],
)
def test_golden_comparison_refuses_what_ours_has_not(
    file: tuple[dict[str, Tensor], dict[str, str]], flag: str, before: str, after: str, message: str
) -> None:
    tensors, metadata = file
    config = metadata["config"].replace("'xpos_scale_base': '512'", "'xpos_scale_base': '512', 'xpos_rel_pos': 'True'")
    config = config if "xpos" in flag else metadata["config"]
    changed = config.replace(f"'{flag}': '{before}'", f"'{flag}': '{after}'")
    assert changed != metadata["config"]
    with pytest.raises(ValueError, match=message):
        golden.compare(tensors, {"config": changed})


def test_golden_comparison_reads_tied_and_scaled_embeddings(
    file: tuple[dict[str, Tensor], dict[str, str]],
) -> None:
    """A scaled embedding of the weights over the scale is the same function, its gradient the scale times it."""
    tensors, metadata = file
    config = metadata["config"].replace("'no_scale_embedding': 'True'", "'no_scale_embedding': 'False'")
    scaled = tensors | {
        "weights.embed_tokens.weight": tensors["weights.embed_tokens.weight"] / 32**0.5,
        "grad.embed_tokens.weight": tensors["grad.embed_tokens.weight"] * 32**0.5,
    }
    assert max(dict(golden.compare(scaled, {"config": config})).values()) < 1e-5
    tied = config.replace("'share_decoder_input_output_embed': 'False'", "'share_decoder_input_output_embed': 'True'")
    with pytest.raises(ValueError, match="no embedding that is both scaled and the output matrix"):
        golden.compare(scaled, {"config": tied})


def test_longnet_is_on_the_shelf_and_meets_the_contract_of_the_loop() -> None:
    assert SHELF.load("longnet") is LongNetConfig
    assert SHELF.describe("longnet").startswith("LongNet: ")
    assert isinstance(tiny(), Trainable)


@pytest.mark.parametrize("positions", ["rope", "none", "xpos"])
def test_one_segment_without_dilation_is_the_transformer(batch: dict[str, Tensor], positions: str) -> None:
    longnet = tiny(segment_lengths=[24], dilations=[1], positions=positions)
    transformer = TransformerConfig(**SIZES, positions=positions).build({"vocab_size": 48, "seq_len": 24})
    transformer.load_state_dict(longnet.state_dict())
    losses = [model(batch).loss for model in (longnet, transformer)]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-6)
    gradients = [
        torch.autograd.grad(loss, list(model.parameters()))
        for loss, model in zip(losses, (longnet, transformer), strict=True)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-6)


def test_bfloat16_autocast_stays_close_to_float32(batch: dict[str, Tensor]) -> None:
    model = tiny()
    exact = model(batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch, with_logits=True)
    assert output.logits.dtype == torch.bfloat16
    torch.testing.assert_close(output.loss, exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "settings", [{}, MAGNETO, {"ffn": "relu"}, {"ffn": "silu", "ffn_dim": None, "bias": True}, {"norm": "layer"}]
)
def test_counted_parameters_equal_the_formula(settings: dict[str, Any]) -> None:
    model = tiny(**settings)
    assert count_parameters(model) == model.config.num_body_parameters + 2 * 48 * 32


def test_paper_preset_has_its_125_million_parameters_and_its_patterns() -> None:
    config = LongNetConfig(preset="paper")
    with torch.device("meta"):
        model = config.build({"vocab_size": 100, "seq_len": 32768})
    assert count_parameters(model) == config.num_body_parameters + 2 * 100 * 768
    # 12 layers of 12·dim², and the norms and biases.
    assert config.num_body_parameters == pytest.approx(12 * 12 * 768**2, rel=0.005)
    assert max(config.segment_lengths) == 32768


@pytest.mark.parametrize("seq_len", [24, 20])
@pytest.mark.parametrize("settings", [{}, {"num_heads": 2}, MAGNETO])
def test_flops_equal_what_torch_counts_up_to_vectors(settings: dict[str, Any], seq_len: int) -> None:
    with torch.device("meta"):
        model = tiny(**settings)
    vectors = sum(weight.numel() for weight in model.parameters() if weight.ndim == 1)
    counted = counted_flops_per_token(model, seq_len) + 6 * vectors
    assert model.flops_per_token(seq_len).full == pytest.approx(counted, abs=1)


def test_attention_flops_stay_the_same_at_twice_the_length() -> None:
    model = tiny(segment_lengths=[8, 16], dilations=[1, 2])
    assert model.flops_per_token(32) == model.flops_per_token(64)
    assert model.flops_per_token(64).causal < model.flops_per_token(64).full


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dilations=[1, 2]"], "dilations: 2 dilations do not fit 3 segment_lengths; give one for each of them"),
        (["segment_lengths=[64]"], "dilations: 3 dilations do not fit 1 segment_lengths; give one for each of them"),
        (["dilations=[1, 2, 300]"], "dilations: 300 is more than its segment length 256; accepted: 1 to 256"),
        (["segment_lengths=[]", "dilations=[]"], "segment_lengths: .*at least 1 item"),
        (["dilations=[1, 0, 4]"], r"dilations\[1\]: must be greater than 0, not 0"),
        (["num_heads=5"], r"num_heads: 5 does not divide dim 256 \(nearest: 1, 2, 4, 8\)"),
        (["num_heads=5", "positions=none"], r"num_heads: 5 does not divide dim 256 \(nearest: 1, 2, 4, 8\)"),
        (["sub_norm=true"], "ffn: swiglu has no sub_norm; accepted with sub_norm: true: gelu, relu, silu"),
        (["bias=true"], "ffn: swiglu has no bias; accepted with bias: true: gelu, relu, silu"),
        (["positions=rotary"], "positions: .*'rotary'.* none, rope, xpos"),
        (["preset=papper"], "preset: .* did you mean 'paper'"),
    ],
)
def test_mistake_in_the_config_is_one_clear_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(LongNetConfig, overrides=overrides)


def test_data_without_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.kind longnet needs data with vocab_size and seq_len"):
        LongNetConfig().build({"height": 3})


def test_odd_heads_are_accepted_where_nothing_is_rotated() -> None:
    assert LongNetConfig(dim=36, num_heads=4, positions="none").head_dim == 9


def test_open_form_computes_the_same_model(batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    expected = model(batch).loss
    monkeypatch.setattr(dilated, "attend_with_total", fused._in_the_open)
    torch.testing.assert_close(model(batch).loss, expected, rtol=0, atol=1e-6)


def test_xpos_weights_of_torchscale_are_put_into_the_order_of_our_pairs() -> None:
    """Rotate neighbours, as there, and halves, as here: the products are the same."""
    config = LongNetConfig(dim=16, num_heads=2, positions="xpos", norm="layer", bias=True, ffn="gelu")
    theirs = {f"layers.0.self_attn.{name}_proj.weight": torch.randn(16, 16) for name in "qkv"}
    q, k, v = golden.in_our_layout("blocks.0.attention.qkv.weight", theirs, config).chunk(3)
    angles = 3.0 / 1e4 ** (torch.arange(0, 8, 2) / 8)

    def turn_neighbours(x: Tensor) -> Tensor:
        turned = torch.view_as_complex(x.view(2, 4, 2).contiguous()) * torch.polar(torch.ones(4), angles)
        return torch.view_as_real(turned).flatten(1)

    def turn_halves(x: Tensor) -> Tensor:
        a, b = x.view(2, 8).chunk(2, -1)
        return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)

    x = torch.randn(16)
    their_q, their_k, their_v = (F.linear(x, matrix) for matrix in theirs.values())
    expected = (turn_neighbours(their_q) * their_k.view(2, 8)).sum(-1)
    actual = (turn_halves(F.linear(x, q)) * F.linear(x, k).view(2, 8)).sum(-1)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(F.linear(x, v), their_v)
