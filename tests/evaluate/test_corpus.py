"""Corpus-level figures against models whose answers are known, and against sums over documents written out by hand."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from pydantic import ValidationError
from tests.system.tiny import VOCAB_SIZE, Tiny, run_of, write_corpus
from torch import Tensor, nn

import perjoule
from perjoule.core.errors import ConfigError, DataError
from perjoule.core.labels import IGNORED
from perjoule.data.tokenizer import TextTokenizer
from perjoule.evaluate.contract import Findings, Metric
from perjoule.evaluate.corpus import LossConfig, bytes_of_tokens, corpus_loss, read_part
from perjoule.evaluate.trained import Trained, load_trained
from perjoule.models.contract import Output
from perjoule.train.run import train

BYTES_ONLY = ("data.tokenizer.vocab_size=258", "data.fractions={train: 1, validation: 0, test: 0}")
DYCK = ("data={kind: dyck, num_kinds: 2, depth: 3, seq_len: 24, num_held_out: 20, num_train: 100}",)


class Answers(nn.Module):
    """A model whose logits are a function of the tokens."""

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, tensors: Mapping[str, Tensor], with_logits: bool = False) -> Output:
        assert with_logits
        assert not self.training
        assert not torch.is_grad_enabled()
        return Output(torch.zeros(()), self.logits(tensors["input_ids"]))


class LossOnly(nn.Module):
    """Gives what the contract asks for and no more: the mean loss of a batch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tensors: Mapping[str, Tensor]) -> Output:
        return Output(self.inner(tensors).loss)


def uniform(vocab_size: int) -> nn.Module:
    return Answers(lambda ids: torch.zeros(*ids.shape, vocab_size))


def stack_machine(ids: Tensor) -> Tensor:
    """Return logits that know the bracket to be closed, of two kinds: 1 and 2 open, 3 and 4 close."""
    logits = torch.zeros(*ids.shape, 5)
    for row, tokens in enumerate(ids.tolist()):
        still_open: list[int] = []
        for place, token in enumerate(tokens):
            if token in {1, 2}:
                still_open.append(token)
            elif token in {3, 4}:
                still_open.pop()
            if still_open:
                logits[row, place, still_open[-1] + 2] = 30.0
    return logits


def evaluated(tiny: Tiny, *overrides: str) -> Trained:
    return load_trained(run_of(tiny.train(*overrides)))


def found(trained: Trained, say: Callable[[str], None] = lambda line: None, **settings: object) -> Findings:
    return corpus_loss(trained, LossConfig.model_validate(settings), say)


def metric(findings: Findings, name: str, of: str = "validation") -> Metric:
    (only,) = (metric for metric in findings.metrics if (metric.name, metric.of) == (name, of))
    return only


def write_texts(folder: Path, *texts: str) -> Path:
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


def test_uniform_logits_give_the_logarithm_of_the_vocabulary(tiny: Tiny) -> None:
    findings = found(replace(evaluated(tiny), model=uniform(VOCAB_SIZE).eval()))
    assert metric(findings, "loss").value == pytest.approx(math.log(VOCAB_SIZE))
    assert metric(findings, "loss").stderr == pytest.approx(0.0, abs=1e-6)
    assert metric(findings, "perplexity").value == pytest.approx(VOCAB_SIZE, rel=1e-5)
    assert metric(findings, "bits_per_token").value == pytest.approx(math.log2(VOCAB_SIZE))
    assert [one.unit for one in findings.metrics] == ["nats/token", "1", "bits/token", "bits/byte", "1"]


def test_bits_per_byte_of_a_tiny_text_is_that_counted_by_hand(tmp_path: Path) -> None:
    # Two documents of seven bytes each, which are as many tokens: é has two. The stream is 16 tokens, so there are 15
    # transitions, of which two begin a document and are ignored: 12 within documents, one that ends the first.
    tiny = Tiny(write_texts(tmp_path / "texts", "joulé!", "séries"), tmp_path / "runs")
    trained = replace(evaluated(tiny, *BYTES_ONLY, "data.seq_len=15", "batch.size=1"), model=uniform(258).eval())
    findings = found(trained, splits="train")
    assert metric(findings, "bits_per_byte", "train").value == pytest.approx(13 * math.log2(258) / 12)
    assert metric(findings, "accuracy", "train").value == pytest.approx(1 / 13)  # of equals the first: BOS, the end
    counts = findings.details["splits"]["train"]
    assert (counts["num_tokens"], counts["num_bytes"], counts["num_rows"]) == (13, 12, 1)


