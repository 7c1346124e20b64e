import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.report.ledgers import NO_ENERGY
from tests.runs.synthetic import DATA, MODEL, PEAK, SyntheticRun, finished_run

from perjoule.report import wording
from perjoule.report.quantity import Distribution, Figure, Quantity, Unavailable
from perjoule.report.summary import LABELS, Summary, figures, summarize
from perjoule.runs.tables import Run, load_run


def value(figure: Figure) -> float:
    assert isinstance(figure, Quantity), figure
    return figure.value


def reason(figure: Figure) -> str:
    assert isinstance(figure, Unavailable), figure
    return figure.reason


def summary_of(path: Path, steps: int = 20, warmup_steps: int = 5, **segment: Any) -> Summary:
    run = SyntheticRun(path)
    run.segment(warmup_steps=warmup_steps, **segment)
    run.train(1, steps)
    return summarize(load_run(run.end()), NO_ENERGY)


def test_totals_equal_the_sum_by_hand(finished: Run) -> None:
    summary = summarize(finished, NO_ENERGY)
    assert value(summary.wall_s) == pytest.approx(20 * 0.100 + 2 * 0.240)
    assert value(summary.training_s) == pytest.approx(2.0)
    assert value(summary.evaluate_s) == pytest.approx(0.4)
    assert value(summary.checkpoint_blocked_s) == pytest.approx(0.08)
    assert value(summary.startup_s) == pytest.approx(2.0)
    assert value(summary.lost_s) == 0
    assert (value(summary.steps), value(summary.samples), value(summary.tokens)) == (20, 160, 40960)


