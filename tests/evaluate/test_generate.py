"""What is written does not depend on the cache, on the batch, or on where tokens end."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perjoule.config import resolve
from perjoule.core.errors import ConfigError, TrainingDiverged
from perjoule.evaluate.decoding import DecodingConfig
from perjoule.evaluate.generate import (
    Completion,
    GenerationConfig,
    Piece,
    generate,
    longest_sequence,
    padded,
    stream,
)
from perjoule.models.contract import Decoder
from perjoule.models.ebt import EBTConfig
from perjoule.models.longnet import LongNetConfig
from perjoule.models.retnet import RetNetConfig
from perjoule.models.transformer import TransformerConfig

VOCAB_SIZE, SEQ_LEN = 24, 20
SHAPE = {"vocab_size": VOCAB_SIZE, "seq_len": SEQ_LEN}
SIZES: dict[str, Any] = {"dim": 32, "num_layers": 2, "num_heads": 4, "ffn_dim": 48, "init_std": 0.3}
CONFIGS: dict[str, Callable[[], Any]] = {
    "transformer": lambda: TransformerConfig(**SIZES),
    "transformer-none": lambda: TransformerConfig(**SIZES, positions="none"),
    "retnet": lambda: RetNetConfig(**SIZES, chunk_len=4),
    "longnet": lambda: LongNetConfig(**SIZES, segment_lengths=[3, 7], dilations=[1, 2]),
    "ebt": lambda: EBTConfig(**SIZES, thinking={"step_size": 0.5}),
    "ebt-none": lambda: EBTConfig(**SIZES, positions="none", thinking={"step_size": 0.5}),
    "ebt-time_embed": lambda: EBTConfig(**SIZES, variant="time_embed", thinking={"step_size": 0.5}),
}
PROMPTS = [[1, 5, 7], [2], [3, 1, 4, 1, 5, 9, 2, 6], [8, 8, 8], [0, 11]]


def build(kind: str) -> Any:
    """Return a model in float64, so that rounding decides nothing."""
    torch.manual_seed(3)
    model = CONFIGS[kind]().build(SHAPE)
    if kind.startswith("ebt"):
        nn.init.normal_(model.body.head.weight)
    return model.double().eval()


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def recomputed(model: Any, prompt: Sequence[int], num: int) -> list[int]:
    """Write greedily by full forward passes, without a cache."""
    tokens = list(prompt)
    for _ in range(num):
        row = torch.tensor([tokens])
        logits = model({"input_ids": row, "labels": row}, with_logits=True).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def tokens_of(completions: Sequence[Completion]) -> list[list[int]]:
    return [list(one.tokens) for one in completions]


def letters(tokens: Sequence[int]) -> str:
    return "".join(chr(97 + token) for token in tokens)


class Scripted:
    """A decoder that writes what was laid down for each row, told apart by its prompt's first token."""

    def __init__(self, *scripts: Sequence[int]) -> None:
        self.scripts = scripts
        self.batches: list[list[list[int]]] = []

    def prefill(self, input_ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        mask = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask
        rows = [ids[real].tolist() for ids, real in zip(input_ids, mask, strict=True)]
        self.batches.append(rows)
        return self._logits(rows, 0), (rows, 1)

    def decode(self, token: Tensor, cache: Any) -> tuple[Tensor, Any]:
        rows, at = cache
        return self._logits(rows, at), (rows, at + 1)

    def _logits(self, rows: list[list[int]], at: int) -> Tensor:
        following = [(*self.scripts[row[0]], *[0] * 99)[at] for row in rows]
        return nn.functional.one_hot(torch.tensor(following), 300).float()


def write(decoder: Decoder, prompts: Sequence[Sequence[int]], end_id: int | None = None, **settings: Any) -> Any:
    return generate(decoder, prompts, GenerationConfig(**settings), end_id=end_id, decode=letters)


def test_greedy_text_is_that_of_full_forward_passes(model: Any) -> None:
    completions = write(model, PROMPTS, max_new_tokens=9, batch_size=3)
    assert tokens_of(completions) == [recomputed(model, prompt, 9) for prompt in PROMPTS]
    assert [one.finish for one in completions] == ["length"] * 5
    assert [one.prompt for one in completions] == list(range(5))
    assert [one.num_prompt for one in completions] == [3, 1, 8, 3, 2]
    assert [one.text for one in completions] == [letters(one.tokens) for one in completions]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "top_k": 12, "top_p": 0.9, "seed": 4}])
def test_completions_do_not_depend_on_the_batch_size(model: Any, settings: dict[str, Any]) -> None:
    alone = write(model, PROMPTS, max_new_tokens=15, batch_size=1, **settings)
    for size in (2, 5):
        assert write(model, PROMPTS, max_new_tokens=15, batch_size=size, **settings) == alone


