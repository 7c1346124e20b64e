"""What a unit of work is, and what a stream is."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from perjoule.data import sources, tokenize_unit
from perjoule.data.fast_encode import Encoder
from perjoule.data.sources import Document, files_source
from perjoule.data.tokenize import TokenizeConfig, tokenize
from perjoule.data.tokenize_unit import stream_of, unit_jobs
from perjoule.data.tokenizer import TextTokenizer, TokenizerConfig


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TokenizerConfig(vocab_size=300).build(["a document"])


def test_units_depend_on_the_source_alone_and_are_not_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jsonl").write_text('{"text": "a document"}\n')
    source = files_source(tmp_path, "text")
    monkeypatch.setattr(tokenize_unit, "_SMALLEST_UNIT_BYTES", 1)
    monkeypatch.setattr(tokenize_unit, "_MAX_UNITS", 2)
    jobs = unit_jobs(source)
    assert [job.number for job in jobs] == [0, 1]
    assert [part for job in jobs for part in job.parts] == list(source.units())
    assert [job.name for job in jobs] == ["0.jsonl to 2.jsonl", "3.jsonl to 4.jsonl"]


def test_stream_puts_bos_before_each_document() -> None:
    documents = [np.array(ids, np.uint32) for ids in ([5, 6], [7], [70_000, 8, 9])]
    tokens, lengths = stream_of(documents, 1, "<u4")
    assert tokens.tolist() == [1, 5, 6, 1, 7, 1, 70_000, 8, 9]
    assert lengths.tolist() == [3, 2, 4]
    assert stream_of(documents[:2], 1, "<u2")[0].dtype == np.dtype("<u2")


@pytest.mark.parametrize(("most_characters", "read"), [(1000, [3, 4, 5, 5, 5]), (10, [1, 2, 3, 4, 5])])
def test_large_documents_do_not_wait_in_memory(
    most_characters: int, read: list[int], tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize_unit, "_AHEAD_CHARACTERS", most_characters)
    texts = [f"document number {number}" for number in range(5)]
    so_far: list[str] = []

    def batches() -> Iterator[list[Document]]:
        for text in texts:
            so_far.append(text)
            yield [Document(text, text, text)]

    found, read_before = [], []
    for batch, _, _ in tokenize_unit._encoded(batches(), Encoder(tokenizer), 2):
        found += [document.text for document in batch]
        read_before.append(len(so_far))
    assert found == texts
    assert read_before == read


def test_memory_is_given_back_after_each_part_and_the_tokenizer_is_not_loaded_again(
    tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.jsonl").write_text('{"text": "a document"}\n' * 10)
    monkeypatch.setattr(sources, "UNIT_BYTES", 50)
    given: list[None] = []
    monkeypatch.setattr(tokenize_unit, "give_back_memory", lambda: given.append(None))
    monkeypatch.delattr(TextTokenizer, "load")
    source = files_source(corpus, "text")
    done = tokenize(source, tokenizer, tmp_path / "store", TokenizeConfig(workers=0), lambda line: None)
    assert done.manifest.total("documents") == 10
    assert len(given) == len(source.units()) == 5
