"""A trained model as the LM-evaluation harness asks for one. Imports lm_eval, so only harness.py imports it.

Every document began with a BOS in training, and so does every context here. Requests, and what is cut off where they
are too long for the model, are those of the harness's own ``hf`` model on the exported folder, whose tokenizer begins
with a BOS as well: both give the same scores (a test compares them). Two things are done otherwise: equal inputs, as
those of answers that differ in their last token are, are read once; and text that spells a special token is text.

The rolling likelihood of ``hf`` counts a document's BOS as its first token, after another BOS, which no model has
learned. ``score_bos=False`` counts the document alone, as the loss in training does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance  # type: ignore[import-untyped]
from lm_eval.api.model import TemplateLM  # type: ignore[import-untyped]
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs  # type: ignore[import-untyped]
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # type: ignore[import-untyped]
from pydantic import ValidationError
from torch import Tensor

from perjoule.core.errors import ConfigError
from perjoule.core.labels import IGNORED
from perjoule.evaluate.decoding import DecodingConfig, thinking_prefill
from perjoule.evaluate.generate import Completion, GenerationConfig, longest_sequence, stream
from perjoule.evaluate.trained import Trained
from perjoule.models.ebt import EBT
from perjoule.models.layers.language import LanguageModel
from perjoule.models.retnet import RetNet

MAX_GEN_TOKS = 256
"""Tokens of an answer if neither the task nor the configuration says how many; the harness's own number."""
PROGRESS_S = 10.0
"""Time between two lines of progress."""


@dataclass
class Cut:
    """What did not fit into the model's positions.

    Args:
        requests: whose beginning was left out.
        tokens: that were left out.
    """

    requests: int = 0
    tokens: int = 0

    def keep_last(self, ids: list[int], most: int) -> list[int]:
        """Return the last ``most`` of them, and count the others."""
        if len(ids) > most:
            self.requests, self.tokens = self.requests + 1, self.tokens + len(ids) - most
        return ids[-most:]


