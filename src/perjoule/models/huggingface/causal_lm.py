"""What the four architectures have in common as Hugging Face models.

Notable:

- ``labels`` are Hugging Face's (column t has the token of column t); our models' are shifted already.
- Padding may be on either side of a row. It changes nothing for the tokens; its own logits are 0, and it is not judged.
- With ``use_cache`` the true cache comes back: a recurrent state, keys and values, or a context. Logits of more columns
  than the last are then a second computation, because our decoders form those of the next token only; ``generate`` asks
  for no more. Without it, and unless it is asked for, there is no cache.
- Tied weights are one parameter of one module in our models, so that nothing is to be tied here.
- While training with ``loss_chunk_rows``, the loss comes without logits: not to form them all is what that is for.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from perjoule.core.errors import ConfigError
from perjoule.core.labels import IGNORED
from perjoule.models.contract import Output
from perjoule.models.huggingface.cache import DecoderCache
from perjoule.models.huggingface.config import PerjouleConfig
from perjoule.models.huggingface.padding import Rows, shifted
from perjoule.models.layers.rope import RotaryTable

CODE = "modeling_perjoule"
IMPORT = '''"""perjoule's classes for `trust_remote_code=True`; perjoule must be installed."""

from perjoule.models.huggingface import {config}, {model}

