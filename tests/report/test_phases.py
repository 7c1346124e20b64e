from pathlib import Path

import pytest
from tests.report.ledgers import NO_ENERGY
from tests.runs.synthetic import STEP_MS, THINK, SyntheticRun, two_rank_run

from perjoule.report import wording
from perjoule.report.phases import counted_steps, phase_costs, rank_costs
from perjoule.report.quantity import Distribution, Quantity, Unavailable
from perjoule.report.summary import summarize
from perjoule.runs.tables import Run, load_run


def compiled_run(path: Path, steps: int = 12) -> Run:
    """Write a run whose first step takes 50 s, as if it compiled, with 2 steps of warm-up."""
    run = SyntheticRun(path)
    run.segment(warmup_steps=2)
    run.train(1, steps, slow={1: 500.0, 2: 5.0})
    return load_run(run.end())


def wall_ns(run: Run) -> int:
    return sum(round(cost.wall_s * 1e9) for cost in phase_costs(run))


def test_phases_are_exclusive_and_their_shares_add_up_to_one(finished: Run) -> None:
    costs = {cost.phase: cost for cost in phase_costs(finished)}
    assert list(costs)[-1] == "other"
    assert list(costs).index(THINK) == list(costs).index("forward") + 1
    assert sum(cost.share for cost in costs.values()) == pytest.approx(1, abs=1e-12)
    for phase, milliseconds in STEP_MS.items():
        assert costs[phase].wall_s == pytest.approx(15 * milliseconds / 1e3)
        assert costs[phase].cpu_s == pytest.approx(2 * costs[phase].wall_s)
    assert costs["other"].wall_s == pytest.approx(15 * 0.003)
    assert costs["evaluate"].share == pytest.approx(0.4 / 1.98)
    each, backward = costs["evaluate"].per_step, costs["backward"].per_step
    assert isinstance(each, Distribution) and isinstance(backward, Distribution)
    assert (each.n, each.mean_s) == pytest.approx((2, 0.2))
    assert (backward.n, backward.median_s) == pytest.approx((15, 0.05))


def test_phases_partition_the_window_to_the_nanosecond(finished: Run, resumed: Run, tmp_path: Path) -> None:
    for run in (finished, resumed, compiled_run(tmp_path / "a")):
        assert wall_ns(run) == round(run.steps.wall_s[run.steps.in_window].sum() * 1e9) > 0


def test_a_compilation_is_no_part_of_a_phase(tmp_path: Path) -> None:
    run = compiled_run(tmp_path / "a")
    summary = summarize(run, NO_ENERGY)
    forward = next(cost for cost in summary.phases if cost.phase == "forward")
    assert (forward.wall_s, forward.share, forward.cpu_s) == pytest.approx((0.18, 0.18, 0.36))
    assert isinstance(summary.warmup_s, Quantity)
    assert (summary.warmup_s.value, summary.warmup_s.n) == pytest.approx((50.5, 2))
    assert summary.warmup_s.how == "compilation among them; outside the measured window"
    assert "2 warm-up steps (compilation among them), 50.5 s, are not among them." in wording.phase_caption(summary)


def test_time_in_steps_equals_window_and_warm_up_and_lost(finished: Run, resumed: Run, tmp_path: Path) -> None:
    for run in (finished, resumed, compiled_run(tmp_path / "a")):
        summary = summarize(run, NO_ENERGY)
        parts = (summary.window_s, summary.warmup_s, summary.lost_s)
        assert isinstance(summary.wall_s, Quantity)
        assert all(isinstance(part, Quantity) for part in parts)
        known = [part for part in parts if isinstance(part, Quantity)]
        assert sum(part.value for part in known) == pytest.approx(summary.wall_s.value)
        assert sum(part.n for part in known) == summary.wall_s.n


