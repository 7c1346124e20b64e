"""Arguments of ``forward`` and ``generate``: accepted, ignored as they mean nothing, or refused in one line."""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perjoule.core.errors import ConfigError

LOSS_ARGUMENTS = frozenset({"num_items_in_batch", "shift_labels"})
IGNORED_ARGUMENTS = frozenset(
    # What transformers, its collators and its tokenizers send along, and what says no more than position_ids do.
    "cache_position token_type_ids is_first_iteration next_sequence_length output_router_logits "
    "cu_seq_lens_q cu_seq_lens_k max_length_q max_length_k seq_idx tokenizer assistant_tokenizer".split()
)
LANGUAGE_TASKS = frozenset({"CAUSAL_LM", "FEATURE_EXTRACTION"})
"""PEFT's task types of which a language model's labels are right."""


def check_gradients(name: str, takes_gradients: bool) -> None:
    """Refuse ``torch.inference_mode()`` for a model whose evaluation takes gradients.

    Raises:
        ConfigError: if it does, under that mode.
    """
    if takes_gradients and torch.is_inference_mode_enabled():
        raise ConfigError(
            f"{name} takes a gradient in every forward pass, which torch.inference_mode() forbids; "
            "accepted: torch.no_grad()"
        )


def check_arguments(name: str, named: Mapping[str, Any], attentions: bool | None) -> None:
    """Refuse what no model can do.

    Args:
        name: of the class, for the message.
        named: arguments of ``forward`` that its signature does not name.
        attentions: whether attention matrices are asked for.

    Raises:
        ConfigError: if they are, or if an argument that is not None is unknown.
    """
    if attentions:
        raise ConfigError(
            f"output_attentions: {name} never forms a matrix of attention; accepted: False, or output_hidden_states"
        )
    for argument, value in named.items():
        if value is not None and argument not in LOSS_ARGUMENTS and argument not in IGNORED_ARGUMENTS:
            raise ConfigError(
                f"{name} has no use for the argument {argument}; accepted: those of forward, "
                f"{', '.join(sorted(LOSS_ARGUMENTS))}"
            )


def check_labels(name: str, labels: Tensor, tokens: Tensor, adapters: Mapping[str, Any]) -> None:
    """Refuse labels that are not those of a language model.

    Args:
        name: of the class, for the message.
        labels: as they were given.
        tokens: of the input.
        adapters: PEFT's configurations by their names.

    Raises:
        ConfigError: if their shape is not that of the tokens, or an adapter has another task.
    """
    for adapter in adapters.values():
        task = getattr(adapter.task_type, "value", adapter.task_type)
        if task is not None and task not in LANGUAGE_TASKS:
            raise ConfigError(
                f"{name} learns the next token only, and cannot learn a PEFT task_type {task}; "
                f"accepted: {', '.join(sorted(LANGUAGE_TASKS))}"
            )
    if labels.shape != tokens.shape[:2]:
        raise ConfigError(
            f"labels have shape {tuple(labels.shape)}; accepted: that of the tokens, {tuple(tokens.shape[:2])}"
        )


def tokens_of(
    input_ids: Int[Tensor, "batch columns"] | None, inputs_embeds: Float[Tensor, "batch columns dim"] | None
) -> Tensor:
    """Return the one that is given.

    Raises:
        ConfigError: if none is, or both.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ConfigError("a forward pass takes input_ids or inputs_embeds, one of them")
    tokens = input_ids if inputs_embeds is None else inputs_embeds
    assert tokens is not None
    return tokens


def kept_logits(
    logits: Float[Tensor, "batch columns vocab"] | None, logits_to_keep: int | Int[Tensor, " kept"]
) -> Float[Tensor, "batch kept vocab"] | None:
    """Return the logits of the last columns, or of these columns; 0 is all."""
    if logits is None or (isinstance(logits_to_keep, int) and logits_to_keep == 0):
        return logits
    return logits[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else logits[:, logits_to_keep]


def check_generation(name: str, num_positions: int | None, inputs: Tensor | None, named: Mapping[str, Any]) -> None:
    """Refuse, before a token is written, what generation would run into later or ignore.

    Args:
        name: of the class, for the message.
        num_positions: of the model; None if there is no last one.
        inputs: the prompts.
        named: arguments of ``generate``.

    Raises:
        ConfigError: if there are fewer positions than tokens asked for, or another kind of cache is.
    """
    settings = named.get("generation_config")
    kind = named.get("cache_implementation", getattr(settings, "cache_implementation", None))
    if kind not in {None, "dynamic"}:
        raise ConfigError(
            f"cache_implementation {kind}: {name} has a cache of its own, which grows; accepted: None, use_cache=False"
        )
    new = named.get("max_new_tokens", getattr(settings, "max_new_tokens", None))
    prompt = next(
        (one for one in (inputs, named.get("input_ids"), named.get("inputs_embeds")) if one is not None), None
    )
    if num_positions is None or new is None or prompt is None:
        return
    mask = named.get("attention_mask")
    tokens = prompt.shape[1] if mask is None else int(mask.sum(1).max())
    # The last token is written and not read.
    if tokens <= num_positions < tokens + new - 1:
        raise ConfigError(
            f"max_new_tokens {new} behind a prompt of {tokens} tokens does not fit the model, which was built for "
            f"seq_len {num_positions}; accepted: up to {num_positions - tokens + 1}"
        )
