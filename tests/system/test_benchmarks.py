"""The benchmarks run and print their ratios; how large those are is for a quiet machine, not for a test."""

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import attribution, meter_overhead, replay, sensor_matrix, simulated
from benchmarks.meter_overhead import NOTHING, RECORDER
from benchmarks.ratios import Spread, paired_difference, paired_ratio, spread
from benchmarks.simulated import BACKWARD, DATA, IDLE_W, PARTS, Figure, Load, Outcome, Windows
from benchmarks.turns import Arm
from tests.fakes.nvml import Edges, Gpu

from perjoule.core.errors import DataError
from perjoule.data.contract import Batch, Samples
from perjoule.measure.config import EnergyConfig
from perjoule.measure.ledger import Bucket, Tier
from perjoule.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
RATIO = re.compile(r"^ratio (.+): (\d+\.\d+) \[(\d+\.\d+), (\d+\.\d+)\]", re.MULTILINE)


def printed(tmp_path: Path, *command: str) -> str:
    """Run a benchmark and return what it printed."""
    environment = {**os.environ, "PERJOULE_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ratios(tmp_path: Path, *command: str) -> dict[str, tuple[float, float, float]]:
    """Run a benchmark and return its ratio lines."""
    output = printed(tmp_path, *command, "--quick")
    found = {name: (float(a), float(b), float(c)) for name, a, b, c in RATIO.findall(output)}
    assert found, output
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


def test_meter_overhead_compares_both_ways_to_meter_with_nothing(tmp_path: Path) -> None:
    found = ratios(tmp_path, "benchmarks.meter_overhead")
    for clock in ("wall", "CPU time"):
        names = {
            f"{name}, {clock}, 1 thread(s)" for name in ("A/A", "perjoule / nothing", "perjoule.measure / nothing")
        }
        assert names <= found.keys()


def test_a_process_of_meter_overhead_that_fails_ends_the_benchmark_with_its_last_words() -> None:
    with pytest.raises(RuntimeError, match=r"--steps few --quick ended with 2: (.|\n)*invalid int value: 'few'"):
        meter_overhead.in_a_process(1, "few", 0, quick=True)  # type: ignore[arg-type]


def test_the_ratio_of_a_process_is_the_median_over_its_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    base, own = {"wall_s": [1.0, 2.0, 4.0]}, {"wall_s": [1.1, 2.2, 40.0]}
    processes = [{NOTHING: {**base, "cpu_s": [2.0]}, RECORDER: {**own, "cpu_s": [cpu_s]}} for cpu_s in (1.0, 2.0, 3.0)]
    meter_overhead.report(processes, 100, "1")
    assert capsys.readouterr().out.splitlines() == [
        "1 thread(s): a step takes 20.00 [20.00, 20.00] ms",
        "ratio perjoule / nothing, wall, 1 thread(s): 1.1000 [1.1000, 1.1000]",
        "ratio perjoule / nothing, CPU time, 1 thread(s): 1.0000 [0.5000, 1.5000]",
    ]


def test_a_block_of_which_nothing_is_metered_does_not_count(tmp_path: Path) -> None:
    ours = meter_overhead.Perjoule(tmp_path, EnergyConfig(sampler="off"))
    with pytest.raises(RuntimeError, match=r"nothing is metered: no meter is read \(energy.sampler=off\)"):
        with ours.recorder():
            pass
    assert ours.metered == []


def test_a_peers_window_is_open_exactly_within_its_phase() -> None:
    seen: list[str] = []
    with meter_overhead.Window(lambda name: seen.append(f"begin {name}"), lambda name: seen.append("end"), "forward"):
        seen.append("work")
    assert seen == ["begin forward", "work", "end"]


FOUND = re.compile(
    r"^  (\w+) +true +\d+ mJ a step, found +\d+ mJ, error ([+-][\d.]+)%; "
    r"(\w+), interval ([+-][\d.]+)% to ([+-][\d.]+)%, covers the truth in (\d) of 1$",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def quick_attribution(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what the attribution benchmark says of each of perjoule's two arms."""
    if shutil.which("gcc") is None:
        pytest.skip("the fake NVML needs gcc")
    output = printed(tmp_path_factory.mktemp("attribution"), "benchmarks.attribution", "--quick")
    parts = output.split("\n\n")
    return {
        title: part for part in parts for title in ("calibrated", "not calibrated") if f"perjoule, {title}:" in part
    }


def test_bursts_tell_the_phases_of_a_step_apart_through_the_real_meter(quick_attribution: dict[str, str]) -> None:
    lines = FOUND.findall(quick_attribution["calibrated"])
    assert [name for name, *_ in lines] == [part.name for part in PARTS]
    for _, error, tier, low, high, covered in lines:
        assert tier == "burst"
        assert abs(float(error)) < 15
        assert float(low) < 0 < float(high)
        assert covered == "1"


def test_without_bursts_the_phases_are_said_to_be_inseparable(quick_attribution: dict[str, str]) -> None:
    said = quick_attribution["not calibrated"]
    lines = FOUND.findall(said)
    assert len(lines) == len(PARTS)
    assert all(tier == "shared" and covered == "1" for _, _, tier, _, _, covered in lines)
    assert "not separable: not calibrated" in said


def test_the_intervals_of_the_sensor_matrix_hold_the_truth(tmp_path: Path) -> None:
    output = printed(tmp_path, "benchmarks.attribution", "--matrix", "--quick")
    shares = [float(share) for share in re.findall(r"intervals hold the truth in ([\d.]+)%", output)]
    assert len(shares) >= 4
    assert min(shares) >= 100 * sensor_matrix.GOAL
    assert "missed" not in output


def test_a_cell_of_the_matrix_is_the_same_every_time_and_says_what_it_is() -> None:
    cells = [sensor_matrix.draw(number, seed=3) for number in range(300)]
    assert cells == [sensor_matrix.draw(number, seed=3) for number in range(300)]
    assert {cell.sensor for cell in cells} == sensor_matrix.SENSORS.keys()
    assert {cell.step_ms for cell in cells} == set(sensor_matrix.STEP_MS)
    assert all(("calibrated" in str(cell)) == cell.calibrated for cell in cells)
    assert all(cell.device.documented_window_s is None for cell in cells if cell.device.counter)


def test_an_interval_that_misses_the_truth_is_shown_with_its_cell(capsys: pytest.CaptureFixture[str]) -> None:
    cell = sensor_matrix.draw(0, seed=0)
    wrong = sensor_matrix.Verdict(cell, "forward", Tier.REGRESSION, 0.3, covered=False)
    sensor_matrix.summarise("regression", [wrong, replace(wrong, covered=True, error=-0.1)])
    sensor_matrix.summarise("direct", [])
    assert capsys.readouterr().out.splitlines() == [
        "  regression: 2 phases in 1 cells; intervals hold the truth in 50.0% (goal 90% missed), median |error| 20.0%, "
        "worst 30.0%",
        "  direct: none",
    ]


def test_the_load_publishes_every_joule_of_a_step_under_the_name_of_its_phase(tmp_path: Path) -> None:
    with Edges.create(tmp_path / "edges", [Gpu()], IDLE_W) as edges:
        windows = Windows(lambda name: None, lambda name: 0.5 * (name == "data"))
        truth = Load(edges).train(0.1, windows.phase, nullcontext)
        found = windows.outcome(truth)
    assert truth.num_steps >= 1
    for part in PARTS:
        assert truth.true_j[part.name] >= truth.num_steps * part.power_w * part.length_s * (1 - 1e-9)
    assert sum(truth.true_j.values()) <= truth.whole_j
    assert found.found["data"].energy_j == pytest.approx(0.5 * truth.num_steps)
    assert found.zero_share == 0.75


def outcome(**found: Figure) -> Outcome:
    return Outcome(10, {part.name: 10.0 for part in PARTS}, 50.0, {**{p.name: Figure(10.0) for p in PARTS}, **found})


def test_errors_of_a_tool_are_relative_to_the_truth() -> None:
    one = outcome(data=Figure(20.0, 9.0, 30.0, "burst"), forward=Figure(5.0, 4.0, 6.0, "burst"))
    assert attribution.error(one, DATA.name) == 1.0
    assert attribution.rms(one) == pytest.approx((1.25 / 4) ** 0.5)
    assert attribution.sum_error(one) == pytest.approx(0.125)
    assert attribution.covers(one, "data")
    assert not attribution.covers(one, "forward")
    assert not attribution.covers(one, BACKWARD.name)  # it has no interval
    assert attribution.percent([0.5]) == "+50.0%"
    assert attribution.percent([0.1, 0.2, 0.3]) == "+20.0% [+10.0%, +30.0%]"


def test_goals_are_missed_by_a_confident_wrong_regression(capsys: pytest.CaptureFixture[str]) -> None:
    right = {part.name: Figure(10.1, 9.0, 11.0, "burst") for part in PARTS}
    wrong = {part.name: Figure(14.0, 13.0, 15.0, "regression") for part in PARTS}
    shared = {part.name: Figure(14.0, 0.0, 40.0, "shared") for part in PARTS}
    attribution.verdicts(
        {
            attribution.CALIBRATED: [outcome(**right), outcome(**{**right, "data": Figure(11.0, 9.0, 12.0, "burst")})],
            attribution.MEASURED: [outcome(**wrong), outcome(**shared)],
        }
    )
    bursts, regression = "goal, bursts within 2 %, optimizer 10 %", "goal, regression within 8 % rms or not separable"
    assert capsys.readouterr().out.split("\n")[1:-1] == [
        f"{bursts}: met (1.0%, 1.0%), intervals hold the truth: True",
        f"{bursts}: missed (10.0%, 1.0%), intervals hold the truth: True",
        f"{regression}: missed (rms 40.0%), intervals hold the truth: False",
        f"{regression}: met (not separable), intervals hold the truth: True",
    ]


def test_a_tool_that_fails_ends_the_benchmark_with_its_last_words(tmp_path: Path) -> None:
    tool = attribution.Tool("Nobody", "nobody", "nothing")
    with pytest.raises(RuntimeError, match=r"Nobody ended with 2: (.|\n)*invalid choice: 'nobody'"):
        attribution.run(tool, tmp_path / "libnvidia-ml.so.1", tmp_path, [], 0)


def test_a_run_without_readings_gives_no_figures(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", "", {}, {}).close()
    with pytest.raises(RuntimeError, match=r"nothing was metered: .*no meter in this run"):
        simulated.read(tmp_path / "run", outcome())


RECORDED = ROOT / "tests" / "measure" / "data"


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Copy the recordings and add what an external meter showed."""
    for name in ("a100_sensor.csv", "a100_phases.csv"):
        shutil.copy(RECORDED / name, tmp_path)
    lines = ["time_s,power_w"]
    for phase, start_s, end_s in replay.read_log(tmp_path, "a100").stretches:
        power_w = {"load": 190.9, "idle": 67.3}[phase]
        lines += [f"{start_s + share * (end_s - start_s):.6f},{power_w}" for share in (0.01, 0.5, 0.99)]
    (tmp_path / "a100_meter.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize("window", [[], ["--window", "0.025"]])
def test_a_recorded_a100_is_never_confident_and_wrong(window: list[str], recorded: Path, tmp_path: Path) -> None:
    output = printed(tmp_path, "benchmarks.attribution", "--replay", str(recorded), *window)
    assert f"window {'25 ms' if window else 'unknown'}" in output
    lines = re.findall(r"^  (load|idle): .*; truth ([\d.]+) W, error ([+-][\d.]+)%: (.*)$", output, re.MULTILINE)
    assert {(phase, true_w) for phase, true_w, _, _ in lines} == {("load", "190.9"), ("idle", "67.3")}
    for _, _, error, judged in lines:
        assert judged.startswith("right" if abs(float(error)) <= 15 else ("not separable", "off by more than 15%"))


def test_a_sensor_that_gave_no_reading_is_left_out_and_gaps_are_skipped(recorded: Path) -> None:
    lines = (recorded / "a100_sensor.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    gaps = [f"{time_s},{'' if number == 5 else power_w}," for number, (time_s, power_w, _) in enumerate(rows)]
    (recorded / "a100_sensor.csv").write_text("\n".join([lines[0], *gaps]) + "\n")
    log = replay.read_log(recorded, "a100")
    assert log.power_w.keys() == {"power_draw_w"}
    whole = replay.replay(replay.read_log(RECORDED, "a100"), "power_draw_w", 0.025, 0.1)
    assert replay.replay(log, "power_draw_w", 0.025, 0.1).total_uj == pytest.approx(whole.total_uj, rel=1e-3)


def test_verdicts_on_a_recorded_phase() -> None:
    def said(low_w: float, found_w: float, high_w: float, tier: Tier, true_w: float | None) -> str:
        low, found, high = (round(1e6 * watts) for watts in (low_w, found_w, high_w))
        return replay.verdict(Bucket("load", 10**9, found, low, high, None, tier, ""), true_w)

    assert said(90, 100, 110, Tier.DIRECT, None) == "100.0 W [90.0, 110.0], direct; truth not metered"
    assert said(90, 100, 110, Tier.DIRECT, 101).endswith("truth 101.0 W, error -1.0%: right")
    assert said(90, 100, 110, Tier.REGRESSION, 120).endswith("error -16.7%: CONFIDENT AND WRONG")
    assert said(0, 100, 400, Tier.SHARED, 200).endswith("error -50.0%: not separable, and says so")
    assert said(50, 100, 210, Tier.REGRESSION, 200).endswith("off by more than 15%, and its interval says so")


def test_a_folder_without_complete_recordings_is_refused(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no recordings: <card>_sensor.csv and <card>_phases.csv are needed"):
        replay.report(ROOT / "docs", None, 0.1)
    (recorded / "a100_phases.csv").unlink()
    with pytest.raises(DataError, match=r"a100_phases.csv is missing: it says when the phases of a100 began and ended"):
        replay.report(recorded, None, 0.1)
    with pytest.raises(SystemExit):
        attribution.main(["--replay", str(recorded)])


def test_data_pipeline_compares_with_the_tokenizers_own_batches(tmp_path: Path) -> None:
    assert "tokenizers encode_batch_fast / perjoule" in ratios(tmp_path, "benchmarks.data_pipeline")


def test_longnet_compares_patterns_with_dense_attention(tmp_path: Path) -> None:
    found = ratios(tmp_path, "benchmarks.longnet")
    assert {"dense / half, attention, 512", "512 / 256, attention, paper"} <= set(found)


def test_estimates_before_training_are_compared_with_what_training_took(tmp_path: Path) -> None:
    output = printed(tmp_path, "benchmarks.estimate_own", "--quick")
    assert re.search(r"^median error [\d.]+%, largest [\d.]+% \(prior: median \d+%\)", output, re.MULTILINE)
    assert re.search(r"^energy: median error [\d.]+%", output, re.MULTILINE)
    assert re.search(r"^90 % interval covers \d of 5", output, re.MULTILINE)


def test_the_rest_of_runs_is_compared_with_what_then_happened(tmp_path: Path) -> None:
    output = printed(tmp_path, "benchmarks.estimate_online", "--quick")
    assert [int(share) for share in re.findall(r"^ *(\d+)% median", output, re.MULTILINE)] == [5, 10, 20, 50]
    assert len(re.findall(r"\d of 2", output)) == 8
