"""``generate`` with our caches writes what it writes without them, and what our own decoder writes."""

from typing import Any

import pytest
import torch
from tests.models.huggingface.cases import BOS, CASES, KINDS, PAD, SEQ_LEN, new_model, padded, tokens
from torch import Tensor

from perjoule.core.errors import ConfigError
from perjoule.models.ebt_decode import Decoding
from perjoule.models.huggingface import DecoderCache, PerjouleForCausalLM

NEW = 8


def prompts() -> dict[str, Tensor]:
    """Return prompts of three lengths, padded on the left."""
    ids, mask = padded([tokens(1, length)[0] for length in (7, 3, 5)], "left")
    return {"input_ids": ids, "attention_mask": mask}


def own_greedy(model: PerjouleForCausalLM, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Write with our own decoder; rows go on with padding once they have ended."""
    logits, cache = model.model.prefill(input_ids, attention_mask.bool())
    written, ended = [], torch.zeros(len(input_ids), dtype=torch.bool)
    for _ in range(NEW):
        token = logits.argmax(-1).masked_fill(ended, PAD)
        written.append(token)
        ended |= token == BOS
        logits, cache = model.model.decode(token, cache)
    return torch.stack(written, 1)


@pytest.mark.parametrize("case", CASES)
def test_greedy_generation_equals_that_without_cache_and_our_own(case: str) -> None:
    model, given = new_model(case).double(), prompts()
    written = model.generate(**given, max_new_tokens=NEW, do_sample=False)
    without = model.generate(**given, max_new_tokens=NEW, do_sample=False, use_cache=False)
    assert torch.equal(written, without)
    own = own_greedy(model, **given)
    width = written.shape[1] - given["input_ids"].shape[1]  # shorter if all rows have ended
    assert torch.equal(written[:, -width:], own[:, :width])
    assert len(set(own.flatten().tolist())) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_generation_reads_each_token_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = new_model(kind, eos_token_id=None), prompts()
    columns: list[int] = []
    decode = type(model.model).decode

    def counted(self: Any, token: Tensor, cache: Any) -> Any:
        columns.append(token.ndim)
        return decode(self, token, cache)

    monkeypatch.setattr(type(model.model), "decode", counted)
    model.generate(**given, max_new_tokens=NEW, do_sample=False)
    assert columns == [1] * (NEW - 1)


@pytest.mark.parametrize("case", CASES)
def test_beam_search_equals_that_without_cache(case: str) -> None:
    model, given = new_model(case).double(), prompts()
    settings: dict[str, Any] = {"max_new_tokens": NEW, "num_beams": 3, "do_sample": False}
    written = model.generate(**given, **settings)
    assert torch.equal(written, model.generate(**given, **settings, use_cache=False))


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_equals_that_without_cache(kind: str) -> None:
    model, given = new_model(kind).double(), prompts()
    settings: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": True, "top_k": 9, "temperature": 0.7}
    texts: list[Any] = []
    for use_cache in (True, False, True):
        torch.manual_seed(3 if len(texts) < 2 else 4)
        texts.append(model.generate(**given, **settings, num_return_sequences=2, use_cache=use_cache).tolist())
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@pytest.mark.parametrize("kind", KINDS)
def test_end_of_document_ends_a_row_and_pads_it(kind: str) -> None:
    model, given = new_model(kind, eos_token_id=None), prompts()
    begin = given["input_ids"].shape[1]
    free = model.generate(**given, max_new_tokens=NEW, do_sample=False)[0, begin:].tolist()
    end = free[2]
    row = model.generate(**given, max_new_tokens=NEW, do_sample=False, eos_token_id=end)[0, begin:].tolist()
    ended = free[: free.index(end) + 1]
    assert row == [*ended, *[PAD] * (len(row) - len(ended))]


def test_generation_goes_on_from_a_returned_cache() -> None:
    model, given = new_model("retnet", eos_token_id=None), prompts()
    settings: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True}
    begun = model.generate(**given, max_new_tokens=3, **settings)
    assert isinstance(begun.past_key_values, DecoderCache)
    mask = torch.nn.functional.pad(given["attention_mask"], (0, 3), value=1)
    gone_on = model.generate(
        begun.sequences, attention_mask=mask, past_key_values=begun.past_key_values, max_new_tokens=4, **settings
    )
    whole = model.generate(**given, max_new_tokens=7, **settings)
    assert torch.equal(gone_on.sequences, whole.sequences)


def test_generation_thinks_as_it_is_told() -> None:
    model, given = new_model("ebt").double(), prompts()
    settings: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    before = model.generate(**given, **settings)
    model.decoding = Decoding(steps=5, candidates=3, accept_lower=True)
    after = model.generate(**given, **settings)
    assert torch.equal(after, model.generate(**given, **settings, use_cache=False))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("kind", ["longnet", "ebt", "transformer"])
def test_prompt_that_is_too_long_names_the_limit(kind: str) -> None:
    model = new_model(kind, eos_token_id=None)
    with pytest.raises(ConfigError, match=f"seq_len {SEQ_LEN}"):
        model.generate(tokens(1, SEQ_LEN + 1), max_new_tokens=1)
    assert model.generate(tokens(1, SEQ_LEN), max_new_tokens=1).shape == (1, SEQ_LEN + 1)
    with pytest.raises(ConfigError, match=f"seq_len {SEQ_LEN}"):
        model.generate(tokens(1, SEQ_LEN), max_new_tokens=2)


def test_retention_has_no_longest_prompt() -> None:
    model = new_model("retnet", eos_token_id=None)
    assert model.generate(tokens(1, 2 * SEQ_LEN), max_new_tokens=3).shape == (1, 2 * SEQ_LEN + 3)


def test_taking_tokens_back_is_refused_by_transformers() -> None:
    model = new_model("retnet")
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(tokens(1, 4), assistant_model=new_model("retnet"), max_new_tokens=2)
