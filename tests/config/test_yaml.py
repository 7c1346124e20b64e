"""The strict YAML reader: a recipe means what it looks like, or it is refused with its line."""

import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from perjoule.config import yaml
from perjoule.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("5.", 5.0),
        (".5", 0.5),
        ("-1.5E+2", -150.0),
        ("1_000", 1000),
        ("010", "010"),
        ("+7", 7),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
    ],
)
def test_plain_scalar_is_the_number_or_constant_it_looks_like(text: str, value: Any) -> None:
    read = yaml.load(f"key: {text}", "x.yaml").data["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "text",
    ["no", "yes", "on", "off", "True", "1:30", "2026-01-01", "0x10", "0o17", ".inf", ".nan", "inf", "1e", "1__0", "٣"],
)
def test_every_other_plain_scalar_is_text(text: str) -> None:
    assert yaml.load(f"key: {text}", "x.yaml").data == {"key": text}


@pytest.mark.parametrize("quoted", ["'5'", '"5"', "'true'", "''", "|-\n  5"])
def test_quoted_scalar_is_text(quoted: str) -> None:
    assert isinstance(yaml.load(f"key: {quoted}", "x.yaml").data["key"], str)


def test_integer_with_too_many_digits_to_convert_is_no_integer() -> None:
    assert yaml.scalar("1" * 5000) == math.inf
    assert yaml.scalar("1" * 100) == int("1" * 100)


def test_lines_are_those_of_the_keys_and_of_the_items() -> None:
    document = yaml.load("a: 1\nb:\n  c: 2\n\n  d: [3,\n      4]\n", "x.yaml")
    assert document.data == {"a": 1, "b": {"c": 2, "d": [3, 4]}}
    assert document.lines == {"": 1, "a": 1, "b": 2, "b.c": 3, "b.d": 5, "b.d[0]": 5, "b.d[1]": 6}


def test_anchor_is_read_wherever_it_is_used() -> None:
    assert yaml.load("a: &x {b: 1}\nc: *x\n", "x.yaml").data == {"a": {"b": 1}, "c": {"b": 1}}


def test_empty_document_is_nothing() -> None:
    assert yaml.load("# nothing yet\n", "x.yaml").data is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: the key 'a' stands already in line 1"),
        ("a:\n  b:\n    c: 1\n  b: 2\n", "x.yaml:4: the key 'b' stands already in line 2"),
        ("a: {b: 1, b: 2}\n", "x.yaml:1: the key 'b' stands already in line 1"),
        ("a: &x\n  b: *x\n", "x.yaml:1: an anchor contains itself"),
        ("a: &x [1, *x]\n", "x.yaml:1: an anchor contains itself"),
        ("a: 1\n? [b]\n: 2\n", "x.yaml:2: a key must be a name, not empty, a list or a mapping"),
        ("'': 2\n", "x.yaml:1: a key must be a name, not empty, a list or a mapping"),
        ("a: 1\nb: !!int '5'\n", "x.yaml:2: the tag !!int is not accepted; write the plain value"),
        ("a: !mine {b: 1}\n", "x.yaml:1: the tag !mine is not accepted; write the plain value"),
        (
            "a: !!python/object/apply:os.getcwd []\n",
            "x.yaml:1: the tag !!python/object/apply:os.getcwd is not accepted; write the plain value",
        ),
        ("a: 1\n b: 2\n", "x.yaml:2: not valid YAML: mapping values are not allowed here"),
        ("a: [1\n", "x.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: *nothing\n", "x.yaml:1: not valid YAML: found undefined alias 'nothing'"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: not valid YAML: but found another document"),
        ("a: @b\n", "x.yaml:1: not valid YAML: found character '@' that cannot start any token"),
        ("a: \x00", "x.yaml: not valid YAML: unacceptable character #x0000: special characters are not allowed"),
        ("[" * 3000, "x.yaml: not valid YAML: nested too deeply"),
    ],
)
def test_ambiguous_or_broken_document_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        yaml.load(text, "x.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "value"), [("[1, 2]", [1, 2]), ("{a: 1e-3}", {"a": 1e-3}), ("x", "x"), ("", None)])
def test_value_of_an_override_is_yaml(text: str, value: Any) -> None:
    assert yaml.load_value(text) == value


def test_dumped_scalars_are_quoted_where_any_reader_needs_it() -> None:
    data = {"lr": 1e-5, "answer": "no", "day": "2026-01-01", "text": "1e-3", "size": 5, "no": None, "umlaut": "ü"}
    expected = "lr: 1.0e-05\nanswer: 'no'\nday: '2026-01-01'\ntext: '1e-3'\nsize: 5\n'no': null\numlaut: ü\n"
    assert yaml.dump(data) == expected


def test_dump_writes_no_anchors() -> None:
    same = {"lr": 1}
    assert yaml.dump({"a": same, "b": same}) == "a:\n  lr: 1\nb:\n  lr: 1\n"


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["no", "1e-3", "~", "", "010", "1:30", "<<", "=", "- a", "a: b", "#", "2026-01-01", "!!int 5"])
)
DATA = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(min_size=1), inner, max_size=4)
)


@settings(deadline=None, max_examples=150)
@given(DATA)
@example(1e-5)
@example(1e22)
@example({"a": "\x85", "b": "x\u2028y", "c": "\ufeff"})
def test_dump_is_read_back_to_equal_data(data: Any) -> None:
    read = yaml.load(yaml.dump(data), "x.yaml").data
    assert read == data
    assert repr(read) == repr(data)