def test_bytes_of_the_labels_are_those_of_the_documents_whatever_the_merges(tmp_path: Path) -> None:
    texts = [" ".join(["ångström", "naïve 東京", str(number), "🙂\n\tx"] * (number + 1)) for number in range(9)]
    tiny = Tiny(write_texts(tmp_path / "texts", *texts), tmp_path / "runs")
    settings = ("data.batching=padded", *BYTES_ONLY[1:], "data.tokenizer.vocab_size=300")
    findings = found(evaluated(tiny, *settings), splits="train")
    assert findings.details["splits"]["train"]["num_bytes"] == sum(len(text.encode()) for text in texts)


def test_loss_is_over_all_tokens_and_not_a_mean_of_batch_means(tiny: Tiny) -> None:
    trained = evaluated(tiny, "data.batching=padded", "data.seq_len=64", "optimizer.lr=0.03")
    samples = trained.data().split("validation")
    nats, means, tokens = 0.0, [], 0
    with torch.no_grad():
        for start in range(0, samples.num_samples, 4):
            batch = samples.batch(start, min(4, samples.num_samples - start))
            means.append(trained.model(batch.tensors).loss.item())
            nats, tokens = nats + means[-1] * batch.num_useful, tokens + batch.num_useful
    findings = found(trained, batch_size=4)
    assert metric(findings, "loss").value == pytest.approx(nats / tokens, rel=1e-6)
    assert abs(nats / tokens - np.mean(means)) > 1e-3
    assert metric(found(trained, batch_size=3), "loss").value == pytest.approx(nats / tokens, rel=1e-6)


def test_error_is_clustered_by_document_as_written_out_by_hand(tiny: Tiny) -> None:
    trained = evaluated(tiny, "optimizer.lr=0.03")
    samples, bos_id = trained.data().split("validation"), trained.tokenizer.bos_id
    batch = samples.batch(0, samples.num_samples)
    with torch.no_grad():
        logits = trained.model(batch.tensors, with_logits=True).logits
    nats_of: list[float] = []
    tokens_of: list[int] = []
    for inputs, labels, rows in zip(batch.tensors["input_ids"], batch.tensors["labels"], logits, strict=True):
        for token, label, row in zip(inputs.tolist(), labels.tolist(), rows, strict=True):
            if token == bos_id:
                nats_of.append(0.0)
                tokens_of.append(0)
            else:
                nats_of[-1] -= row.log_softmax(-1)[label].item()
                tokens_of[-1] += 1
    loss, documents = sum(nats_of) / sum(tokens_of), len(nats_of)
    squares = sum((nats - loss * tokens) ** 2 for nats, tokens in zip(nats_of, tokens_of, strict=True))
    findings = found(trained, batch_size=5)
    assert metric(findings, "loss").value == pytest.approx(loss, rel=1e-5)
    expected = math.sqrt(documents / (documents - 1) * squares) / sum(tokens_of)
    assert metric(findings, "loss").stderr == pytest.approx(expected, rel=1e-4)
    assert findings.details["splits"]["validation"]["num_clusters"] == documents > 2
    perplexity = metric(findings, "perplexity")
    assert perplexity.low is not None
    assert perplexity.high is not None
    assert math.log(perplexity.low) == pytest.approx(loss - 1.96 * expected, rel=1e-4)
    assert math.log(perplexity.high) == pytest.approx(loss + 1.96 * expected, rel=1e-4)


