"""When a run ends, when it evaluates, and what it keeps."""

import itertools
import json
import math
import shutil
from pathlib import Path

import pytest
from tests.system.tiny import SEQ_LEN, Tiny, losses, metrics, resume, run_of, segments

from perjoule.core.errors import ConfigError
from perjoule.runs.checkpoints import verify
from perjoule.runs.folder import CHECKPOINTS, read_manifest
from perjoule.runs.samples import sample_files
from perjoule.runs.tables import load_run
from perjoule.train.resuming import TrainResult

THREAD = ("energy.sampler=thread", "energy.meters=cpu_time")


def test_run_ends_after_steps(tiny: Tiny) -> None:
    result = tiny.train("stop.steps=3")
    assert (result.step, result.status, result.reason) == (3, "finished", "reached 3 steps")
    manifest = read_manifest(run_of(result))
    assert (manifest["status"], manifest["reason"]) == ("finished", "reached 3 steps")


def test_run_ends_after_epochs(tiny: Tiny) -> None:
    result = tiny.train("stop={epochs: 0.5}", "data.seq_len=64", "batch.size=8")
    num_samples = load_run(run_of(result)).fact("data", "facts")["splits"]["train"]["num_samples"]
    assert result.reason == "reached 0.5 epochs"
    assert result.step == math.ceil(0.5 * num_samples / 8)


def test_run_ends_after_tokens(tiny: Tiny) -> None:
    result = tiny.train(f"stop={{tokens: {4 * SEQ_LEN * 2 + 1}}}")
    assert (result.step, result.reason) == (3, f"reached {4 * SEQ_LEN * 2 + 1} tokens")


def test_run_ends_after_seconds(tiny: Tiny) -> None:
    result = tiny.train("stop={seconds: 1.5}")
    manifest = read_manifest(run_of(result))
    assert (result.status, result.signal) == ("finished", None)
    assert result.reason in {"1.5 s leave no room for another step", "reached 1.5 s"}
    assert 0 < manifest["segments"][0]["seconds"] < 5
    assert manifest["segments"][0]["last_step"] == result.step > 0


