"""Configurations: the fields of our own, flat, beside what Hugging Face asks of a causal language model.

    PerjouleRetNetConfig(dim=512, num_layers=8, vocab_size=32000, seq_len=1024, bos_token_id=0, …)

The fields are checked by our own class, and so are their defaults and presets its own; config.json has every one of
them. Hugging Face's names for the sizes (``hidden_size``, ``max_position_embeddings`` …) are accepted as well.

Each class has a constructor in so many words, because transformers makes one of annotations where there is none.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from perjoule.config import Component, Config
from perjoule.core.registry import Shelf


class PerjouleConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Configuration of one of our language models.

    Args:
        vocab_size: rows of the embedding.
        seq_len: the longest sequence, in tokens; retention, and attention without positions, have none.
        bos_token_id: the token before each document; None if there is none.
        eos_token_id: the token that ends a document, which in our data is the one that begins the next.
        pad_token_id: what stands where a shorter row has no token.
        fields: those of our own configuration, or anything that ``PreTrainedConfig`` takes.

    Raises:
        ConfigError: if a field of our own has a value that it does not accept.
    """

    kind: ClassVar[str]
    """Of our own configuration on the shelf of models."""
    own_class: ClassVar[type[Config]]
    """Our own configuration."""
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "max_position_embeddings": "seq_len",
        "initializer_range": "init_std",
    }

    def __init__(
        self,
        vocab_size: int = 4096,
        seq_len: int = 256,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        **fields: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.seq_len = fields.pop("max_position_embeddings", seq_len)
        self.bos_token_id, self.eos_token_id, self.pad_token_id = bos_token_id, eos_token_id, pad_token_id
        for alias, name in self.attribute_map.items():
            if alias in fields:
                fields[name] = fields.pop(alias)
        own = self._checked({name: fields.pop(name) for name in self.own_fields() if name in fields})
        for name, value in own.model_dump(mode="json", exclude={"kind", "vocab_size"}).items():
            setattr(self, name, value)
        super().__init__(**fields)

    @classmethod
    def own_fields(cls) -> list[str]:
        """Return the names of the fields of our own configuration, but for those that are Hugging Face's as well."""
        return [name for name in cls.own_class.model_fields if name not in {"kind", "vocab_size"}]

    @property
    def own(self) -> Config:
        """Return our own configuration.

        Raises:
            ConfigError: if a field has since been set to a value that it does not accept.
        """
        return self._checked({name: getattr(self, name) for name in self.own_fields()})

    @property
    def num_positions(self) -> int | None:
        """Return how many tokens the model can read; None if there is no last position."""
        return None if self.positions == "none" else self.seq_len

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: transformers would copy perjoule's source into every folder that is saved from now on."""

    def _checked(self, own: dict[str, Any]) -> Config:
        # A shelf of its own: this code also runs as copies in an exported folder, under other modules' names.
        shelf = Shelf("models", {self.kind: f"{self.own_class.__module__}:{self.own_class.__name__}"})
        config: Config = Component(shelf).instantiate({"kind": self.kind, "vocab_size": self.vocab_size, **own})
        return config
