"""Write a trained language model as a Hugging Face model folder.

::

    config.json generation_config.json       sizes and special tokens
    model.safetensors                        weights, float32
    tokenizer.json tokenizer_config.json     puts the document's token in front of a text, and adds nothing else
    modeling_perjoule.py perjoule_*.py       the model's code, for ``trust_remote_code=True``
    README.md                                model card, with what the training cost

The folder appears whole: everything is written beside it and renamed at the end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import metadata, version
from pathlib import Path
from typing import Any, Literal

from perjoule.config import Config
from perjoule.core.errors import ConfigError
from perjoule.core.units import duration, si
from perjoule.data.tokenizer import TextTokenizer
from perjoule.evaluate.trained import Trained, load_trained
from perjoule.measure.book import build_ledger
from perjoule.measure.contract import Unavailable
from perjoule.models.contract import count_parameters
from perjoule.runs.folder import TOKENIZER, read_manifest
from perjoule.runs.tables import Run, load_run

CARD = "README.md"
CODE = """
## Code
The model's code is in this folder: `perjoule_*.py` are copies of the modules of perjoule {version}
({license}; training, metering and this export are not among them). `trust_remote_code=True` runs them, and they need
torch, transformers and pydantic. Where perjoule is installed it is used instead.
"""
USE = """
## Use
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(".")
ids = model.generate(**tokenizer(["The"], return_tensors="pt"), max_new_tokens=8)
print(tokenizer.batch_decode(ids, skip_special_tokens=True))
```
"""


class ExportConfig(Config):
    """What to export."""

    checkpoint: Literal["last", "best"] | int = "last"
    """``last``, ``best`` (the lowest held-out loss) or a step."""


def export(run: Path, folder: Path, config: ExportConfig | None = None) -> Sequence[Path]:
    """Write the language model of a run as a Hugging Face model folder.

    Args:
        run: the run folder.
        folder: to be written; it may exist if it is empty.
        config: which checkpoint; None is the last.

    Returns:
        The files that were written.

    Raises:
        ConfigError: if the folder is not empty or cannot be written, or the model is no language model.
        MissingExtra: if transformers is not installed.
        RunFolderError: if ``run`` is no run folder.
        CheckpointError: if there is no such checkpoint, or it is damaged.
    """
    from perjoule.models.huggingface import ARCHITECTURES

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; choose a new folder, or an empty one")
    trained = load_trained(run, (config or ExportConfig()).checkpoint)
    kind = str(getattr(trained.config, "kind", None))
    if kind not in ARCHITECTURES:
        raise ConfigError(
            f"{run}: a model of kind {kind} is no language model for Hugging Face; "
            f"accepted: {', '.join(sorted(ARCHITECTURES))}"
        )
    try:
        with _appearing(folder) as temporary:
            _write(trained, ARCHITECTURES[kind], temporary)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror or error}") from error
    return sorted(folder.iterdir())


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Give a neighbour to be filled, and rename it if that succeeds."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(trained: Trained, architecture: Any, folder: Path) -> None:
    """Write every file."""
    tokens = _tokens(trained)
    special = {} if tokens is None else {"bos_token_id": tokens.bos_id, "pad_token_id": tokens.pad_id}
    model = architecture.from_perjoule(trained.model, trained.shape["seq_len"], **special)
    with _no_progress_bar():
        model.save_pretrained(folder)
    if tokens is not None:
        _tokenizer(trained).save_pretrained(folder)
    (folder / CARD).write_text(_card(trained, with_text=tokens is not None), encoding="utf-8")


def _tokens(trained: Trained) -> TextTokenizer | None:
    """Return the run's tokenizer; None if its data never had one.

    Raises:
        ConfigError: if it had, and the file is no longer there.
    """
    if (trained.run / TOKENIZER).is_file():
        return trained.tokenizer
    if "tokenizer" in read_manifest(trained.run)["data"].get("facts", {}):
        raise ConfigError(
            f"{trained.run} was trained on text, and its {TOKENIZER} is missing: without it nobody can use the model; "
            "accepted: the file back in its place"
        )
    return None


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing one for a single file."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _tokenizer(trained: Trained) -> Any:
    """Return transformers' tokenizer with our ids: one token before the document, special tokens in a text are text."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokens = trained.tokenizer
    inner, begin = tokens.inner, tokens.inner.id_to_token(tokens.bos_id)
    inner.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, tokens.bos_id)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner,
        bos_token=begin,
        eos_token=begin,
        pad_token=inner.id_to_token(tokens.pad_id),
        padding_side="left",
        model_max_length=trained.shape["seq_len"],
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def _card(trained: Trained, with_text: bool) -> str:
    """Return the model card."""
    run, kind = load_run(trained.run), str(getattr(trained.config, "kind", ""))
    rows = "\n".join(f"| {name} | {value} |" for name, value in _facts(trained, run))
    head = f"---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [perjoule, {kind}]\n---\n"
    code = CODE.format(version=version("perjoule"), license=metadata("perjoule")["License-Expression"])
    return f"{head}# {run.name}, step {trained.step}\n\n| | |\n|---|---|\n{rows}\n{code}{USE if with_text else ''}"


def _facts(trained: Trained, run: Run) -> Iterator[tuple[str, str]]:
    """Yield what is known of the model and of its cost; what is not is left out."""
    yield "architecture", str(getattr(trained.config, "kind", ""))
    hosts = [segment.facts["host"] for segment in run.segments if "host" in segment.facts]
    if hosts:
        yield "trained with", f"perjoule {hosts[-1]['perjoule']}, torch {hosts[-1]['torch']}"
    yield "parameters", f"{count_parameters(trained.model):,}"
    yield "vocabulary, longest sequence", f"{trained.shape['vocab_size']:,}, {trained.shape['seq_len']:,} tokens"
    steps = run.steps.kept
    yield "tokens trained on", f"{int(steps.tokens[steps.step <= trained.step].sum()):,}"
    for one in run.kept_evaluations:
        if one.step == trained.step and one.loss is not None:
            yield f"{one.split} loss", f"{one.loss:.4f} nats per token"
    seconds = [float(segment.facts["seconds"]) for segment in run.segments if "seconds" in segment.facts]
    if len(seconds) == len(run.segments):
        yield "time of the whole run", f"{duration(sum(seconds))} on {run.segments[-1].facts.get('device', '?')}"
    total = build_ledger(run).total()
    if not isinstance(total, Unavailable):
        low, energy, high = (si(one / 1e6, "J") for one in (total.low_uj, total.energy_uj, total.high_uj))
        how = "modelled, at least in part" if total.modelled else "measured"
        yield "energy of the whole run", f"{energy} ({low} to {high}; {how}) of {', '.join(total.domains)}"
