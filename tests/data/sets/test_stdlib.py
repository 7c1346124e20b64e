"""The standard library as a data set; one test runs the real one."""

import platform
import sysconfig
import time
from pathlib import Path

import pytest

from perjoule.data.sets.stdlib import StdlibConfig


def test_library_is_read_from_the_running_interpreter(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in list(corpus.iterdir()):
        path.rename(path.with_suffix(".py"))
    (corpus / "test").mkdir()
    (corpus / "test" / "test_it.py").write_text("assert True")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(corpus))
    data_set = StdlibConfig(seq_len=16, tokenizer={"vocab_size": 280}).build(0)
    assert data_set.facts["kind"] == "stdlib"
    assert data_set.facts["python"] == platform.python_version()
    assert sum(split["documents"] for split in data_set.facts["splits"].values()) == 40


def test_whole_library_becomes_millions_of_tokens_and_starts_warm_within_a_second() -> None:
    data_set = StdlibConfig().build(0)
    facts = data_set.facts["splits"]
    assert facts["train"]["tokens"] > 2_000_000
    assert 0.2 < facts["train"]["tokens_per_byte"] < 0.4
    assert facts["validation"]["num_samples"] > 100
    started = time.perf_counter()
    again = StdlibConfig().build(0)
    assert time.perf_counter() - started < 1
    assert again.facts["store"]["state"] == "reused"
    code = "def f(x):\n    return None\n"
    assert again.tokenizer.decode(again.tokenizer.encode(code)) == code
    assert len(again.tokenizer.encode(code)) < len(code) / 2
