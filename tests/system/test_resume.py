"""A run that was stopped goes on as if it had not been, or says why it cannot."""

import shutil
from pathlib import Path

import pytest
from tests.system.tiny import Tiny, losses, metrics, resume, run_of, segments

import perjoule
from perjoule.core.errors import CheckpointError, ConfigError, DataError, RunFolderError, TrainingDiverged
from perjoule.runs.folder import CHECKPOINTS, METRICS, event_path
from perjoule.runs.tables import load_run

STEPS = 12
SCHEDULE = ("schedule={kind: cosine, horizon_steps: 12}", "checkpoint.every_steps=2", "checkpoint.keep=3")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> list[float]:
    return Tiny(corpus, tmp_path_factory.mktemp("uninterrupted")).losses_of(*SCHEDULE, f"stop.steps={STEPS}")


@pytest.fixture
def half(tiny: Tiny) -> Path:
    """A run of seven steps with checkpoints at 4, 6 and 7."""
    return run_of(tiny.train(*SCHEDULE, "stop.steps=7"))


def checkpoint(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"{step:08d}"


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(half: Path, uninterrupted: list[float]) -> None:
    assert resume(half, f"stop.steps={STEPS}").step == STEPS
    assert losses(half) == uninterrupted
    run = load_run(half)
    assert [segment.facts["first_step"] for segment in run.segments] == [1, 8]
    assert [len(segment.phases.steps) for segment in run.segments if segment.phases] == [7, 5]
    assert not run.steps.superseded.any()


def test_accumulation_and_workers_may_change_when_a_run_is_resumed(half: Path, uninterrupted: list[float]) -> None:
    resume(half, f"stop.steps={STEPS}", "batch.accumulation=2", "batch.workers=1")
    assert losses(half) == pytest.approx(uninterrupted, abs=1e-5)


def test_a_finished_run_that_is_resumed_takes_no_step_and_stays_finished(half: Path) -> None:
    before = losses(half)
    result = resume(half)
    assert (result.status, result.step) == ("finished", 7)
    assert losses(half) == before
    run = load_run(half)
    assert (run.status, len(run.segments), run.warnings) == ("finished", 1, ())


def test_another_configuration_is_refused_and_every_difference_named(half: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        resume(half, "model.dim=64", "optimizer.lr=0.5", "stop.steps=9", "batch.workers=1")
    assert str(refused.value) == (
        f"{half} cannot be resumed with another configuration: model.dim was 32, now it is 64; "
        "optimizer.lr was 0.001, now it is 0.5"
    )
    assert len(segments(half)) == 1


def test_a_measurement_is_not_resumed_as_a_training(tiny: Tiny) -> None:
    with perjoule.measure(tiny.runs / "other", meters=()):
        pass
    with pytest.raises(RunFolderError, match=r"other holds a measurement of a program .* nothing of ours to resume"):
        perjoule.train(perjoule.load(None), resume=tiny.runs / "other")


def test_changed_data_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    corpus = shutil.copytree(tiny.corpus, tmp_path / "corpus")
    run = run_of(tiny.train(f"data.path={corpus}"))
    (corpus / "00.txt").write_text("something else entirely", encoding="utf-8")
    with pytest.raises(DataError, match=rf"^the data is not what {run} was trained on: its identity was tokens-.*run$"):
        resume(run, "stop.steps=9")
    assert load_run(run).status == "finished"


def test_data_may_have_moved(half: Path, uninterrupted: list[float], corpus: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(corpus, tmp_path / "elsewhere" / corpus.name)
    assert resume(half, f"stop.steps={STEPS}", f"data.path={moved}").step == STEPS
    assert losses(half) == uninterrupted


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_line(
    half: Path, uninterrupted: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(checkpoint(half, 7) / "model.safetensors")
    resume(half, f"stop.steps={STEPS}")
    shown = capsys.readouterr().out
    fault = "the checksum of model.safetensors does not fit its content; trying the one before"
    assert f"{checkpoint(half, 7)} is damaged: {fault}\n" in shown
    assert f"continues after step 6, from {checkpoint(half, 6)}\n" in shown
    assert losses(half) == uninterrupted
    assert int(load_run(half).steps.superseded.sum()) == 1, "step 7 was taken twice, and both are kept"


def test_a_truncated_checkpoint_is_passed_over(half: Path, uninterrupted: list[float]) -> None:
    file = checkpoint(half, 7) / "training.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    resume(half, f"stop.steps={STEPS}")
    assert losses(half) == uninterrupted


def test_a_run_whose_checkpoints_are_all_damaged_says_so(half: Path) -> None:
    for step in (4, 6, 7):
        damage(checkpoint(half, step) / "state.json")
    with pytest.raises(CheckpointError, match=r"^all 3 checkpoints in .* are damaged; start the run anew$"):
        resume(half, f"stop.steps={STEPS}")
    assert len(load_run(half).steps) == 7


def test_a_run_without_a_checkpoint_starts_again(
    half: Path, uninterrupted: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(half / CHECKPOINTS)
    resume(half, f"stop.steps={STEPS}")
    assert "no checkpoint yet: training starts again at step 1\n" in capsys.readouterr().out
    assert losses(half) == uninterrupted
    assert int(load_run(half).steps.superseded.sum()) == 7


def test_a_truncated_journal_still_gives_what_it_has(half: Path) -> None:
    journal = event_path(half, 0, 0)
    journal.write_bytes(journal.read_bytes()[: 4096 + 32 * 30 + 7])
    torn = (half / METRICS).read_bytes()
    (half / METRICS).write_bytes(torn[:-10])
    run = load_run(half)
    assert run.segments[0].phases is not None
    assert 0 < len(run.segments[0].phases.steps) < 7
    assert any("0000-rank0.bin ends within a step" in warning for warning in run.warnings)
    assert len(run.steps) == 7
    resume(half, "stop.steps=9")
    assert [line for line in load_run(half).warnings if METRICS in line] == [
        f"{METRICS} line {len(torn.splitlines())} is damaged and was skipped"
    ]


def test_divergence_names_the_step_and_leaves_what_was_before_intact(tiny: Tiny) -> None:
    unbounded = ("optimizer={lr: 1e30, clip_norm: null}", "stop.steps=50", "checkpoint.every_steps=1")
    with pytest.raises(TrainingDiverged) as diverged:
        tiny.train("name=hot", *unbounded)
    assert diverged.value.exit_code == 8
    run = load_run(tiny.runs / "hot")
    last = int(run.steps.step[-1])
    assert str(diverged.value).startswith(f"step {last}: loss ")
    assert str(diverged.value).endswith("or find the operation with debug.anomaly_detection=true")
    assert (run.status, run.reason) == ("failed", str(diverged.value))
    assert run.segments[0].facts["last_step"] == last - 1, "the step whose loss was not finite was not taken"
    assert run.segments[0].ranks[0].num_unclosed == 0
    assert [one.step for one in run.checkpoints][-1] == last - 1
    with pytest.raises(TrainingDiverged, match=rf"^step {last}: "):
        resume(run.path)


def test_a_poisoned_weight_is_noticed_and_training_goes_on_from_the_checkpoint(
    tiny: Tiny, uninterrupted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from perjoule.train.session import Session

    on_step = Session.on_step

    def poisoning(session: Session, goal: object) -> object:
        note = on_step(session, goal)  # type: ignore[arg-type]

        def poison(record: object) -> None:
            note(record)  # type: ignore[arg-type]
            if record.step == 5:  # type: ignore[attr-defined]
                next(session.module.parameters()).data.fill_(float("nan"))

        return poison

    with monkeypatch.context() as patch:
        patch.setattr(Session, "on_step", poisoning)
        with pytest.raises(TrainingDiverged, match=r"^step 6: loss nan, gradient norm nan; the checkpoints before"):
            tiny.train("name=poisoned", *SCHEDULE, f"stop.steps={STEPS}")
    run = tiny.runs / "poisoned"
    assert load_run(run).checkpoints[-1].step == 4
    assert metrics(run, "step")[-1]["loss"] is None
    resume(run)
    assert losses(run) == uninterrupted


def test_a_schedule_that_follows_the_end_says_that_a_new_end_bends_it(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tiny.train("stop.steps=3", "schedule.kind=cosine", "schedule.horizon_steps=null"))
    resume(run, "stop.steps=3")
    assert "takes a new curve" not in capsys.readouterr().out
    resume(run, "stop.steps=5")
    assert "stop has changed and schedule.horizon_steps is not set: the learning rate takes a new curve" in (
        capsys.readouterr().out
    )
