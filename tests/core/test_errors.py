"""The error tree: exit codes, and the nearest name in a message."""

import inspect

import pytest

from perjoule.core import errors
from perjoule.core.errors import ConfigError, PerjouleError, UnknownComponent, nearest, suggestion

LEAVES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, PerjouleError)]


def test_exit_codes_are_distinct_and_stand_in_the_docstring() -> None:
    codes = {leaf.__name__: leaf.exit_code for leaf in LEAVES if ConfigError not in leaf.__mro__[1:]}
    assert sorted(codes.values()) == list(range(1, len(codes) + 1))
    for name, code in codes.items():
        assert f"{name} ({code})" in str(errors.__doc__)


def test_unknown_component_is_a_mistake_in_the_configuration() -> None:
    assert issubclass(UnknownComponent, ConfigError)
    assert UnknownComponent.exit_code == ConfigError.exit_code


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("warmup_step", "warmup_steps"),
        ("LR", "lr"),
        ("tranformer", "transformer"),
        ("adamw", "AdamW"),
        ("warmup-steps", "warmup_steps"),
        ("warmup", "warmup_steps"),
    ],
)
def test_nearest_finds_the_name_that_was_meant(written: str, meant: str) -> None:
    assert nearest(written, ["AdamW", "lr", "transformer", "warmup_steps"]) == meant


def test_nearest_is_none_when_nothing_is_alike() -> None:
    assert nearest("zzz", ["lr", "transformer"]) is None
    assert nearest("lr", []) is None


@pytest.mark.parametrize(
    ("written", "accepted"),
    [("fp32", ["fp16", "bf16"]), ("steps", ["batch_steps", "warmup_steps"]), ("a", ["b", "ab"])],
)
def test_a_name_that_might_be_several_or_none_is_not_suggested(written: str, accepted: list[str]) -> None:
    assert nearest(written, accepted) is None


def test_suggestion_names_the_nearest_and_all_accepted_in_order() -> None:
    assert suggestion("stepz", ["steps", "epochs"]) == "did you mean 'steps'? (accepted: epochs, steps)"


def test_suggestion_without_a_near_name_lists_what_is_accepted() -> None:
    assert suggestion("zzz", iter(["b", "a"])) == "accepted: a, b"
    assert suggestion("zzz", []) == "there are none"
