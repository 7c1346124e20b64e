"""Decoding token by token computes what the whole sequence does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from perjoule.core.errors import ConfigError
from perjoule.models.contract import Decoder
from perjoule.models.layers.language import LanguageModel
from perjoule.models.longnet import LongNetConfig
from perjoule.models.transformer import TransformerConfig

SHAPE = {"vocab_size": 48, "seq_len": 24}
SIZES: dict[str, Any] = {"dim": 32, "num_layers": 2, "num_heads": 4, "ffn_dim": 48, "init_std": 0.3}
PATTERNS: dict[str, Any] = {"segment_lengths": [3, 7, 16], "dilations": [1, 2, 4]}
MAGNETO: dict[str, Any] = {"norm": "layer", "bias": True, "sub_norm": True, "ffn": "gelu"}

Build = Callable[[], LanguageModel]
MODELS: dict[str, Build] = {
    "transformer": lambda: TransformerConfig(**SIZES).build(SHAPE),
    "transformer-grouped-blocked": lambda: TransformerConfig(**SIZES, num_kv_heads=2, attention="blocked").build(SHAPE),
    "transformer-xpos": lambda: TransformerConfig(**SIZES, positions="xpos").build(SHAPE),
    "transformer-none": lambda: TransformerConfig(**SIZES, positions="none").build(SHAPE),
    "longnet": lambda: LongNetConfig(**SIZES, **PATTERNS).build(SHAPE),
    "longnet-magneto": lambda: LongNetConfig(**SIZES, **PATTERNS, **MAGNETO, positions="xpos").build(SHAPE),
    "longnet-sparse": lambda: LongNetConfig(**SIZES, segment_lengths=[8], dilations=[3]).build(SHAPE),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return MODELS[request.param]()


def all_logits(model: LanguageModel, tokens: Tensor) -> Tensor:
    logits: Tensor = model({"input_ids": tokens, "labels": tokens}, with_logits=True).logits
    return logits.detach()


def padded(tokens: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Return the first tokens of each row on the right, behind other numbers, and the mask."""
    longest = max(lengths)
    prompts, mask = torch.randint(48, (len(lengths), longest)), torch.zeros(len(lengths), longest, dtype=torch.bool)
    for row, length in enumerate(lengths):
        prompts[row, longest - length :] = tokens[row, :length]
        mask[row, longest - length :] = True
    return prompts, mask


def test_model_is_a_decoder(model: LanguageModel) -> None:
    assert isinstance(model, Decoder)


@pytest.mark.parametrize("lengths", [[12, 12, 12], [12, 1, 7], [1, 1, 1]])
def test_decoding_equals_the_whole_forward_pass_with_and_without_padding(
    model: LanguageModel, lengths: list[int]
) -> None:
    tokens = torch.randint(48, (3, 24))
    expected = all_logits(model, tokens)
    rows, ends = torch.arange(3), torch.tensor(lengths)
    logits, cache = model.prefill(*padded(tokens, lengths))
    for step in range(24 - max(lengths)):
        torch.testing.assert_close(logits, expected[rows, ends + step - 1], rtol=0, atol=1e-5)
        assert logits.dtype == torch.float32
        logits, cache = model.decode(tokens[rows, ends + step], cache)
    torch.testing.assert_close(logits, expected[rows, ends + 24 - max(lengths) - 1], rtol=0, atol=1e-5)


def test_greedy_text_is_the_one_of_recomputing_everything(model: LanguageModel) -> None:
    prompt = torch.randint(48, (2, 5))
    recomputed = prompt
    for _ in range(15):
        recomputed = torch.cat((recomputed, all_logits(model, recomputed)[:, -1:].argmax(-1)), dim=1)
    logits, cache = model.prefill(prompt)
    decoded = [prompt]
    for _ in range(15):
        decoded.append(logits.argmax(-1, keepdim=True))
        logits, cache = model.decode(decoded[-1][:, 0], cache)
    assert torch.equal(torch.cat(decoded, dim=1), recomputed)


def test_decoding_keeps_no_graph(model: LanguageModel) -> None:
    logits, cache = model.prefill(torch.zeros(1, 3, dtype=torch.int64))
    assert not logits.requires_grad
    assert not model.decode(torch.zeros(1, dtype=torch.int64), cache)[0].requires_grad


def test_bfloat16_weights_decode_in_float32_logits() -> None:
    model = MODELS["transformer"]().bfloat16()
    logits, cache = model.prefill(torch.zeros(1, 3, dtype=torch.int64))
    again, _ = model.decode(torch.zeros(1, dtype=torch.int64), cache)
    assert logits.dtype == again.dtype == torch.float32


def test_prompt_longer_than_the_positions_is_refused() -> None:
    message = "a sequence of 25 tokens does not fit the model, which was built for seq_len 24; accepted: 1 to 24 tokens"
    for name in ("transformer", "longnet"):
        with pytest.raises(ConfigError, match=message):
            MODELS[name]().prefill(torch.zeros(1, 25, dtype=torch.int64))


def test_padding_does_not_count_as_length() -> None:
    tokens = torch.zeros(1, 30, dtype=torch.int64)
    mask = torch.arange(30)[None] >= 20
    padded_logits, _ = MODELS["transformer"]().prefill(tokens, mask)
    assert padded_logits.shape == (1, 48)


def test_decoding_beyond_the_positions_is_refused() -> None:
    model = MODELS["transformer"]()
    _, cache = model.prefill(torch.zeros(1, 24, dtype=torch.int64))
    with pytest.raises(ConfigError, match="a sequence of 25 tokens does not fit the model"):
        model.decode(torch.zeros(1, dtype=torch.int64), cache)


def test_without_positions_a_text_may_be_longer_than_the_data() -> None:
    model = MODELS["transformer-none"]()
    tokens = torch.randint(48, (1, 40))
    logits, cache = model.prefill(tokens[:, :30])
    for position in range(30, 40):
        logits, cache = model.decode(tokens[:, position], cache)
    torch.testing.assert_close(logits, all_logits(model, tokens)[:, -1], rtol=0, atol=1e-5)
