"""Text to token ids as arrays: the same ids as the tokenizer's own, several times faster where that can be proved.

tiktoken merges any neighbours whose joined bytes are a token, the earliest token first; ``tokenizers`` merges the pairs
of its list, in the order of the list. Both leave the same tokens if every token is made by one pair of the list, from
parts that come before it, and if each token's own bytes become just this token. For suppose tiktoken joined two
neighbours ``x y`` to the token ``t`` which the list makes of ``a b``. No merge before had crossed the ends of ``x y``,
so the earlier merges alone turn the bytes of ``t`` into ``x y``; but they turn them into ``a b``, or ``t`` would not
become itself. So ``x y`` is ``a b``. :func:`_merges` checks these conditions for the whole vocabulary.

Both cut text into words by the same regular expression first, with tables of Unicode that may be of different age. The
classes it names are compared for each character that occurs, in both engines; a document with a character on which they
disagree, or on which tiktoken gives up (it has no room for a million blanks in a row), is encoded by ``tokenizers``. A
small share of the documents, chosen by their hash, is encoded by both and compared all the same.

Long documents are encoded piece by piece. No word has a blank behind anything else, and what a word is depends on
nothing before it and one character behind it; so between a visible character and a blank a text can be cut.
"""

from __future__ import annotations

import functools
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, models, pre_tokenizers

from perjoule.core.errors import DataError
from perjoule.data.tokenizer import TextTokenizer

if TYPE_CHECKING:
    import tiktoken

Ids = npt.NDArray[np.uint32]

TIKTOKEN, TOKENIZERS, COMPARED = "tiktoken", "tokenizers", "compared"
"""What encoded a document, and how many of tiktoken's were encoded by both."""

COMPARED_SHARE = 1 / 256

_PIECE_CHARACTERS = 1 << 16
"""Of a document that are encoded at once: ``tokenizers`` keeps a hundred bytes for each token."""
_CUT = re.compile(r"[!-~](?=[ \n])")

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How the ByteLevel pre-tokenizer cuts; what it calls a letter, a number or a blank is up to the engine."""
_CLASSES = (r"\p{L}", r"\p{N}", r"\s")
_UNKNOWN, _SAME, _UNLIKE = 0, 1, 2
_NUM_CODE_POINTS = 0x110000


class Encoder:
    """Encodes documents; several threads may use one.

    Args:
        tokenizer: what the ids are those of.
        compared_share: of the documents that tiktoken encodes, 0 to 1; None: ``tokenizers`` encodes all.
    """

    def __init__(self, tokenizer: TextTokenizer, compared_share: float | None = COMPARED_SHARE) -> None:
        self._tokenizer = tokenizer
        self._compared_below = round((compared_share or 0.0) * (1 << 32))
        self._fast, self.why_not = None, "not asked for"
        if compared_share is not None:
            self._fast, self.why_not = _fast_encoding(tokenizer)
        if self._fast is not None:
            self._same_words = _SameWords()

    def encode(self, texts: Sequence[str], counts: Counter[str]) -> list[Ids]:
        """Return the ids of each text, without BOS.

        Args:
            texts: documents, encodable as UTF-8.
            counts: is told how many documents were encoded by what (``tiktoken``, ``tokenizers``), and ``compared``.

        Raises:
            DataError: if a document that is compared has other ids; the proof above has a gap then.
        """
        found: list[Ids | None] = [None] * len(texts)
        if self._fast is not None:
            found = [_encode_fast(self._fast, self._same_words, text) for text in texts]
            counts[TIKTOKEN] += sum(ids is not None for ids in found)
            self._compare(texts, found, counts)
        left = [number for number, ids in enumerate(found) if ids is None]
        counts[TOKENIZERS] += len(left)
        for number, ids in zip(left, self._slow([texts[number] for number in left]), strict=True):
            found[number] = ids
        return [ids for ids in found if ids is not None]

    def _slow(self, texts: Sequence[str]) -> list[Ids]:
        """Encode with ``tokenizers``."""
        if self._fast is None:  # who knows where its words end
            return [np.array(ids, np.uint32) for ids in self._tokenizer.encode_batch(texts)] if texts else []
        encode = self._tokenizer.encode_batch
        return [
            np.concatenate([np.array(ids, np.uint32) for piece in _pieces(text) for ids in encode([piece])])
            for text in texts
        ]

    def _compare(self, texts: Sequence[str], found: Sequence[Ids | None], counts: Counter[str]) -> None:
        """Encode a share of the documents once more."""
        chosen = [
            (text, ids)
            for text, ids in zip(texts, found, strict=True)
            if ids is not None and zlib.crc32(text[:1024].encode()) < self._compared_below
        ]
        counts[COMPARED] += len(chosen)
        for (text, ids), expected in zip(chosen, self._slow([text for text, _ in chosen]), strict=True):
            if not np.array_equal(ids, expected):
                raise DataError(
                    f"tiktoken and tokenizers disagree on the document that begins with {text[:40]!r}; "
                    "choose encoder=tokenizers, and please report this"
                )


def _encode_fast(encoding: tiktoken.Encoding, same_words: _SameWords, text: str) -> Ids | None:
    """Encode with tiktoken; None if it must not be used or gives up."""
    parts: list[Ids] = []
    for piece in _pieces(text):
        if not same_words(piece):
            return None
        try:
            parts.append(encoding.encode_to_numpy(piece, disallowed_special=()))
        except BaseException as error:
            # Out of room for backtracking: a ValueError or, in older versions, a panic, which is no Exception.
            if not isinstance(error, ValueError) and type(error).__name__ != "PanicException":
                raise
            return None
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text where a word ends and a blank follows, if it does anywhere."""
    begin = 0
    while len(text) - begin > _PIECE_CHARACTERS and (cut := _CUT.search(text, begin + _PIECE_CHARACTERS)):
        yield text[begin : cut.end()]
        begin = cut.end()
    yield text[begin:]


