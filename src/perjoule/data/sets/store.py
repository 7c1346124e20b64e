"""A token store that ``perjoule data tokenize`` wrote, for language modelling."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from perjoule.data.reader import RowsConfig
from perjoule.data.sets.text import TextDataSet
from perjoule.data.store import open_store


class StoreConfig(RowsConfig):
    """Where the store is; its tokenizer and its splits come with it."""

    kind: Literal["store"] = "store"
    path: Path
    """The store's folder."""

    def whence(self, split: str) -> str:
        """Return the store that the split is in."""
        return f"data.path={self.path}"

    def build(self, seed: int) -> TextDataSet:
        """Open the store.

        Args:
            seed: of the training split's order.

        Raises:
            DataError: if there is no store, or it is damaged, unfinished or of another format, or its training split
                is shorter than one row.
        """
        store = open_store(self.path)
        origin = {"identity": store.identity, "source": store.manifest.source, "made_from": store.manifest.made_from}
        return TextDataSet(self, store, origin, seed)