@pytest.mark.parametrize("stop", ["stop={seconds: 0.5}", "stop={steps: 3}"])
def test_a_finished_run_is_left_as_it_is_when_resumed_to_the_same_end(
    tiny: Tiny, stop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tiny.train(stop, *THREAD)
    run = run_of(first)
    before = (run / "manifest.json").read_bytes()
    capsys.readouterr()
    again = resume(run)
    assert (again.step, again.reason, again.run) == (first.step, first.reason, run)
    assert "nothing to do" in capsys.readouterr().out
    assert (run / "manifest.json").read_bytes() == before
    assert len(sample_files(run, 0)) == 1 and not sample_files(run, 1), "nothing was metered"


def test_a_finished_run_goes_on_when_its_end_is_raised_and_only_then(tiny: Tiny) -> None:
    run = run_of(tiny.train("stop.steps=3"))
    assert resume(run, "stop.steps=2").step == 3
    assert len(segments(run)) == 1
    for _ in range(2):
        assert resume(run, "stop.steps=5").step == 5
        assert len(segments(run)) == 2


def test_the_nearest_of_several_conditions_ends_a_run(tiny: Tiny) -> None:
    assert tiny.train("stop={steps: 50, tokens: 100, seconds: 1000}").reason == "reached 100 tokens"


@pytest.fixture
def impatient(tiny: Tiny) -> TrainResult:
    # A rate so high that the held-out loss does not fall for long.
    return tiny.train("stop={steps: 500, patience: 2}", "evaluate.every_steps=3", "optimizer.lr=0.5")


def test_early_stopping_waits_for_its_patience(impatient: TrainResult) -> None:
    run = run_of(impatient)
    evaluated = [(line["step"], line["loss"]) for line in metrics(run, "evaluate")]
    best_step, best = min(evaluated, key=lambda pair: pair[1])
    assert impatient.reason == f"no better held-out loss in 2 evaluations since step {best_step}"
    assert [loss > best for step, loss in evaluated if step > best_step] == [True, True]
    assert impatient.step == best_step + 6 < 500


def test_the_best_checkpoint_is_kept_beside_the_newest(impatient: TrainResult) -> None:
    folder = run_of(impatient) / CHECKPOINTS
    best = json.loads((folder / "best.json").read_text(encoding="utf-8"))
    evaluated = {line["step"]: line["loss"] for line in metrics(run_of(impatient), "evaluate")}
    assert best == {"step": min(evaluated, key=lambda step: evaluated[step]), "loss": min(evaluated.values())}
    assert (folder / f"{best['step']:08d}").is_dir()
    assert (folder / f"{impatient.step:08d}").is_dir()


def test_a_finished_early_stop_is_over_when_resumed(impatient: TrainResult) -> None:
    assert resume(run_of(impatient)).step == impatient.step


def test_evaluations_and_checkpoints_come_on_schedule(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = ("evaluate.every_steps=2", "checkpoint.every_steps=3", "checkpoint.best=false", "checkpoint.keep=9")
    run = run_of(tiny.train("stop.steps=7", *schedule))
    assert [line["step"] for line in metrics(run, "evaluate")] == [2, 4, 6, 7]
    assert [line["step"] for line in metrics(run, "checkpoint")] == [3, 6, 7]
    assert sorted(path.name for path in (run / CHECKPOINTS).iterdir() if path.is_dir()) == [
        "00000003",
        "00000006",
        "00000007",
    ]
    shown = capsys.readouterr().out
    assert f"step 2: validation loss {metrics(run, 'evaluate')[0]['loss']:.4f} (best so far)" in shown
    assert "finished: reached 7 steps, at step 7" in shown
    assert "finished: reached 7 steps, at step 7" in (run / "train.log").read_text(encoding="utf-8")


def test_evaluating_leaves_the_losses_bit_identical(tiny: Tiny) -> None:
    often = ("evaluate.every_steps=1", "checkpoint.every_steps=1")
    assert tiny.losses_of(*often) == tiny.losses_of("checkpoint.asynchronous=false")


def test_the_test_split_can_be_evaluated(tiny: Tiny) -> None:
    run = run_of(tiny.train("evaluate.split=test", "evaluate.batches=null"))
    (evaluation,) = load_run(run).evaluations
    assert evaluation.split == "test"
    assert evaluation.tokens == load_run(run).fact("data", "facts")["splits"]["test"]["num_useful"]
    assert len(losses(run)) == 5


@pytest.mark.parametrize(
    "schedule",
    [("checkpoint.every_steps=3",), ("checkpoint.every_steps=3", "evaluate.every_steps=4", "checkpoint.keep=5")],
)
def test_the_evaluation_at_the_end_makes_the_last_checkpoint_the_best(tiny: Tiny, schedule: tuple[str, ...]) -> None:
    result = tiny.train("stop.steps=9", "optimizer.lr=0.01", *schedule)
    folder = run_of(result) / CHECKPOINTS
    assert json.loads((folder / "best.json").read_text(encoding="utf-8")) == {"step": 9, "loss": result.held_out_loss}
    state = json.loads((folder / "00000009" / "state.json").read_text(encoding="utf-8"))
    assert (state["progress"]["best_step"], state["progress"]["best_loss"]) == (9, result.held_out_loss)
    verify(folder / "00000009")


def test_the_best_is_marked_only_once_its_checkpoint_is_written(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = []

    def mark(folder: Path, step: int, value: float, ranked_by: str) -> None:
        marked.append((step, (folder / f"{step:08d}").is_dir()))

    monkeypatch.setattr("perjoule.runs.checkpoints.mark_best", mark)
    tiny.train("evaluate.every_steps=2", "optimizer.lr=0.01")
    assert marked == [(2, True), (4, True), (5, True)]


def test_several_of_the_best_are_kept(tiny: Tiny) -> None:
    run = run_of(
        tiny.train(
            "stop.steps=12", "evaluate.every_steps=2", "optimizer.lr=0.5", "checkpoint.top=3", "checkpoint.keep=1"
        )
    )
    evaluated = sorted((line["loss"], line["step"]) for line in metrics(run, "evaluate"))
    kept = sorted(int(path.name) for path in (run / CHECKPOINTS).iterdir() if path.is_dir())
    assert kept == sorted({*[step for _, step in evaluated[:3]], 12})


def _means(run: Path, name: str, edges: list[int]) -> dict[int, float]:
    """Return the mean of a step's field from one edge to the next, by the step at its end."""
    values = [line[name] for line in metrics(run, "step")]
    return {end: sum(values[begin:end]) / (end - begin) for begin, end in itertools.pairwise([0, *edges])}


@pytest.mark.parametrize(
    ("monitor", "name", "direction"),
    [("training_loss", "loss", "lowest"), ("grad_norm", "grad_norm", "highest"), ("training_loss", "loss", "highest")],
)
def test_the_best_checkpoints_are_ranked_by_what_is_monitored(
    tiny: Tiny, monitor: str, name: str, direction: str
) -> None:
    wanted = (f"checkpoint.monitor={monitor}", f"checkpoint.direction={direction}", "checkpoint.top=2")
    common = ("evaluate.every_steps=3", "optimizer.lr=0.5", "checkpoint.keep=1", *wanted)
    run = run_of(tiny.train("stop.steps=14", *common))
    means = _means(run, name, [3, 6, 9, 12, 14])
    ranked = sorted(means, key=lambda step: means[step], reverse=direction == "highest")
    kept = sorted(int(path.name) for path in (run / CHECKPOINTS).iterdir() if path.is_dir())
    assert kept == sorted({*ranked[:2], 14})
    best = json.loads((run / CHECKPOINTS / "best.json").read_text(encoding="utf-8"))
    assert best == {
        "step": ranked[0],
        "value": pytest.approx(means[ranked[0]], rel=1e-12),
        "ranked_by": f"{direction} {monitor}",
    }


def test_what_is_monitored_may_change_when_a_run_goes_on(tiny: Tiny) -> None:
    run = run_of(tiny.train("stop.steps=4", "evaluate.every_steps=2", "checkpoint.keep=9"))
    resume(run, "stop.steps=8", "checkpoint.monitor=training_loss", "evaluate.every_steps=2", "checkpoint.keep=9")
    best = json.loads((run / CHECKPOINTS / "best.json").read_text(encoding="utf-8"))
    assert best["ranked_by"] == "lowest training_loss" and best["step"] in {6, 8}, "what came before was not ranked so"


def test_a_mean_that_is_monitored_goes_on_over_a_resume(tiny: Tiny) -> None:
    schedule = ("stop.steps=8", "evaluate.every_steps=4", "checkpoint.every_steps=2", "checkpoint.keep=9")
    run = run_of(tiny.train(*schedule, "checkpoint.monitor=training_loss", "optimizer.lr=0.01"))
    best = run / CHECKPOINTS / "best.json"
    before = best.read_bytes()
    shutil.rmtree(run / CHECKPOINTS / "00000008")  # as if killed behind step 6, between two evaluations
    manifest = read_manifest(run)
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}), encoding="utf-8")
    resume(run)
    assert json.loads(before)["step"] == 8
    assert best.read_bytes() == before


