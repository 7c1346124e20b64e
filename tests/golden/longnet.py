"""Compare our LongNet with what torchscale's computed (files ``longnet_torchscale*``)."""

from __future__ import annotations

import ast
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from perjoule.models.layers.positions import XPOS_SCALE
from perjoule.models.longnet import LongNet, LongNetConfig

RENAMED = {
    "embedding": ["embed_tokens"],
    "norm": ["layer_norm"],
    "output": ["output_projection"],
    "attention_norm": ["self_attn_layer_norm"],
    "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.sub_norm": ["self_attn.inner_attn_ln"],
    "attention.output": ["self_attn.out_proj"],
    "ffn_norm": ["final_layer_norm"],
    "ffn.up": ["ffn.fc1"],
    "ffn.sub_norm": ["ffn.ffn_layernorm"],
    "ffn.down": ["ffn.fc2"],
}
"""Modules of ours to torchscale's, whose rows lie one below the other in ours."""

REQUIRED = {
    "decoder_normalize_before": "True",
    "dropout": "0.0",
    "layernorm_embedding": "False",
    "moe_freq": "0",
    "deepnorm": "False",
    "multiway": "False",
    "rel_pos_buckets": "0",
    "seq_parallel": "False",
    "no_output_layer": "False",
}
"""Flags of the original that our LongNet has at one value only."""


def compare(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[tuple[str, float]]:
    """Return, for logits, loss and every gradient, the largest error relative to the largest number.

    Args:
        tensors: ``weights.*``, ``grad.*``, ``input_ids``, ``logits`` and ``loss`` of a file.
        metadata: its ``config``.

    Raises:
        ValueError: if the original had a part that ours has not.
    """
    flags = flags_of(metadata)
    for name, value in REQUIRED.items():
        if flags.get(name, value) != value:
            raise ValueError(f"our LongNet has no {name}={flags[name]}")
    if flags.get("xpos_rel_pos") == "True" and flags["xpos_scale_base"] != str(XPOS_SCALE):
        raise ValueError(f"our xPos has no scale base but {XPOS_SCALE}, not {flags['xpos_scale_base']}")
    model = model_of(flags, tensors)
    weights = {name.removeprefix("weights."): tensor for name, tensor in tensors.items() if name.startswith("weights.")}
    tied = model.output is None
    known = {part for name, _ in model.named_parameters() for part in their_names(name)}
    if unknown := weights.keys() - known - ({"output_projection.weight"} if tied else set()):
        raise ValueError(f"our LongNet has no {', '.join(sorted(unknown))}")
    scale = 1.0 if flags.get("no_scale_embedding", "True") == "True" else model.config.dim**0.5
    if tied and scale != 1:
        raise ValueError("our LongNet has no embedding that is both scaled and the output matrix")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(in_our_layout(name, weights, model.config))
        model.embedding.weight.mul_(scale)
    input_ids = tensors["input_ids"].long()
    logits = model.logits(model.hidden(input_ids))
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    found = [("logits", error(logits, tensors["logits"])), ("loss", error(loss, tensors["loss"].reshape(())))]
    gradients = {name.removeprefix("grad."): tensor for name, tensor in tensors.items() if name.startswith("grad.")}
    for name, parameter in model.named_parameters() if gradients else ():
        assert parameter.grad is not None
        gradient = parameter.grad * (scale if name == "embedding.weight" else 1.0)
        found.append((f"grad.{name}", error(gradient, in_our_layout(name, gradients, model.config))))
    return found


def flags_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the original's configuration."""
    return {name: str(value) for name, value in ast.literal_eval(metadata["config"]).items()}


def model_of(flags: Mapping[str, str], tensors: Mapping[str, Tensor]) -> LongNet:
    """Return a model like the original, with weights of its own."""
    tied = flags.get("share_decoder_input_output_embed") == "True"
    activation = {"swish": "silu"}.get(flags["activation_fn"], flags["activation_fn"])
    vocab_size, dim = tensors["weights.embed_tokens.weight"].shape
    config = LongNetConfig(
        dim=dim,
        num_layers=int(flags["decoder_layers"]),
        num_heads=int(flags["decoder_attention_heads"]),
        ffn_dim=int(flags["decoder_ffn_embed_dim"]),
        positions="xpos" if flags.get("xpos_rel_pos") == "True" else "none",
        norm_eps=float(flags["layernorm_eps"]),
        tie_embeddings=tied,
        segment_lengths=ast.literal_eval(flags["segment_length"]),
        dilations=ast.literal_eval(flags["dilated_ratio"]),
        norm="layer",
        bias=True,
        sub_norm=flags["subln"] == "True",
        ffn=activation,
    )
    return config.build({"vocab_size": vocab_size, "seq_len": tensors["input_ids"].shape[1]})


def their_names(name: str) -> list[str]:
    """Return torchscale's names of what a parameter of ours is made of."""
    module, kind = name.rsplit(".", 1)
    prefix = ""
    if module.startswith("blocks."):
        _, number, module = module.split(".", 2)
        prefix = f"layers.{number}."
    return [f"{prefix}{part}.{kind}" for part in RENAMED[module]]


def in_our_layout(name: str, theirs: Mapping[str, Tensor], config: LongNetConfig) -> Tensor:
    """Return torchscale's tensor for a parameter of ours.

    Args:
        name: of our parameter.
        theirs: tensors by torchscale's names.
        config: of our model; rotary positions pair neighbours there, and the halves of a head here.
    """
    parts = [theirs[part] for part in their_names(name)]
    if ".attention.qkv." in name and config.positions != "none":
        rows = torch.arange(config.dim).view(config.num_heads, -1, 2).transpose(1, 2).flatten()
        parts[:2] = [part[rows] for part in parts[:2]]
    return torch.cat(parts)


def error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected number."""
    actual = actual.detach()
    return float((actual - expected).abs().max() / expected.abs().max())
