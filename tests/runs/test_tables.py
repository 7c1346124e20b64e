import json
import time
from pathlib import Path

import numpy as np
import pytest
from tests.runs.synthetic import PHASES, STEP_MS, THINK, SyntheticRun, finished_run, interrupted_and_resumed_run

from perjoule.core.errors import RunFolderError
from perjoule.core.phases import EVALUATE, STEP
from perjoule.runs import phase_table
from perjoule.runs.folder import RunFolder
from perjoule.runs.journal import BEGIN, END, JournalWriter, read_journal
from perjoule.runs.phase_table import build_phase_table
from perjoule.runs.step_table import Checkpoint, Evaluation, Note, read_metrics
from perjoule.runs.tables import list_runs, load_run


def test_phases_have_the_seconds_that_the_clock_gave_them(tmp_path: Path) -> None:
    (segment,) = load_run(finished_run(tmp_path / "a")).segments
    phases = segment.phases
    assert phases is not None
    assert phases.steps.tolist() == list(range(1, 21))
    assert phases.wall_s("forward") == pytest.approx(np.full(20, 0.030))
    assert phases.exclusive_s("forward") == pytest.approx(np.full(20, 0.018))
    assert phases.exclusive_s(THINK) == pytest.approx(np.full(20, 0.012))
    assert phases.exclusive_cpu_s("backward") == pytest.approx(np.full(20, 0.100))
    assert phases.wall_s(EVALUATE).nonzero()[0].tolist() == [9, 19]
    assert phases.wall_s("nothing") == pytest.approx(np.zeros(20))


def test_phases_and_other_partition_the_step_exactly(tmp_path: Path) -> None:
    (segment,) = load_run(finished_run(tmp_path / "a")).segments
    phases = segment.phases
    assert phases is not None
    other = phases.exclusive_s(STEP)
    assert (other >= 0).all()
    assert other == pytest.approx(np.full(20, 0.003))
    parts = sum(phases.exclusive_s(phase) for phase in phases.phases)
    assert parts + other == pytest.approx(phases.wall_s(STEP))


def test_the_partition_holds_on_a_real_clock(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "j.bin", PHASES)
    for step in range(1, 200):
        writer.mark(step, writer.code(STEP, BEGIN))
        for phase in ("data", "forward"):
            writer.mark(step, writer.code(phase, BEGIN))
            writer.mark(step, writer.code(phase, END))
        writer.mark(step, writer.code(STEP, END))
    writer.close()
    phases = build_phase_table(read_journal(tmp_path / "j.bin"))
    rest = phases.wall_ns[STEP] - phases.wall_ns["data"] - phases.wall_ns["forward"]
    assert len(rest) == 199
    assert (rest >= 0).all()


