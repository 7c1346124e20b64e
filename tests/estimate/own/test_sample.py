from pathlib import Path

import pytest
from tests.estimate.own.works import sample, work
from tests.runs.synthetic import SyntheticRun, finished_run, two_rank_run

from perjoule.core.errors import DataError
from perjoule.estimate.own.sample import Sample, joules_per_step, read_sample
from perjoule.runs.tables import load_run


def test_a_step_is_read_without_warm_up_evaluations_and_checkpoints(tmp_path: Path) -> None:
    found = read_sample(finished_run(tmp_path / "run"), "synthetic", work())
    assert (found.name, found.num_steps) == ("synthetic", 15)
    assert found.step_s == pytest.approx(0.1)
    assert found.cpu_s == pytest.approx(0.2)  # two busy threads


def test_processor_time_is_that_of_all_ranks(tmp_path: Path) -> None:
    found = read_sample(two_rank_run(tmp_path / "run"), "two", work())
    assert found.cpu_s == pytest.approx(0.2 + 0.4)


def test_energy_that_was_not_metered_is_none(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "run")
    assert joules_per_step(load_run(path)) == (None, "not metered")
    assert read_sample(path, "one", work()).watts is None


def test_a_run_within_its_warm_up_is_no_sample(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.segment(warmup_steps=5)
    run.train(1, 5)
    with pytest.raises(DataError, match=r"run has no step that was timed behind the warm-up: let it run longer"):
        read_sample(run.end(), "one", work())


def test_an_unreadable_journal_is_named(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "run")
    next((path / "events").glob("*.bin")).write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"behind the warm-up \(segment 0: .+\): let it run longer"):
        read_sample(path, "one", work())


def test_a_sample_survives_json() -> None:
    one = sample(work(), 0.1, step_j=2.0)
    assert Sample.from_json(one.as_json()) == one
    assert one.watts == pytest.approx(20)
