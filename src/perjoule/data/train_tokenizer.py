"""``perjoule data tokenizer``: a vocabulary from a sample of the training documents, in bounded memory.

Three kinds. ``bpe`` and ``unigram`` work on bytes: every text can be encoded, and decoding gives it back. ``wordpiece``
works on words, drops white space, and has an unknown token for what its letters cannot spell; how much that is, is
measured on held-out documents and stated. BPE training gives the same file every time; the library's WordPiece and
Unigram trainers break ties at random, so that a second training is another tokenizer, if only slightly.

The sample is chosen by the hash of each document: the same documents wherever they lie, and more of the same with a
larger ``sample_bytes``. Documents stream through twice, once to see how many there are. Of a corpus far larger than the
sample only some units, chosen by hash as well, are read at all. Memory grows with the distinct words of the sample.

Beside ``NAME.json``, which is all that ``tokenize`` needs, stand ``NAME_config.json`` (with it, a folder with
``tokenizer.json`` is one that transformers' ``AutoTokenizer`` loads) and ``NAME_facts.json``: what it was trained on.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from pydantic import Field, PositiveInt, model_validator
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from perjoule.config import Config
from perjoule.core.errors import DataError, suggestion
from perjoule.core.units import byte_size
from perjoule.data.folders import identity_of, provenance_of, read_object, write_bytes, write_json, writing
from perjoule.data.formats import DEFAULT_LIMITS, Limits
from perjoule.data.parts import rank_of
from perjoule.data.sources import Source, Unit, files_source
from perjoule.data.split import TRAIN, VALIDATION, Fractions
from perjoule.data.tokenizer import (
    BOS,
    BOS_NAMES,
    PAD,
    PAD_NAMES,
    TextTokenizer,
    at_most_largest,
    byte_level_bpe,
    train_inner,
)

Normalization = Literal["nfc", "nfkc", "lowercase", "strip_accents"]

_BINS = 1 << 16
_CHECK_BYTES = 4 << 20
_READ_FACTOR = 8
_NORMALIZERS: dict[str, Callable[[], Any]] = {
    "nfc": normalizers.NFC,
    "nfkc": normalizers.NFKC,
    "lowercase": normalizers.Lowercase,
    "strip_accents": lambda: normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
}


class TrainTokenizerConfig(Config):
    """What kind of tokenizer, trained on how much."""

    kind: Literal["bpe", "wordpiece", "unigram"] = "bpe"
    """``bpe`` and ``unigram`` on bytes, without loss; ``wordpiece`` on words."""
    vocab_size: PositiveInt = 32768
    """Special tokens included; a small corpus may yield fewer."""
    min_frequency: int = Field(default=0, ge=0)
    """Of a pair, to become a token (``bpe``, ``wordpiece``)."""
    bos: str = BOS
    """The special token that begins a document."""
    pad: str = PAD
    """The special token that fills up a row."""
    eos: str | None = None
    """A special token that ends a text, for post-processing; stores have none, as the next BOS ends a document."""
    unk: str = "[UNK]"
    """What ``wordpiece`` has for words that it cannot spell."""
    special_tokens: tuple[str, ...] = ()
    """More of them, such as <|user|>; they get the ids after those above."""
    normalizer: tuple[Normalization, ...] = ()
    """What is done to a text first, in this order; all of it loses something."""
    post_processing: Literal["none", "bos", "eos", "bos_eos"] = "bos"
    """What the file adds to a text when others encode with it; a store always has one BOS before each document."""
    model_max_length: PositiveInt | None = None
    """What transformers warns at; no limit if none is given."""
    sample_bytes: PositiveInt = 256 << 20
    """Of text to train on; all of a smaller corpus."""
    seed: int = 0
    """Of the sample."""
    fractions: Fractions = Fractions()
    """Of a source that is not split already: only its training documents are used."""
    column: str = "text"
    """The field that holds the text in JSON-lines and parquet files."""
    limits: Limits = DEFAULT_LIMITS

    @model_validator(mode="after")
    def _fits(self) -> TrainTokenizerConfig:
        for name, accepted in ((self.bos, BOS_NAMES), (self.pad, PAD_NAMES)):
            if name not in accepted:
                raise ValueError(f"{name} would not be recognised in the file: {suggestion(name, accepted)}")
        if "eos" in self.post_processing and self.eos is None:
            raise ValueError(f"post_processing={self.post_processing} needs the name of the token: eos=…")
        names = self.special_names()
        if len(set(names)) < len(names):
            raise ValueError(f"the special tokens must differ: {', '.join(names)}")
        at_most_largest(self.vocab_size)
        smallest = len(names) + (0 if self.kind == "wordpiece" else 256)
        if self.vocab_size < smallest:
            raise ValueError(f"vocab_size must be at least {smallest}, for {len(names)} special tokens and all bytes")
        return self

    def special_names(self) -> list[str]:
        """Return the special tokens in the order of their ids."""
        unk = [self.unk] if self.kind == "wordpiece" else []
        eos = [self.eos] if self.eos is not None else []
        return [self.bos, self.pad, *unk, *eos, *self.special_tokens]


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer on disk.

    Args:
        file: for ``tokenize``.
        vocab_size: as trained.
        facts: what it was trained on and how it does on held-out documents (JSON).
    """

    file: Path
    vocab_size: int
    facts: dict[str, Any]


