"""Loss, perplexity, bits per byte and accuracy of a language model over a split, or the beginning of it.

    loss            Σ nats / Σ tokens          over all labels that are not ignored; never a mean of batch means
    perplexity      exp(loss)
    bits per token  loss / ln 2
    bits per byte   Σ nats / ln 2 / Σ bytes    of the UTF-8 text that those labels stand for
    accuracy        how often the most likely token is the label

Bits per byte compares models with different tokenizers, and is exact: a piece of a byte-level tokenizer is as many
bytes as it has characters. The label that ends a document counts with its nats and with no bytes; in packed rows the
first token of each document is no label (data/reader.py), so neither its nats nor its bytes count. Where a tokenizer's
pieces are not bytes, bits per byte is not measured.

Standard errors are clustered (estimates.py): by document where the split is read in the order of its text, by row
otherwise. Memory is one batch of logits and a few numbers for each document.
"""

from __future__ import annotations

import inspect
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt, field_validator
from tokenizers import decoders, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F

from perjoule.config import Config
from perjoule.core.errors import ConfigError, DataError
from perjoule.core.labels import IGNORED
from perjoule.data.contract import Batch, DataSet
from perjoule.data.tokenizer import TextTokenizer
from perjoule.evaluate.contract import Findings, Metric
from perjoule.evaluate.estimates import Estimate, Floats, Integers, ratio
from perjoule.evaluate.trained import Trained

NO_LOGITS = "the model's forward has no with_logits, so what it finds most likely is not known"
NO_TEXT = "the data is not text, so its tokens have no bytes"
NOT_BYTES = "the tokenizer is not byte-level, so the bytes of a single token are not defined"
NO_BYTES = "the tokens that count stand for no text"
NOT_FINITE = "the loss is not finite, or its exponential is too large for a number"
LARGEST_EXPONENT = math.log(sys.float_info.max)
SAY_EVERY_S = 10.0
"""Between lines of progress."""
Z_95 = 1.959964
"""Standard errors on either side of a 95 % interval."""


class LossConfig(Config):
    """What the loss is taken over."""

    splits: tuple[str, ...] = Field(("validation",), min_length=1)
    """Any of train, validation, test, and ood where the data has it; a single one needs no brackets."""
    batches: PositiveInt | None = None
    """Batches from the start of each split; null is all of it."""
    batch_size: PositiveInt = 16
    """Rows whose logits exist at a time."""

    @field_validator("splits", mode="before")
    @classmethod
    def _accept_one(cls, splits: Any) -> Any:
        return (splits,) if isinstance(splits, str) else splits


@dataclass(frozen=True)
class ScoredBatch:
    """A batch, and to which cluster each of its positions belongs.

    Args:
        batch: on the model's device.
        clusters: (rows, seq_len) numbers of documents or rows.
        useful: (rows, seq_len) which positions have a label that counts.
    """

    batch: Batch
    clusters: Integers
    useful: Tensor


@dataclass(frozen=True)
class Part:
    """Some batches of a split, or all of it.

    Args:
        split: its name.
        batches: of it, in order.
        clustered_by: ``document`` or ``row``.
        num_rows: how many there are to come.
        whole: whether that is all of the split.
    """

    split: str
    batches: Iterator[ScoredBatch]
    clustered_by: str
    num_rows: int
    whole: bool


