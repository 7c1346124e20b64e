"""Token stores of many small shards."""

from pathlib import Path

import pytest

from perjoule.data import tokenize_unit
from perjoule.data.sources import files_source
from perjoule.data.split import Fractions
from perjoule.data.store import prepare
from perjoule.data.tokenize import TokenizeConfig, tokenize
from perjoule.data.tokenizer import TextTokenizer, TokenizerConfig

FRACTIONS = {"train": 0.6, "validation": 0.2, "test": 0.2}


def train_tokenizer(corpus: Path, cache: Path) -> Path:
    """Return the file of a tokenizer of 280 tokens."""
    made = prepare(files_source(corpus, "text"), TokenizerConfig(vocab_size=280), Fractions(), cache)
    return made.path / "tokenizer.json"


def write_store(corpus: Path, tokenizer: Path, out: Path) -> Path:
    """Tokenize the text files of a folder into shards of a few documents."""
    config = TokenizeConfig(workers=0, fractions=Fractions(**FRACTIONS), shard_tokens=500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenize_unit, "_BATCH_CHARACTERS", 1000)
        tokenize(files_source(corpus, "text"), TextTokenizer.load(tokenizer), out, config, lambda line: None)
    return out
