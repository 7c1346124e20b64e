"""Small corpora and tokenizers."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = "the quick brown fox jumps over lazy dogs while seven wizards boil quartz in a vat of pure joules".split()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Forty text files of 30 to 225 words."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(40):
        words = (WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(30 + 5 * number))
        (folder / f"{number:02d}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture
def word_tokenizer(tmp_path: Path) -> Callable[[Mapping[str, int], str], Path]:
    """Write a tokenizers file: one id a word, one special token, and a post-processor that adds it by itself."""

    def write(vocabulary: Mapping[str, int], bos: str) -> Path:
        inner = Tokenizer(models.WordLevel(dict(vocabulary), unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        inner.add_special_tokens([bos])
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, inner.token_to_id(bos))]
        )
        inner.enable_truncation(5)
        inner.enable_padding(length=64, pad_id=0, pad_token="[UNK]")
        path = tmp_path / f"words-{len(vocabulary)}.json"
        inner.save(str(path))
        return path

    return write
