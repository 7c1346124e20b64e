"""What the four architectures have in common before they compute anything: building, loading, saving, embeddings.

Tied weights are one parameter of one module in our models, so that nothing is to be tied here.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from perjoule.core.errors import ConfigError
from perjoule.models.huggingface.config import PerjouleConfig
from perjoule.models.huggingface.source import CODE, write_code
from perjoule.models.layers.norm import RMSNorm
from perjoule.models.layers.rope import RotaryTable


class PerjoulePreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """One of our models as transformers builds, loads and saves them; ``model`` is ours.

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
    checkpointed: ClassVar[Mapping[type[nn.Module], type[nn.Module]]] = {}
    """Blocks, and what they become so that transformers can compute their activations again."""
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _is_stateful = True  # what was read cannot be taken back, so that `generate` refuses assisted decoding

    def __init__(self, config: PerjouleConfig | str | Path | None = None) -> None:
        super().__init__(self._configuration(config))
        checkpointing = self.config.__dict__.pop("gradient_checkpointing", False)  # its blocks are not there yet
        # Before there are weights, because it would draw them anew: our modules have drawn their own.
        self.post_init()  # type: ignore[no-untyped-call]
        self.model = self._build()
        for block in self.model.modules():
            block.__class__ = self.checkpointed.get(type(block), type(block))
        if checkpointing:
            self._set_gradient_checkpointing()

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
        # Whoever says nothing, as pipelines do, gets what the positions hold.
        wrapped.generation_config.max_length = config.num_positions
        wrapped.model.to(device=weight.device, dtype=weight.dtype)
        wanted = wrapped.model.state_dict()
        weights = {name: tensor for name, tensor in source.state_dict().items() if name in wanted}
        wrapped.model.load_state_dict(weights)
        wrapped.train(source.training)
        return wrapped

    def save_pretrained(self, save_directory: str | PathLike[Any], *arguments: Any, **named: Any) -> None:
        """Write config.json, model.safetensors, and the code that ``trust_remote_code`` runs.

        Args:
            save_directory: the folder.
            arguments: as transformers accepts them.
            named: likewise.
        """
        config, model = self.config_class.__name__, type(self).__name__
        self.config.auto_map = {"AutoConfig": f"{CODE}.{config}", "AutoModelForCausalLM": f"{CODE}.{model}"}
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_code(Path(save_directory), self.config_class.__module__, config, model)
        super().save_pretrained(save_directory, *arguments, **named)
        for path in Path(save_directory).glob("*.safetensors"):  # whose writer lets nobody else read them
            path.chmod((Path(save_directory) / f"{CODE}.py").stat().st_mode)

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
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        else:
            super()._init_weights(module)  # type: ignore[no-untyped-call]

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Let ``generate`` begin without a cache, so that the first forward pass makes ours."""
        return False