__all__ = ["{config}", "{model}"]
'''


class PerjouleForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """One of our language models as a Hugging Face model; ``model`` is ours.

    Args:
        config: an instance, a path to a folder with a config.json or to such a file, or nothing for the defaults.

    Raises:
        ConfigError: if there is no such path, or the configuration is of another architecture.
    """

    config: PerjouleConfig
    config_class: type[PerjouleConfig]
    takes_gradients: ClassVar[bool] = False
    """Whether evaluation needs autograd."""
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _is_stateful = True  # what was read cannot be taken back, so that `generate` refuses assisted decoding

    def __init__(self, config: PerjouleConfig | str | Path | None = None) -> None:
        super().__init__(self._configuration(config))
        # Before there are weights, because it would draw them anew: our modules have drawn their own.
        self.post_init()  # type: ignore[no-untyped-call]
        self.model = self._build()

    @classmethod
    def _configuration(cls, config: PreTrainedConfig | str | Path | None) -> PreTrainedConfig:
        """Return an instance of the architecture's configuration class."""
        accepted = cls.config_class
        if config is None:
            return accepted()
        if isinstance(config, str | Path):
            if not Path(config).exists():
                raise ConfigError(
                    f"no configuration at {config}; accepted: a folder with a config.json, or such a file"
                )
            found = accepted.get_config_dict(config)[0]
            kind, where = found.get("model_type"), f"{config}: "
            config = accepted.from_dict(found) if kind == accepted.model_type else None
        else:
            kind, where = config.model_type, ""
        if not isinstance(config, accepted):
            raise ConfigError(
                f"{where}{cls.__name__} takes a configuration of model_type {accepted.model_type}, not {kind}"
            )
        return config

    def _build(self) -> Any:
        """Build our module; it draws its own weights."""
        own: Any = self.config.own
        return own.build({"vocab_size": self.config.vocab_size, "seq_len": self.config.seq_len})

    @classmethod
    def from_perjoule(
        cls,
        model: nn.Module,
        seq_len: int,
        bos_token_id: int | None = None,
        pad_token_id: int | None = None,
    ) -> Self:
        """Wrap a copy of a trained module.

        Args:
            model: ours, of this architecture.
            seq_len: the longest sequence of its data, in tokens.
            bos_token_id: the token before each document, which ends the one before as well.
            pad_token_id: the token of padding.

        Raises:
            ConfigError: if it is of another architecture.
        """
        source: Any = model
        kind = getattr(getattr(source, "config", None), "kind", None)
        if kind != cls.config_class.kind:
            raise ConfigError(f"{cls.__name__} wraps a model of kind {cls.config_class.kind}, not {kind}")
        own = source.config.model_dump(mode="json", exclude={"kind", "vocab_size"})
        config = cls.config_class(
            **own,
            vocab_size=source.vocab_size,
            seq_len=seq_len,
            bos_token_id=bos_token_id,
            eos_token_id=bos_token_id,
            pad_token_id=pad_token_id,
        )
        wrapped, weight = cls(config), next(source.parameters())
        wrapped.model.to(device=weight.device, dtype=weight.dtype)
        wanted = wrapped.model.state_dict()
        weights = {name: tensor for name, tensor in source.state_dict().items() if name in wanted}
        wrapped.model.load_state_dict(weights)
        wrapped.train(source.training)
        return wrapped

    def save_pretrained(self, save_directory: str | PathLike[Any], *arguments: Any, **named: Any) -> None:
        """Write config.json, model.safetensors, and code that lets AutoModel find perjoule without its being imported.

        Args:
            save_directory: the folder.
            arguments: as transformers accepts them.
            named: likewise.
        """
        names = {"config": self.config_class.__name__, "model": type(self).__name__}
        self.config.auto_map = {
            "AutoConfig": f"{CODE}.{names['config']}",
            "AutoModelForCausalLM": f"{CODE}.{names['model']}",
        }
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        (Path(save_directory) / f"{CODE}.py").write_text(IMPORT.format(**names), encoding="utf-8")
        super().save_pretrained(save_directory, *arguments, **named)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing: transformers would copy perjoule's source into every folder that is saved from now on."""

    def get_params(self) -> dict[str, Any]:
        """Return the hyperparameters that the model was built from."""
        return {
            "kind": self.config.kind,
            "vocab_size": self.config.vocab_size,
            "seq_len": self.config.seq_len,
            **{name: getattr(self.config, name) for name in self.config.own_fields()},
        }

    def forward(
        self,
        input_ids: Int[Tensor, "batch columns"],
        attention_mask: Int[Tensor, "batch so_far"] | Bool[Tensor, "batch so_far"] | None = None,
        past_key_values: DecoderCache | None = None,
        labels: Int[Tensor, "batch columns"] | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Compute logits, the loss if there are labels, and the cache if it is wanted.

        Args:
            input_ids: whole sequences; with ``past_key_values``, what follows the tokens that it has read.
            attention_mask: 1 for tokens, 0 for padding; with ``past_key_values`` of all tokens so far, these included.
            past_key_values: as returned before; changed in place.
            labels: the tokens of ``input_ids`` that count, -100 for the others.
            use_cache: return ``past_key_values``; padding is then to be on the left.
            return_dict: return a ``ModelOutput`` instead of a tuple; None is the configuration's.
            logits_to_keep: the last columns whose logits are returned; 0 is all.

        Raises:
            ConfigError: if the model has no position for a token; if the mask is not that of one stretch of tokens in
                each row, or pads on the right of what a cache is to be made from; if there are labels beside
                ``past_key_values``, or that is another library's cache; under ``torch.inference_mode()``
                if evaluation itself takes gradients.
        """
        if self.takes_gradients and torch.is_inference_mode_enabled():
            raise ConfigError(
                f"{type(self).__name__} takes a gradient in every forward pass, which torch.inference_mode() forbids; "
                "accepted: torch.no_grad()"
            )
        if past_key_values is not None:
            output = self._continue(input_ids, attention_mask, past_key_values, labels)
        else:
            rows = Rows.of(input_ids, attention_mask)
            if use_cache and labels is None and logits_to_keep == 1 and not torch.is_grad_enabled():
                next_logits, cache = self._read(input_ids, rows)
                output = CausalLMOutputWithPast(logits=next_logits[:, None], past_key_values=cache)
            else:
                output = self._whole(input_ids, rows, labels)
                if use_cache:
                    output.past_key_values = self._read(input_ids, rows)[1]
        if output.logits is not None and logits_to_keep:
            output.logits = output.logits[:, -logits_to_keep:]
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()

    def _whole(self, input_ids: Tensor, rows: Rows | None, labels: Tensor | None) -> CausalLMOutputWithPast:
        """Run whole sequences."""
        targets = None if labels is None else shifted(labels, rows)
        if rows is None:
            output = self._run(input_ids, targets)
            return CausalLMOutputWithPast(output.loss if labels is not None else None, output.logits)
        if targets is not None:
            longest = rows.take(targets)
            behind = torch.arange(longest.shape[1], device=longest.device) >= rows.lengths[:, None]
            targets = longest.masked_fill(behind, IGNORED)
        output = self._run(rows.take(input_ids), targets)
        logits = None if output.logits is None else rows.put_back(output.logits)
        return CausalLMOutputWithPast(output.loss if labels is not None else None, logits)

    def _run(self, input_ids: Tensor, targets: Tensor | None) -> Output:
        """Run our module on rows that begin in column 0; without targets the loss means nothing."""
        if targets is None:
            logits = self._logits(input_ids)
            return Output(logits.new_zeros(()), logits)
        with_logits = not (self.training and self.model.config.loss_chunk_rows is not None)
        output: Output = self.model({"input_ids": input_ids, "labels": targets}, with_logits=with_logits)
        return output

    def _logits(self, input_ids: Tensor) -> Tensor:
        """Run our module without asking for a loss."""
        logits: Tensor = self.model.logits(self.model.hidden(input_ids))
        return logits

    def _read(self, input_ids: Tensor, rows: Rows | None) -> tuple[Tensor, Any]:
        """Read prompts into a new cache."""
        if rows is not None and not rows.end_together:
            raise ConfigError("a cache needs prompts that end together: pad them on the left (padding_side='left')")
        logits, inner = self.model.prefill(input_ids, None if rows is None else rows.mask)
        return logits, DecoderCache(inner, input_ids.shape[1])

    def _continue(
        self, input_ids: Tensor, attention_mask: Tensor | None, cache: Any, labels: Tensor | None
    ) -> CausalLMOutputWithPast:
        """Read more tokens of each row, one column after another."""
        if not isinstance(cache, DecoderCache):
            raise ConfigError(
                f"past_key_values is a {type(cache).__name__}; accepted: None, or what {type(self).__name__} returned"
            )
        if labels is not None:
            raise ConfigError("labels need whole sequences: a loss beside past_key_values would have no gradient")
        columns = input_ids.shape[1]
        if attention_mask is not None and not bool(attention_mask[:, -columns:].all()):
            raise ConfigError(
                "attention_mask pads tokens behind those of past_key_values; accepted: padding before them"
            )
        logits = []
        for token in input_ids.unbind(1):
            next_logits, cache.inner = self.model.decode(token, cache.inner)
            logits.append(next_logits)
        cache.num_tokens += columns
        return CausalLMOutputWithPast(
            logits=torch.stack(logits, 1),
            past_key_values=cache,  # type: ignore[arg-type]  # it has what is asked for, and is no list of layers
        )

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of tokens."""
        embedding: nn.Module = self.model.embedding
        return embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding of tokens."""
        self.model.embedding = value

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the output matrix; None if it is the embedding."""
        output: nn.Module | None = self.model.output
        return output

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the output matrix."""
        self.model.output = new_embeddings

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Add rows to the embedding and to the output matrix, or take some away; see transformers.

        Args:
            new_num_tokens: rows; None is as many as there are.
            pad_to_multiple_of: round that up to a multiple.
            mean_resizing: draw new rows about the mean of the old ones.
        """
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.model.vocab_size = self.config.vocab_size
        return embedding

    def _init_weights(self, module: nn.Module) -> None:
        """Fill what no checkpoint has: tables of positions, and any weights that it lacks, as transformers would."""
        if isinstance(module, RotaryTable):
            module.to(device=module.table.device, dtype=self.dtype)  # makes the table anew
        else:
            super()._init_weights(module)  # type: ignore[no-untyped-call]

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Let ``generate`` begin without a cache, so that the first forward pass makes ours."""
        return False