def read_part(
    trained: Trained, data: DataSet, split: str, batches: int | None, batch_size: int, spread: bool = False
) -> Part:
    """Read a split, or some batches of it.

    Args:
        trained: whose device the batches go to.
        data: of :meth:`Trained.data`.
        split: its name.
        batches: at most; None is the whole split.
        batch_size: rows of each; the last may have fewer.
        spread: take the batches evenly from the whole split instead of its start. A document is then one cluster
            within each stretch of rows that is read without a gap.

    Raises:
        DataError: if the data has no such split, or it is shorter than one row.
        ConfigError: if the data has no labels that are tokens.
    """
    samples = data.split(split)
    starts = np.arange(0, samples.num_samples, batch_size)
    if batches is not None and batches < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, batches).astype(int)] if spread else starts[:batches]
    sizes = np.minimum(batch_size, samples.num_samples - starts)
    tokenizer: TextTokenizer | None = getattr(data, "tokenizer", None)
    # Rows of training and of mixtures have an order of their own: a row does not go on with the document before it.
    in_order = getattr(samples, "in_order", False)
    bos_id = tokenizer.bos_id if tokenizer is not None and in_order else None

    def scored() -> Iterator[ScoredBatch]:
        documents = end = 0
        for start, rows in zip(starts.tolist(), sizes.tolist(), strict=True):
            batch = samples.batch(start, rows)
            if "labels" not in batch.tensors:
                raise ConfigError(f"{trained.run}: its data has no labels that are tokens, so it has no loss per token")
            inputs = batch.tensors["input_ids"].numpy()
            if bos_id is None:
                clusters = np.broadcast_to(start + np.arange(rows)[:, None], inputs.shape)
            else:
                documents += start != end
                clusters = documents + np.cumsum(inputs == bos_id).reshape(inputs.shape)
                documents, end = int(clusters[-1, -1]), start + rows
            tensors = {name: tensor.to(trained.device) for name, tensor in batch.tensors.items()}
            useful = tensors["labels"] != IGNORED
            yield ScoredBatch(Batch(tensors, batch.num_samples, batch.num_tokens, batch.num_useful), clusters, useful)

    num_rows = int(sizes.sum())
    clustered_by = "row" if bos_id is None else "document"
    return Part(split, scored(), clustered_by, num_rows, num_rows == samples.num_samples)


@dataclass
class Sums:
    """What was counted so far, by cluster: partial sums, a cluster may occur in several batches.

    Args:
        clusters: the number of each partial sum's cluster.
        columns: nats, tokens, bytes, hits of each.
    """

    clusters: list[Integers] = field(default_factory=list)
    columns: dict[str, list[Floats]] = field(default_factory=dict)

    def add(self, clusters: Integers, **columns: Floats) -> None:
        """Add positions.

        Args:
            clusters: (n,) the cluster of each position.
            columns: (n,) what each position counts; the same names in every call.
        """
        numbers, index = np.unique(clusters, return_inverse=True)
        self.clusters.append(numbers)
        for name, values in columns.items():
            self.columns.setdefault(name, []).append(np.bincount(index, values, len(numbers)).astype(np.float64))

    def column(self, name: str) -> Floats:
        """Return the partial sums of one column."""
        return np.concatenate(self.columns[name])

    def ratio(self, numerator: str, denominator: str) -> Estimate:
        """Return the sum of one column over the sum of another."""
        return ratio(self.column(numerator), self.column(denominator), np.concatenate(self.clusters))


@torch.no_grad()
def corpus_loss(trained: Trained, config: LossConfig, say: Callable[[str], None]) -> Findings:
    """Measure loss, perplexity, bits per byte and accuracy on splits.

    Args:
        trained: the model.
        config: the splits, and how much of them.
        say: takes a line of progress.

    Raises:
        DataError: if the data cannot be prepared or has changed, or has no such split.
        ConfigError: if the data's labels are not tokens.
    """
    data = trained.data()
    bytes_of, no_bytes = _bytes_of_data(data)
    metrics: list[Metric] = []
    details: dict[str, Any] = {"splits": {}}
    for split in config.splits:
        part = read_part(trained, data, split, config.batches, config.batch_size)
        started = time.monotonic()
        sums, has_logits = _sum_over(trained, part, bytes_of, say)
        if not sums.clusters or not sums.column("tokens").any():
            raise DataError(f"{split}: none of the {part.num_rows} rows has a label that counts; raise loss.batches")
        counts = {name: int(sums.column(name).sum()) for name in ("tokens", "bytes") if name in sums.columns}
        details["splits"][split] = {
            "num_rows": part.num_rows,
            "whole_split": part.whole,
            **{f"num_{name}": count for name, count in counts.items()},
            "clustered_by": part.clustered_by if has_logits else "batch",
            "num_clusters": len(np.unique(np.concatenate(sums.clusters))),
            "seconds": time.monotonic() - started,
        }
        metrics += _metrics(sums, split)
        no_bytes = no_bytes or ("" if counts.get("bytes") else NO_BYTES)
    reasons = {"bits_per_byte": no_bytes, "accuracy": NO_LOGITS}
    for metric in metrics:
        if metric.value is None:
            details[metric.name] = reasons.get(metric.name, NOT_FINITE) or NOT_FINITE
    return Findings(metrics, details)


