"""The benchmarks run and print their ratios; how large those are is for a quiet machine, not for a test."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.ratios import Spread, paired_difference, paired_ratio, spread
from benchmarks.turns import Arm

from perjoule.data.contract import Batch, Samples

ROOT = Path(__file__).parents[2]
RATIO = re.compile(r"^ratio (.+): (\d+\.\d+) \[(\d+\.\d+), (\d+\.\d+)\]", re.MULTILINE)


def ratios(tmp_path: Path, *command: str) -> dict[str, tuple[float, float, float]]:
    """Run a benchmark and return its ratio lines."""
    environment = {**os.environ, "PERJOULE_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command, "--quick"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = {name: (float(a), float(b), float(c)) for name, a, b, c in RATIO.findall(done.stdout)}
    assert found, done.stdout
    for median, low, high in found.values():
        assert 0 < low <= median <= high
    return found


def test_recorder_overhead_prints_ratio_and_band_for_one_and_two_threads(tmp_path: Path) -> None:
    found = ratios(tmp_path, "benchmarks.recorder_overhead")
    for clock in ("CPU time", "wall"):
        for threads in (1, 2):
            assert f"recorded / not recorded, {clock}, {threads} thread(s)" in found
            assert f"A/A, {clock}, {threads} thread(s)" in found


def test_train_loop_overhead_compares_perjoule_with_a_hand_written_loop(tmp_path: Path) -> None:
    found = ratios(tmp_path, "benchmarks.train_loop", "overhead")
    assert {"perjoule / hand-written", "hand-written, again / hand-written"} <= found.keys()


def test_checkpoint_compares_with_torch_save(tmp_path: Path) -> None:
    found = ratios(tmp_path, "benchmarks.checkpoint")
    assert found.keys() == {"A/A", "torch.save / perjoule", "torch.save, safe / perjoule"}


def test_startup_compares_every_verb_with_importing_torch(tmp_path: Path) -> None:
    found = ratios(tmp_path, "benchmarks.startup")
    assert {"--help / import torch", "report RUN / import torch"} <= found.keys()
    assert "train, to the end of step 1 / import torch" in found


def test_a_paired_ratio_ignores_drift_that_both_arms_share() -> None:
    drift = [1.0, 3.0, 10.0, 0.5, 7.0]
    assert paired_ratio([2 * value for value in drift], drift) == Spread(2.0, 2.0, 2.0)
    assert paired_difference([value + 1 for value in drift], drift) == Spread(1.0, 1.0, 1.0)


def test_the_interval_of_a_median_covers_it_and_narrows_with_more_values() -> None:
    few, many = spread([1.0, 2.0, 3.0, 4.0, 5.0]), spread([1.0, 2.0, 3.0, 4.0, 5.0] * 100)
    assert few.low < few.median == 3.0 < few.high
    assert many.high - many.low < few.high - few.low


def test_a_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a spread needs at least one value"):
        spread([])


class Slow:
    """Samples without content."""

    num_samples = 100

    def batch(self, start: int, rows: int) -> Batch:
        return Batch({}, rows, rows, rows)


def test_arms_take_exactly_one_block_per_turn_and_are_timed_by_themselves() -> None:
    taken: list[int] = []

    def loop(samples: Samples) -> None:
        while True:
            taken.append(samples.batch(0, 1).num_samples)
            time.sleep(0.002)

    arm = Arm(loop, Slow(), block=5)
    arm.ready()
    assert taken == []
    lap = arm.turn()
    assert len(taken) == 5
    assert lap.wall_s >= 0.002
    assert lap.cpu_s < lap.wall_s
    arm.end()
    assert len(taken) == 5


def test_an_error_inside_an_arm_is_raised_where_its_turn_was_waited_for() -> None:
    def loop(samples: Samples) -> None:
        samples.batch(0, 1)
        raise ValueError("broken loop")

    arm = Arm(loop, Slow(), block=5)
    arm.ready()
    with pytest.raises(ValueError, match="broken loop"):
        arm.turn()


def test_a_loop_that_ends_early_is_an_error() -> None:
    arm = Arm(lambda samples: None, Slow(), block=5)
    with pytest.raises(RuntimeError, match="the loop ended before its last turn"):
        arm.ready()
