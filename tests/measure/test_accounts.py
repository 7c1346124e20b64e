"""Whatever happened to trainer, sampler and counter: the buckets of an account are its total."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perjoule.core.phases import STEP
from perjoule.measure.accounts import Course, allocate, build_account
from perjoule.measure.contract import Form, Sensor
from perjoule.measure.ledger import MONITOR, UNKNOWN, Account, Tier
from perjoule.measure.occupancy import OUTSIDE, Whereabouts
from perjoule.measure.readings import Series, join
from perjoule.runs.journal import BEGIN, END, RECORD_DTYPE, Journal

PHASES = [STEP, "data", "forward", "evaluate"]
MS = 1_000_000


def rank(num_steps: int, cut: int = 0, start_ns: int = 0, step_ms: int = 40) -> Whereabouts:
    """Return the course of one process: data, forward, other; its last ``cut`` records are missing."""
    rows = []
    for number in range(1, num_steps + 1):
        at = start_ns + (number - 1) * step_ms * MS
        for phase, kind, part in (
            (STEP, BEGIN, 0.0),
            ("data", BEGIN, 0.0),
            ("data", END, 0.25),
            ("forward", BEGIN, 0.25),
            ("forward", END, 0.9),
            (STEP, END, 0.95),
        ):
            rows.append(
                (at + int(part * step_ms * MS), at + int(part * step_ms * MS), number, PHASES.index(phase), kind)
            )
    records = np.zeros(len(rows), RECORD_DTYPE)
    for record, (t_ns, cpu_ns, step, code, kind) in zip(records, rows, strict=True):
        record["t_ns"], record["cpu_ns"], record["step"] = t_ns, cpu_ns, step
        record["phase"], record["kind"] = code, kind
    return Whereabouts(Journal({"phases": PHASES}, records[: len(records) - cut]))


def package(
    pieces: list[tuple[list[int], list[int]]], wraps_at: int | None = None, idle_w: float | None = 5.0
) -> Series:
    """Return the series of samplers that read (moment in ms, counter in µJ)."""
    sensor = Sensor(
        "package-0", Form.COUNTER, "package", "test", "µJ", 0.001, wraps_at=wraps_at, idle_w=idle_w, limit_w=200.0
    )
    arrays = [(np.array(t_ms) * MS, np.array(t_ms) * MS + 1000, np.array(raw)) for t_ms, raw in pieces]
    return join(sensor, arrays, 10.0)


def account(
    ranks: tuple[Whereabouts, ...], series: Series, killed: bool = False, monitor: Series | None = None
) -> Account:
    return build_account(Course(0, "node", ranks, None, killed), series, None, monitor)


def steady(power_w: float, until_ms: int, every_ms: int = 100, start_ms: int = -200) -> Series:
    t_ms = list(range(start_ms, until_ms, every_ms))
    return package([(t_ms, [round(1e6 + power_w * (at - start_ms) * 1000) for at in t_ms])])


def is_sound(found: Account) -> bool:
    return (
        sum(bucket.energy_uj for bucket in found.buckets) == found.total_uj
        and all(0 <= bucket.low_uj <= bucket.energy_uj <= bucket.high_uj for bucket in found.buckets)
        and all(bucket.idle_uj is None or 0 <= bucket.idle_uj <= bucket.energy_uj for bucket in found.buckets)
    )


@settings(max_examples=150, deadline=None)
@given(
    increments=st.lists(st.integers(0, 40_000_000), min_size=1, max_size=60),
    start=st.integers(0, 99_999_999),
    gaps=st.sets(st.integers(0, 59), max_size=4),
    resets=st.sets(st.integers(1, 59), max_size=2),
    seam=st.integers(0, 60),
    cut=st.integers(0, 9),
    two=st.booleans(),
)
def test_buckets_add_up_to_the_total_over_random_traces_wraps_resets_gaps_kills_and_ranks(
    increments: list[int], start: int, gaps: set[int], resets: set[int], seam: int, cut: int, two: bool
) -> None:
    t_ms, raw, now_ms, value = [], [], -150, start
    for number, increment in enumerate([0, *increments]):
        now_ms += 3000 if number in gaps else 100
        value = 0 if number in resets else (value + increment) % 100_000_000
        t_ms.append(now_ms)
        raw.append(value)
    pieces = [(t_ms[:seam], raw[:seam]), (t_ms[seam:], raw[seam:])]
    ranks = (rank(50, cut), rank(45, 0, 3 * MS)) if two else (rank(50, cut),)
    series = package([(t, r) for t, r in pieces if t], wraps_at=100_000_000)
    found = account(ranks, series, killed=cut > 0)
    assert is_sound(found)
    assert found.total_uj == int(series.energy_uj[-1])


def test_without_a_sensor_per_phase_the_energy_above_idle_follows_processor_time() -> None:
    found = account((rank(100),), steady(50.0, 4200))
    buckets = {bucket.name: bucket for bucket in found.buckets}
    assert is_sound(found)
    assert buckets["forward"].tier == Tier.SHARED
    assert buckets["forward"].energy_uj > 2 * buckets["data"].energy_uj
    assert buckets["forward"].why.startswith("not separable")
    assert buckets["forward"].idle_uj == pytest.approx(5.0 * 2.6 * 1e6, rel=0.01)


def test_spans_without_readings_are_unknown_and_their_energy_is_not_spread_over_phases() -> None:
    t_ms = [*range(-200, 1000, 100), *range(3000, 4300, 100)]
    found = account((rank(100),), package([(t_ms, [1_000_000 + 50_000 * at for at in t_ms])]))
    unknown = next(bucket for bucket in found.buckets if bucket.name == UNKNOWN)
    assert is_sound(found)
    assert unknown.time_ns == 2100 * MS
    assert unknown.energy_uj == 2100 * 50_000


def test_energy_behind_the_last_record_of_a_killed_trainer_is_unknown_and_of_a_finished_one_outside() -> None:
    for killed, name in ((True, UNKNOWN), (False, OUTSIDE)):
        found = account((rank(50),), steady(50.0, 5000), killed)
        bucket = next(bucket for bucket in found.buckets if bucket.name == name)
        assert is_sound(found)
        assert bucket.time_ns >= 2800 * MS
    assert found.unread_s == 0


def test_what_nobody_read_is_said_in_seconds_and_is_not_in_the_total() -> None:
    found = account((rank(100),), steady(50.0, 1000, start_ms=500))
    assert found.unread_s == pytest.approx(0.5 + 3.998 - 0.9, abs=0.01)
    assert found.total_uj == pytest.approx(0.4 * 50e6)


def test_the_samplers_own_processor_time_is_a_bucket_of_the_package() -> None:
    t_ms = list(range(-200, 4200, 100))
    used = Sensor("monitor", Form.LEVEL, "process", "test", "ns", 0.0)
    moments = np.array(t_ms) * MS
    monitor = join(used, [(moments, moments, np.arange(len(t_ms)) * MS)], 10.0)
    found = account((rank(100),), steady(50.0, 4200), monitor=monitor)
    bucket = next(bucket for bucket in found.buckets if bucket.name == MONITOR)
    assert is_sound(found)
    assert 0.005 < bucket.energy_uj / found.total_uj < 0.02


def test_a_modelled_domain_is_shared_by_its_own_model_and_says_so() -> None:
    model = Sensor(
        "cpu", Form.COUNTER, "process", "modelled", "µJ", 1e-6, accuracy=(0.5, 2.0), modelled=True, idle_w=2.0
    )
    t_ns = np.arange(-200, 4300, 100) * MS
    course = rank(100)
    cpu_ns = course.spent(t_ns).cpu_ns.sum(axis=0)
    raw = ((t_ns - t_ns[0]) * 2 + cpu_ns * 7) // 1000
    found = account((course,), join(model, [(t_ns, t_ns, raw)], 10.0))
    buckets = {bucket.name: bucket for bucket in found.buckets}
    assert is_sound(found)
    assert {bucket.tier for bucket in found.buckets} == {Tier.MODELLED}
    assert buckets["forward"].energy_uj == pytest.approx(100 * 0.026 * 9 * 1e6, rel=0.01)
    assert buckets["forward"].low_uj == pytest.approx(buckets["forward"].energy_uj / 2, rel=0.01)
    assert (found.low_uj, found.high_uj) == (found.total_uj // 2, found.total_uj * 2)


def test_window_and_curve_are_read_off_at_the_ends_of_steps() -> None:
    course = Course(0, "node", (rank(100),), (11, 90, 80), killed=False)
    found = build_account(course, steady(50.0, 4200), None, None)
    assert found.window_steps == 80
    assert found.window_uj == pytest.approx(50e6 * (79 * 0.04 + 0.038), rel=1e-3)
    assert found.by_step.steps[[0, -1]].tolist() == [1, 100]
    assert found.by_step.energy_uj[-1] == pytest.approx(50e6 * (0.2 + 3.998), rel=1e-3)
    assert np.nanmean(found.timeline.power_w) == pytest.approx(50, rel=0.01)
    assert sum(found.timeline.shares.values()) == pytest.approx(np.ones(300), abs=1e-6)


def test_a_window_that_readings_do_not_cover_has_no_energy() -> None:
    course = Course(0, "node", (rank(100),), (11, 90, 80), killed=False)
    assert build_account(course, steady(50.0, 1000), None, None).window_uj is None


@given(st.integers(0, 10**15), st.lists(st.floats(0, 1e9), min_size=1, max_size=20))
def test_allocation_gives_everything_away_in_proportion(total: int, weights: list[float]) -> None:
    parts = allocate(total, weights)
    assert sum(parts) == total
    whole = sum(weights)
    for part, weight in zip(parts, weights, strict=True):
        exact = total * weight / whole if whole > 0 else total / len(weights)
        assert part == pytest.approx(exact, abs=1 + 1e-9 * total)
    assert allocate(5, []) == []
