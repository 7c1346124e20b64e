"""Arguments of ``forward`` and ``generate`` that transformers' users, its Trainer and its tools give."""

from typing import Any

import pytest
import torch
from tests.models.huggingface.cases import CASES, KINDS, SEQ_LEN, assert_same_numbers, new_model, padded, tokens
from torch.testing import assert_close
from transformers import GenerationConfig

from perjoule.core.errors import ConfigError


@pytest.mark.parametrize("case", CASES)
def test_embeddings_in_place_of_tokens_give_the_same_logits_and_loss(case: str) -> None:
    model = new_model(case).double()
    ids, mask = padded([tokens(1, length)[0] for length in (9, 5)], "right")
    embedded = model.get_input_embeddings()(ids)
    given, expected = ({**one, "attention_mask": mask} for one in ({"inputs_embeds": embedded}, {"input_ids": ids}))
    found, wanted = model(**given, labels=ids), model(**expected, labels=ids)
    assert_close(found.logits, wanted.logits)
    assert_close(found.loss, wanted.loss)
    with torch.no_grad():
        read = model(**given, use_cache=True, logits_to_keep=1)
        assert_close(read.logits, model(**expected, use_cache=True, logits_to_keep=1).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_begins_with_embeddings(kind: str) -> None:
    model, ids = new_model(kind, eos_token_id=None).double(), tokens(2, 5)
    written = model.generate(inputs_embeds=model.get_input_embeddings()(ids), max_new_tokens=4, do_sample=False)
    assert torch.equal(written, model.generate(ids, max_new_tokens=4, do_sample=False)[:, 5:])


@pytest.mark.parametrize("kind", KINDS)
def test_positions_of_one_text_change_nothing_wherever_they_begin(kind: str) -> None:
    model = new_model(kind).double()
    ids, mask = padded([tokens(1, length)[0] for length in (9, 5)], "left")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask).logits
    assert_close(model(ids, attention_mask=mask, position_ids=positions).logits, logits)
    assert_close(model(ids, attention_mask=mask, position_ids=positions + 3).logits, logits)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_that_begin_again_keep_documents_apart(kind: str) -> None:
    model, one, other = new_model(kind).double(), tokens(1, 5), tokens(1, 7)
    both = torch.cat((one, other), 1)
    positions = torch.cat((torch.arange(5), torch.arange(7)))[None]
    logits = model(both, position_ids=positions).logits
    if kind != "longnet":  # whose segments are counted from the row's beginning
        assert_close(logits, torch.cat((model(one).logits, model(other).logits), 1))
    changed = model(torch.cat((one.flip(1), other), 1), position_ids=positions).logits
    assert_close(changed[:, 5:], logits[:, 5:])
    assert not torch.equal(changed[:, :5], logits[:, :5])
    with pytest.raises(ConfigError, match="no cache of several documents"):
        model(both, position_ids=positions, use_cache=True)