def train_tokenizer(
    path: Path, file: Path, config: TrainTokenizerConfig, say: Callable[[str], None]
) -> TrainedTokenizer:
    """Train a tokenizer and write it.

    Args:
        path: a split corpus, of which the training part is used, or any source.
        file: what to write, ``….json``; it may exist if it was trained with the same settings on the same files.
        config: the settings.
        say: prints a line about progress.

    Raises:
        DataError: if there are no training documents, or the file exists or cannot be written.
        MissingExtra: for parquet files without pyarrow.
    """
    if file.suffix != ".json":
        raise DataError(f"{file} must end in .json, as tokenizer.json does")
    source = files_source(path, config.column, config.limits).divided_by(config.fractions)
    for note in source.notes():
        say(note)
    plan = {"settings": config.model_dump(mode="json"), "source": source.listing()}
    facts_file = file.with_name(f"{file.stem}_facts.json")
    if file.exists():
        facts = read_object(facts_file) if facts_file.is_file() else {}
        trained = TextTokenizer.load(file)
        if facts.get("identity") != identity_of(plan) or facts.get("hash") != trained.content_hash:
            raise DataError(f"{file} exists, of other documents or settings; choose another name, or remove it")
        say(f"{file} is trained already")
        return TrainedTokenizer(file, trained.vocab_size, facts)
    with writing(file, "choose another place"):  # before the work, not after it
        file.parent.mkdir(parents=True, exist_ok=True)
    sample = _Sample(source, config)
    say(f"training on {sample.documents:,} of {sample.seen_documents:,} documents, {byte_size(sample.num_bytes)}")
    inner = _train(sample.texts(), config, say)
    inner.post_processor = _post_processor(inner, config)
    content = inner.to_str(pretty=True).encode()
    tokenizer = TextTokenizer.wrap(Tokenizer.from_str(content.decode()), str(file))  # as whoever reads the file has it
    facts = {
        "identity": identity_of(plan),
        "hash": tokenizer.content_hash,
        "vocab_size": tokenizer.vocab_size,
        "plan": plan,
        "source": {"path": str(path.absolute()), "provenance": provenance_of(path)},
        "sample": sample.as_json(),
        "held_out": _check(tokenizer, sample.held_out),
        "reproducible": config.kind == "bpe",
        "made_by": {"tokenizers": tokenizers.__version__},
    }
    with writing(file):
        write_json(file.with_name(f"{file.stem}_config.json"), _transformers_config(config))
        write_json(facts_file, facts)
        write_bytes(file, content)  # last: while it is missing, nothing is finished
    for line in _report(facts):
        say(line)
    return TrainedTokenizer(file, tokenizer.vocab_size, facts)


class _Sample:
    """Documents to train on, chosen by their hash, and held-out ones to check with.

    Args:
        source: of the documents; of a split corpus, the training part is used.
        config: how much, and which documents are for training if the source is not split.

    Raises:
        DataError: if there are no training documents.
    """

    def __init__(self, source: Source, config: TrainTokenizerConfig) -> None:
        self._source = source.only(TRAIN) if source.splits else source
        self._config = config
        self.held_out: list[str] = []
        units = self._source.units()
        self._units, self._num_units = _some_units(units, _READ_FACTOR * config.sample_bytes, config.seed), len(units)
        sizes, counts = np.zeros(_BINS, np.int64), np.zeros(_BINS, np.int64)
        waiting = _CHECK_BYTES
        for split, text in self._documents():
            if split == TRAIN:
                bin_ = _bin(text, config.seed)
                sizes[bin_] += len(text.encode())
                counts[bin_] += 1
            elif split == VALIDATION and waiting > 0:
                self.held_out.append(text)
                waiting -= len(text)
        if not counts.any():
            raise DataError(f"no training documents in {source.root} to train a tokenizer on")
        first = int(np.flatnonzero(counts)[0])  # one document at least
        self._end = max(int(np.searchsorted(np.cumsum(sizes), config.sample_bytes, side="right")), first + 1)
        self.documents, self.seen_documents = int(counts[: self._end].sum()), int(counts.sum())
        self.num_bytes, self._seen_bytes = int(sizes[: self._end].sum()), int(sizes.sum())
        if VALIDATION in source.splits:
            for document in source.only(VALIDATION).documents(Counter()):
                if waiting <= 0:
                    break
                self.held_out.append(document.text)
                waiting -= len(document.text)

    def texts(self) -> Iterator[str]:
        """Read the chosen documents."""
        for split, text in self._documents():
            if split == TRAIN and _bin(text, self._config.seed) < self._end:
                yield text

    def as_json(self) -> dict[str, Any]:
        """Return how much was chosen of how much that was read."""
        return {
            "documents": self.documents,
            "bytes": self.num_bytes,
            "of_documents": self.seen_documents,
            "of_bytes": self._seen_bytes,
            "units": len(self._units),
            "of_units": self._num_units,
        }

    def _documents(self) -> Iterator[tuple[str, str]]:
        """Read the split and the text of every document in the chosen units."""
        for unit in self._units:
            for document in self._source.read(unit, Counter()):
                for part in self._source.share_out(document, self._config.fractions):
                    yield part.split or TRAIN, part.text


