"""Text from tokens that come one by one: whole characters only, and nothing of a stop text.

A token may end within a character, whose bytes then decode to U+FFFD until the rest has come; and what a token decodes
to may depend on the one before (a space that only the first loses). So the tokens since the last boundary but one are
decoded together each time, and what is new of their text is given; the cost of a token does not grow with the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""Returns the text of tokens."""

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
LOOK_BACK = 4
"""Tokens of the prompt that are decoded with the first one: a character has at most four bytes."""


class TextStream:
    """The text of a completion while it is being written.

    Args:
        decode: text of tokens.
        stops: texts that end it.
        prompt: tokens before it, whose text is not part of it but may put a space in front.
    """

    def __init__(self, decode: Decode, stops: Sequence[str] = (), prompt: Sequence[int] = ()) -> None:
        self._decode, self._stops = decode, stops
        self._tokens = list(prompt[-LOOK_BACK:])
        self._begin, self._boundary = 0, len(self._tokens)
        self._before = decode(self._tokens)
        self._given = len(self._before)
        self._held = ""
        self.stopped = False
        """Whether a stop text has come; the text was cut before it."""

    def add(self, token: int) -> str:
        """Take a token and return the text that has become certain."""
        self._tokens.append(token)
        text = self._decode(self._tokens[self._begin :])
        whole = text.rstrip(INCOMPLETE)
        fresh = whole[self._given :]
        self._given = max(self._given, len(whole))
        if whole == text and len(text) > len(self._before):
            self._begin, self._boundary = self._boundary, len(self._tokens)
            self._before = self._decode(self._tokens[self._begin :])
            self._given = len(self._before)
        return self._certain(fresh)

    def end(self) -> str:
        """Return what was held back, when no token comes any more."""
        rest = "" if self.stopped else self._held + self._decode(self._tokens[self._begin :])[self._given :]
        self._held = ""
        self._given += len(rest)
        return rest

    def _certain(self, fresh: str) -> str:
        """Hold back what may become a stop text, and cut before one that has come."""
        text = self._held + fresh
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text begin a stop text."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
