"""Packing and padding, checked against the definition written out in plain Python lists.

The numbers in brackets are the pitfalls of public solutions that each test guards against.
"""

import time
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perjoule.core.errors import DataError
from perjoule.core.labels import IGNORED
from perjoule.data.contract import Batch
from perjoule.data.reader import PackedSamples, PaddedSamples, TextSamples
from perjoule.data.row_index import LongDocuments, row_index
from perjoule.data.shards import Shard, SplitTokens

BOS, PAD = 0, 1
Documents = list[list[int]]

documents_strategy = st.lists(st.lists(st.integers(2, 60), min_size=1, max_size=40), min_size=1, max_size=25)
cuts_strategy = st.lists(st.integers(0, 25), max_size=4)
quick = settings(deadline=None, max_examples=60)


def stream(documents: Documents) -> list[int]:
    return [token for document in documents for token in (BOS, *document)]


def shard(documents: Documents) -> Shard:
    tokens = np.array(stream(documents), np.uint16)
    return Shard(tokens, np.cumsum([0, *(1 + len(document) for document in documents)]), num_bytes=len(tokens))


def split(documents: Documents, cuts: Sequence[int] = ()) -> SplitTokens:
    """Keep documents in shards that begin at the given ones; equal cuts give empty shards."""
    begins = sorted(min(cut, len(documents)) for cut in cuts)
    pairs = zip([0, *begins], [*begins, len(documents)], strict=True)
    return SplitTokens(tuple(shard(documents[begin:end]) for begin, end in pairs))


def packed(
    documents: Documents, seq_len: int, seed: int | None = None, cuts: Sequence[int] = (), mask: bool = False
) -> PackedSamples:
    return PackedSamples(split(documents, cuts), seq_len, BOS, seed, mask)


def padded(
    documents: Documents,
    seq_len: int,
    long: LongDocuments = "split",
    seed: int | None = None,
    pad: int = PAD,
    cuts: Sequence[int] = (),
) -> PaddedSamples:
    whole = split(documents, cuts)
    return PaddedSamples(whole, row_index(whole, seq_len, long, "", None), pad, seed)


def rows(batch: Batch) -> list[tuple[list[int], list[int]]]:
    return list(zip(batch.tensors["input_ids"].tolist(), batch.tensors["labels"].tolist(), strict=True))


def epoch(samples: TextSamples) -> list[tuple[list[int], list[int]]]:
    return rows(samples.batch(0, samples.num_samples))


@quick
@given(documents_strategy, st.integers(1, 12), cuts_strategy)
def test_packed_rows_equal_the_definition(documents: Documents, seq_len: int, cuts: list[int]) -> None:
    """[1, 3, 7]: full rows, BOS masked also where it is input 0, nothing thrown away but the rest."""
    tokens = stream(documents)
    expected = []
    for start in range(0, len(tokens) - seq_len, seq_len):
        inputs, targets = tokens[start : start + seq_len], tokens[start + 1 : start + seq_len + 1]
        labels = [IGNORED if token == BOS else target for token, target in zip(inputs, targets, strict=True)]
        expected.append((inputs, labels))
    if not expected:
        with pytest.raises(DataError):
            packed(documents, seq_len, cuts=cuts)
        return
    samples = packed(documents, seq_len, cuts=cuts)
    assert epoch(samples) == expected
    assert samples.num_samples == len(expected)


@quick
@given(documents_strategy, st.integers(1, 8))
def test_packed_invariants(documents: Documents, seq_len: int) -> None:
    documents = [*documents, [2] * seq_len]
    tokens = stream(documents)
    samples = packed(documents, seq_len)
    batch = samples.batch(0, samples.num_samples)
    inputs, labels = batch.tensors["input_ids"].flatten(), batch.tensors["labels"].flatten()
    used = len(inputs)
    assert inputs.tolist() == tokens[:used], "concatenated inputs reproduce the stream"
    assert not (inputs == PAD).any()
    assert not (inputs == IGNORED).any()
    assert (labels[inputs == BOS] == IGNORED).all(), "the first label after each BOS is ignored"
    assert int((labels == IGNORED).sum()) == int((inputs == BOS).sum()) == tokens[:used].count(BOS)
    trained = torch.where(labels == IGNORED, torch.tensor(tokens[1 : used + 1]), labels)
    assert trained.tolist() == tokens[1 : used + 1], "every transition is there once, ends of documents included"
    assert len(tokens) - 1 - used == samples.coverage.num_dropped < seq_len


def test_bos_at_the_end_of_a_row_is_masked_in_the_next() -> None:
    """[3]: the BOS is the last label of row 0 (which is trained) and input 0 of row 1 (which is not)."""
    assert epoch(packed([[5, 6], [7, 8, 9]], 3)) == [
        ([BOS, 5, 6], [IGNORED, 6, BOS]),
        ([BOS, 7, 8], [IGNORED, 8, 9]),
    ]


