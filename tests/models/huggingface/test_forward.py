"""One forward pass: logits, loss and gradients are those of our own module, whatever the padding.

Where two ways of computing are compared, they compute in float64: thinking with random weights amplifies rounding.
"""

from typing import Any

import pytest
import torch
from tests.models.huggingface.cases import CASES, KINDS, PAD, SEQ_LEN, assert_same_numbers, new_model, padded, tokens
from torch.testing import assert_close
from transformers.cache_utils import DynamicCache

from perjoule.core.errors import ConfigError
from perjoule.models.ebt_decode import Decoding
from perjoule.models.huggingface import DecoderCache


def own_labels(labels: torch.Tensor) -> torch.Tensor:
    """Shift labels as our data does."""
    return torch.cat((labels[:, 1:], torch.full_like(labels[:, :1], -100)), dim=1)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_exactly_those_of_our_module(case: str) -> None:
    model, ids = new_model(case), tokens()
    own = model.model({"input_ids": ids, "labels": ids}, with_logits=True).logits
    output = model(ids)
    assert_same_numbers(output.logits, own)
    assert output.loss is None
    assert output.past_key_values is None
    assert_same_numbers(model(ids, attention_mask=torch.ones_like(ids)).logits, own)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", [False, True])
def test_loss_and_gradients_are_exactly_those_of_our_module(case: str, training: bool) -> None:
    model, ids = new_model(case).train(training), tokens()
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.3, -100)
    torch.manual_seed(5)
    loss = model(ids, labels=labels).loss
    loss.backward()
    grads = {name: parameter.grad for name, parameter in model.model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(5)
    own = model.model({"input_ids": ids, "labels": own_labels(labels)}).loss
    own.backward()
    assert_same_numbers(loss, own)
    assert any(grad is not None for grad in grads.values())
    for name, parameter in model.model.named_parameters():
        assert_close(grads[name], parameter.grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padded_rows_equal_unpadded_ones(case: str, side: str) -> None:
    model, rows = new_model(case).double(), [tokens(1, length)[0] for length in (12, 5, 9)]
    ids, mask = padded(rows, side)
    logits = model(ids, attention_mask=mask).logits
    for row, found, real in zip(rows, logits, mask.bool(), strict=True):
        alone = model(row[None]).logits[0]
        assert_close(found[real], alone)
        first = int(real.int().argmax())
        assert not found[:first].any()
        assert_close(found[first + len(row) :], alone[-1:].expand(len(found) - first - len(row), -1))


@pytest.mark.parametrize("case", KINDS)
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_loss_of_padded_rows_judges_the_tokens_only(case: str, side: str) -> None:
    model, rows = new_model(case).double(), [tokens(1, length)[0] for length in (12, 5, 9)]
    ids, mask = padded(rows, side)
    losses = [model(row[None], labels=row[None]).loss * (len(row) - 1) for row in rows]
    expected = sum(losses) / sum(len(row) - 1 for row in rows)
    assert_close(model(ids, attention_mask=mask, labels=ids).loss, expected)
    assert_close(model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_lower_the_loss(kind: str) -> None:
    model, ids = new_model(kind, init_std=0.02).train(), tokens(4, 16)
    model.model.reset_parameters()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("case", CASES)
def test_cache_gives_the_logits_of_the_whole_sequence(case: str) -> None:
    model = new_model(case).double()
    ids, mask = padded([tokens(1, length)[0] for length in (12, 5)], "left")
    with torch.no_grad():
        whole = model(ids, attention_mask=mask).logits
        first = model(ids[:, :8], attention_mask=mask[:, :8], use_cache=True)
        assert_close(first.logits, whole[:, :8])
        past = first.past_key_values
        assert past.get_seq_length() == 8
        later = [
            model(ids[:, 8:9], attention_mask=mask[:, :9], past_key_values=past).logits,
            model(ids[:, 9:], attention_mask=mask, past_key_values=past).logits,
        ]
    assert past.get_seq_length() == 12
    assert_close(torch.cat(later, dim=1), whole[:, 8:], rtol=1e-5, atol=1e-5)  # LongNet's scores are float32


def test_logits_to_keep_returns_the_last_ones() -> None:
    model, ids = new_model("transformer"), tokens()
    assert_same_numbers(model(ids, logits_to_keep=3).logits, model(ids).logits[:, -3:])


def test_logits_beside_a_cache_have_gradients_where_they_are_wanted() -> None:
    model, ids = new_model("retnet"), tokens()
    assert model(ids, use_cache=True, logits_to_keep=1).logits.requires_grad
    with torch.no_grad():
        assert_close(model(ids, use_cache=True, logits_to_keep=1).logits, model(ids).logits[:, -1:])


def test_tuple_is_returned_where_it_is_wanted() -> None:
    model, ids = new_model("retnet"), tokens()
    loss, logits, cache = model(ids, labels=ids, use_cache=True, return_dict=False)
    assert (loss.shape, logits.shape, type(cache)) == ((), (3, 12, 48), DecoderCache)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_in_chunks_comes_without_logits_while_training(kind: str) -> None:
    model, ids = new_model(kind, loss_chunk_rows=5), tokens()
    evaluated = model(ids, labels=ids)
    assert evaluated.logits is not None
    assert model.train()(ids).logits is not None
    trained = model(ids, labels=ids)
    assert trained.logits is None
    assert trained.loss.requires_grad


def test_more_thinking_changes_logits_and_loss_alike() -> None:
    model, ids = new_model("ebt"), tokens()
    before = model(ids, labels=ids)
    model.decoding = Decoding(steps=4, candidates=2)
    after = model(ids, labels=ids)
    assert_same_numbers(after.logits, model.model.deliberate(ids, model.decoding).logits)
    assert_same_numbers(after.logits, model(ids).logits)
    assert not torch.equal(after.loss, before.loss)
    judged = torch.nn.functional.cross_entropy(after.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert_close(after.loss, judged)


def test_energy_works_without_gradients_but_not_in_inference_mode() -> None:
    model, ids = new_model("ebt"), tokens()
    with torch.no_grad():
        assert model(ids).logits.isfinite().all()
    with torch.inference_mode(), pytest.raises(ConfigError, match=r"EBTForCausalLM takes a gradient .*torch.no_grad"):
        model(ids)


@pytest.mark.parametrize("kind", ["longnet", "ebt", "transformer"])
def test_sequence_that_is_too_long_names_the_limit(kind: str) -> None:
    model = new_model(kind)
    with pytest.raises(ConfigError, match=f"seq_len {SEQ_LEN}"):
        model(tokens(1, SEQ_LEN + 1))
    with pytest.raises(ConfigError, match=f"seq_len {SEQ_LEN}"), torch.no_grad():
        model(tokens(1, SEQ_LEN + 1), use_cache=True, logits_to_keep=1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_masked_between_tokens_is_as_if_it_were_not_there(kind: str) -> None:
    model, ids = new_model(kind).double(), tokens(2, 6)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [1] * 6])
    whole = model(ids, attention_mask=mask, labels=ids)
    alone = model(ids[:1, mask[0].bool()], labels=ids[:1, mask[0].bool()])
    assert_close(whole.logits[0, mask[0].bool()], alone.logits[0])
    assert_close(whole.logits[0, 1], alone.logits[0, 0])  # padding has the logits of the token before it
    assert_close(whole.loss * 8, alone.loss * 3 + model(ids[1:], labels=ids[1:]).loss * 5)


def test_row_without_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="attention_mask of row 1 of 2 has no token"):
        new_model("retnet")(tokens(2, 3), attention_mask=torch.tensor([[1, 1, 1], [0, 0, 0]]))


def test_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"attention_mask has shape \(2, 4\); accepted: that of the tokens, \(2, 3\)"):
        new_model("retnet")(tokens(2, 3), attention_mask=torch.ones(2, 4, dtype=torch.int64))


@pytest.mark.parametrize("case", CASES)
def test_prompts_that_are_padded_on_the_right_are_read_as_if_they_were_not(case: str) -> None:
    model, rows = new_model(case).double(), [tokens(1, 5)[0], tokens(1, 3)[0]]
    ids, mask = padded(rows, "right")
    with torch.no_grad():
        read = model(ids, attention_mask=mask, use_cache=True, logits_to_keep=1)
        for row, found in zip(rows, read.logits, strict=True):
            assert_close(
                found[-1], model(row[None]).logits[0, -1], rtol=1e-5, atol=1e-5
            )  # LongNet's scores are float32
        more = tokens(2, 1)
        later = model(more, past_key_values=read.past_key_values).logits
        for row, new, found in zip(rows, more, later, strict=True):
            assert_close(found[0], model(torch.cat((row, new))[None]).logits[0, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"past_key_values": DynamicCache()}, "past_key_values is a DynamicCache; accepted: None, or what RetNet"),
        ({"labels": torch.full((1, 1), PAD)}, "labels need whole sequences"),
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, "attention_mask pads tokens behind those of past_key_values"),
    ],
)
def test_what_cannot_go_with_a_cache_is_refused(named: dict[str, Any], message: str) -> None:
    model = new_model("retnet")
    past = model(tokens(1, 2), use_cache=True).past_key_values
    with pytest.raises(ConfigError, match=message):
        model(tokens(1, 1), **({"past_key_values": past} | named))
