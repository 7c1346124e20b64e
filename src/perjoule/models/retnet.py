"""Retentive network (RetNet): retention in place of attention, so that decoding costs the same at any length.

    h = Embedding(tokens)
    h = h + Retention(RMSNorm(h));  h = h + GLU(RMSNorm(h))        num_layers times
    loss = cross-entropy(RMSNorm(h)·Woutᵀ, labels)

:mod:`perjoule.models.layers.retention` has the formula of retention, and says where the published forms of it
disagree and which of them this is. The function is torchscale's, in its parallel and recurrent forms (a test copies
weights and compares logits and gradients). What differs: one matrix makes queries, keys, values and gates, and one the
two halves of the GLU; the weights start as the Transformer's do, so that a comparison compares architectures, where the
reference has Xavier gains of 2^-2.5 (q, k, v, g) and 2^-1 (output of retention). The paper's feed-forward layer has
two matrices, its code's three.

Retention has no longest sequence: ``seq_len`` bounds neither a prompt nor what is generated.

Per sample: time O(num_layers·seq_len·dim·(dim + chunk_len)), memory for the backward pass O(num_layers·seq_len·(dim +
num_heads·chunk_len)), both linear in seq_len, and seq_len·vocab_size for the loss. Decoding: time and memory of a token
are O(num_layers·dim·(dim + value_dim/num_heads)), however many there were.

Sun et al., Retentive Network: A Successor to Transformer for Large Language Models, 2023.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from perjoule.config import Config
from perjoule.models.contract import FlopsPerToken, Output
from perjoule.models.layers.cache import align
from perjoule.models.layers.glu import GLU
from perjoule.models.layers.language import divisors_near, vocabulary_for
from perjoule.models.layers.loss import chunked_next_token_loss, next_token_loss
from perjoule.models.layers.norm import RMSNorm
from perjoule.models.layers.retention import Retention, Timeline, even_chunk, log_decays, timeline


def _published(dim: int, width: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    """Return a size of torchscale, with values as wide as its feed-forward layers."""
    return {"dim": dim, "value_dim": width, "ffn_dim": width, "num_layers": num_layers, "num_heads": num_heads}


class RetNetConfig(Config):
    """Sizes of a retentive network."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # torchscale's: 19.1, 203.5, 1220.6, 2523, 6510, 12616 and 52078 million parameters besides the embedding and
        # the output matrix. Queries and keys have 256 numbers per head, in base 2 heads.
        "base": _published(512, 864, 6, 2),
        "medium": _published(1024, 1728, 16, 4),
        "xl": _published(2048, 3456, 24, 8),
        "3b": _published(2560, 4280, 32, 10),
        "7b": _published(4096, 6912, 32, 16),
        "13b": _published(5120, 8560, 40, 20),
        "65b": _published(8192, 13824, 64, 32),
    }

    kind: Literal["retnet"] = "retnet"
    preset: str | None = None
    """A size by name; keys that are given beside it win."""
    vocab_size: PositiveInt | None = None
    """Rows of the embedding and of the output matrix; null is the tokenizer's, and more than that is allowed."""
    dim: PositiveInt = 256
    """Width of the residual stream, of the queries and of the keys."""
    num_layers: PositiveInt = 4
    """Blocks, each of one retention and one feed-forward layer."""
    positions: Literal["rotation", "none"] = "rotation"
    """Beside the decay, rotate queries and keys by their position, as published, or do not."""
    num_heads: PositiveInt = Field(4, validate_default=True)
    """Heads, each with a decay of its own; divides ``dim``."""
    value_dim: PositiveInt | None = Field(None, validate_default=True)
    """Width of the values and of their gate; divisible by ``num_heads``; null is 27/16·dim, as in the published sizes,
    rounded up to a multiple of 16 and of ``num_heads``."""
    ffn_dim: PositiveInt | None = None
    """Width of the feed-forward layers; null is ``value_dim``, which makes a block as large as a Transformer's."""
    activation: Literal["silu", "gelu"] = "silu"
    """Of the feed-forward layers; the published sizes have silu."""
    decay: Literal["halving", "geometric"] = "halving"
    """What heads forget per token: 2^-(5+h) as in the published code, or 1/32 to 1/512 in equal ratios as in the
    paper's experiments."""
    norm_eps: PositiveFloat = 1e-6
    """Added to the mean square in RMSNorm and in the norm of each head."""
    rope_theta: PositiveFloat = 1e4
    """Base of the wavelengths of the rotation."""
    tie_embeddings: bool = False
    """Use the embedding as the output matrix."""
    retention: Literal["auto", "parallel", "chunkwise", "recurrent"] = "auto"
    """Form; ``auto`` is chunkwise, which is the parallel form for a sequence that fits into one chunk."""
    chunk_len: PositiveInt = 256
    """The longest chunk of the chunkwise form, in tokens."""
    activation_checkpointing: bool = False
    """Keep only the input of each block and compute the block again in the backward pass."""
    loss_chunk_rows: PositiveInt | None = None
    """Tokens whose logits exist at a time; null is all of the batch."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of the initial weights."""

    @field_validator("num_heads")
    @classmethod
    def _check_heads(cls, num_heads: int, info: ValidationInfo) -> int:
        dim, positions = info.data.get("dim"), info.data.get("positions")  # absent if refused themselves
        if dim is None or positions is None:
            return num_heads
        turned = positions == "rotation"
        if turned and dim % 2:
            raise ValueError(f"no heads of even size, as the rotation needs, divide dim {dim}; make it even")
        if dim % num_heads:
            near = divisors_near(dim // 2 if turned else dim, num_heads)
            raise ValueError(f"{num_heads} does not divide dim {dim} (nearest: {near})")
        if turned and dim // num_heads % 2:
            raise ValueError(
                f"{num_heads} leaves heads of size {dim // num_heads}, and the rotation needs an even size "
                f"(nearest: {divisors_near(dim // 2, num_heads)})"
            )
        return num_heads

    @field_validator("value_dim")
    @classmethod
    def _check_value_dim(cls, value_dim: int | None, info: ValidationInfo) -> int | None:
        num_heads = info.data.get("num_heads")
        if value_dim is not None and num_heads is not None and value_dim % num_heads:
            below = value_dim // num_heads * num_heads
            near = ", ".join(str(n) for n in (below, below + num_heads) if n)
            raise ValueError(f"{value_dim} is not divisible by num_heads {num_heads} (nearest: {near})")
        return value_dim

    @property
    def head_dim(self) -> int:
        """Return the size of a head of the queries and keys."""
        return self.dim // self.num_heads

    @property
    def value_width(self) -> int:
        """Return the width of the values."""
        multiple = math.lcm(16, self.num_heads)
        return self.value_dim or multiple * math.ceil(27 * self.dim / 16 / multiple)

    @property
    def ffn_width(self) -> int:
        """Return the width of the feed-forward layers."""
        return self.ffn_dim or self.value_width

    @property
    def num_body_parameters(self) -> int:
        """Return the weights besides the embedding and the output matrix."""
        retention = self.dim * (2 * self.dim + 3 * self.value_width)
        norms = 2 * self.dim
        return self.num_layers * (retention + 3 * self.dim * self.ffn_width + norms) + self.dim

    def build(self, shape: Mapping[str, int]) -> RetNet:
        """Build the model for a data set.

        Args:
            shape: the data's ``vocab_size`` and ``seq_len``.

        Raises:
            ConfigError: if the data is not text, or has tokens that the model's vocabulary has not.
        """
        vocab_size = vocabulary_for(self.kind, self.vocab_size, shape)
        return RetNet(self, vocab_size)


@dataclass
class RetNetCache:
    """What a RetNet remembers of what it has read; its size does not depend on how much that was.

    Args:
        states: of each layer, (batch, heads, head_dim, value_head_dim), float32 or wider.
        num_read: (batch,) real tokens of each row so far.
        num_steps: scalar; tokens so far with the padding, which is where the next one is.
    """

    states: list[Tensor]
    num_read: Tensor
    num_steps: Tensor


class Block(nn.Module):
    """One retention and one feed-forward layer, each normalised before and added to the residual stream.

    Args:
        config: the model's.
    """

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__()
        form = "chunkwise" if config.retention == "auto" else config.retention
        self.retention_norm = RMSNorm(config.dim, config.norm_eps)
        self.retention = Retention(
            config.dim, config.value_width, config.num_heads, config.norm_eps, form, config.chunk_len
        )
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = GLU(config.dim, config.ffn_width, config.activation)

    def forward(self, x: Float[Tensor, "batch seq dim"], times: Timeline) -> Float[Tensor, "batch seq dim"]:
        """Add both layers' outputs to the residual stream."""
        x = x + self.retention(self.retention_norm(x), times)
        mixed: Tensor = x + self.ffn(self.ffn_norm(x))
        return mixed

    def prefill(self, x: Float[Tensor, "batch seq dim"], times: Timeline) -> tuple[Tensor, Tensor]:
        """Return what :meth:`forward` does, and the state to decode from."""
        mixed, state = self.retention.prefill(self.retention_norm(x), times)
        x = x + mixed
        return x + self.ffn(self.ffn_norm(x)), state

    def decode(self, x: Float[Tensor, "batch 1 dim"], state: Tensor, times: Timeline) -> Float[Tensor, "batch 1 dim"]:
        """Read one more token; the state is changed in place."""
        x = x + self.retention.decode(self.retention_norm(x), state, times)
        mixed: Tensor = x + self.ffn(self.ffn_norm(x))
        return mixed


class RetNet(nn.Module):
    """Retentive network; see the module for the formula.

    On the meta device it is built in no time; ``to_empty`` and :meth:`reset_parameters` make it real.

    Args:
        config: sizes.
        vocab_size: rows of the embedding.
    """

    def __init__(self, config: RetNetConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.log_decays = log_decays(config.num_heads, config.decay)
        self.embedding = nn.Embedding(vocab_size, config.dim)
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
        ln(vocab_size) + s²/2. The scale of queries, keys and values is without effect: each head is normalised.
        """
        std = self.config.init_std
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            elif isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
        for name, parameter in self.blocks.named_parameters():
            if name.endswith(("retention.output.weight", "ffn.down.weight")):
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
        """
        hidden = self.hidden(tensors["input_ids"])
        rows, labels = hidden.flatten(0, 1), tensors["labels"].flatten()
        if self.config.loss_chunk_rows is not None and not with_logits:
            return Output(chunked_next_token_loss(rows, self.output_weight, labels, self.config.loss_chunk_rows))
        logits = F.linear(rows, self.output_weight)
        loss = next_token_loss(logits, labels)
        return Output(loss, logits.view(*hidden.shape[:2], -1) if with_logits else None)

    def hidden(self, input_ids: Int64[Tensor, "batch seq"]) -> Float[Tensor, "batch seq dim"]:
        """Return the normalised residual stream after the last block."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        times = self._times(positions, positions[None] + 1)
        x = self.embedding(input_ids)
        for block in self.blocks:
            if self.config.activation_checkpointing and self.training:
                x = checkpoint(block, x, times, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, times)
        normalised: Tensor = self.norm(x)
        return normalised

    @torch.no_grad()
    def prefill(
        self, input_ids: Int64[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> tuple[Float[Tensor, "batch vocab"], RetNetCache]:
        """Read prompts in the form that training uses, and return what to decode from.

        Args:
            input_ids: tokens, padded on the left.
            mask: True for real tokens; None if all are.

        Raises:
            ConfigError: if a prompt is empty, or padded elsewhere.
        """
        align(input_ids, mask)  # refuses such prompts; these stay where they are, so that all end together
        batch_size, seq_len = input_ids.shape
        positions = torch.arange(seq_len, device=input_ids.device)
        count = positions[None] + 1 if mask is None else mask.cumsum(1)
        times = self._times(positions, count, mask)
        x = self.embedding(input_ids)
        states = []
        for block in self._blocks():
            x, state = block.prefill(x, times)
            states.append(state)
        num_read = count[:, -1].expand(batch_size)
        return self._next_logits(x), RetNetCache(states, num_read, positions[-1] + 1)

    @torch.no_grad()
    def decode(
        self, token: Int64[Tensor, " batch"], cache: RetNetCache
    ) -> tuple[Float[Tensor, "batch vocab"], RetNetCache]:
        """Read one more token of each row, in time that does not depend on how many there were.

        Args:
            token: one of each row.
            cache: as returned before; its states are changed in place.
        """
        num_read = cache.num_read + 1
        times = self._times(cache.num_steps[None], num_read[:, None])
        x = self.embedding(token[:, None])
        for block, state in zip(self._blocks(), cache.states, strict=True):
            x = block.decode(x, state, times)
        return self._next_logits(x), RetNetCache(cache.states, num_read, cache.num_steps + 1)

    def flops_per_token(self, seq_len: int) -> FlopsPerToken:
        """Return the training FLOPs per token, from the sizes: compiled, wrapped or sharded models give the same.

        ``full`` is 6·(parameters - embedding), and 6·(dim + value_dim) per layer and token of the chunk (of the
        sequence in the parallel form), of which ``causal`` counts half. Where there are several chunks, the state costs
        12·dim·value_dim/num_heads more per layer; it is all there is in the recurrent form. Norm weights count by
        convention; padding of the last chunk, decays and computing blocks again do not.
        """
        config = self.config
        chunks = {"parallel": seq_len, "recurrent": 0}
        chunk = chunks.get(config.retention, even_chunk(seq_len, config.chunk_len))
        within = 6 * config.num_layers * (config.dim + config.value_width) * chunk
        through = 0 if chunk == seq_len else 12 * config.num_layers * config.head_dim * config.value_width
        matrices = 6 * (config.num_body_parameters + self.vocab_size * config.dim)
        return FlopsPerToken(matrices + through + within, matrices + through + within // 2)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the weights in groups for the optimizer: ``{"params": […], "weight_decay": bool}``.

        Matrices decay, the embedding too; norm weights do not, because shrinking them only rescales what follows.
        """
        matrices = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.parameters() if parameter.ndim == 1]
        return [{"params": matrices, "weight_decay": True}, {"params": vectors, "weight_decay": False}]

    def _blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.blocks]

    def _times(self, positions: Tensor, count: Tensor, mask: Tensor | None = None) -> Timeline:
        config, device = self.config, positions.device
        dtype = torch.promote_types(self.embedding.weight.dtype, torch.float32)
        theta = config.rope_theta if config.positions == "rotation" else None
        log_decay = torch.tensor(self.log_decays, device=device, dtype=dtype)
        return timeline(log_decay, positions, count, config.head_dim, theta, mask)

    def _next_logits(self, x: Tensor) -> Tensor:
        """Return the logits behind the last position, in at least float32."""
        logits = F.linear(self.norm(x[:, -1]), self.output_weight)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