def test_document_longer_than_many_rows_is_kept_whole() -> None:
    """[7]"""
    assert [inputs for inputs, _ in epoch(packed([list(range(2, 22))], 5))] == [
        [BOS, 2, 3, 4, 5],
        [6, 7, 8, 9, 10],
        [11, 12, 13, 14, 15],
        [16, 17, 18, 19, 20],
    ]


@quick
@given(documents_strategy, st.integers(1, 10), st.booleans(), st.data())
def test_output_is_the_same_for_any_batch_size_and_start(
    documents: Documents, seq_len: int, pack: bool, data: st.DataObject
) -> None:
    """[8, 9]: a batch is a pure function of its positions, also across the end of an epoch."""
    documents = [*documents, [2] * seq_len]
    samples: TextSamples = packed(documents, seq_len, seed=4) if pack else padded(documents, seq_len, seed=4)
    total = 2 * samples.num_samples + 3
    one_by_one = [rows(samples.batch(position, 1))[0] for position in range(total)]
    size = data.draw(st.integers(1, total))
    start = data.draw(st.integers(0, total - size))
    assert rows(samples.batch(start, size)) == one_by_one[start : start + size]


@quick
@given(documents_strategy, st.integers(1, 12))
def test_shuffled_epochs_hold_the_rows_of_the_stream(documents: Documents, seq_len: int) -> None:
    documents = [*documents, [2] * seq_len]
    plain, shuffled = packed(documents, seq_len), packed(documents, seq_len, seed=1)
    second = rows(shuffled.batch(plain.num_samples, plain.num_samples))
    assert sorted(epoch(shuffled)) == sorted(second) == sorted(epoch(plain))


@quick
@given(documents_strategy, st.integers(1, 12), st.sampled_from(["split", "truncate"]), cuts_strategy)
def test_padded_rows_equal_the_definition(
    documents: Documents, seq_len: int, long: LongDocuments, cuts: list[int]
) -> None:
    expected = []
    for document in documents:
        tokens = [BOS, *document]
        starts = range(0, len(document), seq_len) if long == "split" else [0]
        for piece in (tokens[start : start + seq_len + 1] for start in starts):
            filled = piece + [PAD] * (seq_len + 1 - len(piece))
            labels = [*piece[1:], *[IGNORED] * (seq_len + 1 - len(piece))]
            expected.append((filled[:-1], labels))
    assert epoch(padded(documents, seq_len, long, cuts=cuts)) == expected


@quick
@given(documents_strategy, st.integers(1, 12))
def test_splitting_long_documents_trains_every_transition_once(documents: Documents, seq_len: int) -> None:
    samples = padded(documents, seq_len)
    pairs = []
    for inputs, labels in epoch(samples):
        pairs += [(token, label) for token, label in zip(inputs, labels, strict=True) if label != IGNORED]
    assert pairs == [pair for document in documents for pair in zip([BOS, *document], document, strict=False)]
    assert samples.coverage.num_dropped == 0


def test_truncating_counts_what_it_drops() -> None:
    samples = padded([[2] * 10, [3] * 4, [4] * 7], 5, "truncate")
    assert samples.num_samples == 3
    assert samples.coverage.num_dropped == 5 + 2
    assert samples.coverage.num_useful == 5 + 4 + 5


def test_padding_with_the_bos_id_masks_no_real_token() -> None:
    """[5]: the labels are ignored by position, so a pad id that is also a token does no harm."""
    assert epoch(padded([[5, 6]], 4, pad=BOS)) == [([BOS, 5, 6, BOS], [5, 6, IGNORED, IGNORED])]
    assert epoch(padded([[5, 6]], 4, pad=6)) == [([BOS, 5, 6, 6], [5, 6, IGNORED, IGNORED])]


@pytest.mark.parametrize("samples", [packed([[2, 3, 4, 5], [6, 7]], 3), padded([[2, 3, 4, 5], [6, 7]], 3)])
def test_inputs_and_labels_share_no_memory_with_anything(samples: TextSamples) -> None:
    """[6]"""
    batch = samples.batch(0, 2)
    inputs, labels = batch.tensors["input_ids"], batch.tensors["labels"]
    before = epoch(samples)
    labels.fill_(IGNORED)
    assert not (inputs == IGNORED).any()
    inputs.fill_(9)
    assert (labels == IGNORED).all()
    assert epoch(samples) == before
    assert inputs.dtype == labels.dtype == torch.int64


def test_batch_in_which_everything_is_ignored_says_so() -> None:
    """[6]: the loop must not divide by the number of useful labels of such a batch."""
    batch = packed([[5], [6]], 1).batch(0, 1)
    assert rows(batch) == [([BOS], [IGNORED])]
    assert (batch.num_samples, batch.num_tokens, batch.num_useful) == (1, 1, 0)


