"""Learning-rate schedules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perjoule.train.schedule import ScheduleConfig


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "step"])
def test_warmup_factor_is_k_plus_one_over_w_plus_one(kind: str) -> None:
    schedule = ScheduleConfig.model_validate({"kind": kind, "warmup_steps": 4})
    assert [schedule.factor(k, 100) for k in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_no_warmup_starts_at_the_peak() -> None:
    assert ScheduleConfig(kind="cosine", warmup_steps=0).factor(0, 10) == 1.0


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_decay_goes_from_one_after_warmup_to_the_floor_at_the_last_step(kind: str) -> None:
    schedule = ScheduleConfig.model_validate({"kind": kind, "warmup_steps": 10, "floor": 0.1})
    factors = [schedule.factor(k, 111) for k in range(10, 111)]
    assert factors[0] == 1.0
    assert factors[50] == pytest.approx(0.55)
    assert factors[-1] == pytest.approx(0.1)
    assert factors == sorted(factors, reverse=True)
    assert schedule.factor(500, 111) == pytest.approx(0.1)


def test_cosine_is_above_the_line_first_and_below_it_later() -> None:
    cosine, line = (ScheduleConfig.model_validate({"kind": kind, "warmup_steps": 0}) for kind in ("cosine", "linear"))
    assert cosine.factor(25, 101) == pytest.approx(0.1 + 0.9 * (1 + 2**-0.5) / 2)
    assert line.factor(25, 101) == pytest.approx(0.1 + 0.9 * 0.75)
    assert cosine.factor(75, 101) < line.factor(75, 101)


def test_constant_needs_no_last_step() -> None:
    assert ScheduleConfig(warmup_steps=2).factor(10**9, None) == 1.0


def test_step_decays_by_a_factor_every_so_many_steps_after_warmup() -> None:
    schedule = ScheduleConfig(kind="step", warmup_steps=2, decay=0.5, decay_every_steps=3)
    assert [schedule.factor(k, None) for k in range(2, 12)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]


def test_own_horizon_wins_over_the_end_of_the_run() -> None:
    schedule = ScheduleConfig(kind="linear", warmup_steps=0, horizon_steps=11, floor=0.0)
    assert schedule.factor(5, 1000) == pytest.approx(0.5)
    assert schedule.factor(10, None) == 0.0


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_decay_without_any_end_is_refused(kind: str) -> None:
    schedule = ScheduleConfig.model_validate({"kind": kind, "warmup_steps": 1})
    assert schedule.factor(0, None) == 0.5
    with pytest.raises(ValueError, match=f"a {kind} schedule needs horizon_steps or a run of known length"):
        schedule.factor(1, None)


@given(
    st.sampled_from(["constant", "linear", "cosine", "step"]),
    st.integers(0, 50),
    st.integers(1, 60),
    st.floats(0, 1),
    st.integers(0, 200),
)
def test_factor_is_between_nothing_and_the_peak(kind: str, warmup: int, last: int, floor: float, taken: int) -> None:
    schedule = ScheduleConfig.model_validate({"kind": kind, "warmup_steps": warmup, "floor": floor})
    factor = schedule.factor(taken, last)
    assert 0 <= factor <= 1
    if kind in {"linear", "cosine"} and taken >= warmup:
        assert factor >= floor - 1e-12