def test_positions_of_no_text_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"position_ids of row 1 of 2 .*accepted: numbers that go up by one"):
        new_model("retnet")(tokens(2, 3), position_ids=torch.tensor([[0, 1, 2], [0, 2, 4]]))


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_lead_from_the_embedding_to_the_logits(case: str) -> None:
    model = new_model(case).double()
    ids, mask = padded([tokens(1, length)[0] for length in (9, 5)], "right")
    found = model(ids, attention_mask=mask, output_hidden_states=True)
    assert [state.shape for state in found.hidden_states] == [(2, 9, 32)] * 3
    assert_same_numbers(found.logits, model(ids, attention_mask=mask).logits)
    if not case.startswith("ebt"):  # whose candidates are no tokens, and whose logits are no product
        real = mask.bool()
        assert_close(found.hidden_states[0][real], model.get_input_embeddings()(ids)[real])
        assert_close(model.model.logits(found.hidden_states[-1]), found.logits)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_of_decoding_are_those_of_the_whole_sequence(kind: str) -> None:
    model, ids = new_model(kind).double(), tokens(2, 8)
    with torch.no_grad():
        whole = model(ids, output_hidden_states=True).hidden_states
        past = model(ids[:, :6], use_cache=True, logits_to_keep=1).past_key_values
        later = model(ids[:, 6:], past_key_values=past, output_hidden_states=True).hidden_states
    for one, other in zip(whole, later, strict=True):
        assert_close(one[:, 6:], other, rtol=1e-5, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_loss_divided_by_the_items_of_the_whole_batch_adds_up(kind: str) -> None:
    model, rows = new_model(kind).double(), [tokens(1, length)[0] for length in (12, 3, 3)]
    ids, mask = padded(rows, "right")
    labels = ids.masked_fill(mask == 0, -100)
    parts = [model(row[None], labels=row[None], num_items_in_batch=torch.tensor(15)).loss for row in rows]
    assert_close(sum(parts), model(ids, attention_mask=mask, labels=labels).loss)
    assert_close(parts[0], model(rows[0][None], labels=rows[0][None], num_items_in_batch=15).loss)
    nothing = torch.full_like(ids, -100)
    assert float(model(ids, labels=nothing, num_items_in_batch=0).loss.detach()) == 0.0


def test_labels_that_are_shifted_already_are_taken_as_they_are() -> None:
    model, ids = new_model("transformer"), tokens()
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    assert_close(model(ids, shift_labels=shifted).loss, model(ids, labels=ids).loss)
    assert_close(model(ids, labels=ids * 0, shift_labels=shifted).loss, model(ids, labels=ids).loss)


def test_logits_of_chosen_columns_are_returned() -> None:
    model, ids = new_model("transformer"), tokens()
    columns = torch.tensor([1, 4])
    assert_same_numbers(model(ids, logits_to_keep=columns).logits, model(ids).logits[:, columns])


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["retnet", "longnet", "transformer"])
def test_activations_computed_again_give_the_same_gradients(kind: str) -> None:
    model, ids = new_model(kind).train(), tokens()
    grads, count = [], 0

    def counted(module: torch.nn.Module, inputs: Any) -> None:
        nonlocal count
        count += 1

    model.model.norm.register_forward_pre_hook(counted)
    model.model.blocks[0].ffn.register_forward_pre_hook(counted)
    for again in (False, True):
        if again:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    assert_close(grads[0], grads[1])
    assert count == 5  # the first block's layer ran once more


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_activations_of_an_energy_cannot_be_computed_again() -> None:
    with pytest.raises(ValueError, match=r"EBTForCausalLM does not support .* checkpointing"):
        new_model("ebt").gradient_checkpointing_enable()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"output_attentions": True}, "output_attentions: RetNetForCausalLM never forms .*output_hidden_states"),
        ({"decoder_input_ids": tokens()}, "RetNetForCausalLM has no use for the argument decoder_input_ids"),
        ({"inputs_embeds": torch.zeros(3, 12, 32)}, "takes input_ids or inputs_embeds, one of them"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels have shape \(3,\); accepted: .*\(3, 12\)"),
    ],
)
def test_arguments_that_mean_nothing_here_are_refused(named: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        new_model("retnet")(tokens(), **named)


def test_arguments_that_transformers_sends_along_are_ignored() -> None:
    model, ids = new_model("retnet"), tokens()
    given = {"token_type_ids": ids * 0, "cache_position": torch.arange(12), "pixel_values": None}
    assert_same_numbers(model(ids, **given).logits, model(ids).logits)


@pytest.mark.parametrize("settings", [{"cache_implementation": "static"}, {"cache_implementation": "offloaded"}])
def test_other_kinds_of_cache_are_refused(settings: dict[str, Any]) -> None:
    model = new_model("transformer")
    config: Any = GenerationConfig(**settings)  # type: ignore[no-untyped-call]
    for named in (settings, {"generation_config": config}):
        with pytest.raises(ConfigError, match=r"cache_implementation \w+: PerjouleTransformerForCausalLM has a cache"):
            model.generate(tokens(), max_new_tokens=2, **named)


@pytest.mark.parametrize("kind", ["longnet", "ebt", "transformer"])
def test_more_tokens_than_positions_are_refused_before_one_is_written(kind: str) -> None:
    model = new_model(kind, eos_token_id=None)
    with pytest.raises(
        ConfigError, match=rf"max_new_tokens 6 behind a prompt of 20 .*seq_len {SEQ_LEN}; accepted: up to 5"
    ):
        model.generate(tokens(1, 20), max_new_tokens=6)
    assert model.generate(tokens(1, 20), max_new_tokens=5).shape == (1, 25)


def test_an_ebt_has_no_output_matrix_to_replace() -> None:
    with pytest.raises(ConfigError, match="no output matrix"):
        new_model("ebt").set_output_embeddings(torch.nn.Linear(4, 4))
