"""Your own documents: a text, JSON-lines or parquet file, or a folder of them, for language modelling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from perjoule.core.cache import cache_folder
from perjoule.core.errors import DataError, suggestion
from perjoule.data.formats import DEFAULT_LIMITS, Limits
from perjoule.data.reader import RowsConfig, TextSamples
from perjoule.data.shards import SplitTokens
from perjoule.data.sources import Source, files_source
from perjoule.data.split import SPLITS, TRAIN, EmptySplit, Fractions
from perjoule.data.store import Store, prepare
from perjoule.data.tokenizer import TextTokenizer, TokenizerConfig


class TextConfig(RowsConfig, ABC):
    """What every text data set has that is tokenised when it is first used: how documents are split and translated."""

    fractions: Fractions = Fractions()
    tokenizer: TokenizerConfig = TokenizerConfig()

    @abstractmethod
    def source(self) -> Source:
        """Return the documents."""

    def whence(self, split: str) -> str:
        """Return the fraction that the split has of the documents, or the folder that they are divided in already."""
        source = self.source()
        if source.splits:
            return f"of {source.root}"
        return f"data.fractions.{split}={getattr(self.fractions, split):g}"

    def build(self, seed: int) -> TextDataSet:
        """Prepare the tokens, or find them prepared.

        Args:
            seed: of the training split's order.

        Raises:
            DataError: if the documents, the tokenizer or the cache cannot be used, or the training split is shorter
                than one row.
            MissingExtra: for parquet files without pyarrow.
        """
        source = self.source().divided_by(self.fractions)
        store = prepare(source, self.tokenizer, self.fractions, cache_folder(self.cache))
        return TextDataSet(self, store, source.facts, seed)


class TextFilesConfig(TextConfig):
    """Documents from files."""

    kind: Literal["text"] = "text"
    path: Path
    """A file, or a folder whose files are read recursively, in the order of their names. Below a folder that ``perjoule
    data split`` made, documents stay in their splits, whatever ``fractions`` says."""
    column: str = "text"
    """The field that holds the text in JSON lines and parquet files."""
    limits: Limits = DEFAULT_LIMITS
    """What a compressed file may grow to."""

    def source(self) -> Source:
        """Return the documents.

        Raises:
            DataError: if nothing at ``path`` can be read.
        """
        return files_source(self.path, self.column, self.limits)


class TextDataSet:
    """Tokenised text, ready to be read.

    Args:
        config: how to cut rows.
        store: the tokens.
        origin: facts of the source; may have an ``identity`` in place of the store's name.
        seed: of the training split's order.

    Raises:
        DataError: if the training split is shorter than one row.
    """

    def __init__(self, config: RowsConfig, store: Store, origin: Mapping[str, Any], seed: int) -> None:
        self._config = config
        self._store = store
        self._origin = {"identity": store.path.name, **origin}
        self._seed = seed
        self._samples: dict[str, TextSamples] = {}
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
        if name not in self._samples:
            seed = self._seed if self._config.shuffle and name == TRAIN else None
            tokens = self._store.splits[name]
            if not tokens.num_documents:
                raise EmptySplit(f"the {name} split ({self._config.whence(name)}) has no documents")
            identity = f"{self._origin['identity']} {name}"
            try:
                samples = self._config.samples(tokens, self.tokenizer, identity, seed)
            except DataError as error:
                raise DataError(f"the {name} split ({self._config.whence(name)}): {error}") from error
            self._samples[name] = samples
        return self._samples[name]

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return counts, identities and places for the run's manifest (JSON)."""
        packed = self._config.batching == "packed"
        return {
            "kind": self._config.kind,
            **self._origin,
            "splits": {name: self._split_facts(name, tokens) for name, tokens in self._store.splits.items()},
            "skipped_documents": dict(self._store.skipped),
            "rows_mix_documents": packed,
            "documents_masked": packed and self._config.mask_documents,
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
