"""Compare our Energy-Based Transformers with numbers of alexiglad/EBT: language models and image denoising."""

import ast
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from perjoule.models.ebt import EBT, EBTConfig
from perjoule.models.ebt_denoiser import EBTDenoiser, EBTDenoiserConfig
from perjoule.models.thinking import ThinkingConfig

Tensors = Mapping[str, Tensor]
Errors = list[tuple[str, float]]

UNSUPPORTED = {
    "reconstruction_coeff": 1.0,
    "normalize_initial_condition": True,
    "normalize_initial_condition_only_first_step": False,
    "clamp_futures_grad": False,
    "absolute_clamp": 0.0,
    "sharpen_predicted_distribution": 0.0,
    "num_modality_processing_mlp_layers": 1,
    "discrete_contrastive_loss_true_logit_val": 0,
    "ebt_norm": "rms",
    "ebt_act_func": "silu",
    "langevin_dynamics_noise": 0.0,
}
"""Flags with the one value that we implement, or whose numbers would be random."""


def compare(tensors: Tensors, metadata: Mapping[str, str]) -> Errors:
    """Return every compared number's name and its largest error, relative to the largest of its tensor.

    Ours is computed in float64, so that what is left is the rounding of the file. Three steps without detaching amplify
    that of float32 to 2e-4 of a gradient, 5e-5 of which is in the file.

    Raises:
        ValueError: if the file was made with a flag that is not implemented here.
    """
    tensors = {name: x.double() if x.is_floating_point() else x for name, x in tensors.items()}
    if "noisy_image" in tensors:
        return _compare_denoiser(tensors, ast.literal_eval(metadata["config"]))
    return _compare_language_model(tensors, ast.literal_eval(metadata["hparams"]))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    theirs = theirs.reshape(ours.shape)
    return ((ours.detach() - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()


def _num_steps(tensors: Tensors, prefix: str) -> int:
    return sum(name.startswith(prefix) for name in tensors)


def _weights(tensors: Tensors, prefix: str = "weights.") -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _halves(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder rows from neighbouring pairs, as rotated in Llama's first release, to two halves."""
    return weight.view(num_heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _ours(theirs: Tensors, num_layers: int, num_heads: int) -> dict[str, Tensor]:
    """Return their language model's tensors under our names."""
    ours = {"embedding.weight": theirs["embeddings.weight"], "body.norm.weight": theirs["transformer.norm.weight"]}
    if "vocab_to_embed.weight" in theirs:
        ours["candidate_embedding.weight"] = theirs["vocab_to_embed.weight"].t()
    if "transformer.time_embeddings.weight" in theirs:
        ours["body.landscapes.weight"] = theirs["transformer.time_embeddings.weight"]
    plain = "transformer.final_layer.weight"
    ours["body.head.weight"] = theirs[plain if plain in theirs else "transformer.final_layer.linear.weight"]
    for part in ("weight", "bias"):
        name = f"transformer.final_layer.adaLN_modulation.1.{part}"
        if name in theirs:
            ours[f"body.modulation.linear.{part}"] = theirs[name]
    for layer in range(num_layers):
        block, target = f"transformer.layers.{layer}.", f"body.blocks.{layer}."
        q, k, v = (theirs[f"{block}attention.w{name}.weight"] for name in "qkv")
        ours[f"{target}attention.qkv.weight"] = torch.cat((_halves(q, num_heads), _halves(k, num_heads), v))
        ours[f"{target}attention.output.weight"] = theirs[f"{block}attention.wo.weight"]
        gate, down, up = (theirs[f"{block}feed_forward.w{number}.weight"] for number in (1, 2, 3))
        ours[f"{target}ffn.gate_up.weight"], ours[f"{target}ffn.down.weight"] = torch.cat((gate, up)), down
        for norm in ("attention_norm", "ffn_norm"):
            ours[f"{target}{norm}.weight"] = theirs[f"{block}{norm}.weight"]
        for part in ("weight", "bias"):
            name = f"{block}adaLN_modulation.1.{part}"
            if name in theirs:
                ours[f"{target}modulation.linear.{part}"] = theirs[name]
    return ours


def _language_config(tensors: Tensors, flags: Mapping[str, object]) -> EBTConfig:
    for name, accepted in UNSUPPORTED.items():
        if flags.get(name, accepted) != accepted:
            raise ValueError(f"{name}={flags[name]!r} is not implemented; accepted: {accepted!r}")
    steps = _num_steps(tensors, "logits.step")
    truncated = bool(flags.get("truncate_mcmc", False))
    through = "none" if flags.get("no_mcmc_detach", False) else "all"
    landscapes = tensors.get("weights.transformer.time_embeddings.weight")
    return EBTConfig(
        dim=tensors["weights.embeddings.weight"].shape[1],
        num_layers=int(str(flags["num_transformer_blocks"])),
        num_heads=int(str(flags["multiheaded_attention_heads"])),
        ffn_dim=tensors["weights.transformer.layers.0.feed_forward.w1.weight"].shape[0],
        variant=str(flags["ebt_type"]),
        tie_candidates="weights.vocab_to_embed.weight" not in tensors,
        thinking=ThinkingConfig(
            steps=steps,
            landscapes=None if landscapes is None else len(landscapes),
            detach="last-1" if truncated else through,
            loss_on="last" if truncated else "all",
            step_size=float(tensors["weights.alpha"]),
            contrastive=float(str(flags["contrastive_loss_coeff"])) if flags.get("contrastive_loss") else 0.0,
            soft_targets=float(str(flags.get("soften_target_prob_dist", 0.0))),
        ),
    )


def _compare_language_model(tensors: Tensors, flags: Mapping[str, object]) -> Errors:
    config = _language_config(tensors, flags)
    input_ids, start = tensors["input_ids"].long(), tensors["initial_candidates"]
    tokens, labels = input_ids[:, :-1], input_ids[:, 1:]
    labels = labels.masked_fill(labels == 0, -100)  # their padding
    model = EBT(config, start.shape[-1], tokens.shape[1])
    model.double().load_state_dict(_ours(_weights(tensors), config.num_layers, config.num_heads), strict=False)
    energy = model.energy(tokens)
    path = model.think(energy, start, last_state=True)
    output = model({"input_ids": tokens, "labels": labels}, start=start)
    output.loss.backward()
    errors = []
    for number, (step, state) in enumerate(zip(path.steps, path.states, strict=True)):
        errors.append((f"energies.step{number}", relative_error(step.energy, tensors[f"energies.step{number}"])))
        errors.append((f"logits.step{number}", relative_error(state, tensors[f"logits.step{number}"])))
    found = {name: output.metrics[name] for name in ("initial_loss", "energy_gap")}
    found |= {"loss": output.loss, "final_step_loss": output.metrics["final_loss"]}
    errors += [(name, relative_error(value.detach(), tensors[name])) for name, value in found.items()]
    gradients = _weights(tensors, "grad.")
    theirs = _ours(gradients, config.num_layers, config.num_heads)
    errors += _gradient_errors(model, theirs)
    if "alpha" in gradients:  # theirs is of α, ours of α in units of the first α
        assert model.step_size_factor.grad is not None
        ours = model.step_size_factor.grad / model.initial_step_size
        errors.append(("grad.step_size", relative_error(ours, gradients["alpha"])))
    return errors


def _gradient_errors(model: nn.Module, theirs: Tensors) -> Errors:
    """Compare every gradient; one of ours without a counterpart must not be needed."""
    errors = []
    for name, parameter in model.named_parameters():
        if name in theirs:
            ours = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            errors.append((f"grad.{name}", relative_error(ours, theirs[name])))
    assert len(errors) == len(theirs), f"not compared: {theirs.keys() - {name[5:] for name, _ in errors}}"
    return errors


DENOISER_NAMES = {
    "x_embedder.proj": "patches",
    "final_layer.linear": "head",
    "final_layer.adaLN_modulation.1": "modulation.linear",
    "attn.qkv": "qkv",
    "attn.proj": "output",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
    "adaLN_modulation.1": "modulation.linear",
}


def _denoiser_name(name: str) -> str:
    for theirs, ours in DENOISER_NAMES.items():
        if theirs in name:
            return name.replace(theirs, ours)
    return name


def _compare_denoiser(tensors: Tensors, sizes: Mapping[str, float]) -> Errors:
    weights = {_denoiser_name(name): tensor for name, tensor in _weights(tensors).items()}
    config = EBTDenoiserConfig(
        dim=int(sizes["hidden_size"]),
        num_layers=int(sizes["depth"]),
        num_heads=int(sizes["num_heads"]),
        ffn_dim=len(weights["blocks.0.up.weight"]),
        patch_size=int(sizes["patch_size"]),
        steps=_num_steps(tensors, "image.step"),
        step_size=sizes["step_size"],
    )
    model = EBTDenoiser(config, int(sizes["input_size"]), int(sizes["in_channels"]))
    errors = [("positions", relative_error(model.positions, weights.pop("pos_embed")[0]))]
    model.double().load_state_dict(weights | {"condition": tensors["condition"]})
    path = model.think(tensors["noisy_image"])
    for number, (step, state) in enumerate(zip(path.steps, path.states, strict=True)):
        errors.append((f"energy.step{number}", relative_error(step.energy, tensors[f"energy.step{number}"])))
        errors.append((f"image.step{number}", relative_error(state, tensors[f"image.step{number}"])))
    output = model({"noisy": tensors["noisy_image"], "clean": tensors["target"]})
    output.loss.backward()
    errors.append(("loss", relative_error(output.loss.detach(), tensors["loss"])))
    theirs = {_denoiser_name(name): tensor for name, tensor in _weights(tensors, "grad.").items()}
    return errors + _gradient_errors(model, theirs)