def test_sampling_is_reproducible_and_depends_on_seed_and_prompt_number() -> None:
    model, prompts = build("retnet"), [[1, 2]] * 4
    first = write(model, prompts, temperature=1.0, max_new_tokens=12)
    assert first == write(model, prompts, temperature=1.0, max_new_tokens=12)
    assert len({one.tokens for one in first}) == 4
    assert tokens_of(first) != tokens_of(write(model, prompts, temperature=1.0, max_new_tokens=12, seed=1))


def test_text_ends_with_the_document() -> None:
    decoder = Scripted([4, 5, 23, 6], [23], [1, 2, 3, 4, 5])
    completions = write(decoder, [[0], [1], [2]], end_id=23, max_new_tokens=5)
    assert tokens_of(completions) == [[4, 5], [], [1, 2, 3, 4, 5]]
    assert [one.finish for one in completions] == ["end", "end", "length"]
    assert [one.text for one in completions] == ["ef", "", "bcdef"]


@pytest.mark.parametrize(
    ("stop", "text", "num"),
    [
        (["cd"], "ab", 4),
        (["d"], "abc", 4),
        (["xyz", "bc"], "a", 3),
        (["bcd", "c"], "ab", 3),
        (["cde", "ab"], "", 2),
        ("ef", "abcd", 6),
        (["gx"], "abcdefg", 7),
    ],
)
def test_text_is_cut_before_a_stop_that_may_span_tokens(stop: Any, text: str, num: int) -> None:
    (one,) = write(Scripted([0, 1, 2, 3, 4, 5, 6]), [[0]], stop=stop, max_new_tokens=7)
    assert (one.text, len(one.tokens)) == (text, num)
    assert one.finish == ("stop" if len(text) < 7 else "length")


def test_pieces_are_never_taken_back_and_make_up_the_text() -> None:
    config = GenerationConfig(stop=("cde",), max_new_tokens=6)
    parts = list(stream(Scripted([0, 2, 3, 2, 3, 4]), [[0]], config, end_id=None, decode=letters))
    assert [(part.token, part.text) for part in parts if isinstance(part, Piece)] == [
        (0, "a"),
        (2, ""),
        (3, ""),
        (2, "cd"),
        (3, ""),
        (4, ""),
    ]
    assert isinstance(parts[-1], Completion)
    assert parts[-1].text == "acd"


def test_what_was_held_back_for_a_stop_is_given_at_the_end() -> None:
    config = GenerationConfig(stop=("bcd",), max_new_tokens=3)
    parts = list(stream(Scripted([0, 1, 2]), [[0]], config, end_id=None, decode=letters))
    assert [part.text for part in parts if isinstance(part, Piece)] == ["a", "", "", "bc"]
    assert parts[-1] == Completion(0, (0, 1, 2), "abc", "length", 1, 0.0)


def test_without_a_decode_function_there_are_tokens_and_no_text() -> None:
    (one,) = generate(Scripted([3, 4]), [[0]], GenerationConfig(max_new_tokens=2), end_id=None)
    assert (one.tokens, one.text) == ((3, 4), "")


def test_prompts_are_read_shortest_first_and_none_is_padded_more_than_needed() -> None:
    decoder = Scripted([1], [1], [1], [1])
    completions = write(decoder, [[0] * 9, [1], [2] * 8, [3, 3]], max_new_tokens=1, batch_size=2)
    assert decoder.batches == [[[1], [3, 3]], [[2] * 8, [0] * 9]]
    assert [one.num_prompt for one in completions] == [9, 1, 8, 2]


def test_padding_is_on_the_left_and_masked() -> None:
    input_ids, mask = padded([[7], [8, 9]], torch.device("cpu"))
    assert input_ids.tolist() == [[0, 7], [8, 9]]
    assert mask is not None
    assert mask.tolist() == [[False, True], [True, True]]
    assert padded([[7], [8]], torch.device("cpu"))[1] is None


@pytest.mark.parametrize("kind", ["transformer", "longnet", "ebt"])
def test_text_ends_in_good_order_where_positions_do(kind: str) -> None:
    model, prompts = build(kind), [[1] * 18, [2] * SEQ_LEN, [3] * 16, [4] * 18, [5, 6]]
    completions = write(model, prompts, max_new_tokens=5)
    assert [len(one.tokens) for one in completions] == [3, 1, 5, 3, 5]
    assert [one.finish for one in completions] == ["context", "context", "length", "context", "length"]
    assert completions == write(model, prompts, max_new_tokens=5, batch_size=1)


@pytest.mark.parametrize("kind", ["retnet", "transformer-none", "ebt-none"])
def test_models_without_positions_have_no_limit(kind: str) -> None:
    model, prompt = build(kind), [1] * (SEQ_LEN + 5)
    (one,) = write(model, [prompt], max_new_tokens=SEQ_LEN)
    assert (len(one.tokens), one.finish) == (SEQ_LEN, "length")
    assert list(one.tokens) == recomputed(model, prompt, SEQ_LEN)


