"""Run every function of the models with its named axes checked by beartype; a program for test_named_axes.py.

A process of its own, because the checks are woven in at import and torch.compile cannot trace them.
"""

from typing import Any

import pydantic
from beartype import BeartypeConf, BeartypeHintOverrides
from jaxtyping import TypeCheckError, install_import_hook

CONF = BeartypeConf(hint_overrides=BeartypeHintOverrides({pydantic.ValidationInfo: object}))  # type: ignore[operator]
"""pydantic's own argument is a protocol that beartype cannot check."""

install_import_hook("perjoule.models", "beartype.beartype(conf=__import__('__main__').CONF)")

import torch  # noqa: E402

from perjoule.models.ebt import EBTConfig  # noqa: E402
from perjoule.models.ebt_decode import Decoding  # noqa: E402
from perjoule.models.ebt_denoiser import EBTDenoiserConfig  # noqa: E402
from perjoule.models.layers.loss import chunked_next_token_loss, next_token_loss  # noqa: E402
from perjoule.models.layers.rope import rotate  # noqa: E402
from perjoule.models.longnet import LongNetConfig  # noqa: E402
from perjoule.models.retnet import RetNetConfig  # noqa: E402
from perjoule.models.transformer import TransformerConfig  # noqa: E402


def train_one_step(kind: Any = TransformerConfig, **settings: Any) -> None:
    model = kind(dim=32, num_layers=2, num_heads=4, **settings).build({"vocab_size": 20, "seq_len": 10})
    tokens = torch.randint(20, (3, 9))
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = model({"input_ids": tokens, "labels": tokens}, with_logits=enabled)
        output.loss.backward()
    documents = torch.tensor([[0] * 9, [0] * 4 + [1] * 5, [0, 1, 1, 2, 2, 2, 2, 2, 3]], dtype=torch.int32)
    model({"input_ids": tokens, "labels": tokens, "documents": documents}).loss.backward()
    _, cache = model.prefill(tokens, torch.arange(9) >= torch.arange(3)[:, None])
    model.decode(tokens[:, 0], cache)


def think(variant: str, thinking: Any, positions: str = "rope") -> None:
    """Train and decode an Energy-Based Transformer."""
    train_one_step(EBTConfig, variant=variant, thinking=thinking, positions=positions, loss_chunk_rows=5)
    sizes: Any = {"dim": 32, "num_layers": 2, "num_heads": 4, "positions": positions}
    sizes |= {"variant": variant, "thinking": thinking}
    model = EBTConfig(**sizes).build({"vocab_size": 20, "seq_len": 9}).eval()
    tokens = torch.randint(20, (4, 9))
    _, cache = model.prefill(tokens[:, :5], torch.ones(4, 5, dtype=torch.bool), Decoding(candidates=2, steps=3))
    model.decode(tokens[:, 5], cache)
    model.deliberate(tokens, Decoding(candidates=2, accept_lower=True, stop_below=0.1))


def refused(function: Any, *arguments: Any) -> None:
    """Prove that the checks are on.

    Raises:
        AssertionError: if a call with wrong axes is accepted.
    """
    try:
        function(*arguments)
    except TypeCheckError:
        return
    raise AssertionError(f"{function.__name__} accepts wrong axes")


train_one_step()
train_one_step(attention="blocked", num_kv_heads=2, tie_embeddings=True)
train_one_step(activation_checkpointing=True, loss_chunk_rows=5, positions="xpos")
train_one_step(LongNetConfig, segment_lengths=[3, 9], dilations=[1, 2])
train_one_step(LongNetConfig, norm="layer", bias=True, sub_norm=True, ffn="gelu", positions="none")
for retention in ("chunkwise", "parallel", "recurrent"):
    train_one_step(RetNetConfig, value_dim=40, retention=retention, chunk_len=4)
train_one_step(RetNetConfig, positions="none", activation_checkpointing=True)
think("default", {"detach": "none", "soft_targets": 0.1, "contrastive": 0.1})
think("adaln", {"preset": "s2", "replay_capacity": 4}, "xpos")
think("time_embed", "s1", "none")
images = torch.randn(2, 1, 8, 8)
denoiser = EBTDenoiserConfig(dim=16).build({"image_size": 8, "num_channels": 1})
denoiser({"noisy": images, "clean": images}).loss.backward()
refused(rotate, torch.ones(1, 2, 9, 8), torch.ones(2, 8, 4))
refused(next_token_loss, torch.ones(4, 20), torch.zeros(3, dtype=torch.int64))
refused(chunked_next_token_loss, torch.ones(4, 8), torch.ones(20, 7), torch.zeros(4, dtype=torch.int64), 2)
print("named axes hold")