class Progress:
    """Says how far a long evaluation is.

    Args:
        say: takes the lines.
        total: questions that are to be answered.
    """

    def __init__(self, say: Callable[[str], None], total: int) -> None:
        self._say, self._total, self._answered = say, total, 0
        self._said_at = time.monotonic()

    def answered(self, count: int) -> None:
        """Note that so many more are, and say so from time to time."""
        self._answered += count
        if time.monotonic() - self._said_at >= PROGRESS_S:
            self._said_at = time.monotonic()
            self._say(f"harness: {self._answered} of {self._total} questions are answered")


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A trained model and its tokenizer behind the harness's three questions.

    Args:
        trained: a language model.
        batch_size: requests that are read together; changes the time, not the answers.
        max_length: tokens of an input at most; None is the length of the training sequences, as in the exported
            folder, also for a model that could read more.
        score_bos: count the BOS in a rolling likelihood.
        seed: of sampled answers.
        thinking: how a model that thinks does.
        say: takes lines of progress.

    Raises:
        ConfigError: if the model writes no tokens, cannot read as many as ``max_length``, or cannot think.
    """

    backend = "causal"

    def __init__(
        self,
        trained: Trained,
        batch_size: int = 1,
        max_length: int | None = None,
        score_bos: bool = True,
        seed: int = 0,
        thinking: DecodingConfig | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__()
        self.decoder, self.model, self.bpe = trained.decoder, trained.model, trained.tokenizer
        longest = longest_sequence(trained.model)
        if max_length is not None and longest is not None and max_length > longest:
            raise ConfigError(
                f"harness.max_length {max_length} is more than the model reads; accepted: up to {longest}"
            )
        self.max_length = max_length or trained.shape["seq_len"]
        self.batch_size, self.score_bos, self.seed = batch_size, score_bos, seed
        self.thinking = thinking or DecodingConfig()
        thinking_prefill(self.decoder, self.thinking)  # refuses to let a model think that cannot
        self.cut = Cut()
        self._device, self._say = trained.device, say

    @property
    def eot_token_id(self) -> int:
        """Return the token that ends a document, which is the BOS of the next one."""
        return self.bpe.bos_id

    @property
    def tokenizer_name(self) -> str:
        """Return what identifies the tokenizer."""
        return self.bpe.content_hash

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Refuse: these are no chat models.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("this model was trained on plain text and has no chat template; accepted: tasks without one")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the tokens of a text, after a BOS unless ``add_special_tokens`` is False."""
        tokens = self.bpe.encode(string)
        return tokens if add_special_tokens is False else [self.bpe.bos_id, *tokens]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the tokens of a question and of an answer; an answer always has tokens of its own.

        The harness counts the tokens after those of the question. Where one token spans the end of the question, none
        may be left, and nothing would be certain; such an answer is read by itself.
        """
        question, answer = super()._encode_pair(context, continuation)
        return question, answer or self.tok_encode(continuation, add_special_tokens=False)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return, for each (context, continuation), the continuation's log-likelihood and whether it is the greedy one.

        Raises:
            ConfigError: if a continuation is empty or has no token, or is longer than the model can read.
        """
        for context, continuation in (request.args for request in requests):
            if not continuation or not self.bpe.encode(continuation):
                said = f"an answer {continuation!r} without tokens" if continuation else "an empty answer"
                raise ConfigError(f"a task has {said} after {context[-40:]!r}; accepted: at least a character")
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of whole texts, read in windows that predict each token once.

        Raises:
            ConfigError: if a text has no token.
        """
        windows, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=self.score_bos)
            if not tokens:
                raise ConfigError("a task has a text without tokens, whose likelihood is not defined; leave it out")
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((("", ""), *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (loglikelihood, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += loglikelihood
        return totals

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Score continuations, longest inputs first, equal inputs once."""
        waiting: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self.max_length:
                raise ConfigError(
                    f"a task has an answer of {len(continuation)} tokens, and the model reads {self.max_length} at once"
                )
            inputs = self.cut.keep_last([*context, *continuation[:-1]], self.max_length)
            waiting.setdefault(tuple(inputs), []).append(number)
        longest_first = sorted(waiting, key=len, reverse=True)
        scores, progress = [(0.0, False)] * len(requests), Progress(self._say, len(requests))
        for begin in range(0, len(longest_first), self.batch_size):
            batch = longest_first[begin : begin + self.batch_size]
            asked = [max(len(requests[number][2]) for number in waiting[key]) for key in batch]
            for key, logits in zip(batch, self._logits(batch, asked), strict=True):
                for number in waiting[key]:
                    scores[number] = _score(logits, requests[number][2])
                progress.answered(len(waiting[key]))
        return scores

    def _logits(self, batch: Sequence[tuple[int, ...]], asked: Sequence[int]) -> list[Tensor]:
        """Return (asked, vocab) logits of the last positions of each row.

        Rows are padded on the right, where a causal model does not look. Where a model has an output matrix, it is
        applied to these positions only: of a question with short answers, they are few.
        """
        padded = torch.full((len(batch), len(batch[0])), self.bpe.pad_id)
        for row, inputs in zip(padded, batch, strict=True):
            row[: len(inputs)] = torch.tensor(inputs)
        input_ids = padded.to(self._device)
        ends = [slice(len(inputs) - last, len(inputs)) for inputs, last in zip(batch, asked, strict=True)]
        if isinstance(self.model, LanguageModel | RetNet):
            hidden = self.model.hidden(input_ids)
            return [self.model.logits(row[end]) for row, end in zip(hidden, ends, strict=True)]
        if isinstance(self.model, EBT) and self.thinking != DecodingConfig():
            logits = self.model.deliberate(input_ids, self.thinking.build()).logits
        else:
            labels = torch.full_like(input_ids, IGNORED)
            logits = self.model({"input_ids": input_ids, "labels": labels}, with_logits=True).logits
        return [row[end] for row, end in zip(logits, ends, strict=True)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return, for each (context, settings), what the model writes until a stop text, a document's end or a limit.

        Raises:
            ConfigError: if a setting is not known, or leaves no position for the context.
        """
        ways: dict[str, list[int]] = {}
        progress = Progress(self._say, len(requests))
        for number, request in enumerate(requests):
            ways.setdefault(repr(request.args[1]), []).append(number)
        texts = [""] * len(requests)
        for numbers in ways.values():
            config = self._generation(requests[numbers[0]].args[1])
            room = self.max_length - config.max_new_tokens
            if room < 1:
                raise ConfigError(
                    f"answers of {config.max_new_tokens} tokens leave no room for a context, as the model reads "
                    f"{self.max_length}; accepted: a smaller harness.max_gen_toks, or max_gen_toks of the task"
                )
            prompts = [self.cut.keep_last(self.tok_encode(requests[number].args[0]), room) for number in numbers]
            parts = stream(
                self.decoder, prompts, config, end_id=self.eot_token_id, decode=self.bpe.decode, device=self._device
            )
            for part in parts:
                if isinstance(part, Completion):
                    texts[numbers[part.prompt]] = part.text
                    progress.answered(1)
        return texts

    def _generation(self, settings: Mapping[str, Any]) -> GenerationConfig:
        """Read a task's generation settings as the harness does."""
        known = normalize_gen_kwargs(dict(settings), MAX_GEN_TOKS)
        chosen = {
            "max_new_tokens": known.pop("max_gen_toks"),
            "stop": tuple(stop for stop in handle_stop_sequences(known.pop("until", None), eos=None) if stop),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "thinking": self.thinking,
        }
        if known.pop("do_sample"):
            chosen["temperature"] = known.pop("temperature", 1.0)
            chosen |= {key: known.pop(key) for key in ("top_k", "top_p") if key in known}
        unknown = sorted(set(known) - {"temperature", "top_k", "top_p"})
        if unknown:
            raise ConfigError(
                f"a task's generation_kwargs have {', '.join(unknown)}; "
                "accepted: until, max_gen_toks, do_sample, temperature, top_k, top_p"
            )
        try:
            return GenerationConfig(**chosen)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(f"a task's generation_kwargs: {where} {chosen.get(where)}: {first['msg']}") from error


def _score(logits: Tensor, continuation: list[int]) -> tuple[float, bool]:
    """Return the log-likelihood of the tokens after the last positions, and whether each is the most likely."""
    assert continuation, "a sum over nothing is no likelihood"
    rows = logits[-len(continuation) :].float().log_softmax(-1)
    targets = torch.tensor(continuation, device=rows.device)
    return float(rows.gather(1, targets.unsqueeze(1)).sum()), bool((rows.argmax(-1) == targets).all())
