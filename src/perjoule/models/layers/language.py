"""What decoder-only language models of pre-normalised blocks have in common; the blocks are the architecture's.

    h = Embedding(tokens)
    h = Block(h, positions)                                           num_layers times
    loss = cross-entropy(Norm(h)·Woutᵀ, labels)

An architecture's file has a config (layers/sizes.py and its own fields), its layers, and a subclass of
:class:`LanguageModel` that knows its positions, decodes, and counts its FLOPs. Where blocks attend, it is one of
:class:`AttentionModel`, which decodes from the keys and values of every layer (layers/cache.py). The cross-entropy is
in float32, over labels that the data has already shifted.
"""
# ruff: noqa: F722  (jaxtyping's axes are not forward references)

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from perjoule.models.contract import FlopsPerToken, Output
from perjoule.models.layers.attention import Places
from perjoule.models.layers.cache import KeyValueCache, LayerCache, Tokens, align
from perjoule.models.layers.documents import hiding, visible_tokens
from perjoule.models.layers.dropout import dropout_layer
from perjoule.models.layers.linear import embedding_matrix, is_plain
from perjoule.models.layers.loss import called_next_token_loss, chunked_next_token_loss, next_token_loss
from perjoule.models.layers.norm import DynamicTanh, RMSNorm
from perjoule.models.layers.positions import position_table
from perjoule.models.layers.sizes import AttentionConfig, Initialisation, LanguageConfig


def initialise(
    model: nn.Module, blocks: nn.ModuleList, std: float, method: Initialisation = "normal", gain: float = 1.0
) -> None:
    """Initialise weights from torch's default generator.

    With ``normal``, matrices are normal with this standard deviation; those that write into the residual stream have
    ``std / sqrt(2·num_layers)``, so that its variance does not grow with depth (Radford et al., 2019). ``xavier`` and
    ``he`` give matrices of n inputs and m outputs the variances 2·gain²/(n + m) and 2·gain²/n (Glorot and Bengio, 2010;
    He et al., 2015), whatever they write into. Embeddings are normal, norm weights are 1, biases 0.

    Args:
        model: all of it.
        blocks: its blocks, whose matrices ``output`` and ``down`` write into the residual stream.
        std: of the embedding's and the matrices' weights.
        method: of matrices.
        gain: of ``xavier`` and ``he``.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and method == "xavier":
            nn.init.xavier_normal_(module.weight, gain)
        elif isinstance(module, nn.Linear) and method == "he":
            nn.init.normal_(module.weight, std=gain * math.sqrt(2 / module.in_features))
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, DynamicTanh):
            module.reset_parameters()
        elif isinstance(module, RMSNorm | nn.LayerNorm):
            nn.init.ones_(module.weight)
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)
    for name, parameter in blocks.named_parameters():
        if method == "normal" and name.endswith((".output.weight", ".down.weight")):
            nn.init.normal_(parameter, std=std / math.sqrt(2 * len(blocks)))


def decaying_groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Return weights in groups for the optimizer: ``{"params": […], "weight_decay": bool}``.

    The loop puts its own number where ``weight_decay`` is true, and 0 where it is false. Matrices decay, embeddings
    too; norm weights and biases do not: shrinking them only rescales what follows.
    """
    parameters = list(parameters)
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": True}, {"params": vectors, "weight_decay": False}]


def embed(embedding: nn.Module, tokens: Tokens) -> Float[Tensor, "batch seq dim"]:
    """Return the embedding of tokens, or what is embedded already as it is."""
    embedded: Tensor = tokens if tokens.is_floating_point() else embedding(tokens)
    return embedded


def rated_groups(model: nn.Module, parameters: Iterable[nn.Parameter], embedding_lr: float) -> list[dict[str, Any]]:
    """Return :func:`decaying_groups`, and the embeddings apart if they learn at another rate (``lr_scale``).

    Args:
        model: whose embeddings are meant.
        parameters: what learns.
        embedding_lr: the embeddings' learning rate, as a multiple of the others'.
    """
    if embedding_lr == 1:
        return decaying_groups(parameters)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    parameters = list(parameters)
    groups = decaying_groups(parameter for parameter in parameters if id(parameter) not in tables)
    embeddings = [parameter for parameter in parameters if id(parameter) in tables]
    return [*groups, {"params": embeddings, "weight_decay": True, "lr_scale": embedding_lr}]