def test_rates_equal_the_counts_over_training_seconds_behind_the_warm_up(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment(warmup_steps=2)
    run.train(1, 12, slow={1: 50.0, 2: 5.0, 7: 2.0})
    summary = summarize(load_run(run.end()), NO_ENERGY)
    assert value(summary.samples_per_s) == pytest.approx(10 * 8 / 1.1)
    assert value(summary.tokens_per_s) == pytest.approx(10 * 2048 / 1.1)
    assert value(summary.useful_tokens_per_s) == pytest.approx(10 * 1536 / 1.1)
    assert isinstance(summary.tokens_per_s, Quantity) and summary.tokens_per_s.n == 10
    assert value(summary.ignored_fraction) == pytest.approx(0.25)


def test_step_times_are_spread_over_the_window_only(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment(warmup_steps=1)
    run.train(1, 102, slow={1: 100.0, 50: 3.0})
    spread = summarize(load_run(run.end()), NO_ENERGY).step_s
    assert isinstance(spread, Distribution)
    assert spread.n == 101
    assert spread.mean_s == pytest.approx((100 * 0.1 + 0.3) / 101)
    assert (spread.median_s, spread.p95_s) == pytest.approx((0.1, 0.1))
    assert (spread.min_s, spread.max_s) == pytest.approx((0.1, 0.3))


def test_losses_and_perplexity_say_their_step(finished: Run) -> None:
    summary = summarize(finished, NO_ENERGY)
    assert summary.loss_first == Quantity(8.0, "nats", "at step 1", 1)
    assert value(summary.loss_last) == pytest.approx(2 + 6 / math.sqrt(20))
    assert summary.loss_validation == Quantity(4.0, "nats", "at step 20, 4,096 tokens", 2)
    assert value(summary.perplexity) == pytest.approx(math.exp(4))


def test_mfu_equals_flops_per_second_over_the_peak(finished: Run) -> None:
    summary = summarize(finished, NO_ENERGY)
    assert value(summary.mfu_full) == pytest.approx(30e6 * 20480 / 2.7e12)
    assert value(summary.mfu_causal) == pytest.approx(27e6 * 20480 / 2.7e12)
    assert isinstance(summary.mfu_full, Quantity)
    assert summary.mfu_full.how == (
        "full attention: 30,000,000 FLOPs per token, of 2.7 TFLOP/s bf16 (measured by perjoule doctor)"
    )


def test_mfu_counts_the_peak_of_every_rank(tmp_path: Path) -> None:
    summary = summary_of(tmp_path / "a", world_size=2)
    assert value(summary.mfu_full) == pytest.approx(30e6 * 20480 / 5.4e12)


def test_mfu_is_unavailable_with_the_reason(tmp_path: Path) -> None:
    unknown = summary_of(tmp_path / "a", peak={"unavailable": "doctor has not run here"})
    assert reason(unknown.mfu_full) == "doctor has not run here"
    assert reason(summary_of(tmp_path / "b", peak=None).mfu_causal) == "the peak of this device is not known"
    run = SyntheticRun(tmp_path / "c", model={"kind": "resnet"})
    run.segment()
    run.train(1, 3)
    assert reason(summarize(load_run(run.end()), NO_ENERGY).mfu_full) == "the model gives no FLOPs per token"


def test_mfu_over_different_devices_is_unavailable(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment()
    run.train(1, 3)
    run.journal.close()
    run.segment(first_step=4, peak=PEAK | {"flops": 1e12})
    run.train(4, 6)
    summary = summarize(load_run(run.end()), NO_ENERGY)
    assert reason(summary.mfu_full) == "the segments ran on devices with different peaks"


def test_a_run_that_is_all_warm_up_has_no_rates(tmp_path: Path) -> None:
    summary = summary_of(tmp_path / "a", steps=4, warmup_steps=5)
    assert reason(summary.tokens_per_s) == "no step after the warm-up"
    assert reason(summary.mfu_full) == "no step after the warm-up"
    assert summary.step_s == Unavailable("no step after the warm-up")
    assert value(summary.wall_s) == pytest.approx(0.4)


def test_a_run_killed_before_its_first_step_has_reasons_and_no_numbers(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment(startup_s=None)
    summary = summarize(load_run(run.kill()), NO_ENERGY)
    known = {name for name, figure in figures(summary).items() if isinstance(figure, Quantity)}
    assert known == {"lost_s"}
    assert reason(summary.wall_s) == "no step was timed"
    assert reason(summary.window_s) == "no step was completed"
    assert reason(summary.warmup_s) == reason(summary.after_s) == "no step was timed"
    assert reason(summary.steps) == "no step was completed"
    assert reason(summary.tokens_per_s) == "no step was completed"
    assert reason(summary.ignored_fraction) == "no tokens were counted"
    assert reason(summary.startup_s) == "no start-up time in this run"
    assert summary.phases == ()


def test_what_was_not_measured_is_unavailable_with_the_reason(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a", data={"kind": "images"})
    run.segment()
    run.train(1, 3, loss=None, memory_bytes=None)
    run.train_with_evaluation(4, 3.0)
    first = summarize(load_run(run.end()), NO_ENERGY)
    assert reason(first.energy_j) == "no meter in this run"
    assert reason(first.loss_first) == "not finite at step 1"
    assert reason(first.perplexity) == "the data has no vocabulary"
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["kind"] == "step" and line["step"] != 2:
            del line["loss"]
    (run.path / "metrics.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines), encoding="utf-8")
    logged = summarize(load_run(run.path), NO_ENERGY)
    assert reason(logged.loss_first) == reason(logged.loss_last) == "not finite at step 2", (
        "the only one that was logged"
    )
    second = summary_of(tmp_path / "b")
    assert reason(second.loss_validation) == "no evaluation on the validation split"
    assert reason(second.checkpoint_blocked_s) == "no checkpoint in this run"


def test_memory_that_was_never_read_is_unavailable(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment()
    run.train(1, 3, memory_bytes=None)
    assert reason(summarize(load_run(run.end()), NO_ENERGY).memory_bytes) == "the device's memory was not read"


def test_an_astronomic_loss_has_no_perplexity(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "a")
    run.segment()
    run.train_with_evaluation(1, 1e4)
    assert (
        reason(summarize(load_run(run.end()), NO_ENERGY).perplexity) == "the loss is too large to be raised to a power"
    )


def test_peak_memory_is_the_largest_reading(finished: Run) -> None:
    assert summarize(finished, NO_ENERGY).memory_bytes == Quantity(
        400_000_020.0, "B", "largest at the end of a step, cpu", 20
    )


def test_a_resumed_run_costs_what_both_segments_took(resumed: Run) -> None:
    summary = summarize(resumed, NO_ENERGY)
    assert value(summary.wall_s) == pytest.approx(23 * 0.1 + 2 * 0.24)
    assert value(summary.lost_s) == pytest.approx(0.3)
    assert wording.why(summary.lost_s) == "steps 11 to 13 were computed again after a resume (n = 3)"
    assert (value(summary.steps), value(summary.tokens)) == (20, 23 * 2048)
    assert value(summary.loss_validation) == 2.5
    assert [one.segment for one in summary.startup] == [0, 1]
    assert summary.startup[0].parts_s == {"import": 1.25, "data": 0.5, "model": 0.25}


def test_a_start_up_part_named_total_is_not_counted(tmp_path: Path) -> None:
    summary = summary_of(tmp_path / "a", startup_s={"import": 1.0, "data": 2.0, "total": 3.0})
    assert value(summary.startup_s) == pytest.approx(3.0)
    assert summary.startup[0].parts_s == {"import": 1.0, "data": 2.0}
    assert summary_of(tmp_path / "b", startup_s={"total": 3.0}).startup == ()


def test_every_figure_has_a_label_and_every_quantity_a_method(finished: Run) -> None:
    shown = figures(summarize(finished, NO_ENERGY))
    assert list(shown) == list(LABELS)
    assert all(figure.how for figure in shown.values() if isinstance(figure, Quantity))
    assert not any(math.isnan(figure.value) for figure in shown.values() if isinstance(figure, Quantity))


def test_summarizing_a_hundred_thousand_steps_is_quick(tmp_path: Path) -> None:
    import time

    run = SyntheticRun(tmp_path / "a")
    run.segment(warmup_steps=10)
    run.train(1, 100_000)
    loaded = load_run(run.end())
    started_s = time.perf_counter()
    summary = summarize(loaded, NO_ENERGY)
    assert time.perf_counter() - started_s < 2
    assert value(summary.tokens_per_s) == pytest.approx(20480)


def test_facts_of_model_and_data_reach_the_run(tmp_path: Path) -> None:
    run = load_run(finished_run(tmp_path / "a"))
    assert run.fact("data", "seq_len") == DATA["seq_len"]
    assert run.fact("model", "parameters") == MODEL["parameters"]
