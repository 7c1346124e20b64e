"""The method on a real sensor: an A100's own readings, with the truth from an external meter."""

import csv
from pathlib import Path

import numpy as np

from perjoule.measure.accounts import Course, build_account
from perjoule.measure.contract import Form, Sensor
from perjoule.measure.ledger import Bucket, Tier
from perjoule.measure.occupancy import Whereabouts
from perjoule.measure.readings import join
from perjoule.runs.journal import BEGIN, END, RECORD_DTYPE, Journal

DATA = Path(__file__).parent / "data"
TRUE_W = {"load": 190.9, "idle": 67.3}
NVIDIA_ACCURACY = (0.90, 1.08)


def replayed(window_s: float | None) -> dict[str, Bucket]:
    """Return the buckets of the log's account."""
    phases = ["step", "load", "idle"]
    with (DATA / "a100_phases.csv").open() as file:
        stretches = [(row["phase"], float(row["start_s"]), float(row["end_s"])) for row in csv.DictReader(file)]
    records = np.zeros(2 * len(stretches), RECORD_DTYPE)
    for number, (phase, start_s, end_s) in enumerate(stretches):
        for row, (t_s, kind) in enumerate([(start_s, BEGIN), (end_s, END)], 2 * number):
            records[row]["t_ns"] = round(t_s * 1e9)
            records[row]["phase"], records[row]["kind"] = phases.index(phase), kind
    readings = np.genfromtxt(DATA / "a100_sensor.csv", delimiter=",", names=True)
    t_ns = np.rint(readings["time_s"] * 1e9).astype(np.int64)
    sensor = Sensor(
        "gpu-0", Form.POWER, "gpu", "power.draw", "µW", 0.1, window_s, accuracy=NVIDIA_ACCURACY, limit_w=300
    )
    series = join(sensor, [(t_ns, t_ns, np.rint(readings["power_draw_w"] * 1e6).astype(np.int64))], 66.0)
    rank = Whereabouts(Journal({"phases": phases}, records))
    account = build_account(Course(0, "node", (rank,), None, killed=False), series, None, None)
    assert sum(bucket.energy_uj for bucket in account.buckets) == account.total_uj
    return {bucket.name: bucket for bucket in account.buckets}


def power_w(bucket: Bucket) -> tuple[float, float, float]:
    """Return the power of a bucket with its interval."""
    low, middle, high = (energy / bucket.time_ns * 1e3 for energy in (bucket.low_uj, bucket.energy_uj, bucket.high_uj))
    return low, middle, high


def test_load_and_idle_of_a_real_a100_are_told_apart_within_fifteen_percent() -> None:
    buckets = replayed(window_s=0.025)
    for phase, true_w in TRUE_W.items():
        low, middle, high = power_w(buckets[phase])
        assert buckets[phase].tier == Tier.REGRESSION
        assert abs(middle / true_w - 1) < 0.15
        assert low < true_w < high


def test_without_knowledge_of_the_window_the_answer_is_not_a_confident_wrong_one() -> None:
    buckets = replayed(window_s=None)
    for phase, true_w in TRUE_W.items():
        low, _, high = power_w(buckets[phase])
        assert low < true_w < high
        assert buckets[phase].tier != Tier.SHARED or "not separable" in buckets[phase].why
