"""From text to token ids: a byte-level BPE trained on the training split, or a Hugging Face tokenizers file.

The tokenizer only translates text. Whatever a file's post-processor would add (often a BOS of its own) is turned off,
because the stream puts one BOS before each document itself: two would be the classic mistake. Text that happens to
spell a special token stays text, so that a BOS in the stream always is a document's beginning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from perjoule.config import Config
from perjoule.core.cache import expand_home
from perjoule.core.errors import DataError, nearest
from perjoule.core.files import read_text
from perjoule.core.units import byte_size, duration
from perjoule.data.background import in_background

BOS, PAD = "<|bos|>", "<|pad|>"
BOS_NAMES = (
    BOS,
    "<s>",
    "<bos>",
    "[BOS]",
    "<|begin_of_text|>",
    "<|startoftext|>",
    "<|im_start|>",
    "<|endoftext|>",
    "[CLS]",
)
PAD_NAMES = (PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>")
"""What the special tokens are called in a tokenizer file; the first that exists is taken."""
SMALLEST_VOCABULARY = 256 + 2
"""Every byte, BOS and padding."""
LARGEST_VOCABULARY = 1 << 22
"""The library makes room for as many tokens as it is asked for, and ends the process where there is none."""
LONGEST_WORD = 256
"""Bytes. Training takes time that grows with the square of a word's length, so longer words (a genome, text without
blanks, a line of dashes) are cut for it: all of the text is learned from, but no token crosses a cut. Encoding cuts
nothing."""
_LARGEST_FILE_BYTES = 1 << 28


@dataclass(frozen=True)
class TextTokenizer:
    """A ready tokenizer.

    Args:
        inner: the ``tokenizers`` object; :meth:`wrap` sets it up.
        vocab_size: one more than the largest id.
        bos_id: the token before each document.
        pad_id: the token after the end of a padded row; ``bos_id`` if the tokenizer has none, which is safe because
            padding is masked by its position and never by its id.
        content_hash: identifies the tokenizer across machines.
    """

    inner: Tokenizer
    vocab_size: int
    bos_id: int
    pad_id: int
    content_hash: str

    @classmethod
    def wrap(cls, inner: Tokenizer, origin: str) -> TextTokenizer:
        """Turn off everything but the translation of text, and find the special tokens.

        Raises:
            DataError: if none of ``BOS_NAMES`` is a special token of the tokenizer that comes from ``origin``.
        """
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True
        special = {token.content: id for id, token in inner.get_added_tokens_decoder().items() if token.special}
        bos = next((special[name] for name in BOS_NAMES if name in special), None)
        if bos is None:
            has = ", ".join(sorted(special)) or "none"
            raise DataError(
                f"{origin} has no special token that begins a document; accepted: {', '.join(BOS_NAMES)}; it has: {has}"
            )
        pad = next((special[name] for name in PAD_NAMES if name in special), bos)
        vocab_size = max(inner.get_vocab(with_added_tokens=True).values()) + 1
        content = hashlib.blake2b(inner.to_str().encode(), digest_size=16).hexdigest()
        return cls(inner, vocab_size, bos, pad, content)

    @classmethod
    def load(cls, path: Path) -> TextTokenizer:
        """Read a ``tokenizer.json``.

        Raises:
            DataError: if the file is missing, is no tokenizers file, or has no BOS.
        """
        if not path.exists():
            siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
            near = nearest(path.name, siblings)
            raise DataError(f"no tokenizer file {path}" + (f"; did you mean {near!r}?" if near else ""))
        text = read_text(path, "the tokenizer", DataError, _LARGEST_FILE_BYTES)
        try:
            inner = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
            raise DataError(f"{path} is not a Hugging Face tokenizers file (tokenizer.json): {error}") from error
        return cls.wrap(inner, str(path))

    @property
    def unk_id(self) -> int | None:
        """Return the id of what cannot be encoded; None if everything can."""
        model = self.inner.model
        name = getattr(model, "unk_token", None)
        if name is None and isinstance(model, models.Unigram):
            position = json.loads(self.inner.to_str())["model"]["unk_id"]
            return None if position is None else int(position)
        return None if name is None else self.inner.token_to_id(name)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS."""
        return list(self.inner.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts, without BOS, on all cores."""
        return [encoding.ids for encoding in self.inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens are left out."""
        return str(self.inner.decode(list(ids), skip_special_tokens=True))


def byte_level_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str],
    min_frequency: int = 0,
    normalizer: Any = None,
    say: Callable[[str], None] = lambda line: None,
) -> Tokenizer:
    """Train a byte-level BPE; the same texts always give the same tokenizer.

    Args:
        texts: read once, in any order.
        vocab_size: special tokens included.
        special_tokens: get the ids from 0.
        min_frequency: of a pair, to be merged.
        normalizer: of the ``tokenizers`` library; None: text is left as it is.
        say: is told now and then how far it is.
    """
    inner = Tokenizer(models.BPE())
    if normalizer is not None:
        inner.normalizer = normalizer
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    train_inner(inner, texts, trainer, say)
    return inner