def test_limits_are_those_of_the_models() -> None:
    limits = {kind: longest_sequence(build(kind)) for kind in CONFIGS}
    unlimited = {"transformer-none": None, "ebt-none": None, "retnet": None}
    assert limits == dict.fromkeys(["transformer", "longnet", "ebt", "ebt-time_embed"], SEQ_LEN) | unlimited


def test_prompt_longer_than_the_positions_is_refused_by_number() -> None:
    message = (
        "^prompt 2 of 2 has 21 tokens, the beginning of the document included, and the model has positions for 20; "
        "accepted: 1 to 20 tokens$"
    )
    with pytest.raises(ConfigError, match=message):
        write(build("transformer"), [[1], [2] * 21])


def test_empty_prompt_is_refused_by_number() -> None:
    with pytest.raises(ConfigError, match=r"^prompt 3 of 3 has no token; accepted: at least one$"):
        write(build("retnet"), [[1], [2], []])


def test_what_cannot_be_completed_is_refused_before_anything_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="has no token"):
        stream(build("retnet"), [[]], GenerationConfig(), end_id=None)


def test_no_prompts_give_no_completions() -> None:
    assert write(build("retnet"), []) == []


def test_ebt_thinks_as_it_is_told() -> None:
    model = build("ebt")
    plain = write(model, PROMPTS, max_new_tokens=8)
    told = write(model, PROMPTS, max_new_tokens=8, thinking={"steps": 6, "candidates": 3, "accept_lower": True})
    assert told != plain
    decoding = DecodingConfig(steps=6, candidates=3, accept_lower=True).build()
    for prompt, one in zip(PROMPTS, told, strict=True):
        row = torch.tensor([[*prompt, *one.tokens[:-1]]])
        expected = model.deliberate(row, decoding).logits[0, len(prompt) - 1 :].argmax(-1)
        assert list(one.tokens) == expected.tolist()


def test_rows_that_stop_thinking_early_do_not_depend_on_the_batch_size() -> None:
    model, thinking = build("ebt"), {"steps": 6, "stop_below": 0.5}  # stops some tokens and not others
    alone = write(model, PROMPTS, max_new_tokens=10, batch_size=1, thinking=thinking)
    assert write(model, PROMPTS, max_new_tokens=10, batch_size=5, thinking=thinking) == alone
    assert alone != write(model, PROMPTS, max_new_tokens=10, thinking={"steps": 6})


def test_thinking_is_refused_for_a_model_that_cannot() -> None:
    message = r"^thinking is for models that think \(ebt\), and LongNet does not: leave it out$"
    with pytest.raises(ConfigError, match=message):
        write(build("longnet"), [[1]], thinking={"steps": 3})


def test_compiling_is_refused_where_the_cache_grows() -> None:
    message = (
        r"^compile is for models whose cache does not grow \(retnet\), and that of Transformer does: it would be "
        "compiled again and again; leave it out$"
    )
    with pytest.raises(ConfigError, match=message):
        write(build("transformer"), [[1]], compile=True)


def test_retnet_is_compiled_once_for_prompts_of_any_length_and_writes_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, prompts, graphs = build("retnet"), [*PROMPTS, [9] * 7], list[Any]()
    plain = write(model, prompts, max_new_tokens=8, batch_size=2)

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward  # graphs are captured, but no C++ compiler is waited for

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: original(function, backend=keep, **options))
    assert write(model, prompts, max_new_tokens=8, batch_size=2, compile=True) == plain
    assert len(graphs) == 1


def test_stop_without_text_is_refused() -> None:
    message = "^stop ends a completion at a text, and these tokens have none: leave it out$"
    with pytest.raises(ConfigError, match=message):
        generate(build("retnet"), [[1]], GenerationConfig(stop=("x",)), end_id=None)


def test_diverged_model_is_one_clear_error() -> None:
    model = build("transformer")
    nn.init.constant_(model.embedding.weight, float("nan"))
    with pytest.raises(TrainingDiverged, match=r"^the logits of row 0 of 2 are not finite"):
        write(model, [[1], [2]])


def test_settings_are_read_from_the_command_line_and_refused_by_name() -> None:
    words = ['stop=["\\n", "END"]', "max_new_tokens=3", "thinking.steps=4", "thinking.stop_below=1e-3"]
    config = resolve.load(GenerationConfig, None, words).config
    assert config.stop == ("\n", "END")
    assert config.thinking == DecodingConfig(steps=4, stop_below=1e-3)
    assert resolve.load(GenerationConfig, None, ["stop=END"]).config.stop == ("END",)
    for wrong, place in [
        ("stop=['']", r"stop\[0\]"),
        ("max_new_tokens=0", "max_new_tokens"),
        ("batch_size=0", "batch"),
    ]:
        with pytest.raises(ConfigError, match=f"^{place}"):
            resolve.load(GenerationConfig, None, [wrong])
    with pytest.raises(ConfigError, match=r"^thinking\.step: unknown key: did you mean 'steps'"):
        resolve.load(GenerationConfig, None, ["thinking.step=2"])
