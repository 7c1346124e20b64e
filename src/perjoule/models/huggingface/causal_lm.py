"""What the four architectures compute as Hugging Face models.

Notable:

- ``labels`` are Hugging Face's (column t has the token of column t); our models' are shifted already.
- Padding may be anywhere in a row. It changes nothing for the tokens and is not judged. Behind tokens it has their last
  one's logits, so that generation goes on from there, and in front of them 0.
- With ``use_cache`` the true cache comes back: a recurrent state, keys and values, or a context. Logits of more columns
  than the last are then a second computation, because our decoders form those of the next token only; ``generate`` asks
  for no more. Without it, and unless it is asked for, there is no cache.
- While training with ``loss_chunk_rows``, the loss comes without logits: not to form them all is what that is for.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from perjoule.core.errors import ConfigError
from perjoule.core.labels import IGNORED
from perjoule.models.contract import Output
from perjoule.models.huggingface.arguments import (
    check_arguments,
    check_generation,
    check_gradients,
    check_labels,
    kept_logits,
    tokens_of,
)
from perjoule.models.huggingface.cache import DecoderCache
from perjoule.models.huggingface.hidden_states import hidden_states
from perjoule.models.huggingface.padding import Rows, documents_of, targets_of
from perjoule.models.huggingface.pretrained import PerjoulePreTrainedModel


def divided(loss: Tensor | None, targets: Tensor | None, num_items: Tensor | int | None) -> Tensor | None:
    """Return the mean over judged tokens as their sum divided by another number, as gradient accumulation needs it.

    Args:
        loss: the mean over the targets that count.
        targets: -100 does not count.
        num_items: what to divide the sum by; None leaves the mean.
    """
    if loss is None or targets is None or num_items is None:
        return loss
    whole = num_items.to(loss.device) if isinstance(num_items, Tensor) else torch.tensor(num_items, device=loss.device)
    return loss * ((targets != IGNORED).sum() / whole.clamp(min=1))


class PerjouleForCausalLM(PerjoulePreTrainedModel):  # type: ignore[no-untyped-call]
    """One of our language models; an architecture adds its configuration and transformers' ``GenerationMixin``."""

    def __init_subclass__(cls, **named: Any) -> None:
        """Make the class known as a causal language model, so that the Trainer shifts labels that it smooths."""
        super().__init_subclass__(**named)  # type: ignore[no-untyped-call]
        # It looks the class's name up in this table; the keys are model types of transformers itself, and never ours.
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[f"{cls.__module__}.{cls.__qualname__}"] = cls.__name__

    def generate(self, inputs: Tensor | None = None, *arguments: Any, **named: Any) -> Any:
        """Write behind prompts; see transformers.

        Args:
            inputs: (batch, columns) the prompts.
            arguments: as transformers accepts them.
            named: likewise.

        Raises:
            ConfigError: if the model has fewer positions than tokens asked for, or another kind of cache is.
        """
        check_generation(type(self).__name__, self.config.num_positions, inputs, named)
        return super().generate(inputs, *arguments, **named)  # type: ignore[misc]

    def forward(
        self,
        input_ids: Int[Tensor, "batch columns"] | None = None,
        attention_mask: Int[Tensor, "batch so_far"] | Bool[Tensor, "batch so_far"] | None = None,
        position_ids: Int[Tensor, "#batch columns"] | None = None,
        past_key_values: DecoderCache | None = None,
        inputs_embeds: Float[Tensor, "batch columns dim"] | None = None,
        labels: Int[Tensor, "batch columns"] | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Int[Tensor, " kept"] = 0,
        **named: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Compute logits, the loss if there are labels, and the cache if it is wanted.

        Args:
            input_ids: whole sequences; with ``past_key_values``, what follows the tokens that it has read.
            attention_mask: 1 for tokens, 0 for padding; with ``past_key_values`` of all tokens so far, these included.
            position_ids: of the columns; a document begins wherever they start again at 0, and sees no other.
            past_key_values: as returned before; changed in place.
            inputs_embeds: in place of ``input_ids``, what the embedding would make of them.
            labels: the tokens of ``input_ids`` that count, -100 for the others.
            use_cache: return ``past_key_values``.
            output_attentions: refused, because no model forms them.
            output_hidden_states: return the residual stream (EBT: of its last candidates) around each block.
            return_dict: return a ``ModelOutput`` instead of a tuple; None is the configuration's, as above.
            logits_to_keep: the last columns whose logits are returned, or these columns; 0 is all.
            named: ``num_items_in_batch``, which divides the summed loss in place of the number of judged tokens;
                ``shift_labels``, labels that are shifted already. What else transformers may send is ignored.

        Raises:
            ConfigError: if positions, the mask or labels are not those of a text, or there are more than the model
                has positions; if ``past_key_values`` comes with labels or from another library; if an argument is
                unknown; under ``torch.inference_mode()`` if evaluation itself takes gradients.
        """
        check_gradients(type(self).__name__, self.takes_gradients)
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        check_arguments(type(self).__name__, named, attentions)
        tokens = tokens_of(input_ids, inputs_embeds)
        wanted = bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)
        if past_key_values is not None:
            output = self._continue(tokens, attention_mask, past_key_values, labels, wanted)
        else:
            rows = Rows.of(attention_mask, *tokens.shape[:2])
            documents = None if position_ids is None else documents_of(position_ids, len(tokens), rows)
            targets = self._targets(tokens, rows, labels, named)
            if use_cache and documents is not None:
                raise ConfigError("there is no cache of several documents; accepted: use_cache=False")
            needs_all = wanted or targets is not None or torch.is_grad_enabled()
            if use_cache and not needs_all and isinstance(logits_to_keep, int) and logits_to_keep == 1:
                output = self._read_prompt(tokens, rows)
            else:
                output = self._whole(tokens, rows, documents, targets, wanted)
                output.loss = divided(output.loss, targets, named.get("num_items_in_batch"))
                if use_cache:
                    output.past_key_values = self._read(tokens, rows)[1]  # type: ignore[assignment]
        output.logits = kept_logits(output.logits, logits_to_keep)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _read_prompt(self, tokens: Tensor, rows: Rows | None) -> CausalLMOutputWithPast:
        """Read a prompt in one pass: its cache, and the logits of the last token only."""
        next_logits, cache = self._read(tokens, rows)
        return CausalLMOutputWithPast(logits=next_logits[:, None], past_key_values=cache)  # type: ignore[arg-type]

    def _targets(
        self, tokens: Tensor, rows: Rows | None, labels: Tensor | None, named: Mapping[str, Any]
    ) -> Tensor | None:
        """Return what is to be predicted from each token, if anything is."""
        shifted = named.get("shift_labels")
        judged = labels if shifted is None else shifted
        if judged is None:
            return None
        # PEFT leaves its configurations at the model that it changes.
        check_labels(type(self).__name__, judged, tokens, getattr(self, "peft_config", {}))
        return targets_of(judged.to(tokens.device), rows, shifted is not None)

    def _whole(
        self, tokens: Tensor, rows: Rows | None, documents: Tensor | None, targets: Tensor | None, with_states: bool
    ) -> CausalLMOutputWithPast:
        """Run whole sequences; targets and documents are those of rows that begin in column 0."""
        with hidden_states(self, with_states) as states:
            output = self._run(tokens if rows is None else rows.begin_together(tokens), targets, documents)
        logits = output.logits
        if rows is not None:
            logits = None if logits is None else rows.put_back(logits)
            states = [rows.put_back(state) for state in states]
        return CausalLMOutputWithPast(
            loss=None if targets is None else output.loss,
            logits=logits,
            hidden_states=tuple(states) if with_states else None,
        )

    def _run(self, tokens: Tensor, targets: Tensor | None, documents: Tensor | None) -> Output:
        """Run our module on rows that begin in column 0; without targets the loss means nothing."""
        if targets is None:
            logits = self._logits(tokens, documents)
            return Output(logits.new_zeros(()), logits)
        with_logits = not (self.training and self.model.config.loss_chunk_rows is not None)
        tensors = {"input_ids": tokens, "labels": targets}
        if documents is not None:
            tensors["documents"] = documents
        output: Output = self.model(tensors, with_logits=with_logits)
        return output

    def _logits(self, tokens: Tensor, documents: Tensor | None) -> Tensor:
        """Run our module without asking for a loss."""
        logits: Tensor = self.model.logits(self.model.hidden(tokens, documents=documents))
        return logits

    def _read(self, tokens: Tensor, rows: Rows | None) -> tuple[Tensor, DecoderCache]:
        """Read prompts into a new cache; what is padding, wherever it stands, is not read."""
        if rows is None:
            logits, inner = self.model.prefill(tokens)
        else:
            logits, inner = self.model.prefill(rows.end_together(tokens), rows.left_padded)
        return logits, DecoderCache(inner, tokens.shape[1])

    def _continue(
        self, tokens: Tensor, attention_mask: Tensor | None, cache: Any, labels: Tensor | None, with_states: bool
    ) -> CausalLMOutputWithPast:
        """Read more tokens of each row, one column after another."""
        if not isinstance(cache, DecoderCache):
            raise ConfigError(
                f"past_key_values is a {type(cache).__name__}; accepted: None, or what {type(self).__name__} returned"
            )
        if labels is not None:
            raise ConfigError("labels need whole sequences: a loss beside past_key_values would have no gradient")
        if tokens.ndim != 2:
            raise ConfigError("past_key_values go on with tokens; accepted: input_ids, not inputs_embeds")
        columns = tokens.shape[1]
        if attention_mask is not None and not bool(attention_mask[:, -columns:].all()):
            raise ConfigError(
                "attention_mask pads tokens behind those of past_key_values; accepted: padding before them"
            )
        logits, found = [], []
        for token in tokens.unbind(1):
            with hidden_states(self, with_states) as states:
                next_logits, cache.inner = self.model.decode(token, cache.inner)
            logits.append(next_logits)
            found.append(states)
        cache.num_tokens += columns
        return CausalLMOutputWithPast(
            logits=torch.stack(logits, 1),
            past_key_values=cache,  # type: ignore[arg-type]  # it has what is asked for, and is no list of layers
            hidden_states=tuple(torch.cat(layer, 1) for layer in zip(*found, strict=True)) if with_states else None,
        )

    def blocks_and_norm(self) -> tuple[Sequence[nn.Module], nn.Module, str | None]:
        """Return the blocks, the norm behind them, and which stream to watch where blocks serve several."""
        return self.model.blocks, self.model.norm, None