class _SameWords:
    """Whether both engines cut a text into the same words; knows the characters it has met."""

    def __init__(self) -> None:
        self._states = np.zeros(_NUM_CODE_POINTS, np.uint8)
        self._look_up(np.arange(128, dtype=np.uint32))
        self._ascii = bool((self._states[:128] == _SAME).all())

    def __call__(self, text: str) -> bool:
        if self._ascii and text.isascii():
            return True
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        states = self._states[points]
        if (unknown := states == _UNKNOWN).any():
            self._look_up(np.unique(points[unknown]))
            states = self._states[points]
        return bool((states == _SAME).all())

    def _look_up(self, points: npt.NDArray[np.uint32]) -> None:
        """Compare the classes of characters, given by their code points."""
        characters = points.astype("<u4").tobytes().decode("utf-32-le")
        unlike: set[str] = set()
        for name, probe in _probes().items():
            theirs = pre_tokenizers.Split(Regex(name), "removed", invert=True).pre_tokenize_str(characters)
            ours = probe.decode(probe.encode_ordinary(characters))
            unlike |= {part for part, _ in theirs} ^ set(ours)
        self._states[points] = _SAME
        self._states[[ord(character) for character in unlike]] = _UNLIKE


@functools.cache
def _probes() -> dict[str, tiktoken.Encoding]:
    """Return an encoding for each class that leaves out all characters but those of the class: no word matches them."""
    import tiktoken

    ranks = {bytes([value]): value for value in range(256)}
    return {name: tiktoken.Encoding(name, pat_str=name, mergeable_ranks=ranks, special_tokens={}) for name in _CLASSES}


def _fast_encoding(tokenizer: TextTokenizer) -> tuple[tiktoken.Encoding | None, str]:
    """Return tiktoken's form of a tokenizer, or None and why there is none."""
    try:
        import tiktoken
    except ImportError:
        return None, "tiktoken is not installed (pip install 'perjoule[data]')"
    config = json.loads(tokenizer.inner.to_str())
    if reason := _not_plain(config):
        return None, reason
    ranks = _merges(config["model"])
    if isinstance(ranks, str):
        return None, ranks
    # Without any special token the empty expression is looked for at every byte of the text; this one is not allowed
    # in any text, so that a text that spells it stays text.
    special = {"<|bos|>": tokenizer.bos_id}
    return tiktoken.Encoding("perjoule", pat_str=_WORDS, mergeable_ranks=ranks, special_tokens=special), ""


def _not_plain(config: dict[str, Any]) -> str:
    """Return what makes a ``tokenizer.json`` more than a byte-level BPE; empty if nothing does."""
    model, words = config["model"], config["pre_tokenizer"] or {}
    if model["type"] != "BPE":
        return f"{model['type']} is no BPE"
    if words.get("type") != "ByteLevel" or words["add_prefix_space"] or not words.get("use_regex", True):
        return "the words are not those of the ByteLevel pre-tokenizer"
    if config["normalizer"] is not None:
        return f"text is normalised ({config['normalizer']['type']})"
    if not all(token["special"] for token in config["added_tokens"]):
        return "there are added tokens that are not special"
    unusual = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    return next((f"the model has {name}" for name in unusual if model.get(name)), "")


def _merges(model: dict[str, Any]) -> dict[bytes, int] | str:
    """Return the id of each token's bytes if tiktoken's merges are the model's, else why they are not."""
    vocabulary, alphabet = model["vocab"], _byte_alphabet()
    pairs = [(left, right) for left, right in model["merges"]]
    if missing := alphabet.keys() - vocabulary.keys():
        return f"{len(missing)} of the 256 bytes are no token"
    known, last = set(alphabet), -1
    for left, right in pairs:
        token = left + right
        if left not in known or right not in known or token in known or vocabulary.get(token, -1) <= last:
            return f"the token {token!r} is not made once, in the order of the ids, from tokens before it"
        known.add(token)
        last = vocabulary[token]
    bpe = models.BPE(vocab=vocabulary, merges=pairs)
    for token in known:
        if [part.id for part in bpe.tokenize(token)] != [vocabulary[token]]:
            return f"the token {token!r} does not become itself"
    return {bytes(alphabet[character] for character in token): vocabulary[token] for token in known}


def _byte_alphabet() -> dict[str, int]:
    """Return the byte behind each character of a byte-level vocabulary: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + n): value for n, value in enumerate(others)}