def test_training_rows_which_are_shuffled_are_clusters_by_themselves(tiny: Tiny) -> None:
    lines: list[str] = []
    findings = found(evaluated(tiny), lines.append, splits=("train", "validation"), batches=3, batch_size=4)
    train, validation = findings.details["splits"]["train"], findings.details["splits"]["validation"]
    assert (train["clustered_by"], train["num_clusters"], train["whole_split"]) == ("row", 12, False)
    assert (validation["clustered_by"], validation["num_rows"]) == ("document", 12)
    loss = metric(findings, "loss", "train").value
    assert lines[0] == f"loss: train, 12 of 12 rows, loss {loss:.4f}"
    assert [line.partition(", loss ")[0] for line in lines[1:]] == ["loss: validation, 12 of 12 rows"]


def test_rows_that_are_mixed_from_several_data_sets_are_clusters_by_themselves(tiny: Tiny, corpus: Path) -> None:
    text = f"{{kind: text, path: {corpus}, seq_len: 16, tokenizer: {{vocab_size: 320}}}}"
    components = ", ".join(f"{{weight: {weight}, data: {text}}}" for weight in (0.5, 0.5))
    recipe = [one for one in tiny.arguments() if not one.startswith("data.")]
    trained = load_trained(
        run_of(train(perjoule.load(None, *recipe, f"data={{kind: mixture, components: [{components}]}}")))
    )
    splits = found(trained, splits=("validation", "validation.0", "train.0"), batches=2).details["splits"]
    assert [splits[name]["clustered_by"] for name in splits] == ["row", "document", "row"]


