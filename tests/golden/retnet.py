"""Compare RetNet with files of kind ``retnet_torchscale``: weights, logits of every form, loss and its gradients.

torchscale (MIT) computed the numbers; none of its code is here. Its names and ours:

    layers.i.retention.{q,k,v,g}_proj   rows of blocks.i.retention.qkvg; within a head of q and k it rotates neighbours,
                                        we rotate element j with element j + head_dim/2
    layers.i.ffn.{fc1,gate}, fc2        rows of blocks.i.ffn.gate_up, and down
    retnet_rel_pos.{decay,angle}        no weights: ln γ by head, and each angle twice
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any, cast, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from perjoule.models.layers.retention import Form, Retention, Schedule, log_decays
from perjoule.models.retnet import RetNet, RetNetConfig

FUNCTION = {
    "decoder_normalize_before": "True",
    "deepnorm": "False",
    "layernorm_embedding": "False",
    "moe_freq": "0",
    "multiway": "False",
    "no_output_layer": "False",
}
"""Flags that change the function, with the only value for which it is ours."""

ACTIVATIONS = {"gelu": "gelu", "swish": "silu", "silu": "silu"}
FORMS: tuple[Form, ...] = get_args(Form)
CHUNK_LEN = 13
"""Of our chunkwise form: divides next to no length."""


def compare(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> list[tuple[str, float]]:
    """Return the name of each compared tensor and its error, max |ours - theirs| / max |theirs|.

    Args:
        tensors: all of the file.
        metadata: of the file; ``config`` is torchscale's, as a dictionary of strings.

    Raises:
        ValueError: if the file needs something that RetNet has not.
    """
    theirs = {name: torch.as_tensor(value) for name, value in tensors.items()}
    flags = ast.literal_eval(metadata["config"])
    for flag, value in FUNCTION.items():
        if flags.get(flag, value) != value:
            raise ValueError(f"{flag} is {flags[flag]}; only {value} is the function of perjoule's RetNet")
    model = build(theirs, flags)
    gradients = translated(part(theirs, "grad."), flags, scale_by=-1) if "loss" in theirs else {}
    input_ids = theirs["input_ids"]
    errors, logits = [], {}
    for form in FORMS:
        for module in model.modules():
            if isinstance(module, Retention):
                module.form, module.chunk_len = form, CHUNK_LEN
        logits[form] = model({"input_ids": input_ids, "labels": input_ids}, with_logits=True).logits
        # Their chunkwise logits are of another function (layers/retention.py says which); ours are of the same.
        published = "recurrent" if form == "recurrent" else "parallel"
        errors.append((f"logits.{published}, {form}", error(logits[form], theirs[f"logits.{published}"])))
        if gradients:
            loss = F.cross_entropy(logits[form][:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
            model.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            errors.append((f"loss, {form}", error(loss, theirs["loss"])))
            for name, weight in model.named_parameters():
                errors.append((f"grad of {name}, {form}", error(weight.grad, gradients[name])))
    errors.append(("logits.recurrent, decoded", error(decoded(model, input_ids), theirs["logits.recurrent"])))
    errors.append(("our parallel logits, chunkwise", error(logits["chunkwise"], logits["parallel"])))
    return [*errors, ("retnet_rel_pos.angle", angle_error(theirs, model.config))]


def decoded(model: RetNet, input_ids: Tensor) -> Tensor:
    """Return the logits behind every token, read one at a time after a prompt of a single one."""
    logits, cache = model.prefill(input_ids[:, :1])
    steps = [logits]
    for token in input_ids.T[1:]:
        logits, cache = model.decode(token, cache)
        steps.append(logits)
    return torch.stack(steps, dim=1)


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def error(ours: Tensor | None, theirs: Tensor) -> float:
    """Return the largest difference as a share of the largest number."""
    assert ours is not None
    return float((ours - theirs.reshape(ours.shape)).abs().max() / theirs.abs().max().clamp(min=1e-30))


def build(theirs: Mapping[str, Tensor], flags: Mapping[str, str]) -> RetNet:
    """Return a model of the file's sizes that has the file's weights."""
    weights = part(theirs, "weights.")
    num_heads = int(flags["decoder_retention_heads"])
    vocab_size, dim = weights["embed_tokens.weight"].shape
    config = RetNetConfig.model_validate(
        {
            "dim": dim,
            "num_heads": num_heads,
            "num_layers": int(flags["decoder_layers"]),
            "value_dim": int(flags["decoder_value_embed_dim"]),
            "ffn_dim": int(flags["decoder_ffn_embed_dim"]),
            "activation": ACTIVATIONS[flags["activation_fn"]],
            "norm_eps": float(flags["layernorm_eps"]),
            "decay": schedule(weights["retnet_rel_pos.decay"], num_heads),
            "tie_embeddings": "output_projection.weight" not in weights,
        }
    )
    model = config.build({"vocab_size": vocab_size, "seq_len": theirs["input_ids"].shape[1]})
    model.load_state_dict(translated(weights, flags, scale_by=1))
    return model


def schedule(decay: Tensor, num_heads: int) -> Schedule:
    """Return the name of a decay schedule from its ln γ."""
    for name in get_args(Schedule):
        if torch.allclose(decay.double(), torch.tensor(log_decays(num_heads, name)).double(), rtol=1e-3, atol=1e-7):
            return cast(Schedule, name)
    raise ValueError(f"no decay schedule of perjoule has ln γ = {decay.tolist()}")


def translated(tensors: Mapping[str, Tensor], flags: Mapping[str, str], scale_by: int) -> dict[str, Tensor]:
    """Return torchscale's weights, or their gradients, under our names.

    Args:
        tensors: by torchscale's names.
        flags: torchscale's configuration.
        scale_by: 1 for weights, which take in what torchscale multiplies embeddings with, and -1 for gradients.
    """
    left = {name: value for name, value in tensors.items() if not name.startswith("retnet_rel_pos.")}
    num_heads = int(flags["decoder_retention_heads"])
    embedding = left.pop("embed_tokens.weight")
    scale = 1.0 if flags.get("no_scale_embedding") == "True" else embedding.shape[1] ** 0.5
    ours = {"embedding.weight": embedding * scale**scale_by, "norm.weight": left.pop("layer_norm.weight")}
    if "output_projection.weight" in left:
        ours["output.weight"] = left.pop("output_projection.weight")
    elif scale != 1:
        raise ValueError("embeddings that are scaled and tied to the output are no function of perjoule's RetNet")
    for layer in range(int(flags["decoder_layers"])):
        old, new = f"layers.{layer}.", f"blocks.{layer}."
        q, k, v, g = (left.pop(f"{old}retention.{letter}_proj.weight") for letter in "qkvg")
        ours[f"{new}retention.qkvg.weight"] = torch.cat((apart(q, num_heads), apart(k, num_heads), v, g))
        ours[f"{new}retention.output.weight"] = left.pop(f"{old}retention.out_proj.weight")
        ours[f"{new}retention_norm.weight"] = left.pop(f"{old}retention_layer_norm.weight")
        ours[f"{new}ffn_norm.weight"] = left.pop(f"{old}final_layer_norm.weight")
        fc1, up = (left.pop(f"{old}ffn.{name}.weight") for name in ("fc1", "gate"))
        ours[f"{new}ffn.gate_up.weight"] = torch.cat((fc1, up))
        ours[f"{new}ffn.down.weight"] = left.pop(f"{old}ffn.fc2.weight")
    if left:
        raise ValueError(f"weights that perjoule's RetNet has not: {', '.join(sorted(left))}")
    return ours


def apart(rows: Tensor, num_heads: int) -> Tensor:
    """Reorder the rows of each head: first those of even number, then those of odd number."""
    pairs = rows.view(num_heads, -1, 2, rows.shape[1])
    return pairs.transpose(1, 2).reshape(rows.shape)


def angle_error(theirs: Mapping[str, Tensor], config: RetNetConfig) -> float:
    """Compare the angles per position."""
    angles = config.rope_theta ** -torch.linspace(0, 1, config.head_dim // 2)
    return error(angles.repeat_interleave(2), theirs["weights.retnet_rel_pos.angle"])
