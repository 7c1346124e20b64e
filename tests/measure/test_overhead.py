"""Ratios of arms that took turns, and the result that is kept for this machine."""

from pathlib import Path

import numpy as np
import pytest

from perjoule.measure.machine import MachineProfile
from perjoule.measure.overhead import NOT_MEASURED, Overhead, Ratio, store, stored, synchronising


def test_a_ratio_is_the_median_over_rounds_and_does_not_mind_a_drift_of_the_machine() -> None:
    chance = np.random.default_rng(1)
    drift = np.linspace(1.0, 3.0, 200)
    ratio = Ratio.paired((1.02 * drift * chance.normal(1, 0.01, 200)).tolist(), drift.tolist())
    assert ratio.low < 1.02 < ratio.high
    assert ratio.median == pytest.approx(1.02, abs=0.003)
    assert 0.001 < ratio.high - ratio.low < 0.01


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    chance = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        ratio = Ratio.paired(chance.normal(1.0, 0.05, 30).tolist(), [1.0] * 30)
        covered += ratio.low <= 1.0 <= ratio.high
    assert 180 <= covered <= 200


def test_equal_arms_have_the_ratio_one() -> None:
    assert Ratio.paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == Ratio(1.0, 1.0, 1.0)
    assert str(Ratio(1.0234, 0.9996, 1.5)) == "1.023 [1.000, 1.500]"


def test_what_was_found_is_kept_for_each_kind_of_device(tmp_path: Path) -> None:
    profile = MachineProfile(tmp_path)
    assert stored(profile, "cuda") is None
    assert synchronising(profile, "cuda") == NOT_MEASURED == "not measured: perjoule doctor --overhead"
    found = Overhead(0.01, 24, 30, {"time": Ratio(1.001, 0.999, 1.003)}, Ratio(1.31, 1.29, 1.33))
    store(found, profile, "cuda")
    again = MachineProfile(tmp_path)
    assert stored(again, "cuda") == found
    assert stored(again, "cpu") is None
    expected = "a step takes 1.310 [1.290, 1.330] times as long with fence=edge (perjoule doctor --overhead)"
    assert synchronising(again, "cuda") == expected
