"""What a unit of work is, and what a stream is."""

from pathlib import Path

import numpy as np
import pytest

from perjoule.data import tokenize_unit
from perjoule.data.sources import files_source
from perjoule.data.tokenize_unit import stream_of, unit_jobs


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
