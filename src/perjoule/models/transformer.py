"""Decoder-only Transformer in the style of Llama: the baseline that every other architecture is compared with.

    h = Embedding(tokens)
    h = h + Attention(RMSNorm(h));  h = h + SwiGLU(RMSNorm(h))        num_layers times
    loss = cross-entropy(RMSNorm(h)·Woutᵀ, labels)

The function is that of Hugging Face's ``LlamaForCausalLM`` (a test copies the weights and compares logits and
gradients). What differs: the query, key and value projections are one matrix, and so are gate and up; the cross-entropy
is always in float32, over labels that the data has already shifted; weights are initialised as written at
:meth:`Transformer.reset_parameters`. With ``ffn_dim = dim`` it is the *Transformer++* of Energy-Based Transformers.
Packed documents attend across their boundaries.

Per sample: time O(num_layers·seq_len·dim·(dim + seq_len)); memory for the backward pass
O(num_layers·seq_len·dim) plus, with the blocked kernel, O(num_layers·num_heads·seq_len²), and seq_len·vocab_size
for the loss.

Touvron et al., LLaMA: Open and Efficient Foundation Language Models, 2023.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, get_args

from jaxtyping import Float, Int64
from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from perjoule.config import Config
from perjoule.core.errors import ConfigError, suggestion
from perjoule.models.contract import FlopsPerToken, Output
from perjoule.models.layers.attention import KERNELS, Attention, Kernel
from perjoule.models.layers.loss import chunked_next_token_loss, next_token_loss
from perjoule.models.layers.norm import RMSNorm
from perjoule.models.layers.rope import RotaryTable
from perjoule.models.layers.swiglu import SwiGLU


def _ebt(num_layers: int, num_heads: int, dim: int) -> dict[str, Any]:
    """Return a size of Energy-Based Transformers, whose feed-forward layers are as wide as the residual stream."""
    return {"num_layers": num_layers, "num_heads": num_heads, "dim": dim, "ffn_dim": dim}


def _divisors_near(number: int, wanted: int) -> str:
    """Return the four divisors of a number that are nearest to ``wanted``."""
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return ", ".join(str(n) for n in sorted(sorted(divisors, key=lambda n: abs(n - wanted))[:4]))


class TransformerConfig(Config):
    """Sizes of a decoder-only Transformer."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # Gladstone et al., Energy-Based Transformers, 2025: 0.23, 1.8, 6.2, 12.4, 49.5, 176, 396 and 705 million
        # parameters besides the embedding and the output matrix.
        "4xs": _ebt(2, 2, 128),
        "3xs": _ebt(4, 4, 256),
        "2xs": _ebt(6, 6, 384),
        "xxs": _ebt(6, 6, 384),
        "xs": _ebt(12, 6, 384),
        "small": _ebt(12, 12, 768),
        "medium": _ebt(24, 16, 1024),
        "large": _ebt(24, 16, 1536),
        "xl": _ebt(24, 32, 2048),
        # Llama 3 8B with the vocabulary of Mistral NeMo: 8,053,329,920 parameters. The width of the feed-forward layers
        # is Llama's 1.3 · 2/3 · 4·dim, rounded up to a multiple of 1024.
        "8b": {
            "vocab_size": 131072,
            "dim": 4096,
            "num_layers": 32,
            "num_heads": 32,
            "num_kv_heads": 8,
            "ffn_dim": 14336,
        },
    }

    kind: Literal["transformer"] = "transformer"
    preset: str | None = None
    """A size by name; keys that are given beside it win."""
    vocab_size: PositiveInt | None = None
    """Rows of the embedding and of the output matrix; null is the tokenizer's, and more than that is allowed."""
    dim: PositiveInt = 256
    """Width of the residual stream."""
    num_layers: PositiveInt = 4
    """Blocks, each of one attention and one feed-forward layer."""
    num_heads: PositiveInt = Field(4, validate_default=True)
    """Query heads; divides ``dim``."""
    num_kv_heads: PositiveInt | None = Field(None, validate_default=True)
    """Key and value heads; divides ``num_heads``; null is ``num_heads``."""
    ffn_dim: PositiveInt | None = None
    """Width of the feed-forward layers; null is 8/3·dim rounded up to a multiple of 16."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the mean square in RMSNorm."""
    rope_theta: PositiveFloat = 1e4
    """Base of the wavelengths of the rotary position embedding."""
    tie_embeddings: bool = False
    """Use the embedding as the output matrix."""
    attention: Literal["auto", "sdpa", "blocked"] = "auto"
    """Kernel; ``auto`` is sdpa unless the training backend knows a faster one for the machine."""
    activation_checkpointing: bool = False
    """Keep only the input of each block and compute the block again in the backward pass."""
    loss_chunk_rows: PositiveInt | None = None
    """Tokens whose logits exist at a time; null is all of the batch."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of the initial weights."""

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, preset: str | None) -> str | None:
        if preset is not None and preset not in cls.PRESETS:
            raise ValueError(f"unknown preset {preset!r}: {suggestion(preset, cls.PRESETS)}")
        return preset

    @field_validator("num_heads")
    @classmethod
    def _check_heads(cls, num_heads: int, info: ValidationInfo) -> int:
        dim = info.data.get("dim")  # absent if it was refused itself
        if dim is None or dim % (2 * num_heads) == 0:
            return num_heads
        if dim % 2:
            raise ValueError(
                f"no number of heads divides dim {dim} into heads of even size, as RoPE needs; make dim even"
            )
        near = _divisors_near(dim // 2, num_heads)
        if dim % num_heads:
            raise ValueError(f"{num_heads} does not divide dim {dim} (nearest: {near})")
        raise ValueError(
            f"{num_heads} leaves heads of size {dim // num_heads}, and RoPE needs an even size (nearest: {near})"
        )

    @field_validator("num_kv_heads")
    @classmethod
    def _check_kv_heads(cls, num_kv_heads: int | None, info: ValidationInfo) -> int | None:
        num_heads = info.data.get("num_heads")
        if num_kv_heads is not None and num_heads is not None and num_heads % num_kv_heads:
            near = _divisors_near(num_heads, num_kv_heads)
            raise ValueError(f"{num_kv_heads} does not divide num_heads {num_heads} (nearest: {near})")
        return num_kv_heads

    @property
    def head_dim(self) -> int:
        """Return the size of an attention head."""
        return self.dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Return the number of key and value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def ffn_width(self) -> int:
        """Return the width of the feed-forward layers."""
        return self.ffn_dim or 16 * math.ceil(8 * self.dim / 3 / 16)

    @property
    def num_body_parameters(self) -> int:
        """Return the weights besides the embedding and the output matrix."""
        attention = 2 * self.dim * (self.num_heads + self.kv_heads) * self.head_dim
        norms = 2 * self.dim
        return self.num_layers * (attention + 3 * self.dim * self.ffn_width + norms) + self.dim

    def build(self, shape: Mapping[str, int]) -> Transformer:
        """Build the model for a data set.

        Args:
            shape: the data's ``vocab_size`` and ``seq_len``.

        Raises:
            ConfigError: if the data is not text, or has tokens that the model's vocabulary has not.
        """
        missing = [name for name in ("vocab_size", "seq_len") if name not in shape]
        if missing:
            raise ConfigError(
                f"model.kind transformer needs data with vocab_size and seq_len, such as text; "
                f"this data has {', '.join(shape) or 'neither'}"
            )
        vocab_size = self.vocab_size or shape["vocab_size"]
        if vocab_size < shape["vocab_size"]:
            raise ConfigError(
                f"model.vocab_size {vocab_size} is smaller than the data's {shape['vocab_size']}; "
                f"accepted: null (the data's own) or at least {shape['vocab_size']}"
            )
        return Transformer(self, vocab_size, shape["seq_len"])


class Block(nn.Module):
    """One attention and one feed-forward layer, each normalised before and added to the residual stream.

    Args:
        config: the model's.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        kernel: Kernel = "sdpa" if config.attention == "auto" else config.attention
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config.dim, config.num_heads, config.kv_heads, kernel)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = SwiGLU(config.dim, config.ffn_width)

    def forward(
        self, x: Float[Tensor, "batch seq dim"], table: Float[Tensor, "2 seq half"]
    ) -> Float[Tensor, "batch seq dim"]:
        """Add both layers' outputs to the residual stream."""
        x = x + self.attention(self.attention_norm(x), table)
        mixed: Tensor = x + self.ffn(self.ffn_norm(x))
        return mixed


class Transformer(nn.Module):
    """Decoder-only Transformer; see the module for the formula.

    On the meta device it is built in no time; ``to_empty`` and :meth:`reset_parameters` make it real.

    Args:
        config: sizes.
        vocab_size: rows of the embedding.
        seq_len: the longest sequence, in tokens.
    """

    def __init__(self, config: TransformerConfig, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.seq_len = seq_len
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.rope = RotaryTable(seq_len, config.head_dim, config.rope_theta)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        # Tied weights are one parameter in one module: two modules that share it come apart in `to_empty`.
        self.output = None if config.tie_embeddings else nn.Linear(config.dim, vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise every weight from torch's default generator.

        Matrices are normal with standard deviation ``init_std``; those that write into the residual stream have
        ``init_std / sqrt(2·num_layers)``, so that its variance does not grow with depth (Radford et al., 2019); norm
        weights are 1. The logits start with a standard deviation of about init_std·sqrt(dim) = s, and the loss near
        ln(vocab_size) + s²/2.
        """
        std = self.config.init_std
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            elif isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
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

    def hidden(self, input_ids: Int64[Tensor, "batch seq"]) -> Float[Tensor, "batch seq dim"]:
        """Return the normalised residual stream after the last block.

        Raises:
            ConfigError: if the sequence is longer than the model was built for.
        """
        table = self.rope(input_ids.shape[1])
        x = self.embedding(input_ids)
        for block in self.blocks:
            if self.config.activation_checkpointing and self.training:
                x = checkpoint(block, x, table, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, table)
        normalised: Tensor = self.norm(x)
        return normalised

    def set_attention(self, kernel: str) -> None:
        """Compute attention with another kernel from now on; the function stays the same.

        Args:
            kernel: ``sdpa`` or ``blocked``.

        Raises:
            ConfigError: if there is no such kernel.
        """
        accepted = {name: name for name in get_args(Kernel)}
        if kernel not in accepted:
            raise ConfigError(f"unknown attention kernel {kernel!r}: {suggestion(kernel, accepted)}")
        for module in self.modules():
            if isinstance(module, Attention):
                module.kernel = accepted[kernel]

    def attention_probe(self, rows: int) -> tuple[Mapping[Kernel, Callable[..., Tensor]], tuple[int, int, int, int]]:
        """Return the kernels and the (batch, heads, seq, head_dim) they would see, so that they can be timed."""
        return KERNELS, (rows, self.config.num_heads, self.seq_len, self.config.head_dim)

    def flops_per_token(self, seq_len: int) -> FlopsPerToken:
        """Return the training FLOPs per token, from the sizes: compiled, wrapped or sharded models give the same.

        ``full`` is 6·(parameters - embedding) + 12·num_layers·dim·seq_len. A tied output matrix counts, because it is
        multiplied with all the same. The norm weights are in it by convention (6 for each of their
        (2·num_layers + 1)·dim, which no matrix product spends); computing blocks or logits again is not.
        """
        matrices = 6 * (self.config.num_body_parameters + self.vocab_size * self.config.dim)
        attention = 12 * self.config.num_layers * self.config.dim * seq_len
        return FlopsPerToken(full=matrices + attention, causal=matrices + attention // 2)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the weights in groups for the optimizer: ``{"params": […], "weight_decay": bool}``.

        The loop puts its own number where ``weight_decay`` is true, and 0 where it is false. Matrices decay, the
        embedding too; norm weights do not, because shrinking them only rescales what follows.
        """
        matrices = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.parameters() if parameter.ndim == 1]
        return [{"params": matrices, "weight_decay": True}, {"params": vectors, "weight_decay": False}]
