"""``perjoule evaluate`` on every architecture from the command line."""

import pytest
from tests.system.tiny import Tiny, metrics, run_of

from perjoule.cli import main
from perjoule.runs.evaluations import read_evaluations

ARCHITECTURES = ("transformer", "retnet", "longnet", "ebt")
QUICK = (
    "thinking.batches=1",
    "thinking.batch_size=32",
    "thinking.stop_shares=[]",
    "latency.trials=1",
    "latency.new_tokens=2",
    "latency.energy_s=0",
    "latency.prompt_tokens=[4]",
)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_loss_is_the_one_that_the_run_recorded_for_the_same_batches(tiny: Tiny, kind: str) -> None:
    run = run_of(tiny.train(f"model.kind={kind}", "optimizer.lr=0.01"))
    assert main(["evaluate", str(run), "loss", "loss.batches=2", "loss.batch_size=4"]) == 0
    recorded = metrics(run, "evaluate")[-1]
    (found,) = read_evaluations(run)
    loss = found.metrics[0]
    assert loss["value"] == pytest.approx(recorded["loss"], rel=1e-6)
    assert found.details["splits"]["validation"]["num_tokens"] == recorded["tokens"]
    assert 0 < loss["stderr"] < 1
    assert found.step == recorded["step"] == 5


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_brackets_are_judged_in_and_out_of_distribution_and_latency_is_measured(tiny: Tiny, kind: str) -> None:
    run = run_of(tiny.train(f"model.kind={kind}", "data={kind: dyck, seq_len: 24, num_held_out: 8, num_train: 40}"))
    assert main(["evaluate", str(run), "loss", "latency", "loss.splits=[validation,ood]", *QUICK]) == 0
    loss, latency = read_evaluations(run)
    assert [m["of"] for m in loss.metrics if m["name"] == "accuracy"] == ["validation", "ood"]
    assert all(0 <= m["value"] <= 1 for m in loss.metrics if m["name"] == "accuracy")
    assert latency.kind == "latency"
    assert any(m["value"] is not None for m in latency.metrics)


def test_what_is_wrong_is_one_line_and_an_exit_code(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(run_of(tiny.train()))
    capsys.readouterr()
    assert main(["evaluate", run, "thinking"]) == 2
    assert main(["evaluate", run, "perplexity"]) == 2
    assert main(["evaluate", run, "harness"]) == 2
    assert main(["evaluate", run, "loss.splits=ood"]) == 6
    assert main(["evaluate", f"{run}-none"]) == 5
    assert main(["evaluate", run, "device=cuda:99"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("perjoule: ") for line in lines)
    assert "cannot think; accepted: runs of kind ebt" in lines[0]
