"""Recipes that are no recipes: bombs, other encodings, pipes, devices, and values that look like others."""

import os
from pathlib import Path

import pytest

from perjoule.config import yaml
from perjoule.config.resolve import load
from perjoule.core.errors import ConfigError
from perjoule.train.config import TrainConfig


def refused(recipe: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(TrainConfig, recipe)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def bomb(levels: int, brackets: str) -> str:
    lines = [f"a0: &a0 {brackets[0]}{'k: ' if brackets == '{}' else ''}x{brackets[1]}"]
    for level in range(1, levels):
        above = f"*a{level - 1}"
        inner = f"[{above}, {above}]" if brackets == "[]" else f"{{k: {above}, l: {above}}}"
        lines.append(f"a{level}: &a{level} {inner}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_aliases_that_double_are_bounded(tmp_path: Path, brackets: str) -> None:
    (tmp_path / "x.yaml").write_text(bomb(30, brackets))
    assert "more than 100,000 values; do aliases repeat one another?" in refused(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        yaml.load(bomb(40, brackets), "the command line")
    assert yaml.load(bomb(5, brackets), "x").data["a4"]  # a few aliases are fine


@pytest.mark.parametrize("content", ["x: " + "[" * 60 + "]" * 60, "[" * 100_000, "- " * 50_000])
def test_depth_is_bounded(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.yaml").write_text(content)
    assert "nested" in refused(tmp_path / "x.yaml")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_recipe_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.yaml").write_bytes("# für\r\nseed: 7\r\n".encode(encoding))
    assert load(TrainConfig, tmp_path / "x.yaml").config.seed == 7


def test_recipes_that_cannot_be_read_are_one_line_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"seed: 1\nname: caf\xe9\n")
    assert "byte 17 (line 2) is 0xe9" in refused(path)
    path.write_bytes(b"seed: 1\x00\n")
    assert "NUL" in refused(path)
    path.write_bytes(b"#" * (yaml.MOST_BYTES + 1))
    assert "more than" in refused(path)
    path.unlink()
    os.mkfifo(path)
    assert "it is a named pipe" in refused(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "it is a device" in refused(path)
    assert "it is a folder" in refused(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"), [("007", "007"), ("-010", "-010"), ("00.5", "00.5"), ("0", 0), ("0.5", 0.5)]
)
def test_leading_zeros_make_a_text(text: str, value: object) -> None:
    assert yaml.load_value(text) == value
    assert yaml.load(yaml.dump({"a": value}), "x").data == {"a": value}


def test_number_of_many_digits_is_read_in_linear_time() -> None:
    digits = "1" * 300_000
    assert yaml.load_value(f"'{digits}x'") == f"{digits}x"
    assert yaml.scalar(f"{digits}x") == f"{digits}x"
    assert yaml.scalar(f"{'1_' * 100_000}x") == f"{'1_' * 100_000}x"


@pytest.mark.parametrize(
    ("override", "accepted"),
    [
        ("name=42", "must be text (in quotes"),
        ("name=a/b", "must be letters, digits, '.', '_' and '-'"),
        ("stop.seconds=1h", "must be a number of seconds"),
        ("model.dim=0512", "must be a number"),
        ("runs=7", "must be a path, not 7"),
        ("data.tokenizer.vocab_size=1000000000", "must be at most 4,194,304"),
        ("carbon.zone=x", "must be 2 to 20 letters"),
    ],
)
def test_messages_say_what_is_accepted_in_words(override: str, accepted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(TrainConfig, None, [override])
    assert override.partition("=")[0] in str(caught.value) and accepted in str(caught.value)
    for word in ("pattern", "instance", "valid string", "Path"):
        assert word not in str(caught.value)


def test_a_file_of_another_kind_is_not_listed_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("".join(f"k{number}: 1\n" for number in range(500)))
    with pytest.raises(ConfigError, match="has 500 mistakes") as caught:
        load(TrainConfig, tmp_path / "x.yaml")
    assert str(caught.value).endswith("\n  and 480 more")
    assert len(str(caught.value)) < 10_000
