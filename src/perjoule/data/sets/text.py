"""Your own documents: a .txt, .jsonl or .parquet file, or a folder of them, for language modelling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from perjoule.config import Config
from perjoule.core.cache import cache_folder
from perjoule.core.errors import DataError, suggestion
from perjoule.data.reader import LongDocuments, PackedSamples, PaddedSamples, TextSamples
from perjoule.data.shards import SplitTokens
from perjoule.data.sources import Source, files_source
from perjoule.data.split import SPLITS, TRAIN, Fractions
from perjoule.data.store import Store, prepare
from perjoule.data.tokenizer import TextTokenizer, TokenizerConfig


class TextConfig(Config, ABC):
    """What every text data set has: how documents are split, tokenised and cut into rows."""

    kind: str
    seq_len: PositiveInt = 256
    """Inputs per row."""
    batching: Literal["packed", "padded"] = "packed"
    """``packed`` fills every row from the stream of documents; ``padded`` has one document a row."""
    long_documents: LongDocuments = "split"
    """With ``padded``, a document longer than ``seq_len``: continued in further rows, or cut off."""
    shuffle: bool = True
    """Whether each epoch of the training split has its own order; the other splits are never shuffled."""
    fractions: Fractions = Fractions()
    tokenizer: TokenizerConfig = TokenizerConfig()
    cache: Path | None = None
    """Where tokens are kept; unless given, $PERJOULE_CACHE, $XDG_CACHE_HOME/perjoule or ~/.cache/perjoule."""

    @abstractmethod
    def source(self) -> Source:
        """Return the documents."""

    def build(self, seed: int) -> TextDataSet:
        """Prepare the tokens, or find them prepared.

        Args:
            seed: of the training split's order.

        Raises:
            DataError: if the documents, the tokenizer or the cache cannot be used, or the training split is shorter
                than one row.
            MissingExtra: for parquet files without pyarrow.
        """
        source = self.source()
        store = prepare(source, self.tokenizer, self.fractions, cache_folder(self.cache))
        return TextDataSet(self, store, source.facts, seed)


class TextFilesConfig(TextConfig):
    """Documents from files."""

    kind: Literal["text"] = "text"
    path: Path
    """A file, or a folder whose files are read recursively, in the order of their names."""
    column: str = "text"
    """The field that holds the text in .jsonl and .parquet files."""

    def source(self) -> Source:
        """Return the documents.

        Raises:
            DataError: if nothing at ``path`` can be read.
        """
        return files_source(self.path, self.column)


class TextDataSet:
    """Tokenised text, ready to be read.

    Args:
        config: how to cut rows.
        store: the tokens.
        origin: facts of the source.
        seed: of the training split's order.

    Raises:
        DataError: if the training split is shorter than one row.
    """

    def __init__(self, config: TextConfig, store: Store, origin: Mapping[str, Any], seed: int) -> None:
        self._config = config
        self._store = store
        self._origin = origin
        self._seed = seed
        self.split(TRAIN)

    @property
    def tokenizer(self) -> TextTokenizer:
        """Return what made the tokens, and makes text of them again."""
        return self._store.tokenizer

    @property
    def shape(self) -> Mapping[str, int]:
        """Return ``vocab_size`` and ``seq_len``."""
        return {"vocab_size": self.tokenizer.vocab_size, "seq_len": self._config.seq_len}

    def split(self, name: str) -> TextSamples:
        """Return the split ``train``, ``validation`` or ``test``.

        Raises:
            DataError: if there is no such split, or it is shorter than one row.
        """
        if name not in SPLITS:
            raise DataError(f"no split {name!r}: {suggestion(name, SPLITS)}")
        config, (tokens,) = self._config, self._store.splits[name].shards
        seed = self._seed if config.shuffle and name == TRAIN else None
        try:
            if config.batching == "packed":
                return PackedSamples(tokens.tokens, tokens.offsets, config.seq_len, self.tokenizer.bos_id, seed)
            return PaddedSamples(
                tokens.tokens, tokens.offsets, config.seq_len, self.tokenizer.pad_id, config.long_documents, seed
            )
        except DataError as error:
            share = getattr(config.fractions, name)
            raise DataError(f"the {name} split (data.fractions.{name}={share:g}): {error}") from error

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return counts, identities and places for the run's manifest (JSON)."""
        splits = self._store.splits
        return {
            "kind": self._config.kind,
            "identity": self._store.path.name,
            **self._origin,
            "splits": {name: self._split_facts(name, tokens) for name, tokens in splits.items()},
            "skipped_documents": dict(self._store.skipped),
            "rows_mix_documents": self._config.batching == "packed",
            "tokenizer": {"hash": self.tokenizer.content_hash, "vocab_size": self.tokenizer.vocab_size},
            "store": {"path": str(self._store.path), "state": self._store.state},
        }

    def _split_facts(self, name: str, split: SplitTokens) -> dict[str, Any]:
        """Return the counts of a split, and what an epoch covers or why there is none."""
        num_documents, num_tokens = split.num_documents, split.num_tokens
        counts: dict[str, Any] = {"documents": num_documents, "bytes": split.num_bytes, "tokens": num_tokens}
        if num_documents:
            counts["tokens_per_byte"] = (num_tokens - num_documents) / split.num_bytes
        try:
            return {**counts, **self.split(name).coverage.as_json()}
        except DataError as error:
            return {**counts, "unavailable": str(error)}
