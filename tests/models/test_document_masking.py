"""Documents that share a packed row do not see each other: every architecture, form, variant and kind of positions.

A document's logits and gradients are then those that it has alone. LongNet's segments are the row's, so that this holds
where both are cut alike; that nothing leaks holds everywhere.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.ebt_cases import tiny_ebt, tokens
from tests.models.every_model import (
    BUILDS,
    MAGNETO,
    POSITIONS,
    SEQ_LEN,
    VOCAB_SIZE,
    all_logits,
    built,
    longnet,
    loss_and_gradients,
)
from tests.models.test_compile import CONFIGS, SAVING
from torch import Tensor, nn

from perjoule.models.ebt_decode import Decoding

RELATIVE = [name for name in BUILDS if not name.startswith("longnet")]
"""Architectures to which only distances within a document matter."""

SOME_ROWS = [[0, 5, 6, 17], [0, 12]]
"""Where the documents of two rows begin."""


def documents_of(rows: list[list[int]], seq_len: int = SEQ_LEN) -> Tensor:
    """Return the numbers of the documents of rows, which begin at these places."""
    begins = torch.zeros(len(rows), seq_len, dtype=torch.int32)
    for row, starts in enumerate(rows):
        begins[row, starts[1:]] = 1
    return begins.cumsum(1, dtype=torch.int32)


def pieces(rows: list[list[int]], seq_len: int = SEQ_LEN) -> Iterator[tuple[int, slice]]:
    """Return the row and the extent of every document."""
    for row, starts in enumerate(rows):
        for begin, end in pairwise([*starts, seq_len]):
            yield row, slice(begin, end)


def random_tokens(rows: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB_SIZE, (rows, SEQ_LEN), generator=torch.Generator().manual_seed(seed))


def tolerance(name: str) -> float:
    return 1e-4 if name.startswith(("transformer", "longnet")) else 1e-9  # float32, whose logits reach 30; float64


@st.composite
def two_rows(draw: st.DrawFn) -> list[list[int]]:
    """Draw where the documents of two rows begin: one, many, of one token."""
    return [[0, *sorted(draw(st.sets(st.integers(1, SEQ_LEN - 1), max_size=6)))] for _ in range(2)]


@pytest.mark.parametrize("name", RELATIVE)
@settings(max_examples=5, deadline=None)
@given(rows=two_rows(), seed=st.integers(0, 99))
def test_logits_of_a_document_in_a_row_are_those_of_the_document_alone(
    name: str, rows: list[list[int]], seed: int
) -> None:
    input_ids = random_tokens(seed=seed)
    packed = all_logits(built(name), input_ids, documents_of(rows))
    for row, piece in pieces(rows):
        alone = all_logits(built(name), input_ids[row : row + 1, piece])
        torch.testing.assert_close(packed[row, piece], alone[0], rtol=0, atol=tolerance(name))


@pytest.mark.parametrize("name", RELATIVE)
def test_gradients_of_a_packed_row_are_those_of_its_documents_alone(name: str) -> None:
    """In evaluation, where nothing is drawn; an Energy-Based Transformer's slopes are differentiated again."""
    model, input_ids, labels = built(name), random_tokens(), random_tokens(seed=1)
    assert isinstance(model, nn.Module)
    batch = {"input_ids": input_ids, "labels": labels, "documents": documents_of(SOME_ROWS)}
    loss, gradients = loss_and_gradients(model, batch)
    total, totals = torch.zeros_like(loss), {key: torch.zeros_like(gradient) for key, gradient in gradients.items()}
    for row, piece in pieces(SOME_ROWS):
        alone = {"input_ids": input_ids[row : row + 1, piece], "labels": labels[row : row + 1, piece]}
        share = alone["labels"].numel() / labels.numel()
        its_loss, its_gradients = loss_and_gradients(model, alone)
        total += share * its_loss
        for key, gradient in its_gradients.items():
            totals[key] += share * gradient
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients, totals, rtol=1e-4, atol=tolerance(name))


@pytest.mark.parametrize("name", BUILDS)
@settings(max_examples=5, deadline=None)
@given(rows=two_rows(), changed=st.integers(0, SEQ_LEN - 1), training=st.booleans(), seed=st.integers(0, 99))
def test_changing_a_token_changes_no_logit_of_another_document(
    name: str, rows: list[list[int]], changed: int, training: bool, seed: int
) -> None:
    documents, input_ids, logits = documents_of(rows), random_tokens(seed=seed), []
    model = built(name)
    model.train(training)
    try:
        for token in (0, 1):
            torch.manual_seed(seed)  # the same draws before and after, where training draws anything
            input_ids[:, changed] = (input_ids[:, changed] + token) % VOCAB_SIZE
            logits.append(all_logits(model, input_ids, documents))
    finally:
        model.train(False)
    difference = (logits[1] - logits[0]).abs().amax(-1)
    own = documents == documents[:, changed, None]
    assert difference[~own].sum() <= 1e-5
    assert (difference[:, changed] > 1e-5).all()


