"""Names of phases."""

from perjoule.core import phases


def test_parent_of_a_nested_phase_is_the_phase_around_it() -> None:
    assert phases.parent("forward/think") == phases.FORWARD
    assert phases.parent("forward/think/sample") == "forward/think"


def test_parent_of_any_other_phase_is_the_step() -> None:
    assert {phases.parent(name) for name in phases.RECORDED} == {phases.STEP}


def test_recorded_order_is_the_one_in_old_journals() -> None:
    expected = "step data transfer forward backward optimizer evaluate checkpoint"
    assert " ".join(phases.RECORDED) == expected
    assert phases.OTHER not in phases.RECORDED