def train_inner(inner: Tokenizer, texts: Iterable[str], trainer: Any, say: Callable[[str], None]) -> None:
    """Train with words of bounded length; a signal is answered meanwhile.

    Args:
        inner: with all but its vocabulary.
        texts: read once.
        trainer: of the ``tokenizers`` library.
        say: is told now and then how far it is.
    """
    num_bytes, is_read = 0, False

    def counted() -> Iterator[str]:
        nonlocal num_bytes, is_read
        for text in texts:
            num_bytes += len(text)
            yield text
        is_read = True

    def waiting(seconds: float) -> None:
        what = "choosing tokens" if is_read else "counting words"
        say(f"training the tokenizer: {what}, {byte_size(num_bytes)} read, {duration(seconds)} so far")

    words = inner.pre_tokenizer
    inner.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.FixedLength(LONGEST_WORD)])
    in_background(lambda: inner.train_from_iterator(counted(), trainer), waiting)
    inner.pre_tokenizer = words


def at_most_largest(vocab_size: int) -> int:
    """Return the size of a vocabulary if one of that size can be trained.

    Raises:
        ValueError: if not.
    """
    if vocab_size > LARGEST_VOCABULARY:
        raise ValueError(f"must be at most {LARGEST_VOCABULARY:,}")
    return vocab_size


class TokenizerConfig(Config):
    """How text becomes tokens."""

    vocab_size: int = Field(default=4096)
    """Of the BPE to be trained, special tokens included; a small corpus may yield fewer. A file brings its own."""

    file: Path | None = None
    """An existing Hugging Face ``tokenizer.json``; then nothing is trained."""

    @field_validator("vocab_size")
    @classmethod
    def _holds_every_byte(cls, value: int) -> int:
        if value < SMALLEST_VOCABULARY:
            raise ValueError(f"must be at least {SMALLEST_VOCABULARY} (256 bytes and 2 special tokens)")
        return at_most_largest(value)

    def identity(self) -> str:
        """Return what the tokens depend on besides the documents.

        Raises:
            DataError: if the file cannot be used.
        """
        if self.file is None:
            return f"byte-level BPE, vocab_size {self.vocab_size}"
        return f"file {TextTokenizer.load(expand_home(self.file)).content_hash}"

    def build(self, texts: Iterable[str], say: Callable[[str], None] = lambda line: None) -> TextTokenizer:
        """Load the file, or train on ``texts`` (which are read only in that case).

        Raises:
            DataError: if the file cannot be used.
        """
        if self.file is not None:
            return TextTokenizer.load(expand_home(self.file))
        inner = byte_level_bpe(texts, self.vocab_size, (BOS, PAD), say=say)
        return TextTokenizer.wrap(inner, "the trained tokenizer")
