import json
import logging
import math
import random
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
import yaml
from lm_eval.api import metrics as lm_eval_metrics  # type: ignore[import-untyped]
from lm_eval.api.instance import Instance  # type: ignore[import-untyped]
from tests.system.tiny import Tiny, run_of
from torch.nn import functional as F

from perjoule.config import resolve
from perjoule.core.errors import ConfigError, DataError, MissingExtra
from perjoule.evaluate import harness as harness_module
from perjoule.evaluate import harness_tasks
from perjoule.evaluate.contract import Findings, Metric
from perjoule.evaluate.decoding import DecodingConfig
from perjoule.evaluate.harness import HarnessConfig, harness
from perjoule.evaluate.harness_model import HarnessModel
from perjoule.evaluate.harness_scores import error_of
from perjoule.evaluate.trained import Trained, load_trained

TASKS = Path(__file__).parent / "tasks"
SEQ_LEN = 64


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Refuse the network, and give what was asked of it."""
    asked: list[str] = []

    def refuse(*arguments: Any, **named: Any) -> None:
        asked.append(str(arguments))
        raise OSError("there is no network in this test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield asked


@pytest.fixture(autouse=True)
def nothing_asks_the_network(network: list[str]) -> Iterator[None]:
    yield
    asked = network.copy()
    network.clear()
    assert not asked


@pytest.fixture(scope="module")
def tiny_runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(corpus, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def transformer(tiny_runs: Tiny) -> Trained:
    return load_trained(run_of(tiny_runs.train(f"data.seq_len={SEQ_LEN}", "stop.steps=20")))


@pytest.fixture(scope="module")
def ebt(tiny_runs: Tiny) -> Trained:
    return load_trained(run_of(tiny_runs.train("model.kind=ebt", "stop.steps=10")))


@pytest.fixture(scope="module")
def retnet(tiny_runs: Tiny) -> Trained:
    return load_trained(run_of(tiny_runs.train("model.kind=retnet")))


def run(trained: Trained, *tasks: Path | str, lines: list[str] | None = None, **settings: Any) -> Findings:
    config = HarnessConfig(tasks=tuple(map(str, tasks)), **{"bootstrap": 10, **settings})
    return harness(trained, config, lines.append if lines is not None else lambda line: None)


def value(findings: Findings, of: str, name: str) -> float:
    (found,) = [metric.value for metric in findings.metrics if (metric.of, metric.name) == (of, name)]
    assert found is not None
    return found


def requests(*arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance("loglikelihood", {}, one, number) for number, one in enumerate(arguments)]


def nats(trained: Trained, context: Sequence[int], continuation: Sequence[int]) -> float:
    """Return the surprise of a continuation, from the model alone."""
    ids = torch.tensor([[*context, *continuation]])
    with torch.no_grad():
        logits = trained.model({"input_ids": ids[:, :-1], "labels": ids[:, 1:]}, with_logits=True).logits
    return float(F.cross_entropy(logits[0, -len(continuation) :], ids[0, -len(continuation) :], reduction="sum"))


def task_file(folder: Path, rows: list[dict[str, Any]] | None = None, name: str = "mine", **fields: Any) -> Path:
    """Write a task, by default one of questions with answers."""
    data = folder / f"{name}.jsonl"
    if rows is not None:
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": data.name}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        **fields,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task), encoding="utf-8")
    return path


QUESTION = {"question": "the quick brown", "choices": ["fox", "vat"], "answer": 0}


def test_a_folder_gives_the_scores_of_its_tasks_and_groups_with_their_errors(transformer: Trained) -> None:
    findings = run(transformer, TASKS)
    assert [(metric.of, metric.name, metric.unit) for metric in findings.metrics] == [
        ("next_word", "acc", "1"),
        ("next_word", "mcc", "1"),
        ("next_word", "acc_norm", "1"),
        ("first_word", "acc", "1"),
        ("first_word", "acc_norm", "1"),
        ("copies", "exact_match", "1"),
        ("sentences", "word_perplexity", "1"),
        ("sentences", "byte_perplexity", "1"),
        ("sentences", "bits_per_byte", "bits/byte"),
        ("words", "acc", "1"),
        ("words", "acc_norm", "1"),
    ]
    assert all(metric.value is not None and metric.stderr is not None for metric in findings.metrics)
    assert {metric.name for metric in findings.metrics if metric.low is not None} == {
        "word_perplexity",
        "byte_perplexity",
    }
    assert findings.details["groups"] == {"words": ["next_word", "first_word"]}
    facts = findings.details["tasks"]["next_word"]
    assert (facts["documents"], facts["of"], facts["num_fewshot"], facts["version"]) == (12, 12, 0, 2.0)
    assert facts["higher_is_better"] == {"acc": True, "acc_norm": True, "mcc": True}
    assert "samples" not in findings.details
    json.dumps(findings.details)


def test_a_groups_score_is_that_of_all_its_documents(transformer: Trained) -> None:
    findings = run(transformer, TASKS / "words.yaml")
    parts = [value(findings, of, "acc") for of in ("next_word", "first_word")]
    assert value(findings, "words", "acc") == pytest.approx(sum(parts) / 2)  # both have 12 documents


def test_accuracy_is_that_of_the_answers_that_the_model_finds_likeliest(transformer: Trained) -> None:
    encode = transformer.tokenizer.encode
    rows = [json.loads(line) for line in (TASKS / "next_word.jsonl").read_text().splitlines()]
    right = 0
    for row in rows:
        context = [transformer.tokenizer.bos_id, *encode(row["question"])]
        surprises = [nats(transformer, context, encode(f" {choice}")) for choice in row["choices"]]
        right += surprises.index(min(surprises)) == row["answer"]
    assert value(run(transformer, TASKS / "next_word.yaml"), "next_word", "acc") == pytest.approx(right / len(rows))


def test_scores_depend_neither_on_the_batch_size_nor_on_the_call(transformer: Trained) -> None:
    alone, together, again = (run(transformer, TASKS, batch_size=size, log_samples=True) for size in (1, 4, 4))
    assert together == again
    for one, other in zip(alone.metrics, together.metrics, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-5)
    for task, samples in alone.details["samples"].items():
        for one, other in zip(samples, together.details["samples"][task], strict=True):
            if task == "copies":
                assert one["resps"] == other["resps"]


def test_samples_are_kept_when_asked_for(transformer: Trained) -> None:
    samples = run(transformer, TASKS / "next_word.yaml", log_samples=True, limit=2).details["samples"]["next_word"]
    assert [sample["doc"]["question"] for sample in samples] == ["the quick brown", "seven wizards boil"]
    assert samples[0]["arguments"][0] == ["the quick brown", " fox"]
    json.dumps(samples)


@pytest.mark.parametrize(("limit", "documents"), [(5, 5), (0.25, 3), (100, 12)])
def test_limit_is_a_number_or_a_share_of_the_documents(transformer: Trained, limit: float, documents: int) -> None:
    facts = run(transformer, TASKS / "next_word.yaml", limit=limit).details["tasks"]["next_word"]
    assert (facts["documents"], facts["of"]) == (documents, 12)


def test_a_single_document_has_a_score_without_an_error(transformer: Trained) -> None:
    findings = run(transformer, TASKS / "words.yaml", limit=1)
    assert all(metric.value is not None and metric.stderr is None for metric in findings.metrics)
    assert findings.details["without_stderr"]["next_word acc"] == "a single document"
    assert findings.details["without_stderr"]["words acc"] == "a task has none"


def test_examples_stand_before_the_question_and_depend_on_the_seed_alone(transformer: Trained) -> None:
    prompts = []
    for seed in (1, 1, 2):
        findings = run(transformer, TASKS / "next_word.yaml", num_fewshot=2, seed=seed, log_samples=True, limit=3)
        prompts.append([sample["arguments"][0][0] for sample in findings.details["samples"]["next_word"]])
        assert findings.details["tasks"]["next_word"]["num_fewshot"] == 2
    assert prompts[0] == prompts[1] != prompts[2]
    assert all(prompt.count("\n") == 2 for prompt in prompts[0])


def test_a_task_that_says_no_examples_keeps_that_and_it_is_said(transformer: Trained) -> None:
    lines: list[str] = []
    findings = run(transformer, TASKS / "first_word.yaml", num_fewshot=2, lines=lines)
    assert findings.details["tasks"]["first_word"]["num_fewshot"] == 0
    assert lines == ["harness: first_word says num_fewshot: 0 itself, and keeps it"]


def test_more_examples_than_there_are_is_an_error(transformer: Trained) -> None:
    with pytest.raises(ConfigError, match=r"num_fewshot 6: next_word has 5 examples; accepted: up to 5"):
        run(transformer, TASKS / "next_word.yaml", num_fewshot=6)


def test_log_likelihoods_are_those_of_the_model_behind_a_beginning(transformer: Trained) -> None:
    model, tokens = HarnessModel(transformer, batch_size=4), transformer.tokenizer
    pairs = [("the quick brown", " fox"), ("", "seven wizards"), ("seven ", "wizards boil quartz"), ("a", " vat")]
    split = [("the quick brown", " fox"), ("", "seven wizards"), ("seven", " wizards boil quartz"), ("a", " vat")]
    expected = [-nats(transformer, [tokens.bos_id, *tokens.encode(a)], tokens.encode(b)) for a, b in split]
    assert [one for one, _ in model.loglikelihood(requests(*pairs))] == pytest.approx(expected, abs=1e-5)


def test_a_continuation_is_greedy_if_the_model_would_write_it(transformer: Trained) -> None:
    model = HarnessModel(transformer)
    (written,) = model.generate_until(requests(("the quick brown", {"max_gen_toks": 3})))
    found = model.loglikelihood(requests(("the quick brown", written), ("the quick brown", f"{written} quartz quartz")))
    assert [greedy for _, greedy in found] == [True, False]


def test_equal_inputs_are_read_once(transformer: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    hidden: Any = transformer.model.hidden

    def counted(input_ids: torch.Tensor) -> torch.Tensor:
        read.append(len(input_ids))
        found: torch.Tensor = hidden(input_ids)
        return found

    monkeypatch.setattr(transformer.model, "hidden", counted)
    answers = HarnessModel(transformer).loglikelihood(requests(("the", "a"), ("the", "b"), ("the", "a")))
    assert read == [1]
    assert answers[0] == answers[2] != answers[1]


def test_a_rolling_likelihood_without_the_beginning_is_the_loss_of_training(transformer: Trained) -> None:
    text = "the quick brown fox jumps over lazy dogs"
    tokens = transformer.tokenizer
    alone = HarnessModel(transformer, score_bos=False).loglikelihood_rolling(requests((text,)))
    assert alone == pytest.approx([-nats(transformer, [tokens.bos_id], tokens.encode(text))], abs=1e-4)
    whole = HarnessModel(transformer).loglikelihood_rolling(requests((text,)))
    beginning = [tokens.bos_id, *tokens.encode(text)]
    assert whole == pytest.approx([-nats(transformer, [tokens.bos_id], beginning)], abs=1e-4)


def test_a_text_longer_than_the_model_is_read_in_windows(transformer: Trained) -> None:
    tokens = transformer.tokenizer.encode("the quick brown fox jumps over lazy dogs while " * 3)
    text = transformer.tokenizer.decode(tokens)
    model = HarnessModel(transformer, max_length=16, score_bos=False)
    ids = [transformer.tokenizer.bos_id, *tokens]
    expected = nats(transformer, ids[:1], ids[1:17])
    for begin in range(17, len(ids), 16):
        end = min(begin + 16, len(ids))  # the last window is as long as the others, and counts what is left
        expected += nats(transformer, ids[end - 17 : begin], ids[begin:end])
    assert len(tokens) % 16, "the last window is to be a part of one"
    assert model.loglikelihood_rolling(requests((text,))) == pytest.approx([-expected], abs=1e-3)


def test_a_retnet_reads_texts_of_any_length_at_once_if_asked_to(retnet: Trained) -> None:
    text = "the quick brown fox jumps over lazy dogs while " * 8
    ids = retnet.tokenizer.encode(text)
    assert len(ids) > 4 * retnet.shape["seq_len"]
    model = HarnessModel(retnet, max_length=10_000, score_bos=False)
    expected = -nats(retnet, [retnet.tokenizer.bos_id], ids)
    assert model.loglikelihood_rolling(requests((text,))) == pytest.approx([expected], rel=1e-5)
    assert HarnessModel(retnet).max_length == retnet.shape["seq_len"]


def test_too_long_a_context_loses_its_beginning_and_it_is_said(transformer: Trained) -> None:
    lines: list[str] = []
    findings = run(transformer, TASKS / "next_word.yaml", max_length=4, limit=1, lines=lines, log_samples=True)
    context, answer = findings.details["samples"]["next_word"][0]["arguments"][0]
    tokens = transformer.tokenizer
    ids, continuation = [tokens.bos_id, *tokens.encode(context)], tokens.encode(answer)
    kept = ids[len(ids) + len(continuation) - 5 :]
    scored = float(findings.details["samples"]["next_word"][0]["filtered_resps"][0][0])
    assert scored == pytest.approx(-nats(transformer, kept, continuation), abs=1e-4)
    left_out = findings.details["left_out"]
    assert left_out["requests"] >= 1
    assert lines == [
        f"harness: {left_out['requests']} requests were longer than the 4 tokens that the model reads at once: "
        f"{left_out['tokens']} tokens at their beginnings were left out"
    ]


def test_a_model_that_thinks_longer_answers_otherwise_and_as_when_it_writes(ebt: Trained) -> None:
    asked, writing = requests(("the quick", " brown fox")), requests(("the quick", {"max_gen_toks": 3}))
    usual = HarnessModel(ebt).loglikelihood(asked)
    thinking = DecodingConfig(steps=5, candidates=2)
    model = HarnessModel(ebt, thinking=thinking)
    assert model.loglikelihood(asked) != usual == HarnessModel(ebt, thinking=DecodingConfig()).loglikelihood(asked)
    (written,) = model.generate_until(writing)
    assert model.loglikelihood(requests(("the quick", written)))[0][1], "what it writes is what it finds most likely"


def test_a_model_that_does_not_think_cannot_be_told_to(transformer: Trained) -> None:
    with pytest.raises(ConfigError, match=r"thinking is for models that think \(ebt\)"):
        run(transformer, TASKS, thinking=DecodingConfig(steps=5))


def test_progress_is_said_from_time_to_time(
    transformer: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = (str(TASKS / "copies.yaml"), str(TASKS / "next_word.yaml"))
    config = HarnessConfig(tasks=tasks, limit=2, bootstrap=10)
    monkeypatch.setattr("perjoule.evaluate.harness_model.PROGRESS_S", 0.0)
    harness(transformer, config, lambda line: print(line, file=sys.stderr))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "harness: 1 of 2 questions are answered" and len(said) > 2
    assert {"harness: 2 of 2 questions are answered", "harness: 6 of 6 questions are answered"} <= set(said)


def test_an_answer_ends_before_a_stop_text_and_at_its_length(transformer: Trained) -> None:
    model = HarnessModel(transformer, batch_size=2)
    prompts = ["the quick", "seven wizards boil quartz", "a"]
    whole = model.generate_until(requests(*((one, {"until": [], "max_gen_toks": 6}) for one in prompts)))
    stop = whole[0][2]
    cut = model.generate_until(requests(*((one, {"until": stop, "max_new_tokens": 6}) for one in prompts)))
    assert cut == [text.split(stop)[0] for text in whole]
    assert whole == HarnessModel(transformer).generate_until(
        requests(*((one, {"max_gen_toks": 6, "do_sample": False, "temperature": 0.0}) for one in prompts))
    )


def test_exact_match_counts_the_answers_that_are_the_target(transformer: Trained, tmp_path: Path) -> None:
    how = {"max_gen_toks": 4, "until": []}
    questions = ["the quick", "a vat of", "dogs"]
    written = HarnessModel(transformer).generate_until(requests(*((one, how) for one in questions)))
    targets = [written[0], "not this", written[2]]
    rows = [{"question": one, "target": target} for one, target in zip(questions, targets, strict=True)]
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    fields: dict[str, Any] = {
        "doc_to_choice": None,
        "doc_to_target": "{{target}}",
        "generation_kwargs": how,
        "metric_list": [metric],
    }
    path = task_file(tmp_path, rows, output_type="generate_until", **fields)
    assert value(run(transformer, path), "mine", "exact_match") == pytest.approx(2 / 3)


def test_sampled_answers_depend_on_the_seed_alone(transformer: Trained) -> None:
    asked = requests(*((one, {"max_gen_toks": 8, "do_sample": True, "temperature": 2.0}) for one in ("the", "a vat")))
    first, again, other = (HarnessModel(transformer, seed=seed).generate_until(asked) for seed in (1, 1, 2))
    assert first == again != other
    surely = requests(*((one.args[0], {**one.args[1], "top_k": 1, "top_p": 0.5}) for one in asked))
    greedy = requests(*((one.args[0], {"max_gen_toks": 8}) for one in asked))
    assert HarnessModel(transformer).generate_until(surely) == HarnessModel(transformer).generate_until(greedy)


def test_answers_may_be_made_shorter_than_the_task_says(transformer: Trained) -> None:
    findings = run(transformer, TASKS / "copies.yaml", max_gen_toks=1, log_samples=True)
    assert findings.details["samples"]["copies"][0]["arguments"][0][1]["max_gen_toks"] == 1
    (text,) = findings.details["samples"]["copies"][0]["resps"][0]
    assert len(transformer.tokenizer.encode(text)) <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_gen_toks": SEQ_LEN}, r"answers of 64 tokens leave no room for a context, as the model reads 64"),
        ({}, r"answers of 256 tokens leave no room"),
        ({"num_beams": 4, "max_gen_toks": 4}, r"generation_kwargs have num_beams; accepted: until, max_gen_toks"),
        ({"max_gen_toks": 4, "temperature": 1.0, "top_p": 2.0}, r"generation_kwargs: top_p 2.0: Input should be less"),
    ],
)
def test_answers_that_cannot_be_written_are_an_error(
    transformer: Trained, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        HarnessModel(transformer).generate_until(requests(("the", settings)))


@pytest.mark.parametrize(("question", "answer"), [("the qu", "ick"), ("seven wiz", "ards"), ("  ", " ")])
def test_an_answer_inside_a_token_of_its_question_is_scored_by_its_own_tokens(
    transformer: Trained, question: str, answer: str
) -> None:
    tokens = transformer.tokenizer
    whole, asked = tokens.encode(question + answer), tokens.encode(question)
    ((score, _),) = HarnessModel(transformer).loglikelihood(requests((question, answer)))
    assert score < -0.1, "nothing is certain"
    if len(whole) <= len(asked):
        expected = -nats(transformer, [tokens.bos_id, *asked], tokens.encode(answer))
        assert score == pytest.approx(expected, abs=1e-5)


def test_scores_over_nothing_are_errors(transformer: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="a text without tokens"):
        HarnessModel(transformer, score_bos=False).loglikelihood_rolling(requests(("",)))
    with monkeypatch.context() as patch:
        patch.setattr(type(transformer.tokenizer), "encode", lambda self, text: [])
        with pytest.raises(ConfigError, match=r"an answer '☃' without tokens after 'the'"):
            HarnessModel(transformer).loglikelihood(requests(("the", "☃")))

    def divide(*arguments: Any, **named: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("lm_eval.evaluator.evaluate", divide)
    with pytest.raises(ConfigError, match="a mean over nothing"):
        run(transformer, TASKS / "next_word.yaml")


def test_what_cannot_be_scored_is_an_error(transformer: Trained) -> None:
    with pytest.raises(ConfigError, match=r"an empty answer after 'the quick'; accepted: at least a character"):
        HarnessModel(transformer).loglikelihood(requests(("the quick", "")))
    with pytest.raises(ConfigError, match=r"an answer of \d+ tokens, and the model reads 4 at once"):
        HarnessModel(transformer, max_length=4).loglikelihood(requests(("the", " quick brown fox jumps over lazy")))
    with pytest.raises(ConfigError, match=r"max_length 65 is more than the model reads; accepted: up to 64"):
        HarnessModel(transformer, max_length=65)


def test_there_is_no_chat(transformer: Trained) -> None:
    model = HarnessModel(transformer)
    with pytest.raises(ConfigError, match=r"has no chat template; accepted: tasks without one"):
        model.apply_chat_template([{"role": "user", "content": "hello"}])
    assert model.tokenizer_name == transformer.tokenizer.content_hash


def test_a_model_of_no_language_is_an_error(transformer: Trained) -> None:
    with pytest.raises(ConfigError, match=r"writes no tokens"):
        run(replace(transformer, model=torch.nn.Linear(1, 1)), TASKS)
    with pytest.raises(ConfigError, match=r"its model was not trained on text"):
        run(replace(transformer, run=TASKS), TASKS)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("helaswag", r"harness has no such task, did you mean hellaswag\? \(accepted: a task or group of those that"),
        ("tests/evaluate/tasks/nex_word.yaml", r"tasks/nex_word.yaml: there is no such file; accepted: a task file"),
    ],
)
def test_an_unknown_task_is_one_clear_line(transformer: Trained, asked: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run(transformer, asked)
    assert "\n" not in str(caught.value)


def test_no_task_at_all_is_an_error(transformer: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"harness.tasks is empty; accepted: names of tasks"):
        run(transformer)
    (tmp_path / "other.yaml").write_text("neither: task\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"none of its YAML files has a task or a group"):
        run(transformer, tmp_path)


def test_a_task_of_a_file_is_found_by_name_in_an_include_path(transformer: Trained, tmp_path: Path) -> None:
    findings = run(transformer, "copies", include_path=(TASKS,))
    assert [metric.of for metric in findings.metrics] == ["copies"]
    with pytest.raises(ConfigError, match=r"include_path .*nowhere is no folder"):
        run(transformer, "copies", include_path=(tmp_path / "nowhere",))


def test_a_tag_stands_for_its_tasks(transformer: Trained, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        task_file(tmp_path, [QUESTION] * 2, name, tag="odd" if name != "two" else "even")
    findings = run(transformer, "odd", include_path=(tmp_path,))
    assert [metric.of for metric in findings.metrics if metric.name == "acc"] == ["one", "three"]


def test_a_task_that_is_asked_for_twice_is_an_error(transformer: Trained) -> None:
    with pytest.raises(ConfigError, match=r"words.yaml: next_word is asked for twice; accepted: once"):
        run(transformer, TASKS / "next_word.yaml", TASKS / "words.yaml")


def test_groups_within_groups_are_loaded_once(transformer: Trained, tmp_path: Path) -> None:
    task_file(tmp_path, [QUESTION] * 2)
    for name, member in (("inner", "mine"), ("a_whole", "inner")):
        group = {"group": name, "task": [member], "aggregate_metric_list": [{"metric": "acc"}]}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    findings = run(transformer, tmp_path)
    assert [metric.of for metric in findings.metrics if metric.name == "acc"] == ["mine", "a_whole", "inner"]


def test_a_plain_task_of_the_harness_is_found_by_name_and_asks_for_its_data(transformer: Trained) -> None:
    with pytest.raises(DataError) as caught:
        run(transformer, "hellaswag")
    message = str(caught.value)
    assert message.startswith("harness.tasks hellaswag: its data cannot be read: ")
    assert "Rowan/hellaswag" in message and "harness.offline=false" in message and "dataset_path: json" in message
    assert "\n" not in message


def test_groups_and_tags_of_the_harness_are_found_by_name(
    transformer: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("one", "two"):
        task_file(
            folder, [QUESTION] * 2, name, tag="both", dataset_kwargs={"data_files": str(folder / f"{name}.jsonl")}
        )
        path = folder / f"{name}.yaml"
        path.write_text(path.read_text(encoding="utf-8").replace("test_split: test", "test_split: train"))
    monkeypatch.setattr("lm_eval.__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(folder / "manager.py"))
    findings = run(transformer, "both")
    assert [metric.of for metric in findings.metrics if metric.name == "acc"] == ["one", "two"]


def test_data_is_looked_for_in_the_current_folder_first_and_then_beside_the_task(
    transformer: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = task_file(tmp_path, [QUESTION] * 2)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert run(transformer, path).details["tasks"]["mine"]["of"] == 2
    (elsewhere / "mine.jsonl").write_text(json.dumps(QUESTION) + "\n", encoding="utf-8")
    assert run(transformer, path).details["tasks"]["mine"]["of"] == 1
    assert Path.cwd() == elsewhere


def test_missing_data_is_one_clear_line(transformer: Trained, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"mine.yaml: its data cannot be read: .*mine.jsonl'?; accepted: that file"
    ) as e:
        run(transformer, task_file(tmp_path))
    assert "\n" not in str(e.value)


def test_damaged_data_is_an_error(transformer: Trained, tmp_path: Path) -> None:
    path = task_file(tmp_path)
    (tmp_path / "mine.jsonl").write_text('{"question": "wh\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"mine.yaml: its data cannot be read: ArrowInvalid: .*; accepted: a file"):
        run(transformer, path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unsafe_code": True}, r"mine: runs the code that the model writes; accepted: tasks that do not"),
        ({"doc_to_image": "picture"}, r"mine: needs a model that sees or hears; accepted: tasks of text"),
        ({"output_type": "guessing"}, r"mine.yaml: ValueError: Got invalid output_type 'guessing'"),
        ({"test_split": "exam"}, r"mine.yaml: KeyError: 'exam'"),
        ({"metric_list": [{"metric": "f1"}]}, r"mine: a metric or a question fails: Target is multiclass"),
    ],
)
def test_a_task_that_is_not_for_us_is_an_error(
    transformer: Trained, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    rows = [{"question": "the", "choices": ["a", "b", "c"], "answer": number} for number in range(3)]
    with pytest.raises(ConfigError, match=message):
        run(transformer, task_file(tmp_path, rows, **fields))


def test_a_perplexity_that_is_no_number_any_more_is_an_error(transformer: Trained, tmp_path: Path) -> None:
    settings = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text"}
    path = task_file(tmp_path, [{"text": "0123456789" * 100}], doc_to_choice=None, **settings)
    with pytest.raises(ConfigError, match=r"mine: a perplexity is too large for a number; accepted: bits_per_byte"):
        run(transformer, path)


def test_a_missing_harness_says_what_to_install(transformer: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness_module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'perjoule\[harness\]'"):
        run(transformer, TASKS)


def test_nothing_global_is_changed(transformer: Trained, capfd: pytest.CaptureFixture[str]) -> None:
    def state() -> tuple[Any, ...]:
        flags = (datasets.config.HF_HUB_OFFLINE, datasets.config.HF_DATASETS_OFFLINE)
        return random.getstate(), np.random.get_state()[1].tolist(), logging.getLogger("lm_eval").level, flags  # type: ignore[index]

    before = state()
    run(transformer, TASKS)
    assert state() == before
    assert capfd.readouterr() == ("", "")


def test_the_network_is_asked_only_if_offline_is_turned_off(
    transformer: Trained, tmp_path: Path, network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # it tries several times
    path = task_file(tmp_path, dataset_path="nobody/nothing", dataset_kwargs={})
    with pytest.raises(DataError, match=r"nobody/nothing.*; accepted: harness.offline=false, a copy in"):
        run(transformer, path)
    assert not network
    with pytest.raises(DataError, match=r"nobody/nothing"):
        run(transformer, path, offline=False)
    assert network
    network.clear()


def test_the_settings_are_checked() -> None:
    assert resolve.load(HarnessConfig, None, ["tasks=copies", "limit=0.5"]).config == HarnessConfig(
        tasks=("copies",), limit=0.5
    )
    with pytest.raises(ConfigError, match=r"limit"):
        resolve.load(HarnessConfig, None, ["limit=1.5"])
    with pytest.raises(ConfigError, match=r"batch_size"):
        resolve.load(HarnessConfig, None, ["batch_size=0"])


def test_errors_of_perplexities_agree_with_drawing_documents_anew() -> None:
    generator = np.random.default_rng(0)
    weights = generator.integers(20, 200, 300)
    documents = [(-float(w * nats_), int(w)) for w, nats_ in zip(weights, generator.normal(1.5, 0.4, 300), strict=True)]
    for aggregate in (lm_eval_metrics.weighted_perplexity, lm_eval_metrics.bits_per_byte):
        error = error_of(aggregate, "perplexity", documents, 1000, 0)
        anew = error_of(lambda values, of=aggregate: of(values), "perplexity", documents, 1000, 0)  # type: ignore[misc]
        assert error.stderr == pytest.approx(anew.stderr, rel=0.1)
    whole = lm_eval_metrics.weighted_perplexity(documents)
    error = error_of(lm_eval_metrics.weighted_perplexity, "word_perplexity", documents, 1000, 0)
    assert error.low is not None and error.high is not None
    assert error.low * error.high == pytest.approx(whole**2)
    plain = [one for one, _ in documents[:50]]
    assert error_of(lm_eval_metrics.perplexity, "perplexity", [x / 99 for x in plain], 9, 0).stderr == pytest.approx(
        math.exp(-np.mean(plain) / 99) * np.std(plain, ddof=1) / 99 / math.sqrt(50)
    )


def test_errors_of_means_are_the_harnesss() -> None:
    hits = [1.0, 0.0, 1.0, 1.0]
    assert error_of(lm_eval_metrics.mean, "acc", hits, 1, 0).stderr == pytest.approx(0.25)
    answers = [
        ({"idx": {"question": q}, "label": label}, guess) for q, label, guess in [(0, 1, 1), (0, 0, 0), (1, 1, 0)]
    ]
    pairs = [(guess, doc) for doc, guess in answers]
    assert error_of(lm_eval_metrics.acc_all, "acc", pairs, 1, 0).stderr == pytest.approx(0.5)


def test_slow_metrics_are_drawn_a_hundred_times() -> None:
    calls = []

    def aggregate(values: Sequence[float]) -> float:
        calls.append(values)
        return max(values)

    error_of(aggregate, "bleu", [1.0, 2.0, 3.0], 1000, 0)
    assert len(calls) == 100
    same = [error_of(aggregate, "best", [1.0, 2.0, 3.0], 50, seed).stderr for seed in (0, 0, 1)]
    assert same[0] == same[1] != same[2]


def test_a_score_that_is_no_number_is_not_measured(transformer: Trained, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("def nothing(values):\n    return float('nan')\n", encoding="utf-8")
    path = task_file(tmp_path, [QUESTION] * 2, metric_list=[{"metric": "acc", "aggregation": "ODD"}])
    text = path.read_text(encoding="utf-8").replace("aggregation: ODD", "aggregation: !function odd.nothing")
    path.write_text(text, encoding="utf-8")
    findings = run(transformer, path)
    assert findings.metrics == [Metric("acc", None, "1", of="mine")]
    assert findings.details["acc"] == "not a finite number for mine"


def test_the_harness_is_loaded_only_when_it_is_asked_for() -> None:
    assert "lm_eval" not in vars(harness_module)
    assert harness_tasks.__name__ not in vars(harness_module)
