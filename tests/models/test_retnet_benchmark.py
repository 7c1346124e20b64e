"""The benchmark runs and prints what it should; how large its figures are is for a quiet machine, not for a test."""

import re

import pytest
from benchmarks import retnet


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare without torchscale, which is not of the project's environment."""

    def missing(chunk_len: int | None) -> None:
        raise ImportError("No module named 'torchscale'")

    monkeypatch.setattr(retnet, "torchscale", missing)


def ratios(output: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^ratio (.+): ([\d.]+) \[", output, re.MULTILINE)}


def test_training_is_compared_with_the_parallel_form_at_every_length(capsys: pytest.CaptureFixture[str]) -> None:
    retnet.main(["train", "--quick", "--lengths", "16", "40"])
    output = capsys.readouterr().out
    found = ratios(output)
    assert found.keys() == {f"{arm}, {length}" for arm in ("A/A", "parallel form / perjoule") for length in (16, 40)}
    assert min(found.values()) > 0
    assert "torchscale is left out (No module named 'torchscale'): pip install --target" in output


def test_decoding_is_compared_over_contexts_and_with_the_transformer(capsys: pytest.CaptureFixture[str]) -> None:
    retnet.main(["decode", "--quick"])
    found = ratios(capsys.readouterr().out)
    assert {
        "perjoule, context 32 / perjoule, context 8",
        "Transformer, context 32 / perjoule, context 8",
    } <= found.keys()


@pytest.mark.slow
def test_memory_of_each_arm_is_measured_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    retnet.main(["memory", "--quick", "--lengths", "2048", "--tokens", "2048"])
    found = dict(re.findall(r"^(.+), 2048: (\d+) MB", capsys.readouterr().out, re.MULTILINE))
    assert found.keys() == {"perjoule", "parallel form"}
    # What a process had before counts for neither, and may hide all of ours.
    assert int(found["parallel form"]) > int(found["perjoule"])


def test_arms_that_form_every_score_stop_where_memory_would() -> None:
    short, long = (retnet.arms_for(length, peer=True, compiled=False) for length in (4096, 8192))
    assert set(short) - set(long) == {"parallel form", "torchscale parallel"}
    assert long[:2] == ["perjoule", "perjoule, again"]