class LanguageModel(nn.Module, ABC):
    """Embedding, blocks, norm and output matrix.

    On the meta device it is built in no time; ``to_empty`` and :meth:`reset_parameters` make it real.

    Args:
        config: sizes.
        vocab_size: rows of the embedding.
        block: builds a block, called as ``block(x, places)``.
        norm: builds the last norm.
    """

    masks_documents: ClassVar[bool] = True
    """``documents`` of a batch reach the blocks through :meth:`places`."""

    config: LanguageConfig

    def __init__(
        self, config: LanguageConfig, vocab_size: int, block: Callable[[], nn.Module], norm: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.blocks = nn.ModuleList(block() for _ in range(config.num_layers))
        self.dropout, self.norm = dropout_layer(config.dropout), norm()
        # Tied weights are one parameter in one module: two modules that share it come apart in `to_empty`.
        self.output = None if config.tie_embeddings else nn.Linear(config.dim, vocab_size, bias=False)
        drops = (config.dropout, config.activation_dropout, getattr(config, "attention_dropout", 0.0))
        self.draws = max(drops) > 0  # here, because pydantic's lookup of a missing field cannot be compiled
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise every weight from torch's default generator, as :func:`initialise` does.

        The logits start with a standard deviation of about init_std·sqrt(dim) = s, and the loss near
        ln(vocab_size) + s²/2.
        """
        initialise(self, self.blocks, self.config.init_std, self.config.init, self.config.init_gain)

    def logits(self, rows: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocab"]:
        """Return the logits behind normalised positions: call the output matrix, or multiply with the embedding."""
        if self.output is None:
            return F.linear(rows, embedding_matrix(self.embedding, self.vocab_size, rows.device))
        logits: Tensor = self.output(rows)
        return logits

    def forward(self, tensors: Mapping[str, Tensor], with_logits: bool = False) -> Output:
        """Compute the loss of one batch.

        Args:
            tensors: ``input_ids`` and ``labels``; a label of -100 is ignored. With ``documents``, no token sees
                another document of its row; see layers/documents.py.
            with_logits: return the logits as well, which costs batch·seq_len·vocab_size numbers.

        Raises:
            ConfigError: if the sequence is longer than the positions that the model was built for.
        """
        hidden = self.hidden(tensors["input_ids"], documents=tensors.get("documents"))
        rows, labels = hidden.flatten(0, 1), tensors["labels"].flatten()
        if self.config.loss_chunk_rows is not None and not with_logits:
            return Output(self._chunked_loss(rows, labels, self.config.loss_chunk_rows))
        logits = self.logits(rows)
        loss = next_token_loss(logits, labels)
        return Output(loss, logits.view(*hidden.shape[:2], -1) if with_logits else None)

    def _chunked_loss(self, rows: Tensor, labels: Tensor, chunk_rows: int) -> Tensor:
        """Return the loss while only some rows of the logits exist; fused with the output matrix if there is one."""
        if self.output is None:
            weight = embedding_matrix(self.embedding, self.vocab_size, rows.device)
        elif is_plain(self.output, nn.Linear):
            weight = self.output.weight
        else:
            return called_next_token_loss(self.output, rows, labels, chunk_rows)
        return chunked_next_token_loss(rows, weight, labels, chunk_rows)

    def hidden(
        self, input_ids: Tokens, *, documents: Int32[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq dim"]:
        """Return the normalised residual stream after the last block.

        Args:
            input_ids: whole sequences, or what an embedding would make of them.
            documents: of the tokens, where they shall not see each other's.

        Raises:
            ConfigError: if the sequence is longer than the positions that the model was built for.
        """
        x = self.dropout(embed(self.embedding, input_ids))
        places = self.places(x, documents)
        for block in self.blocks:
            if self.config.activation_checkpointing and self.training:
                x = checkpoint(block, x, places, use_reentrant=False, preserve_rng_state=self.draws)
            else:
                x = block(x, places)
        normalised: Tensor = self.norm(x)
        return normalised

    @abstractmethod
    def places(self, x: Float[Tensor, "batch seq dim"], documents: Int32[Tensor, "batch seq"] | None = None) -> Any:
        """Return what blocks need to know of the positions of whole sequences.

        Args:
            x: their embedded tokens.
            documents: of the tokens, where they shall not see each other's; None is one document a row.

        Raises:
            ConfigError: if the sequence is longer than the positions that the model was built for.
        """

    @abstractmethod
    def flops_per_token(self, seq_len: int) -> FlopsPerToken:
        """Return the training FLOPs per token, from the sizes: compiled, wrapped or sharded models give the same."""

    def next_logits(self, last: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch vocab"]:
        """Return the logits behind normalised last positions, in at least float32."""
        logits = self.logits(last)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @property
    def matrix_flops(self) -> int:
        """Return 6 FLOPs per token for each weight but the embedding's.

        A tied output matrix counts, because it is multiplied with all the same. The norm weights are in it by
        convention, which no matrix product spends; computing blocks or logits again is not.
        """
        return 6 * (self.config.num_body_parameters + self.vocab_size * self.config.dim)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the weights in groups for the optimizer; see :func:`rated_groups`."""
        return rated_groups(self, self.parameters(), self.config.embedding_lr)


class Block(nn.Module):
    """One attention and one feed-forward layer, each normalised before and added to the residual stream.

    Args:
        attention: called as ``attention(x, places, cache)``; its matrix ``output`` is the last.
        ffn: its matrix ``down`` is the last.
        norm: builds a norm.
        dropout: share of what both add that is dropped while training.
    """

    def __init__(
        self, attention: nn.Module, ffn: nn.Module, norm: Callable[[], nn.Module], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = dropout_layer(dropout)
        self.attention_norm, self.attention = norm(), attention
        self.ffn_norm, self.ffn = norm(), ffn

    def forward(
        self, x: Float[Tensor, "batch seq dim"], places: Places, cache: LayerCache | None = None
    ) -> Float[Tensor, "batch seq dim"]:
        """Add both layers' outputs to the residual stream; see layers/attention.py."""
        x = x + self.dropout(self.attention(self.attention_norm(x), places, cache))
        mixed: Tensor = x + self.dropout(self.ffn(self.ffn_norm(x)))
        return mixed


class AttentionModel(LanguageModel):
    """Language model whose blocks attend, with positions of a chosen kind and a cache of keys and values.

    Args:
        config: sizes.
        vocab_size: rows of the embedding.
        seq_len: the longest sequence, in tokens, unless there are no positions.
        block: builds a :class:`Block`.
        norm: builds the last norm.
    """

    config: AttentionConfig

    def __init__(
        self,
        config: AttentionConfig,
        vocab_size: int,
        seq_len: int,
        block: Callable[[], Block],
        norm: Callable[[], nn.Module],
    ) -> None:
        super().__init__(config, vocab_size, block, norm)
        self.seq_len = seq_len
        self.positions = position_table(config.positions, seq_len, config.head_dim, config.rope_theta)

    def places(self, x: Float[Tensor, "batch seq dim"], documents: Int32[Tensor, "batch seq"] | None = None) -> Places:
        """Return the table of a sequence's positions, and what hides other documents."""
        return Places(self.positions(x.shape[1]), () if documents is None else self.biases(documents))

    def biases(self, documents: Int32[Tensor, "batch seq"]) -> Sequence[Tensor]:
        """Return :attr:`Places.biases` of these documents: here, of one attention to everything before."""
        return (hiding(visible_tokens(documents)).unsqueeze(1),)

    def hidden(
        self,
        input_ids: Tokens,
        cache: KeyValueCache | None = None,
        *,
        documents: Int32[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq dim"]:
        """Return the normalised residual stream after the last block.

        Args:
            input_ids: whole sequences; with a cache that has been filled, one more token of each row.
            cache: keys and values of what came before; takes those of these tokens.
            documents: of the tokens, where they shall not see each other's; not with a cache.

        Raises:
            ConfigError: if the sequence is longer than the positions that the model was built for.
        """
        if cache is None:
            return super().hidden(input_ids, documents=documents)
        assert documents is None
        begun = cache.begun
        table = self.positions.at(cache.positions, cache.longest) if begun else self.positions(input_ids.shape[1])
        places = Places(table)
        x = embed(self.embedding, input_ids)
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x = block(x, places, layer)
        normalised: Tensor = self.norm(x)
        return normalised

    @torch.no_grad()
    def prefill(
        self, input_ids: Tokens, mask: Bool[Tensor, "batch seq"] | None = None
    ) -> tuple[Float[Tensor, "batch vocab"], KeyValueCache]:
        """Read prompts; see :class:`~perjoule.models.contract.Decoder`.

        Raises:
            ConfigError: if a prompt is longer than the model was built for, empty, or not padded on the left.
        """
        prompts = align(input_ids, mask)
        cache = KeyValueCache(len(self.blocks), prompts)
        hidden = self.hidden(prompts.input_ids, cache)
        last = hidden[torch.arange(len(hidden), device=hidden.device), prompts.lengths - 1]
        return self.next_logits(last), cache

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
        return self.next_logits(hidden[:, 0]), cache