def test_a_long_evaluation_says_how_far_it_is(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, lines = evaluated(tiny), list[str]()
    found(trained, lines.append, batches=3, batch_size=4)
    assert len(lines) == 1
    monkeypatch.setattr("perjoule.evaluate.corpus.SAY_EVERY_S", 0.0)
    found(trained, lines.append, batches=3, batch_size=4)
    assert [line.split(", ")[1] for line in lines[1:]] == [f"{rows} of 12 rows" for rows in (4, 8, 12)]


def test_batches_are_the_first_ones_or_spread_evenly_over_the_split(tiny: Tiny) -> None:
    trained = evaluated(tiny)
    data, samples = trained.data(), trained.data().split("validation")
    assert samples.num_samples > 24
    for spread, starts in ((False, [0, 4, 8]), (True, [0, 4 * ((samples.num_samples - 1) // 8), 24])):
        part = read_part(trained, data, "validation", 3, 4, spread)
        read = list(part.batches)
        inputs = torch.cat([scored.batch.tensors["input_ids"] for scored in read])
        assert inputs.equal(
            torch.cat([samples.batch(start, 4).tensors["input_ids"] for start in starts])[: len(inputs)]
        )
        assert (part.num_rows, part.whole) == (len(inputs), False)
        documents = [set(scored.clusters[scored.useful.numpy()].tolist()) for scored in read]
        assert (len(documents[0] & documents[1]) == 1) is not spread  # a document goes on where nothing is left out


@pytest.mark.parametrize("split", ["validation", "ood"])
def test_a_machine_with_a_stack_is_always_right_about_brackets(tiny: Tiny, split: str) -> None:
    trained = evaluated(tiny, *DYCK)
    findings = found(replace(trained, model=Answers(stack_machine).eval()), splits=split)
    assert metric(findings, "accuracy", split).value == 1.0
    assert metric(findings, "loss", split).value == pytest.approx(0.0, abs=1e-9)
    assert findings.details["splits"][split]["clustered_by"] == "row"
    wrong = metric(found(replace(trained, model=uniform(5).eval()), splits=split), "accuracy", split)
    assert wrong.value == 0.0


def test_bits_per_byte_of_what_is_no_text_is_not_measured(tiny: Tiny) -> None:
    findings = found(evaluated(tiny, *DYCK))
    assert metric(findings, "bits_per_byte").value is None
    assert findings.details["bits_per_byte"] == "the data is not text, so its tokens have no bytes"
    assert "num_bytes" not in findings.details["splits"]["validation"]


def test_bits_per_byte_is_not_guessed_for_a_tokenizer_of_words(tiny: Tiny, tmp_path: Path) -> None:
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "[UNK]": 1, "quick": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<s>"])
    inner.save(str(tmp_path / "words.json"))
    findings = found(evaluated(tiny, f"data.tokenizer.file={tmp_path / 'words.json'}"))
    assert metric(findings, "bits_per_byte").value is None
    assert str(findings.details["bits_per_byte"]).startswith("the tokenizer is not byte-level")


def test_added_tokens_count_as_their_text_and_special_ones_not_at_all() -> None:
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({"Ã": 0, "©": 1, "Ã©": 2}, [("Ã", "©")]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(["<s>"])
    inner.add_tokens(["naïve 東"])
    table = bytes_of_tokens(TextTokenizer.wrap(inner, "here"))
    assert table is not None
    assert table.tolist() == [1, 1, len("é".encode()), 0, len("naïve 東".encode())]
    assert [inner.token_to_id(piece) for piece in ("<s>", "naïve 東")] == [3, 4]


def test_a_model_that_gives_no_logits_has_a_loss_and_no_accuracy(tiny: Tiny) -> None:
    trained = evaluated(tiny)
    findings = found(replace(trained, model=LossOnly(trained.model)), batch_size=4)
    whole = found(trained, batch_size=4)
    assert metric(findings, "loss").value == pytest.approx(metric(whole, "loss").value, rel=1e-6)
    assert metric(findings, "bits_per_byte").value == pytest.approx(metric(whole, "bits_per_byte").value, rel=1e-6)
    assert metric(findings, "accuracy").value is None
    assert str(findings.details["accuracy"]).startswith("the model's forward has no with_logits")
    assert findings.details["splits"]["validation"]["clustered_by"] == "batch"
    assert findings.details["splits"]["validation"]["num_clusters"] == 7


@pytest.mark.parametrize("scale", [1e4, math.nan])
def test_what_is_too_large_or_not_finite_is_not_measured(tiny: Tiny, scale: float) -> None:
    wrong = Answers(lambda ids: torch.eye(VOCAB_SIZE)[VOCAB_SIZE - 1].expand(*ids.shape, -1) * scale)
    findings = found(replace(evaluated(tiny), model=wrong.eval()))
    assert metric(findings, "perplexity") == Metric("perplexity", None, "1", of="validation")
    assert findings.details["perplexity"] == "the loss is not finite, or its exponential is too large for a number"
    loss = metric(findings, "loss").value
    assert loss == pytest.approx(1e4, rel=0.05) if scale == 1e4 else loss is None


def test_a_split_that_the_data_has_not_is_named_with_those_it_has(tiny: Tiny) -> None:
    with pytest.raises(DataError, match=r"no split 'ood': accepted: test, train, validation|no split 'ood': did you"):
        found(evaluated(tiny), splits="ood")
    with pytest.raises(ValidationError, match="at least 1 item"):
        LossConfig.model_validate({"splits": []})


def test_data_that_has_changed_since_training_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", num_documents=40)
    trained = evaluated(Tiny(corpus, tmp_path / "runs"))
    (corpus / "00.txt").write_text("something else altogether", encoding="utf-8")
    with pytest.raises(DataError, match=r"the data is not what .* was trained on: its identity was tokens-"):
        found(trained)


def test_rows_without_a_label_that_counts_are_refused(tiny: Tiny) -> None:
    trained = evaluated(tiny, "data.seq_len=1")  # the first row has the transition from BOS alone
    assert trained.data().split("validation").batch(0, 1).tensors["labels"].item() == IGNORED
    with pytest.raises(DataError, match=r"none of the 1 rows has a label that counts; raise loss\.batches$"):
        found(trained, batches=1, batch_size=1)


def test_data_without_tokens_has_no_loss_per_token(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = evaluated(tiny)
    data = trained.data()
    samples = data.split("validation")
    batch = replace(samples.batch(0, 4), tensors={"images": torch.zeros(4, 8)})
    monkeypatch.setattr(samples, "batch", lambda start, rows: batch)
    monkeypatch.setattr(data, "split", lambda name: samples)
    monkeypatch.setattr(Trained, "data", lambda self: data)
    with pytest.raises(ConfigError, match="its data has no labels that are tokens, so it has no loss per token"):
        found(trained)
