"""The table of all methods, the best settings, and the score on rows of another file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.estimate.measured import GAISSA, ZEUS, make_job, measure, zeus

from perjoule.core.errors import DataError
from perjoule.estimate import SHELF
from perjoule.estimate.contract import Epoch, Estimate, Job, Measurement, Scopes, Target
from perjoule.estimate.estimators.mlco2 import MLCO2Config
from perjoule.estimate.score import score, score_unseen
from perjoule.estimate.scores import Outcome, Score, ask, summarize, table
from perjoule.estimate.settings import Choice, best_settings, describe
from perjoule.estimate.trials import LEAKING, calibrate, learning_curve, merge

TARGET = Target.ENERGY_PER_EPOCH


@pytest.fixture(scope="module")
def scored() -> tuple[list[Score], list[str]]:
    lines: list[str] = []
    return score([*ZEUS], lines.append, processes=1), lines


@pytest.fixture
def few_gaissa(tmp_path: Path) -> Path:
    """Return the table with the chess data and the InceptionV3 of one data set: twenty configurations."""
    head, *lines = GAISSA.read_text().splitlines()
    path = tmp_path / "gaissa.csv"
    path.write_text("\n".join([head, *(line for line in lines if "stanford_dogs" not in line and "S4" not in line)]))
    return path


def one_row(scores: list[Score], split: str, method: str) -> Score:
    (found,) = (one for one in scores if (one.split, one.method, one.target) == (split, method, TARGET))
    return found


def outcome(mean: float, truth: float, half: float = 10.0) -> Outcome:
    return Outcome(truth, Estimate(mean, mean - half, mean + half, "J", "made"))


def test_a_row_has_median_tail_sign_coverage_and_width() -> None:
    rows = [outcome(110, 100), outcome(90, 100), outcome(150, 100), outcome(130, 100)]
    found = summarize(rows, split="made", study="made", method="made", target=TARGET)
    assert found.num == 4
    assert (found.mean, found.median, found.signed) == pytest.approx((0.25, 0.2, 0.2))
    assert found.p95 == pytest.approx(0.47)
    assert found.coverage == 0.5
    assert found.width == pytest.approx(np.median([10 / 110, 10 / 90, 10 / 150, 10 / 130]))


def test_the_table_shows_every_figure_aligned() -> None:
    row = summarize([outcome(110, 100)], split="device", study="Zeus", method="mlco2", target=TARGET, note="a note")
    head, line = table([row])
    assert line.split() == "device Zeus mlco2 energy per epoch 1 10.0 % 10.0 % 10 % +10.0 % 100 % ±9 % a note".split()
    assert head.index("method") == line.index("mlco2")
    assert head.index("median") + len("median") == line.index("10.0 %", line.index("10.0 %") + 1) + len("10.0 %")


def test_hindsight_is_given_to_those_that_need_it_only() -> None:
    class Spy:
        kind, needs, targets = "spy", SHELF.load("physical")().build().needs, frozenset({TARGET})
        seen: list[Job] = []  # noqa: RUF012 -- of this test alone

        def fit(self, measurements: object) -> None: ...

        def predict(self, job: Job, target: Target) -> Estimate:
            return self.predict_all([job], target)[0]

        def predict_all(self, jobs: list[Job], target: Target) -> list[Estimate]:
            self.seen += jobs
            return [Estimate(1.0, 0.5, 2.0, "J", "spy") for _ in jobs]

    measured = measure(make_job(), 10.0, 100.0)
    ask(Spy(), [measured], TARGET)  # type: ignore[arg-type]
    assert Spy.seen[0].hindsight is None
    assert ask(MLCO2Config().build(), [measured], TARGET)[0].estimate.mean == 3500


def test_rows_without_the_figure_or_without_trust_are_not_asked() -> None:
    rows = [replace(measure(make_job(), 10.0, 100.0), trusted=False), Measurement(make_job(), Scopes())]
    assert ask(MLCO2Config().build(), rows, TARGET) == []


def test_every_split_and_every_method_is_in_the_table(scored: tuple[list[Score], list[str]]) -> None:
    scores, lines = scored
    for split in ("configuration", "architecture", "dataset", "device"):
        for method in ("green_algorithms", "mlco2", "physical", "pre_energy", "pre_power"):
            row = one_row(scores, split, method)
            assert row.num > 0 and 0 <= row.median <= row.p95
    assert sum(line.startswith("configuration ") for line in lines) == sum(
        row.split == "configuration" for row in scores
    )


def test_what_a_method_presupposes_stands_in_its_row(scored: tuple[list[Score], list[str]]) -> None:
    assert one_row(scored[0], "device", "mlco2").note == "given the true duration"
    assert one_row(scored[0], "device", "physical").note == ""


def test_ours_beats_the_published_ones_without_being_told_the_duration(scored: tuple[list[Score], list[str]]) -> None:
    ours, kernel_ridge = (one_row(scored[0], "configuration", method) for method in ("physical", "pre_energy"))
    assert ours.median < 0.5 * kernel_ridge.median


def test_measured_configurations_of_a_new_device_make_it_better(scored: tuple[list[Score], list[str]]) -> None:
    before = one_row(scored[0], "device", "physical")
    after = one_row(scored[0], "device, 6 configurations measured", "physical")
    assert after.median < 0.7 * before.median
    assert after.width < before.width


def test_the_random_division_is_reproduced_and_labelled_as_leaking(few_gaissa: Path) -> None:
    lines: list[str] = []
    scores = score([few_gaissa], lines.append, processes=1)
    leaking = [one for one in scores if one.split == "random runs"]
    assert {"pre_energy", "pre_power", "mlco2", "green_algorithms"} <= {one.method for one in leaking}
    assert all(LEAKING in one.note for one in leaking)
    assert one_row(scores, "random runs", "pre_energy").median < one_row(scores, "dataset", "pre_energy").median / 5
    assert any(line.startswith("not scored: pre_energy without inception_v3: kernel ridge needs") for line in lines)


def test_rows_of_another_file_are_scored_by_device_and_architecture() -> None:
    lines: list[str] = []
    scores = score_unseen([ZEUS[0]], [ZEUS[1]], lines.append, processes=1)
    splits = {one.split for one in scores if one.method == "physical"}
    assert {"other file: all", "other file: P100", "other file: resnet50"} <= splits
    assert "device, 3 configurations measured" in splits
    assert one_row(scores, "other file: all", "physical").num == 33
    assert any("best batch size and power limit" in line for line in lines)


def test_rows_that_were_learnt_from_stand_apart_and_are_labelled() -> None:
    lines: list[str] = []
    scores = score_unseen([ZEUS[0]], list(ZEUS), lines.append, processes=1)
    assert one_row(scores, "other file: all", "physical").num == 33
    assert lines[0] == "39 of 72 rows have a configuration that was learnt from: they stand apart"
    repeated = one_row(scores, "other file: learnt from", "physical")
    assert (repeated.num, repeated.note) == (39, LEAKING)
    assert repeated.median < one_row(scores, "other file: all", "physical").median

    again = score_unseen([ZEUS[0]], [ZEUS[0]], lines.append, processes=1)
    assert {one.split for one in again} == {"other file: learnt from"}


def test_measurements_without_a_network_cannot_be_scored(tmp_path: Path) -> None:
    path = tmp_path / "emissions.csv"
    path.write_text(
        "run_id,project_name,duration,cpu_energy,gpu_energy,ram_energy,gpu_model,cpu_model\nr,p,9000,,0.1,,A40,C\n"
    )
    with pytest.raises(DataError, match="nothing to score: no measurement says which network was trained"):
        score([path], print)


def test_a_single_device_is_said_not_to_be_scored_by_device() -> None:
    lines: list[str] = []
    scores = score([ZEUS[0]], lines.append, processes=1)
    assert "not scored: Zeus: one device only (V100): nothing is left to learn from" in lines
    assert not any(one.split.startswith("device") for one in scores)


def test_calibration_never_asks_a_configuration_that_was_measured() -> None:
    p100 = [one for one in zeus() if one.job.device.name == "P100"]
    rows = merge([calibrate([one for one in zeus() if one.job.device.name != "P100"], p100, "Zeus")])
    mine = {one.job.configuration_key for one in p100}
    assert [one.num for one in rows] == [3 * (len(mine) - num) for num in (1, 3, 6)] + [3 * 3 * (len(mine) - 3)]
    assert rows[-1].split == "device, 3 configurations measured at random"


def test_methods_that_watch_a_run_get_better_with_what_they_see() -> None:
    epochs = (Epoch(9.0, 900.0), *(Epoch(2.0, 200.0 + number % 3) for number in range(99)))
    run = replace(measure(make_job(), 209.0, 100.0), epochs=epochs)
    curve = {(one.split, one.method): one for one in merge([learning_curve([run], "made")])}
    first, later = (curve[f"rest of a run, {share} % seen", "first_epochs"].median for share in (1, 5))
    assert first == later > 3  # one epoch is what it looks at, however many there are
    assert curve["rest of a run, 20 % seen", "step_energy"].median < 0.01
    assert ("rest of a run, 5 % seen", "step_energy") not in curve


def test_the_best_setting_is_found_from_a_third_of_the_grid() -> None:
    limits, sizes = (100.0, 125.0, 150.0, 175.0, 200.0, 225.0, 250.0), (16, 32, 64, 128, 256)
    grid = []
    for limit in limits:
        for size in sizes:
            seconds = (100 + 1600 / size) * (1 + (250 - limit) ** 2 / 40_000)
            grid.append(measure(make_job("V100", batch_size=size, limit_w=limit), seconds, 0.95 * limit))
    (choice,) = best_settings(grid)
    assert (choice.device, choice.num_settings) == ("V100", 35)
    assert 0 <= choice.excess < 0.05
    assert choice.excess <= choice.measured_excess + 0.02


def test_without_power_limits_there_is_no_grid_to_choose_from() -> None:
    assert best_settings([measure(make_job(batch_size=size), 1.0, 100.0) for size in range(1, 30)]) == []
    assert describe([]) == []


def test_choices_are_listed_with_their_median() -> None:
    lines = describe([Choice("V100", "resnet50/made", 35, 0.01, 0.04), Choice("P100", "vgg16/made", 20, 0.03, 0.02)])
    assert lines[2].split() == "V100 resnet50/made 35 settings 1.0 % best measured 4.0 %".split()
    assert lines[-1].strip() == "median 2.0 %, of the best measured ones 3.0 %"


def test_a_study_that_was_never_learnt_from_is_left_to_the_methods_that_can(few_gaissa: Path) -> None:
    lines: list[str] = []
    scores = score_unseen([few_gaissa], [ZEUS[0]], lines.append, processes=1)
    assert (
        "not scored: pre_energy on Zeus: kernel ridge needs at least 10 measured runs, and 0 have the figure" in lines
    )
    assert one_row(scores, "other file: V100", "physical").num == 39
    assert not any(one.method == "pre_energy" for one in scores)