def test_occurrences_of_a_phase_in_a_step_are_added(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment()
    run.phase(0, EVALUATE, 70)
    run.mark(1, STEP, BEGIN)
    for milliseconds in (10, 20, 40):
        run.phase(1, "forward", milliseconds)
    run.mark(1, STEP, END)
    run.end()
    phases = build_phase_table(read_journal(run.folder.event_path(0)))
    assert phases.wall_s("forward") == pytest.approx([0.070])
    assert phases.before_ns == {EVALUATE: 70_000_000}
    assert EVALUATE not in phases.phases


def test_what_is_recorded_behind_the_end_of_a_step_is_no_part_of_it(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment()
    run.train(1, 2)
    run.train_with_evaluation(3, 3.0)
    run.close_with_evaluation(3, 2.9)
    (segment,) = load_run(run.end()).segments
    phases = segment.phases
    assert phases is not None
    assert phases.after_ns == {EVALUATE: 200_000_000, "checkpoint": 40_000_000}
    assert phases.wall_ns[EVALUATE].tolist() == [0, 0, 200_000_000]
    assert phases.exclusive_s(STEP) == pytest.approx(np.full(3, 0.003))
    assert load_run(run.path).steps.training_s == pytest.approx(np.full(3, 0.100))


def test_a_step_that_is_closed_in_another_chunk_holds_its_phases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment()
    run.train(1, 4)
    run.close_with_evaluation(4, 3.0)
    run.end()
    journal = read_journal(run.folder.event_path(0))
    monkeypatch.setattr(phase_table, "CHUNK_RECORDS", 3)
    phases = build_phase_table(journal)
    assert phases.wall_ns["backward"].tolist() == [50_000_000] * 4
    assert set(phases.after_ns) == {EVALUATE, "checkpoint"}


def test_pairing_in_chunks_equals_pairing_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = finished_run(tmp_path / "a") / "events" / "0000-rank0.bin"
    whole = build_phase_table(read_journal(path))
    monkeypatch.setattr(phase_table, "CHUNK_RECORDS", 5)
    pieces = build_phase_table(read_journal(path))
    for phase in whole.wall_ns:
        assert (pieces.wall_ns[phase] == whole.wall_ns[phase]).all()
        assert (pieces.cpu_ns[phase] == whole.cpu_ns[phase]).all()


def test_a_step_under_way_at_a_kill_is_dropped_and_said(tmp_path: Path) -> None:
    run = load_run(interrupted_and_resumed_run(tmp_path / "a"))
    first, second = (segment.phases for segment in run.segments)
    assert first is not None and second is not None
    assert first.steps.tolist() == list(range(1, 14))
    assert (first.num_unclosed, first.num_partial_steps) == (2, 1)
    assert first.after_ns == {}
    assert (second.num_unclosed, second.num_partial_steps) == (0, 0)
    (warning,) = run.warnings
    assert "0000-rank0.bin ends within a step: 2 phases" in warning


def test_repeated_steps_are_kept_as_cost_and_left_out_of_curves(tmp_path: Path) -> None:
    run = load_run(interrupted_and_resumed_run(tmp_path / "a"))
    assert run.steps.step.tolist() == [*range(1, 14), *range(11, 21)]
    assert run.steps.step[run.steps.superseded].tolist() == [11, 12, 13]
    assert set(run.steps.segment[run.steps.superseded].tolist()) == {0}
    assert run.steps.kept.step.tolist() == list(range(1, 21))
    assert run.steps.kept.loss[10:19].tolist() == [3.0] * 9
    assert [one.step for one in run.kept_evaluations] == [10, 20]


def test_an_evaluation_of_thrown_away_steps_is_not_kept(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment()
    run.train(1, 4)
    run.train_with_evaluation(5, 1.0)
    run.kill()
    run.folder = RunFolder.reopen(run.path)
    run.segment(first_step=3)
    run.train(3, 6)
    run.end()
    loaded = load_run(run.path)
    assert len(loaded.evaluations) == 1
    assert loaded.kept_evaluations == ()
    assert len(loaded.checkpoints) == 1


def test_the_window_leaves_out_warm_up_and_lost_steps_of_every_segment(tmp_path: Path) -> None:
    run = load_run(interrupted_and_resumed_run(tmp_path / "a"))
    assert run.steps.step[run.steps.in_window].tolist() == [*range(3, 11), *range(13, 21)]


def test_a_table_is_cut_down_to_given_steps(tmp_path: Path) -> None:
    (segment,) = load_run(finished_run(tmp_path / "a")).segments
    phases = segment.phases
    assert phases is not None
    some = phases.only(np.array([10, 3, 99]))
    assert some.steps.tolist() == [3, 10]
    assert some.wall_ns[STEP].tolist() == [100_000_000, 340_000_000]
    assert (some.total_ns("forward"), some.total_ns(STEP)) == (36_000_000, 6_000_000)
    assert some.total_cpu_ns(EVALUATE) == 400_000_000
    assert phases.total_ns("forward") == 20 * 18_000_000


def test_training_time_is_the_step_without_evaluation_and_checkpoint(tmp_path: Path) -> None:
    run = load_run(finished_run(tmp_path / "a"))
    assert run.steps.wall_s[9] == pytest.approx(0.340)
    assert run.steps.training_s == pytest.approx(np.full(20, 0.100))
    assert run.phase_s("backward") == pytest.approx(np.full(20, STEP_MS["backward"] / 1e3))


def test_status_is_running_while_the_lock_is_held_and_interrupted_after(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment()
    run.train(1, 3)
    run.mark(4, STEP, BEGIN)
    live = load_run(run.path)
    assert (live.status, live.reason, live.warnings) == ("running", "", ())
    run.kill()
    dead = load_run(run.path)
    assert (dead.status, dead.reason) == ("interrupted", "its process was killed or its machine stopped")
    assert dead.steps.step.tolist() == [1, 2, 3]


def test_a_finished_run_says_why_it_ended(tmp_path: Path) -> None:
    run = load_run(finished_run(tmp_path / "a"))
    assert (run.status, run.reason, run.name) == ("finished", "reached steps=20", "a")
    assert run.resolved == {"steps": {"value": 20, "source": "default"}}
    assert run.fact("model", "kind") == "transformer"
    assert run.fact("model", "nothing") is run.fact("nothing", "kind") is None


def test_rare_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment()
    run.train(1, 1)
    run.train_with_evaluation(2, None)
    run.folder.append_event("note", step=2, text="slow disk")
    run.folder.append_event("future kind", anything=1)
    run.end()
    loaded = load_run(run.path)
    assert loaded.evaluations == (Evaluation(0, 2, "validation", None, 4096, 0.2),)
    assert loaded.checkpoints == (Checkpoint(0, 2, "checkpoints/00000002", 1000, 0.04, True),)
    assert loaded.notes == (Note(0, 2, "slow disk"),)
    assert loaded.warnings == ()


def test_a_torn_last_line_is_ignored_and_one_in_the_middle_is_said(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "a") / "metrics.jsonl"
    lines = path.read_text().splitlines()
    for cut in range(1, len(lines[-1])):
        path.write_text("\n".join([*lines[:-1], lines[-1][:cut]]))
        metrics = read_metrics(path)
        assert metrics.warnings == ()
        assert len(metrics.checkpoints) == 1
    lines[2] = lines[2][:20]
    lines[5] = '{"kind": "step", "segment": 0, "step": "six"}'
    lines[11] = "[]"
    path.write_text("\n".join(lines) + "\n")
    metrics = read_metrics(path)
    assert metrics.warnings == tuple(f"metrics.jsonl line {line} is damaged and was skipped" for line in (3, 6, 12))
    assert len(metrics.columns["step"]) == 18
    assert len(metrics.evaluations) + len(metrics.checkpoints) == 3


def test_two_lines_torn_into_one_object_are_not_taken_for_one(tmp_path: Path) -> None:
    whole = json.dumps({"kind": "note", "segment": 0, "step": 1, "text": "x"})
    (tmp_path / "metrics.jsonl").write_text(f'{whole}\n{{"kind":"note","segment":0\n"step":1,"text":"y"}}\n{whole}\n')
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert [note.text for note in metrics.notes] == ["x", "x"]
    assert len(metrics.warnings) == 2


def test_a_loss_that_is_null_is_not_finite_in_its_column(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment()
    run.train(1, 2, loss=None, memory_bytes=None)
    loaded = load_run(run.end())
    assert np.isposinf(loaded.steps.loss).all(), "null is what JSON can say of a loss that is not finite"
    assert np.isnan(loaded.steps.memory_bytes).all()


def test_what_is_missing_or_damaged_becomes_a_warning(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "a")
    (path / "resolved.json").unlink()
    journal = path / "events" / "0000-rank0.bin"
    content = bytearray(journal.read_bytes())
    content[4096 + 32 * 40] ^= 1
    journal.write_bytes(content)
    run = load_run(path)
    assert any("cannot read" in warning and "resolved.json" in warning for warning in run.warnings)
    assert any("0000-rank0.bin is damaged" in warning for warning in run.warnings)
    assert run.steps.step.tolist() == list(range(1, 21))
    assert np.isfinite(run.steps.wall_s).tolist() == [True] * 2 + [False] * 18
    (path / "resolved.json").write_text("[]")
    journal.write_bytes(b"short")
    (path / "metrics.jsonl").unlink()
    run = load_run(path)
    assert any("is not a journal" in warning for warning in run.warnings)
    assert any("resolved.json is damaged: it holds no JSON object" in warning for warning in run.warnings)
    assert any("segment 0: no readable journal of rank 0" in warning for warning in run.warnings)
    assert any("metrics.jsonl" in warning for warning in run.warnings)
    assert len(run.steps) == 0


def test_a_killed_run_can_be_read_at_every_length_of_its_journal(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "a", steps=4, warmup_steps=0)
    journal = path / "events" / "0000-rank0.bin"
    content = journal.read_bytes()
    for size in range(4096, len(content), 16):
        journal.write_bytes(content[:size])
        phases = load_run(path).segments[0].phases
        assert phases is not None
        assert phases.steps.tolist() == list(range(1, len(phases.steps) + 1))
        if len(phases.steps):
            assert (phases.exclusive_s(STEP) >= 0).all()


def test_every_rank_has_its_table(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment(world_size=3)
    run.train(1, 2)
    first = run.folder.event_path(0)
    run.journal.close()
    run.folder.event_path(1).write_bytes(first.read_bytes())
    (first.parent / "0000-rankx.bin").write_bytes(b"")
    loaded = load_run(run.end())
    assert sorted(loaded.segments[0].ranks) == [0, 1]
    assert loaded.warnings == ("segment 0: no readable journal of rank 2; its times are unknown",)


def test_runs_are_listed_oldest_first_with_their_last_step(tmp_path: Path) -> None:
    first = finished_run(tmp_path / "z")
    killed = SyntheticRun(tmp_path / "a")
    killed.folder.close()
    (tmp_path / "a" / "manifest.json").write_text(
        (tmp_path / "a" / "manifest.json").read_text().replace('"created": "2', '"created": "9')
    )
    (tmp_path / "not a run").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    broken, done, dead = list_runs(tmp_path)
    assert (broken.name, broken.status) == ("broken", "damaged")
    assert "manifest.json is damaged" in broken.reason
    assert (done.path, done.step, done.status, done.model, done.data) == (first, 20, "finished", "transformer", "text")
    assert done.loss == pytest.approx(2 + 6 / 20**0.5)
    assert done.parameters == 5_264_640
    assert (dead.status, dead.step, dead.loss) == ("interrupted", None, None)


def test_listing_what_is_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no folder .*/none: give the folder that holds the runs"):
        list_runs(tmp_path / "none")


def test_a_hundred_thousand_steps_are_read_quickly(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment(warmup_steps=10)
    run.train(1, 100_000)
    run.end()
    started_s = time.process_time()  # what other processes do meanwhile does not count
    loaded = load_run(run.path)
    assert time.process_time() - started_s < 5
    assert len(loaded.steps) == 100_000
    assert loaded.steps.wall_s.sum() == pytest.approx(10_000)


def test_what_somebody_took_away_is_said(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a", "", {}, {})
    run.begin_segment({"first_step": 1, "stop": {}, "energy": {"config": {"sampler": "process", "meters": ["x"]}}})
    journal = JournalWriter(run.event_path(0), ("step",), {"rank": 0, "segment": 0})
    journal.close()
    run.end("finished", "reached 3 steps", last_step=3)
    run.close()
    (run.path / "checkpoints").rmdir()
    said = "\n".join(load_run(run.path).warnings)
    for words in ("metrics.jsonl ends at step 0", "checkpoints is missing", "segment 0: its samples are missing"):
        assert words in said