def test_what_is_not_logged_cannot_be_monitored(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.monitor.*grad_norm, held_out_loss, training_loss"):
        tiny.train("checkpoint.monitor=accuracy")


def test_a_checkpoint_written_after_damaged_ones_is_kept(tiny: Tiny) -> None:
    run = run_of(tiny.train("stop.steps=6", "checkpoint.every_steps=2", "evaluate.split=test", "checkpoint.keep=3"))
    (run / CHECKPOINTS / "00000006" / "model.safetensors").write_bytes(b"damaged")
    resume(run, "stop.steps=5", "checkpoint.keep=1", "checkpoint.best=false")
    assert sorted(path.name for path in (run / CHECKPOINTS).iterdir() if path.is_dir()) == ["00000005"]
    best = json.loads((run / CHECKPOINTS / "best.json").read_text(encoding="utf-8"))
    assert best["step"] == 5


def test_evaluations_come_every_fraction_of_an_epoch(tiny: Tiny) -> None:
    often = ("evaluate.every_epochs=0.25", "debug.limit_batches=6", "stop={epochs: 2}", "checkpoint.best=false")
    run = run_of(tiny.train(*often))
    assert [line["step"] for line in metrics(run, "evaluate")] == [2, 3, 5, 6, 8, 9, 11, 12]


def test_checkpoints_come_every_so_many_minutes(tiny: Tiny) -> None:
    run = run_of(tiny.train("checkpoint.every_minutes=1e-9", "stop.steps=3", "checkpoint.keep=9"))
    assert [line["step"] for line in metrics(run, "checkpoint")] == [2, 3], "the first step has taken no time before it"


def test_evaluations_by_steps_and_by_epochs_exclude_each_other(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"one of evaluate\.every_steps and evaluate\.every_epochs"):
        tiny.train("evaluate.every_epochs=0.25", "evaluate.every_steps=3")