@quick
@given(documents_strategy, st.integers(1, 12), st.sampled_from(["packed", "split", "truncate"]), cuts_strategy)
def test_counts_are_those_of_the_tensors(documents: Documents, seq_len: int, mode: str, cuts: list[int]) -> None:
    documents = [[2] * seq_len, *documents]
    samples: TextSamples
    if mode == "packed":
        samples = packed(documents, seq_len, seed=2, cuts=cuts)
    else:
        samples = padded(documents, seq_len, "split" if mode == "split" else "truncate", seed=2, cuts=cuts)
    batch = samples.batch(0, samples.num_samples)
    labels = batch.tensors["labels"]
    coverage = samples.coverage
    assert batch.num_samples == len(labels) == coverage.num_samples == samples.num_samples
    assert batch.num_tokens == labels.numel() == coverage.num_labels
    assert batch.num_useful == int((labels != IGNORED).sum()) == coverage.num_useful
    assert coverage.as_json()["ignored_fraction"] == pytest.approx(float((labels == IGNORED).double().mean()))


def test_bos_right_behind_the_last_input_is_not_counted() -> None:
    samples = packed([[5, 6], [7]], 3)
    assert epoch(samples) == [([BOS, 5, 6], [IGNORED, 6, BOS])]
    assert (samples.coverage.num_useful, samples.coverage.num_dropped) == (2, 1)


def test_seeking_costs_the_same_anywhere() -> None:
    """[9, 10]: nothing is replayed on the way to a position."""
    samples = packed([[2 + number % 50] * 30 for number in range(2000)], 16, seed=0)
    samples.batch(10**15, 4)
    started = time.perf_counter()
    for position in range(0, 10**12, 10**11):
        samples.batch(position, 4)
    assert time.perf_counter() - started < 1


def test_large_ids_survive() -> None:
    tokens = np.array([BOS, 70_000, 2**32 - 1, 5], np.uint32)
    large = SplitTokens((Shard(tokens, np.array([0, 4]), 4),))
    assert epoch(PackedSamples(large, 3, BOS, None)) == [([BOS, 70_000, 2**32 - 1], [IGNORED, 2**32 - 1, 5])]


def test_a_row_may_cross_many_shards() -> None:
    documents = [[2], [3], [4], [5, 6, 7, 8, 9]]
    assert epoch(packed(documents, 7, cuts=[1, 1, 2, 3])) == epoch(packed(documents, 7))
    assert epoch(packed(documents, 7))[0][0] == [BOS, 2, BOS, 3, BOS, 4, BOS]


@quick
@given(documents_strategy, st.integers(1, 12), cuts_strategy, st.sampled_from([None, 5]))
def test_documents_are_numbered_within_each_row(
    documents: Documents, seq_len: int, cuts: list[int], seed: int | None
) -> None:
    documents = [*documents, [2] * seq_len]
    samples = packed(documents, seq_len, seed, cuts, mask=True)
    batch = samples.batch(1, samples.num_samples)
    numbers = batch.tensors.pop("documents")
    assert numbers.dtype == torch.int32
    for inputs, numbered in zip(batch.tensors["input_ids"].tolist(), numbers.tolist(), strict=True):
        assert numbered == [inputs[1 : place + 1].count(BOS) for place in range(seq_len)]
    assert rows(batch) == rows(packed(documents, seq_len, seed, cuts).batch(1, samples.num_samples))


def test_a_row_that_begins_within_a_document_and_one_that_begins_with_it_both_begin_with_document_zero() -> None:
    batch = packed([[5, 6], [7, 8, 9]], 2, mask=True).batch(0, 3)
    assert batch.tensors["input_ids"].tolist() == [[BOS, 5], [6, BOS], [7, 8]]
    assert batch.tensors["documents"].tolist() == [[0, 0], [0, 1], [0, 0]]


def test_a_trillion_tokens_are_opened_without_an_index_of_their_size() -> None:
    tokens = np.broadcast_to(np.uint16(5), (1 << 27,))  # one number, seen 134 million times
    part = Shard(tokens, np.arange(0, len(tokens) + 1, 1 << 17), 0)
    trillion = SplitTokens((part,) * 8192)
    tracemalloc.start()
    samples = PackedSamples(trillion, 1000, BOS, seed=1)
    batch = samples.batch(10**12, 64)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert trillion.num_tokens == 1 << 40
    assert samples.num_samples == ((1 << 40) - 1) // 1000
    assert samples.coverage.num_useful == samples.num_samples * 1000 - 8192 * 1024
    assert (batch.tensors["input_ids"] == 5).all()
    assert memory < 50e6, "bytes"


def test_too_few_tokens_for_one_row_say_what_would_fit() -> None:
    with pytest.raises(
        DataError, match=r"^8 tokens are too few for one row of seq_len=8 \+ 1: seq_len of at most 7 fits"
    ):
        packed([[2, 3, 4], [5, 6, 7]], 8)
    assert packed([[2, 3, 4], [5, 6, 7]], 7).num_samples == 1
    with pytest.raises(DataError, match=r"^0 tokens are too few for one row of seq_len=8 \+ 1: it needs documents"):
        packed([], 8)
    with pytest.raises(DataError, match=r"^0 documents are too few for one padded row: it needs documents"):
        padded([], 8)
