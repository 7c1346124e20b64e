"""Generate text from a language model: prompts in, one token after another out, in batches, until each has ended.

::

    prompts ─ sorted by length ─> batches, padded on the left ─> prefill ─> choose ─> decode ─> choose ─> …
                                                                            │
                                       Piece (text that is certain) <─ take ─> Completion (why it ended)

A prompt's completion does not depend on what shares its batch, up to rounding: rows are masked, each draws from its own
generator, and prompts of different lengths share a batch only where its columns are sure to fit the model's positions.
A row that has ended stays in its batch, and what the model writes into it is ignored.

Per batch: one prefill, and as many decoding steps as its longest completion has tokens less one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor

from perjoule.core.errors import ConfigError
from perjoule.core.seeding import derive
from perjoule.evaluate.decoding import DecodingConfig, compiled_decode, thinking_prefill
from perjoule.evaluate.detokenize import Decode, TextStream
from perjoule.evaluate.sampling import SamplingConfig, choose
from perjoule.models.contract import Decoder

Finish = Literal["end", "stop", "length", "context"]
"""The document ended, a stop text came, ``max_new_tokens`` are written, or the model has no position left."""


class GenerationConfig(SamplingConfig):
    """How much is written, and how."""

    max_new_tokens: PositiveInt = 64
    """Tokens that are written at most."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end a completion, which is cut before them; they may span tokens. One needs no brackets."""
    batch_size: PositiveInt = 8
    """Prompts that are read at a time; completions do not depend on it."""
    thinking: DecodingConfig = DecodingConfig()
    """For a model that thinks."""
    log_probs: bool = False
    """Note the natural logarithm of each token's probability, as the model gives it, whatever is drawn from."""
    echo: bool = False
    """Begin a completion with its prompt; with ``log_probs``, the prompt's tokens have theirs as well."""
    compile: bool = False
    """Compile the decoding of a RetNet: a token takes half the time, the first ones of a batch size up to a minute."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class Piece:
    """A token of a completion, with the text that is certain since the piece before.

    Args:
        prompt: number of the prompt.
        token: that was written; None for text that was held back and became certain at the end.
        text: without the beginning of a character, or of what may become a stop text.
    """

    prompt: int
    token: int | None
    text: str


@dataclass(frozen=True)
class Completion:
    """What was written after a prompt.

    Args:
        prompt: number of the prompt.
        tokens: all that were written, those of a stop text too, but not the end of the document.
        text: of these, which continues the prompt, cut before a stop text; empty without a decode function.
        finish: why it ended.
        num_prompt: tokens of the prompt, its beginning included.
        seconds: wall time from the beginning of its batch to its last token.
        log_probs: of each token, if asked for.
        prompt_log_probs: of each token of the prompt, but its first, if asked for with ``echo``.
    """

    prompt: int
    tokens: tuple[int, ...]
    text: str
    finish: Finish
    num_prompt: int
    seconds: float = field(compare=False)
    log_probs: tuple[float, ...] | None = None
    prompt_log_probs: tuple[float, ...] | None = None


def longest_sequence(model: object) -> int | None:
    """Return how many tokens a model can read, prompt and completion together; None without a limit.

    Args:
        model: limited by its ``seq_len``, if it has one, unless its configuration has ``positions: none``.
    """
    if getattr(getattr(model, "config", None), "positions", None) == "none":
        return None
    return getattr(model, "seq_len", None)


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    end_id: int | None,
    decode: Decode | None = None,
    device: torch.device | None = None,
) -> list[Completion]:
    """Complete prompts; see :func:`stream` for the arguments and errors.

    Returns:
        Completions in the order of the prompts.
    """
    parts = stream(decoder, prompts, config, end_id=end_id, decode=decode, device=device)
    return sorted((part for part in parts if isinstance(part, Completion)), key=lambda one: one.prompt)


def stream(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    end_id: int | None,
    decode: Decode | None = None,
    device: torch.device | None = None,
) -> Iterator[Piece | Completion]:
    """Complete prompts, one token after another. What cannot be completed is refused at once.

    Args:
        decoder: the model, in evaluation mode.
        prompts: tokens, each with the beginning that the model was trained with.
        config: how.
        end_id: the token that ends a document; None if there is none.
        decode: text of tokens, for pieces and stop texts.
        device: where the model is; None is the processor.

    Returns:
        Pieces of the rows of a batch in turn, and the completion of a row when it has ended.

    Raises:
        ConfigError: if a prompt is empty or longer than the positions allow, if a stop text is given without
            ``decode``, or ``thinking`` or ``compile`` for a model that cannot.
        TrainingDiverged: if the logits are not finite.
    """
    limit = longest_sequence(decoder)
    _check(prompts, config, limit, decode)
    read = thinking_prefill(decoder, config.thinking)
    advance = compiled_decode(decoder) if config.compile else decoder.decode
    device = device or torch.device("cpu")

    def parts() -> Iterator[Piece | Completion]:
        for numbers in _batches([len(prompt) for prompt in prompts], config, limit):
            rows = [_Row(number, prompts[number], config, end_id, limit, decode) for number in numbers]
            yield from _write(rows, read, advance, config, device)

    return parts()


class _Row:
    """A completion while it is being written.

    Args:
        number: of the prompt.
        prompt: its tokens.
        config: when to end, and the seed.
        end_id: the token that ends it.
        limit: the model's positions.
        decode: text of tokens.
    """

    def __init__(
        self,
        number: int,
        prompt: Sequence[int],
        config: GenerationConfig,
        end_id: int | None,
        limit: int | None,
        decode: Decode | None,
    ) -> None:
        self.number, self.prompt, self.end_id = number, prompt, end_id
        self.generator = torch.Generator().manual_seed(derive(config.seed, "generate", number))
        self.finish: Finish | None = None
        self._stream = TextStream(decode, config.stop, prompt) if decode is not None else None
        # The last token that is written needs no position, because nothing is asked after it.
        room = config.max_new_tokens if limit is None else limit + 1 - len(prompt)
        self._most = min(room, config.max_new_tokens)
        self._why: Finish = "context" if room < config.max_new_tokens else "length"
        self._tokens: list[int] = []
        self._text: list[str] = []
        self._log_probs: list[float] = []
        self.prompt_log_probs: tuple[float, ...] | None = None

    @property
    def ended(self) -> bool:
        """Return whether no token comes any more."""
        return self.finish is not None

    def take(self, token: int, log_prob: float | None, begun: float) -> Iterator[Piece | Completion]:
        """Take the next token, and end if it is the last one.

        Args:
            token: that was chosen.
            log_prob: of the token, if asked for.
            begun: when the batch was, by the monotonic clock.
        """
        if token == self.end_id:
            self.finish = "end"
        else:
            self._tokens.append(token)
            if log_prob is not None:
                self._log_probs.append(log_prob)
            yield self._piece(token, self._stream.add(token) if self._stream else "")
            if self._stream and self._stream.stopped:
                self.finish = "stop"
            elif len(self._tokens) == self._most:
                self.finish = self._why
        if self.finish is not None:
            if self._stream and (rest := self._stream.end()):
                yield self._piece(None, rest)
            seconds, text = time.monotonic() - begun, "".join(self._text)
            log_probs = None if log_prob is None else tuple(self._log_probs)
            yield Completion(
                self.number,
                tuple(self._tokens),
                text,
                self.finish,
                len(self.prompt),
                seconds,
                log_probs,
                self.prompt_log_probs,
            )

    def _piece(self, token: int | None, text: str) -> Piece:
        self._text.append(text)
        return Piece(self.number, token, text)


def _write(
    rows: Sequence[_Row],
    read: Callable[..., tuple[Tensor, Any]],
    advance: Callable[[Tensor, Any], tuple[Tensor, Any]],
    config: GenerationConfig,
    device: torch.device,
) -> Iterator[Piece | Completion]:
    """Write a batch."""
    begun = time.monotonic()
    if config.echo and config.log_probs:
        for row in rows:
            row.prompt_log_probs = _prompt_log_probs(row.prompt, read, advance, device)
    logits, cache = read(*padded([row.prompt for row in rows], device))
    generators = [row.generator for row in rows]
    while True:
        tokens = choose(logits, config, generators)
        found = _log_probs(logits, tokens).tolist() if config.log_probs else [None] * len(rows)
        for row, token, log_prob in zip(rows, tokens.tolist(), found, strict=True):
            if not row.ended:
                yield from row.take(token, log_prob, begun)
        if all(row.ended for row in rows):
            return
        logits, cache = advance(tokens, cache)


def _log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return (batch,) natural logarithms of the probabilities of tokens (batch,) by logits (batch, vocab)."""
    return logits.float().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _prompt_log_probs(
    prompt: Sequence[int],
    read: Callable[..., tuple[Tensor, Any]],
    advance: Callable[[Tensor, Any], tuple[Tensor, Any]],
    device: torch.device,
) -> tuple[float, ...]:
    """Return those of a prompt's tokens but the first, read one by one: decoders give the last logits only."""
    tokens = torch.tensor(prompt, device=device)
    logits, cache = read(tokens[None, :1], None)
    found = []
    for token in tokens[1:]:
        found.append(float(_log_probs(logits, token[None])))
        logits, cache = advance(token[None], cache)
    return tuple(found)


def padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return prompts as one tensor, shorter ones padded on the left, and the mask of real tokens.

    Args:
        prompts: tokens.
        device: for the tensors.

    Returns:
        (batch, longest) int64, and (batch, longest) bool or None if all prompts are equally long.
    """
    longest = max(map(len, prompts))
    input_ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = torch.arange(longest, device=device) >= longest - lengths.unsqueeze(1)
    return input_ids, None if bool(mask.all()) else mask


def _batches(lengths: Sequence[int], config: GenerationConfig, limit: int | None) -> Iterator[list[int]]:
    """Yield the numbers of the prompts of each batch, shorter ones first.

    The positions of a batch end where its longest row runs out of them. So that this is no other row's end, prompts
    that may get so far are with their equals.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        alike = not batch or lengths[number] == lengths[batch[0]]
        fits = limit is None or lengths[number] + config.max_new_tokens <= limit + 1
        if len(batch) == config.batch_size or not (alike or fits):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _check(
    prompts: Sequence[Sequence[int]], config: GenerationConfig, limit: int | None, decode: Decode | None
) -> None:
    """Refuse what cannot be completed."""
    if config.stop and decode is None:
        raise ConfigError("stop ends a completion at a text, and these tokens have none: leave it out")
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise ConfigError(f"prompt {number} of {len(prompts)} has no token; accepted: at least one")
        if limit is not None and len(prompt) > limit:
            raise ConfigError(
                f"prompt {number} of {len(prompts)} has {len(prompt)} tokens, the beginning of the document included, "
                f"and the model has positions for {limit}; accepted: 1 to {limit} tokens"
            )
