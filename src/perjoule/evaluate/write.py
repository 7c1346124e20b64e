"""``perjoule generate``: prompts from the command line or a file, completions to the terminal or a file.

A model that was trained on text reads ``[BOS] + prompt``, as in training, and an empty prompt begins a document. One
that was trained on a synthetic set has no text: its prompts and completions are token ids with spaces between them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perjoule.core.csv_rows import csv_rows
from perjoule.core.errors import ConfigError, DataError
from perjoule.core.files import read_text
from perjoule.core.units import duration
from perjoule.data.tokenizer import TextTokenizer
from perjoule.evaluate.detokenize import Decode
from perjoule.evaluate.generate import Completion, Finish, GenerationConfig, Piece, stream
from perjoule.evaluate.trained import Trained, Which, load_trained
from perjoule.runs.files import write_atomically

PROMPT = "prompt"
"""The field of a .jsonl file, and the column of a .csv file, that holds the prompts; so in the files we write."""
COLUMNS = (
    *("written", PROMPT, "text", "finish", "prompt_tokens", "new_tokens"),
    *("run", "step", "model", "seconds", "settings", "log_probs"),
)
_MOST_PROMPT_BYTES = 2**28
WHY: dict[Finish, str] = {
    "end": "the document ended",
    "stop": "a stop text came",
    "length": "max_new_tokens",
    "context": "the model has no position left",
}


class WriteConfig(GenerationConfig):
    """What writes, and how."""

    checkpoint: Which = "last"
    """``last``, ``best`` (lowest held-out loss) or the step of a checkpoint."""
    device: str = "cpu"
    """``cpu``, ``cuda`` or ``cuda:1``."""


def write(
    run: Path, config: WriteConfig, prompts: Sequence[str], prompts_file: Path | None, output: Output | None
) -> Iterator[str]:
    """Generate text from the model of a run.

    Args:
        run: the run folder.
        config: what writes, and how.
        prompts: texts, or token ids with spaces between them if the model was not trained on text.
        prompts_file: more of them: a .txt file with one per line, or a .jsonl or .csv file with a field ``prompt``.
        output: a file to write instead.

    Yields:
        Text for the terminal: a single prompt's completion as it is written, those of several one after another.

    Raises:
        ConfigError: if there is no prompt, one is not for this model, or the output cannot be written there.
        DataError: if the file of prompts cannot be read.
        CheckpointError: if the run has no such checkpoint.
        RunFolderError: if it is no run folder, or the output cannot be written.
    """
    texts = [*prompts, *(read_prompts(prompts_file) if prompts_file is not None else ())]
    _check(texts)
    before = None if output is None else output.open(prompts_file)
    trained = load_trained(run, config.checkpoint, config.device)
    decoder, language = trained.decoder, Language.of(trained)
    tokens = [language.encode(text, f"prompt {number} of {len(texts)}") for number, text in enumerate(texts, 1)]
    parts = stream(decoder, tokens, config, end_id=language.end_id, decode=language.decode, device=trained.device)
    if output is not None and before is not None:
        completions = [part for part in parts if isinstance(part, Completion)]
        output.write(before, records_of(trained, config, texts, sorted(completions, key=lambda one: one.prompt)))
        yield f"{output.path}\n"
    elif len(texts) == 1:
        yield texts[0]
        yield from (part.text if isinstance(part, Piece) else f"\n[{_closing(part)}]\n" for part in parts)
    else:
        for one in _in_order(parts):
            yield f"[{one.prompt + 1} of {len(texts)}]\n{texts[one.prompt]}{one.text}\n[{_closing(one)}]\n\n"


@dataclass(frozen=True)
class Language:
    """What a model reads and writes.

    Args:
        tokenizer: of text; None: token ids.
        vocab_size: ids are below.
    """

    tokenizer: TextTokenizer | None
    vocab_size: int

    @classmethod
    def of(cls, trained: Trained) -> Language:
        """Return what a trained model reads and writes."""
        try:
            tokenizer = trained.tokenizer
        except ConfigError:  # it was not trained on text
            tokenizer = None
        return cls(tokenizer, trained.shape["vocab_size"])

    @property
    def end_id(self) -> int | None:
        """Return the token that ends a document: the one that begins the next; None if there are no documents."""
        return None if self.tokenizer is None else self.tokenizer.bos_id

    @property
    def decode(self) -> Decode:
        """Return what turns tokens into text."""
        return self.tokenizer.decode if self.tokenizer is not None else lambda tokens: " ".join(map(str, tokens))

    def encode(self, text: str, name: str) -> list[int]:
        """Return the tokens of a prompt, its beginning included.

        Args:
            text: of the prompt.
            name: for the message.

        Raises:
            ConfigError: if the model cannot read it.
        """
        if self.tokenizer is not None:
            return [self.tokenizer.bos_id, *self.tokenizer.encode(text)]
        words = text.split()
        wrong = [word for word in words if not (word.isascii() and word.isdecimal() and int(word) < self.vocab_size)]
        if wrong or not words:
            raise ConfigError(
                f"{name} has {f'{wrong[0]!r} in it' if wrong else 'no token'}, and this model was not trained on text; "
                f"accepted: token ids from 0 to {self.vocab_size - 1} with spaces between them"
            )
        return [int(word) for word in words]


def read_prompts(path: Path) -> list[str]:
    """Read prompts from a .txt, .jsonl or .csv file.

    Raises:
        ConfigError: if its name has another ending.
        DataError: if it cannot be read, or holds none.
    """
    readers = {".txt": _from_text, ".jsonl": _from_jsonl, ".csv": _from_csv}
    if path.suffix not in readers:
        raise ConfigError(
            f"cannot tell what {path} holds; accepted: .txt with a prompt per line, or .jsonl or .csv with a field "
            f"or column {PROMPT!r}"
        )
    text = read_text(path, "the prompts", DataError, _MOST_PROMPT_BYTES)
    try:
        prompts = list(readers[path.suffix](text))
    except ValueError as error:
        raise DataError(f"cannot read the prompts {path}: {error}") from error
    if not prompts:
        raise DataError(f"{path} holds no prompt")
    return prompts


def _from_text(text: str) -> Iterator[str]:
    """Yield the lines; one without characters is the prompt that begins a document."""
    return (line.removesuffix("\n") for line in io.StringIO(text, newline=None))


def _from_jsonl(text: str) -> Iterator[str]:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            record = json.loads(line)
            prompt = record.get(PROMPT) if isinstance(record, dict) else None
            if not isinstance(prompt, str):
                raise ValueError(f"line {number} is not an object with a text in the field {PROMPT!r}")
            yield prompt


def _from_csv(text: str) -> Iterator[str]:
    return (row[PROMPT] for _, row in csv_rows(text, PROMPT))


def _check(texts: Sequence[str]) -> None:
    """Refuse before anything is loaded what cannot end well."""
    if not texts:
        raise ConfigError(
            "there is no prompt; accepted: --prompt TEXT, once or more, '' to begin a document, or --prompts FILE"
        )
    for number, text in enumerate(texts, 1):
        try:
            text.encode()
        except UnicodeEncodeError as error:  # bytes of the command line that were none of UTF-8
            raise ConfigError(f"prompt {number} of {len(texts)} is not UTF-8: {error.reason}") from error


def _in_order(parts: Iterable[Piece | Completion]) -> Iterator[Completion]:
    """Yield completions in the order of their prompts, each as soon as those before it are there."""
    waiting: dict[int, Completion] = {}
    due = 0
    for part in parts:
        if isinstance(part, Completion):
            waiting[part.prompt] = part
        while due in waiting:
            yield waiting.pop(due)
            due += 1


def _closing(one: Completion) -> str:
    number = len(one.tokens)
    said = f"{number} token{'' if number == 1 else 's'} in {duration(one.seconds)}: {WHY[one.finish]}"
    known = (*(one.prompt_log_probs or ()), *(one.log_probs or ()))
    return f"{said}; log-probability {sum(known):.4f}, {sum(known) / len(known):.4f} per token" if known else said


def records_of(
    trained: Trained, config: WriteConfig, texts: Sequence[str], completions: Sequence[Completion]
) -> list[dict[str, Any]]:
    """Return what is known of each completion, by the names of ``COLUMNS`` and ``tokens``."""
    settings, kind = config.model_dump(mode="json"), getattr(trained.config, "kind", None)
    language, written = Language.of(trained), datetime.now(UTC).isoformat(timespec="seconds")
    records = []
    for one in completions:
        prompt = language.encode(texts[one.prompt], "the prompt") if config.echo else []
        begun = [None, *(one.prompt_log_probs or ())] if config.echo else []
        records.append(
            {
                "written": written,
                PROMPT: texts[one.prompt],
                "text": (texts[one.prompt] if config.echo else "") + one.text,
                "finish": one.finish,
                "prompt_tokens": one.num_prompt,
                "new_tokens": len(one.tokens),
                "run": str(trained.run),
                "step": trained.step,
                "model": kind,
                "seconds": round(one.seconds, 6),
                "settings": settings,
                "tokens": [*prompt, *one.tokens],
                "log_probs": None if one.log_probs is None else [*begun, *one.log_probs],
            }
        )
    return records


@dataclass(frozen=True)
class Output:
    """A file of completions.

    Args:
        path: ends in .jsonl or .csv.
        append: add to the file.
        overwrite: replace it.
    """

    path: Path
    append: bool = False
    overwrite: bool = False

    def open(self, prompts: Path | None) -> str:
        """Return what the file holds that stays; before anything is generated, refuse what would be lost.

        Args:
            prompts: the file that the prompts come from.

        Raises:
            ConfigError: if the path is not one to write to, or a file is there and neither option says what to do.
        """
        path = self.path
        if path.suffix not in {".jsonl", ".csv"}:
            raise ConfigError(f"cannot write completions to {path}; accepted: a file .jsonl or .csv")
        if self.append and self.overwrite:
            raise ConfigError("--append keeps what a file holds, and --overwrite does not: give one of them")
        if not path.parent.is_dir():
            raise ConfigError(f"cannot write completions to {path}: there is no folder {path.parent}")
        if not path.exists():
            return ""
        if prompts is not None and prompts.exists() and prompts.samefile(path):
            raise ConfigError(f"cannot write completions to {path}: the prompts come from there; choose another file")
        if not path.is_file():
            raise ConfigError(f"cannot write completions to {path}: it is no file")
        if self.overwrite:
            return ""
        if not self.append:
            raise ConfigError(f"{path} exists already; accepted: --append, --overwrite or another file")
        return self._kept()

    def _kept(self) -> str:
        """Return what the file holds, whose columns must be ours."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"cannot append to {self.path}: {reason}") from error
        if text and self.path.suffix == ".csv" and text.partition("\n")[0].strip() != ",".join(COLUMNS):
            raise ConfigError(f"cannot append to {self.path}: its columns are not {', '.join(COLUMNS)}")
        return text if not text or text.endswith("\n") else f"{text}\n"

    def write(self, before: str, records: Sequence[dict[str, Any]]) -> None:
        """Write completions after what stays, whole or not at all.

        Raises:
            RunFolderError: if the disk is full or the folder cannot be written.
        """
        if self.path.suffix == ".jsonl":
            rows = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        else:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            if not before:
                writer.writerow(COLUMNS)
            for record in records:
                cells = (record[name] for name in COLUMNS)
                writer.writerow(json.dumps(cell) if isinstance(cell, dict | list) else cell for cell in cells)
            rows = text.getvalue()
        write_atomically(self.path, before + rows)
