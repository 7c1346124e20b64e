"""A tokenizer, and stores that were made with it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.data.stores import train_tokenizer, write_store


@pytest.fixture
def tokenizer_file(corpus: Path, tmp_path: Path) -> Path:
    return train_tokenizer(corpus, tmp_path / "trained")


@pytest.fixture
def store(corpus: Path, tokenizer_file: Path, tmp_path: Path) -> Callable[[], Path]:
    """Write the corpus as it is now into a store."""
    return lambda: write_store(corpus, tokenizer_file, tmp_path / f"store-{len(list(corpus.iterdir()))}")