@pytest.mark.parametrize("name", BUILDS)
def test_one_document_a_row_is_the_same_as_none_told(name: str) -> None:
    input_ids = random_tokens()
    told = all_logits(built(name), input_ids, documents_of([[0], [0]]))
    torch.testing.assert_close(told, all_logits(built(name), input_ids), rtol=0, atol=tolerance(name))


@pytest.mark.parametrize("name", BUILDS)
def test_model_says_that_it_heeds_documents(name: str) -> None:
    assert getattr(built(name), "masks_documents", False)


@pytest.mark.parametrize("name", BUILDS)
def test_without_documents_a_row_is_read_across_their_borders(name: str) -> None:
    input_ids = random_tokens()
    kept_apart = all_logits(built(name), input_ids, documents_of(SOME_ROWS))
    difference = (all_logits(built(name), input_ids) - kept_apart).abs().amax(-1)
    assert difference[0, :5].max() <= tolerance(name)
    assert difference[0, 6:].max() > 1e-2


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("blocks", [{}, MAGNETO])
def test_longnet_document_that_begins_with_a_segment_of_every_pattern_is_as_alone(
    positions: str, blocks: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = longnet(segment_lengths=(2, 4, 8), dilations=(1, 2, 3), positions=positions, **blocks)()
    rows, input_ids = [[0, 8], [0, 16]], random_tokens()
    packed = all_logits(model, input_ids, documents_of(rows))
    for row, piece in pieces(rows):
        alone = all_logits(model, input_ids[row : row + 1, piece])
        torch.testing.assert_close(packed[row, piece], alone[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_saving_memory_changes_neither_loss_nor_gradients(name: str, batch: dict[str, Tensor]) -> None:
    shape = {"vocab_size": 48, "seq_len": SEQ_LEN}
    plain, saving = CONFIGS[name]().build(shape), CONFIGS[name](**SAVING).build(shape)
    saving.load_state_dict(plain.state_dict())
    batch["documents"] = documents_of([*SOME_ROWS, [0]])
    expected, found = loss_and_gradients(plain, batch), loss_and_gradients(saving, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while tracing
@pytest.mark.parametrize("name", CONFIGS)
def test_one_compiled_graph_serves_documents_that_begin_anywhere(name: str, batch: dict[str, Tensor]) -> None:
    torch.compiler.reset()
    model: nn.Module = CONFIGS[name]().build({"vocab_size": 48, "seq_len": SEQ_LEN})
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    first = compiled(batch | {"documents": documents_of([[0], [0, 1], [0, 9]])})
    torch.autograd.grad(first.loss, list(model.parameters()))
    with torch.compiler.set_stance("fail_on_recompile"):
        for rows in ([*SOME_ROWS, [0]], [[0], [0], [0]]):
            packed = batch | {"documents": documents_of(rows)}
            torch.testing.assert_close(compiled(packed).loss, model(packed).loss, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["transformer-sdpa", "transformer-blocked", "longnet", "retnet-chunkwise"])
def test_bfloat16_stays_close_to_float32(name: str, batch: dict[str, Tensor]) -> None:
    model = CONFIGS[name]().build({"vocab_size": 48, "seq_len": SEQ_LEN})
    batch["documents"] = documents_of([*SOME_ROWS, [0]])
    exact = model(batch, with_logits=True).logits
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch, with_logits=True).logits
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.02)


@pytest.mark.parametrize("variant", ["default", "time_embed"])
def test_ebt_deliberates_on_a_document_as_on_the_document_alone(variant: str) -> None:
    model = tiny_ebt({"steps": 2}, variant=variant).double().eval()
    decoding, input_ids, rows = Decoding(steps=3, candidates=2), tokens()["input_ids"], [[0, 5], [0, 1, 9]]
    packed = model.deliberate(input_ids, decoding, documents=documents_of(rows, 12))
    for row, piece in pieces(rows, 12):
        alone = model.deliberate(input_ids[row : row + 1, piece], decoding)
        torch.testing.assert_close(packed.logits[row, piece], alone.logits[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(packed.energy[row, piece], alone.energy[0], rtol=0, atol=1e-9)