def _bin(text: str, seed: int) -> int:
    """Return a document's place among all, in ``_BINS`` steps."""
    return rank_of(text, seed) * _BINS >> 64


def _some_units(units: Sequence[Unit], num_bytes: int, seed: int) -> tuple[Unit, ...]:
    """Return units of ``num_bytes`` in all, chosen by the hash of their places, in order; all if there are fewer."""
    by_hash = sorted(units, key=lambda unit: rank_of(json.dumps(unit.as_json()), seed))
    ends = itertools.accumulate(unit.num_bytes for unit in by_hash)
    chosen = {unit for unit, end in zip(by_hash, ends, strict=True) if end - unit.num_bytes < num_bytes}
    return tuple(unit for unit in units if unit in chosen)


def _train(texts: Iterator[str], config: TrainTokenizerConfig, say: Callable[[str], None]) -> Tokenizer:
    """Train the kind that was asked for."""
    special = config.special_names()
    steps = [_NORMALIZERS[name]() for name in config.normalizer]
    normalizer = normalizers.Sequence(steps) if steps else None
    if config.kind == "bpe":
        return byte_level_bpe(texts, config.vocab_size, special, config.min_frequency, normalizer, say)
    trainer: Any
    if config.kind == "unigram":
        inner = Tokenizer(models.Unigram())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.UnigramTrainer(
            vocab_size=config.vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        inner = Tokenizer(models.WordPiece(unk_token=config.unk))
        # The model knows no word that is longer than this, and cutting one costs less than losing it.
        cut = pre_tokenizers.FixedLength(inner.model.max_input_chars_per_word)
        inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), cut])
        inner.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=config.vocab_size,
            min_frequency=config.min_frequency,
            special_tokens=special,
            show_progress=False,
        )
    if normalizer is not None:
        inner.normalizer = normalizer
    train_inner(inner, texts, trainer, say)
    return inner


def _post_processor(inner: Tokenizer, config: TrainTokenizerConfig) -> Any:
    """Return what puts special tokens around a text when others encode it; None if nothing does."""
    if config.post_processing == "none":
        return None
    begin = [config.bos] if "bos" in config.post_processing else []
    end = [config.eos] if "eos" in config.post_processing and config.eos is not None else []
    return processors.TemplateProcessing(
        single=" ".join([*begin, "$A", *end]),
        pair=" ".join([*begin, "$A", *end, *(f"{name}:1" for name in begin), "$B:1", *(f"{name}:1" for name in end)]),
        special_tokens=[(name, inner.token_to_id(name)) for name in (*begin, *end)],
    )


def _transformers_config(config: TrainTokenizerConfig) -> dict[str, Any]:
    """Return ``tokenizer_config.json``; a document ends where the next begins if there is no other sign."""
    unk = {"unk_token": config.unk} if config.kind == "wordpiece" else {}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": config.bos,
        "eos_token": config.eos or config.bos,
        "pad_token": config.pad,
        **unk,
        "additional_special_tokens": list(config.special_tokens),
        "model_max_length": config.model_max_length or 10**30,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }


def _check(tokenizer: TextTokenizer, texts: Sequence[str]) -> dict[str, Any]:
    """Encode and decode held-out documents, and count what is lost."""
    unk_id = tokenizer.unk_id
    encoded = tokenizer.encode_batch(texts)
    num_tokens = sum(map(len, encoded))
    return {
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "tokens": num_tokens,
        "unknown_tokens": 0 if unk_id is None else sum(ids.count(unk_id) for ids in encoded),
        "documents_that_come_back": sum(
            tokenizer.decode(ids) == text for ids, text in zip(encoded, texts, strict=True)
        ),
    }


def _report(facts: dict[str, Any]) -> Iterator[str]:
    """Yield what there is to say of a tokenizer."""
    yield f"{facts['vocab_size']:,} tokens, hash {facts['hash']}"
    check = facts["held_out"]
    if not check["documents"]:
        yield "not checked: there are no validation documents"
        return
    unknown = check["unknown_tokens"] / max(check["tokens"], 1)
    yield (
        f"on {check['documents']:,} validation documents: {check['tokens'] / check['bytes']:.3f} tokens a byte, "
        f"{unknown:.3%} of the tokens unknown, {check['documents_that_come_back']:,} documents come back unchanged"
    )
    if not facts["reproducible"]:
        yield "this kind of training has ties that are broken at random: keep the file, a second one would differ"