def test_an_evaluation_behind_the_last_step_takes_nothing_from_other(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment(warmup_steps=1)
    run.train(1, 5)
    run.close_with_evaluation(5, 3.0)
    summary = summarize(load_run(run.end()), NO_ENERGY)
    assert {cost.phase: cost.wall_s for cost in summary.phases}["other"] == pytest.approx(4 * 0.003)
    assert "evaluate" not in [cost.phase for cost in summary.phases]
    assert isinstance(summary.after_s, Quantity)
    assert summary.after_s == Quantity(0.24, "s", "checkpoint and evaluate, outside the time in steps", 1)


def test_a_run_that_closes_with_its_last_step_has_nothing_behind_it(finished: Run) -> None:
    assert summarize(finished, NO_ENERGY).after_s == Quantity(0.0, "s", "nothing was recorded there", 0)


def test_each_segment_has_its_own_warm_up(resumed: Run) -> None:
    summary = summarize(resumed, NO_ENERGY)
    assert isinstance(summary.warmup_s, Quantity) and isinstance(summary.window_s, Quantity)
    assert (summary.warmup_s.value, summary.warmup_s.n) == pytest.approx((0.4, 4))
    assert (summary.window_s.value, summary.window_s.n) == pytest.approx((16 * 0.1 + 2 * 0.24, 16))


def test_a_run_without_warm_up_says_so(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment()
    run.train(1, 3)
    summary = summarize(load_run(run.end()), NO_ENERGY)
    assert summary.warmup_s == Quantity(0.0, "s", "no step was set apart as warm-up", 0)
    assert "Warm-up" not in wording.phase_caption(summary)


def test_a_run_that_is_all_warm_up_shows_all_its_steps_and_says_so(tmp_path: Path) -> None:
    run = compiled_run(tmp_path / "a", steps=2)
    summary = summarize(run, NO_ENERGY)
    assert counted_steps(run).tolist() == [True, True]
    assert wall_ns(run) == 50_500_000_000
    assert summary.window_s == Unavailable("no step after the warm-up")
    assert wording.phase_caption(summary).startswith(
        "No step comes after the warm-up, so this is over every timed step, warm-up and compilation included."
    )
    assert wording.bar_label(summary, 25.25) == "25.2 s per step, warm-up included"


def test_a_phase_that_occurs_in_the_warm_up_only_has_no_row(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment(warmup_steps=1)
    run.train_with_evaluation(1, 3.0)
    run.train(2, 4)
    assert "evaluate" not in [cost.phase for cost in phase_costs(load_run(run.end()))]


def test_a_run_killed_before_its_first_step_has_no_phases(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment(world_size=2)
    loaded = load_run(run.kill())
    assert phase_costs(loaded) == ()
    assert wording.phase_caption(summarize(loaded, NO_ENERGY)) == "No step was timed."


def test_cpu_seconds_are_added_over_ranks_and_wall_seconds_are_not(tmp_path: Path) -> None:
    run = load_run(two_rank_run(tmp_path / "a"))
    backward = next(cost for cost in phase_costs(run) if cost.phase == "backward")
    assert (backward.wall_s, backward.cpu_s) == pytest.approx((8 * 0.05, 2 * (8 * 0.05 + 8 * 0.1)))


def test_every_rank_has_its_own_seconds(tmp_path: Path) -> None:
    run = load_run(two_rank_run(tmp_path / "a"))
    first, second = rank_costs(run)
    assert (first.rank, first.num_steps, second.rank, second.num_steps) == (0, 8, 1, 8)
    assert list(first.wall_s) == ["data", "transfer", "forward", THINK, "backward", "optimizer", "other"]
    assert sum(first.wall_s.values()) == pytest.approx(0.8)
    assert sum(second.wall_s.values()) == pytest.approx(1.6)
    assert (second.wall_s["backward"], second.cpu_s) == pytest.approx((0.8, 3.2))
    assert first.wall_s == {cost.phase: cost.wall_s for cost in phase_costs(run)}


def test_the_caption_names_the_phase_in_which_ranks_differ_most(tmp_path: Path) -> None:
    summary = summarize(load_run(two_rank_run(tmp_path / "a")), NO_ENERGY)
    assert wording.rank_headings(summary)[0] == "Rank" and wording.rank_headings(summary)[-2:] == ("CPU time", "Steps")
    assert wording.rank_rows(summary)[1][0] == "1" and wording.rank_rows(summary)[1][-2:] == ("3.2 s", "8")
    assert wording.rank_caption(summary).endswith("The ranks are furthest apart in backward: 400 ms.")


def test_a_rank_without_a_journal_is_left_out(tmp_path: Path) -> None:
    path = two_rank_run(tmp_path / "a")
    (path / "events" / "0000-rank0.bin").unlink()
    run = load_run(path)
    assert [one.rank for one in rank_costs(run)] == [1]
    assert phase_costs(run)[0].wall_s == pytest.approx(8 * 0.02)
    assert any("no readable journal of rank 0" in warning for warning in run.warnings)


def test_one_rank_has_no_table_of_ranks(finished: Run, resumed: Run) -> None:
    assert rank_costs(finished) == rank_costs(resumed) == ()