def _sum_over(trained: Trained, part: Part, bytes_of: Tensor | None, say: Callable[[str], None]) -> tuple[Sums, bool]:
    """Return the sums over a part, and whether the model gave logits."""
    has_logits = "with_logits" in inspect.signature(trained.model.forward).parameters
    sums, num_rows, said_s = Sums(), 0, time.monotonic()
    for number, scored in enumerate(part.batches):
        useful, labels = scored.useful, scored.batch.tensors["labels"][scored.useful]
        columns = {"tokens": torch.ones(labels.shape)}
        if bytes_of is not None:
            columns["bytes"] = bytes_of[labels.cpu()]
        clusters = scored.clusters[useful.cpu().numpy()]
        if has_logits:
            logits = trained.model(scored.batch.tensors, with_logits=True).logits[useful]
            columns["nats"] = nats_of(logits, labels)
            columns["hits"] = logits.argmax(-1) == labels
        else:  # only the mean over the batch is known
            columns["nats"] = trained.model(scored.batch.tensors).loss.expand(labels.shape)
            clusters = np.full(len(labels), number)
        sums.add(clusters, **{name: column.double().cpu().numpy() for name, column in columns.items()})
        num_rows += scored.batch.num_samples
        if num_rows == part.num_rows or time.monotonic() - said_s >= SAY_EVERY_S:
            said_s = time.monotonic()
            loss = sums.ratio("nats", "tokens").value
            so_far = "" if loss is None else f", loss {loss:.4f}"
            say(f"loss: {part.split}, {num_rows} of {part.num_rows} rows{so_far}")
    return sums, has_logits


def nats_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the surprise of each label, in nats.

    Args:
        logits: (positions, vocab).
        labels: (positions,) tokens.
    """
    return F.cross_entropy(logits.float(), labels, reduction="none")


def _metrics(sums: Sums, split: str) -> Iterator[Metric]:
    """Yield the metrics of one split; those that cannot be given have no value."""
    loss = sums.ratio("nats", "tokens")
    yield Metric("loss", loss.value, "nats/token", loss.stderr, of=split)
    yield _perplexity(loss, split)
    bits = loss.times(1 / math.log(2))
    yield Metric("bits_per_token", bits.value, "bits/token", bits.stderr, of=split)
    none = Estimate(None, None)
    per_byte = sums.ratio("nats", "bytes").times(1 / math.log(2)) if "bytes" in sums.columns else none
    yield Metric("bits_per_byte", per_byte.value, "bits/byte", per_byte.stderr, of=split)
    accuracy = sums.ratio("hits", "tokens") if "hits" in sums.columns else none
    yield Metric("accuracy", accuracy.value, "1", accuracy.stderr, of=split)


def _perplexity(loss: Estimate, split: str) -> Metric:
    """Return the loss's exponential with a 95 % interval, which is not symmetric."""
    value = _exponential(loss.value)
    if value is None or loss.value is None or loss.stderr is None:
        return Metric("perplexity", value, "1", of=split)
    low, high = (_exponential(loss.value + sign * Z_95 * loss.stderr) for sign in (-1, 1))
    return Metric("perplexity", value, "1", value * loss.stderr, low, high, of=split)


def _exponential(number: float | None) -> float | None:
    """Return e to the power of a number; None if that is too large for one."""
    return None if number is None or number > LARGEST_EXPONENT else math.exp(number)


def _bytes_of_data(data: DataSet) -> tuple[Tensor | None, str]:
    """Return how many bytes each token of the data is, or why that is not known."""
    tokenizer: TextTokenizer | None = getattr(data, "tokenizer", None)
    if tokenizer is None:
        return None, NO_TEXT
    table = bytes_of_tokens(tokenizer)
    return table, "" if table is not None else NOT_BYTES


def bytes_of_tokens(tokenizer: TextTokenizer) -> Tensor | None:
    """Return how many bytes of UTF-8 text each token stands for; None if its pieces are not bytes.

    Special tokens stand for none. A tokenizer that normalises text, or puts a blank before it, is counted by what its
    tokens decode to.

    Returns:
        (vocab_size,) int64.
    """
    if not isinstance(tokenizer.inner.decoder, decoders.ByteLevel):
        return None
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    special = {id for id, token in tokenizer.inner.get_added_tokens_decoder().items() if token.special}
    counts = torch.zeros(tokenizer.vocab_size, dtype=torch.int64)
    for piece, id in tokenizer.inner.get_vocab(with_added_tokens=True).items():
        if id not in special:
            counts[id] = len(piece) if set(piece) <= alphabet else len(piece.encode())
    return counts
