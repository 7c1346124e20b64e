"""Every language model trains, is evaluated out of distribution, and is reported, from one command line."""

from pathlib import Path

import pytest

import perjoule
from perjoule.measure.book import build_ledger
from perjoule.runs.tables import load_run

SMALL = ("model.dim=32", "model.num_layers=2", "batch.size=4", "backend=plain", "backend.threads=1", "data=dyck")


@pytest.mark.parametrize("kind", ["transformer", "retnet", "longnet", "ebt"])
def test_architecture_trains_on_brackets_and_is_evaluated_on_deeper_ones(kind: str, tmp_path: Path) -> None:
    settings = ("stop.steps=3", "evaluate.split=ood", "evaluate.batches=1", f"runs={tmp_path}", "energy.sampler=off")
    result = perjoule.train(perjoule.load(None, f"model={kind}", *SMALL, *settings))
    assert result.run is not None
    run = load_run(result.run)
    assert [one.split for one in run.evaluations] == ["ood"]
    assert result.held_out_loss is not None
    assert 0 < result.held_out_loss < 10
    assert run.fact("model", "kind") == kind
    assert run.fact("model", "flops_per_token") > 0
    assert build_ledger(run).accounts == ()


def test_text_has_no_split_out_of_distribution_and_says_so(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("stop.steps=2", "evaluate.split=ood", f"runs={tmp_path}", "energy.sampler=off", "data.seq_len=32")
    text = (*SMALL[:-1], "data.kind=text", f"data.path={corpus}", "data.tokenizer.vocab_size=300")
    assert perjoule.train(perjoule.load(None, *text, *settings)).held_out_loss is None
    assert "held-out loss: not measured" in capsys.readouterr().out
