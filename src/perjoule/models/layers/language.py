"""What decoder-only language models of pre-normalised blocks have in common; the blocks are the architecture's.

    h = Embedding(tokens)
    h = Block(h, positions)                                           num_layers times
    loss = cross-entropy(Norm(h)·Woutᵀ, labels)

An architecture's file has a config (:class:`LanguageConfig` and its own fields), a block, and a subclass of
:class:`LanguageModel` that counts its FLOPs. The cross-entropy is in float32, over labels that the data has already
shifted. Decoding keeps the keys and values of every layer (layers/cache.py) and equals the full forward pass.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from perjoule.config import Config
from perjoule.core.errors import ConfigError
from perjoule.models.contract import FlopsPerToken, Output
from perjoule.models.layers.cache import KeyValueCache, align
from perjoule.models.layers.loss import chunked_next_token_loss, next_token_loss
from perjoule.models.layers.norm import RMSNorm
from perjoule.models.layers.positions import Positions, position_table


def divisors_near(number: int, wanted: int) -> str:
    """Return the four divisors of a number that are nearest to ``wanted``."""
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return ", ".join(str(n) for n in sorted(sorted(divisors, key=lambda n: abs(n - wanted))[:4]))


def vocabulary_for(kind: str, vocab_size: int | None, shape: Mapping[str, int]) -> int:
    """Return the rows of a language model's embedding for a data set.

    Args:
        kind: of the model.
        vocab_size: as configured; None is the data's own.
        shape: the data's ``vocab_size`` and ``seq_len``.

    Raises:
        ConfigError: if the data is not text, or has tokens that the model's vocabulary has not.
    """
    missing = [name for name in ("vocab_size", "seq_len") if name not in shape]
    if missing:
        raise ConfigError(
            f"model.kind {kind} needs data with vocab_size and seq_len, such as text; "
            f"this data has {', '.join(shape) or 'neither'}"
        )
    rows = vocab_size or shape["vocab_size"]
    if rows < shape["vocab_size"]:
        raise ConfigError(
            f"model.vocab_size {rows} is smaller than the data's {shape['vocab_size']}; "
            f"accepted: null (the data's own) or at least {shape['vocab_size']}"
        )
    return rows


class LanguageConfig(Config, ABC):
    """Sizes of a decoder-only language model."""

    kind: str
    preset: str | None = None
    """A size by name; keys that are given beside it win."""
    vocab_size: PositiveInt | None = None
    """Rows of the embedding and of the output matrix; null is the tokenizer's, and more than that is allowed."""
    positions: Positions = "rope"
    """How attention learns where a token stands; with ``none``, sequences may be longer than the data's."""
    dim: PositiveInt = 256
    """Width of the residual stream."""
    num_layers: PositiveInt = 4
    """Blocks, each of one attention and one feed-forward layer."""
    num_heads: PositiveInt = Field(4, validate_default=True)
    """Query heads; divides ``dim``."""
    ffn_dim: PositiveInt | None = None
    """Width of the feed-forward layers; null is 8/3·dim rounded up to a multiple of 16."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the mean square (or variance) in norms."""
    rope_theta: PositiveFloat = 1e4
    """Base of the wavelengths of rotary positions."""
    tie_embeddings: bool = False
    """Use the embedding as the output matrix."""
    activation_checkpointing: bool = False
    """Keep only the input of each block and compute the block again in the backward pass."""
    loss_chunk_rows: PositiveInt | None = None
    """Tokens whose logits exist at a time; null is all of the batch."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of the initial weights."""

    @field_validator("num_heads")
    @classmethod
    def _check_heads(cls, num_heads: int, info: ValidationInfo) -> int:
        dim, positions = info.data.get("dim"), info.data.get("positions")  # absent if it was refused itself
        if dim is None or positions is None or dim % (2 * num_heads) == 0:
            return num_heads
        if positions == "none" and dim % num_heads == 0:
            return num_heads
        if positions == "none":
            raise ValueError(f"{num_heads} does not divide dim {dim} (nearest: {divisors_near(dim, num_heads)})")
        if dim % 2:
            raise ValueError(
                f"no number of heads divides dim {dim} into heads of even size, as RoPE needs; make dim even"
            )
        near = divisors_near(dim // 2, num_heads)
        if dim % num_heads:
            raise ValueError(f"{num_heads} does not divide dim {dim} (nearest: {near})")
        raise ValueError(
            f"{num_heads} leaves heads of size {dim // num_heads}, and RoPE needs an even size (nearest: {near})"
        )

    @property
    def head_dim(self) -> int:
        """Return the size of an attention head."""
        return self.dim // self.num_heads

    @property
    def ffn_width(self) -> int:
        """Return the width of the feed-forward layers."""
        return self.ffn_dim or 16 * math.ceil(8 * self.dim / 3 / 16)

    @property
    @abstractmethod
    def num_body_parameters(self) -> int:
        """Return the weights besides the embedding and the output matrix."""

    def vocabulary(self, shape: Mapping[str, int]) -> int:
        """Return the rows of the embedding for a data set; see :func:`vocabulary_for`."""
        return vocabulary_for(self.kind, self.vocab_size, shape)


class LanguageModel(nn.Module, ABC):
    """Embedding, blocks, norm and output matrix.

    On the meta device it is built in no time; ``to_empty`` and :meth:`reset_parameters` make it real.

    Args:
        config: sizes.
        vocab_size: rows of the embedding.
        seq_len: the longest sequence, in tokens, unless there are no positions.
        block: builds a block, called as ``block(x, table, cache)``; its matrices ``attention.output`` and ``ffn.down``
            write into the residual stream.
        norm: builds the last norm.
    """

    config: LanguageConfig

    def __init__(
        self,
        config: LanguageConfig,
        vocab_size: int,
        seq_len: int,
        block: Callable[[], nn.Module],
        norm: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.seq_len = seq_len
        self.config = config
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.positions = position_table(config.positions, seq_len, config.head_dim, config.rope_theta)
        self.blocks = nn.ModuleList(block() for _ in range(config.num_layers))
        self.norm = norm()
        # Tied weights are one parameter in one module: two modules that share it come apart in `to_empty`.
        self.output = None if config.tie_embeddings else nn.Linear(config.dim, vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise every weight from torch's default generator.

        Matrices are normal with standard deviation ``init_std``; those that write into the residual stream have
        ``init_std / sqrt(2·num_layers)``, so that its variance does not grow with depth (Radford et al., 2019); norm
        weights are 1, biases 0. The logits start with a standard deviation of about init_std·sqrt(dim) = s, and the
        loss near ln(vocab_size) + s²/2.
        """
        std = self.config.init_std
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            elif isinstance(module, RMSNorm | nn.LayerNorm):
                nn.init.ones_(module.weight)
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter):
                nn.init.zeros_(bias)
        for name, parameter in self.blocks.named_parameters():
            if name.endswith(("attention.output.weight", "ffn.down.weight")):
                nn.init.normal_(parameter, std=std / math.sqrt(2 * self.config.num_layers))

    @property
    def output_weight(self) -> Float[Tensor, "vocab dim"]:
        """Return the output matrix, which is the embedding if they are tied."""
        return self.embedding.weight if self.output is None else self.output.weight

    def forward(self, tensors: Mapping[str, Int64[Tensor, "batch seq"]], with_logits: bool = False) -> Output:
        """Compute the loss of one batch.

        Args:
            tensors: ``input_ids`` and ``labels``; a label of -100 is ignored.
            with_logits: return the logits as well, which costs batch·seq_len·vocab_size numbers.

        Raises:
            ConfigError: if the sequence is longer than the model was built for.
        """
        hidden = self.hidden(tensors["input_ids"])
        rows, labels = hidden.flatten(0, 1), tensors["labels"].flatten()
        if self.config.loss_chunk_rows is not None and not with_logits:
            return Output(chunked_next_token_loss(rows, self.output_weight, labels, self.config.loss_chunk_rows))
        logits = F.linear(rows, self.output_weight)
        loss = next_token_loss(logits, labels)
        return Output(loss, logits.view(*hidden.shape[:2], -1) if with_logits else None)

    def hidden(
        self, input_ids: Int64[Tensor, "batch seq"], cache: KeyValueCache | None = None
    ) -> Float[Tensor, "batch seq dim"]:
        """Return the normalised residual stream after the last block.

        Args:
            input_ids: whole sequences; with a cache that has been filled, one more token of each row.
            cache: keys and values of what came before; takes those of these tokens.

        Raises:
            ConfigError: if the sequence is longer than the model was built for.
        """
        if cache is not None and cache.begun:
            table = self.positions.at(cache.positions, cache.longest)
        else:
            table = self.positions(input_ids.shape[1])
        x = self.embedding(input_ids)
        for number, block in enumerate(self.blocks):
            if cache is not None:
                x = block(x, table, cache.layers[number])
            elif self.config.activation_checkpointing and self.training:
                x = checkpoint(block, x, table, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, table)
        normalised: Tensor = self.norm(x)
        return normalised

    @torch.no_grad()
    def prefill(
        self, input_ids: Int64[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> tuple[Float[Tensor, "batch vocab"], KeyValueCache]:
        """Read prompts; see :class:`~perjoule.models.contract.Decoder`.

        Raises:
            ConfigError: if a prompt is longer than the model was built for, empty, or not padded on the left.
        """
        prompts = align(input_ids, mask)
        cache = KeyValueCache(len(self.blocks), prompts)
        hidden = self.hidden(prompts.input_ids, cache)
        last = hidden[torch.arange(len(hidden), device=hidden.device), prompts.lengths - 1]
        return F.linear(last, self.output_weight).float(), cache

    @torch.no_grad()
    def decode(
        self, token: Int64[Tensor, " batch"], cache: KeyValueCache
    ) -> tuple[Float[Tensor, "batch vocab"], KeyValueCache]:
        """Read one more token of each row; see :class:`~perjoule.models.contract.Decoder`.

        Raises:
            ConfigError: if a row has become longer than the model was built for.
        """
        hidden = self.hidden(token.unsqueeze(1), cache)
        cache.advance()
        return F.linear(hidden[:, 0], self.output_weight).float(), cache

    @abstractmethod
    def flops_per_token(self, seq_len: int) -> FlopsPerToken:
        """Return the training FLOPs per token, from the sizes: compiled, wrapped or sharded models give the same."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the weights in groups for the optimizer: ``{"params": […], "weight_decay": bool}``.

        The loop puts its own number where ``weight_decay`` is true, and 0 where it is false. Matrices decay, the
        embedding too; norm weights and biases do not.
        """
        matrices = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.parameters() if parameter.ndim == 1]
        return [{"params": matrices, "weight_decay": True}, {"params": vectors, "weight_decay": False}]
