"""From recipe, presets and overrides to one config: precedence, sources, and every mistake at once."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import pytest
from pydantic import Field, PositiveInt, ValidationError, model_validator

from perjoule.config import Component, Config
from perjoule.config.resolve import COMMAND_LINE, DEFAULT, flatten, load
from perjoule.core.errors import ConfigError
from perjoule.core.registry import Shelf


class Policy(StrEnum):
    NONE = "none"
    EDGE = "edge"


class Wide(Config):
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"big": {"dim": 512, "depth": 8}}

    kind: Literal["wide"] = "wide"
    preset: str | None = None
    dim: PositiveInt = 64
    depth: PositiveInt = 2


class Deep(Config):
    kind: Literal["deep"] = "deep"
    layers: PositiveInt


class Arithmetic(Config):
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"auto": {}, "plain": {"fused": False, "threads": 1}}

    preset: str | None = None
    fused: Literal["auto", True, False] = "auto"
    threads: Literal["auto"] | PositiveInt = "auto"
    enabled: bool = True


class Batch(Config):
    size: PositiveInt = 8
    parts: PositiveInt = 1
    weights: list[float] = Field(default_factory=list)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.size % self.parts:
            raise ValueError(f"size {self.size} must be a multiple of parts {self.parts}")
        return self


SHELF = Shelf("models", {"wide": f"{__name__}:Wide", "deep": f"{__name__}:Deep"})


class Root(Config):
    seed: int = 0
    rate: float = Field(default=1e-3, gt=0)
    label: str | None = None
    folder: Path = Path("runs")
    policy: Policy = Policy.NONE
    extra: dict[str, int] = Field(default_factory=dict)
    model: Annotated[Config, Component(SHELF)] = Field(default="wide", validate_default=True)
    arithmetic: Arithmetic = Arithmetic()
    batch: Batch = Batch()


class NeedsModel(Config):
    model: Annotated[Config, Component(SHELF)]


def _recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _mistakes(recipe: Path | None, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(Root, recipe, overrides)
    message = str(caught.value)
    if recipe is not None:
        message = message.replace(str(recipe), recipe.name)
    return [line.strip() for line in message.splitlines()]


def test_nothing_given_is_all_defaults() -> None:
    resolved = load(Root)
    assert resolved.config == Root()
    assert set(resolved.sources.values()) == {DEFAULT}


def test_precedence_is_default_preset_file_override(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "model: {preset: big, depth: 3}\n")
    model = load(Root, recipe).config.model
    assert model == Wide(preset="big", dim=512, depth=3)
    assert load(Root, recipe, ["model.depth=4", "model.depth=5"]).config.model == Wide(preset="big", dim=512, depth=5)
    assert load(Root, recipe, ["model.preset=null"]).config.model == Wide(dim=64, depth=3)


def test_each_value_has_the_source_it_came_from(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "model:\n  preset: big\n  depth: 3\nbatch:\n  size: 4\narithmetic: plain\n")
    sources = load(Root, recipe, ["rate=1e-2", "extra={a: 1}"]).sources
    given = {key: source.replace(str(recipe), "x.yaml") for key, source in sources.items() if source != DEFAULT}
    assert given == {
        "model.preset": "x.yaml:2",
        "model.dim": "preset big",
        "model.depth": "x.yaml:3",
        "batch.size": "x.yaml:5",
        "arithmetic.preset": "x.yaml:6",
        "arithmetic.fused": "preset plain",
        "arithmetic.threads": "preset plain",
        "rate": COMMAND_LINE,
        "extra.a": COMMAND_LINE,
    }
    assert {"seed", "model.kind", "batch.parts", "batch.weights", "arithmetic.enabled"} <= sources.keys() - given.keys()


def test_section_on_the_command_line_replaces_the_one_in_the_file(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "batch: {size: 4, parts: 2}\n")
    resolved = load(Root, recipe, ["batch={size: 6, weights: [1, 2.5]}"])
    assert resolved.config.batch == Batch(size=6, weights=[1.0, 2.5])
    assert resolved.sources["batch.size"] == resolved.sources["batch.weights"] == COMMAND_LINE
    assert resolved.sources["batch.parts"] == DEFAULT


def test_as_json_has_value_and_source_of_every_leaf(tmp_path: Path) -> None:
    resolved = load(Root, _recipe(tmp_path, "policy: edge\n"), ["folder=elsewhere"])
    dump = resolved.as_json()
    assert dump["policy"] == {"value": "edge", "source": f"{tmp_path / 'x.yaml'}:1"}
    assert dump["folder"] == {"value": "elsewhere", "source": COMMAND_LINE}
    assert dump["model.kind"] == {"value": "wide", "source": DEFAULT}
    assert dump.keys() == flatten(resolved.config.model_dump(mode="json")).keys()


def test_flatten_keeps_lists_and_empty_mappings_as_leaves() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [{"e": 2}]}, "f": {}}) == {"a.b.c": 1, "a.d": [{"e": 2}], "f": {}}


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=deep", "model.layers=3"],
        ["model.kind=deep", "model.layers=3"],
        ["model={kind: deep, layers: 3}"],
        ["model.layers=3", "model.kind=deep"],
    ],
)
def test_kind_is_a_bare_word_or_a_key(overrides: list[str]) -> None:
    resolved = load(Root, None, overrides)
    assert resolved.config.model == Deep(layers=3)
    assert resolved.sources["model.kind"] == COMMAND_LINE


def test_kind_of_the_file_stays_when_a_key_beside_it_is_overridden(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "seed: 1\nmodel: wide\n")
    resolved = load(Root, recipe, ["model.dim=3"])
    assert resolved.config.model == Wide(dim=3)
    assert resolved.sources["model.kind"] == f"{recipe}:2"
    assert resolved.sources["model.dim"] == COMMAND_LINE


def test_bare_word_of_a_section_with_presets_is_its_preset(tmp_path: Path) -> None:
    expected = Arithmetic(preset="plain", fused=False, threads=1)
    recipe = _recipe(tmp_path, "arithmetic: plain\n")
    assert load(Root, recipe).config.arithmetic == expected
    assert load(Root, None, ["arithmetic=plain"]).config.arithmetic == expected
    overridden = load(Root, recipe, ["arithmetic.threads=auto"]).config.arithmetic
    assert (overridden.preset, overridden.fused, overridden.threads) == ("plain", False, "auto")


@pytest.mark.parametrize(
    "config",
    [
        Root(model=Deep(layers=3), arithmetic=Arithmetic(preset="plain")),
        Root.model_validate({"model": {"kind": "deep", "layers": 3}, "arithmetic": {"preset": "plain"}}),
        Root.model_validate({"model": Deep(layers=3), "arithmetic": "plain"}),
    ],
)
def test_config_made_in_python_equals_that_of_a_recipe(config: Root, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "model: {kind: deep, layers: 3}\narithmetic: plain\n")
    assert load(Root, recipe).config == config
    assert config.model_dump(mode="json")["model"] == {"kind": "deep", "layers": 3}


def test_kind_alone_in_python_is_that_kind_with_its_defaults() -> None:
    assert Root.model_validate({"model": "wide"}) == Root()


def test_mistake_in_a_component_made_in_python_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^layers: must be greater than 0, not 0$"):
        Root.model_validate({"model": {"kind": "deep", "layers": 0}})
    with pytest.raises(ConfigError, match=r"^kind: unknown models kind 'wade': did you mean 'wide'"):
        Root.model_validate({"model": "wade"})


def test_unknown_preset_in_python_names_the_nearest() -> None:
    with pytest.raises(ValidationError, match="unknown preset 'plian': did you mean 'plain'"):
        Arithmetic(preset="plian")


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Root().seed = 1  # type: ignore[misc]


def test_every_mistake_is_reported_at_once_with_its_place(tmp_path: Path) -> None:
    recipe = _recipe(
        tmp_path, "sede: 3\nrate: fast\nbatch:\n  size: 7\n  parts: 2\nmodel:\n  kind: deep\n  layer: 3\npolicy: egde\n"
    )
    assert _mistakes(recipe, "batches.size=3", "model.layers=0", "seed", "label=@") == [
        "x.yaml has 9 mistakes:",
        "'seed' is not an override; write key=value, such as stop.steps=200",
        "label: the command line:1: not valid YAML: found character '@' that cannot start any token",
        f"sede: unknown key: did you mean 'seed'? (accepted: {', '.join(sorted(Root.model_fields))})  (x.yaml:1)",
        f"batches: unknown key: did you mean 'batch'? (accepted: {', '.join(sorted(Root.model_fields))})  "
        "(command line)",
        "model.layer: unknown key: did you mean 'layers'? (accepted: kind, layers)  (x.yaml:8)",
        "model.layers: must be greater than 0, not 0  (command line)",
        "batch: size 7 must be a multiple of parts 2  (x.yaml:3)",
        "rate: must be a number, not 'fast'  (x.yaml:2)",
        "policy: 'egde' is not accepted: did you mean 'edge'? (accepted: edge, none)  (x.yaml:9)",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed='5'", "seed: must be a number, not '5'"),
        ("seed=true", "seed: must be a number, not true"),
        ("seed=2.5", "seed: must be a valid integer, got a number with a fractional part, not 2.5"),
        ("seed=null", "seed: must be a valid integer, not null"),
        ("rate=-1", "rate: must be greater than 0, not -1"),
        ("rate=0", "rate: must be greater than 0, not 0"),
        ("rate=1e400", "rate: must be a finite number, not inf"),
        ("label=5", "label: must be text (in quotes if it looks like a number: '\"7\"'), not 5"),
        ("label=true", "label: must be text (in quotes if it looks like a number: '\"7\"'), not true"),
        ("batch=5", "batch: must be a section with keys size, parts, weights, not 5"),
        ("batch=null", "batch: must be a section with keys size, parts, weights, not null"),
        ("batch.weights=3", "batch.weights: must be a list, not 3"),
        (
            "batch.weights=[1, x]",
            "batch.weights[1]: must be a valid number, unable to parse string as a number, not 'x'",
        ),
        ("arithmetic.enabled=yes", "arithmetic.enabled: must be true or false, not 'yes'"),
        ("arithmetic.enabled=1", "arithmetic.enabled: must be true or false, not 1"),
        ("arithmetic.fused=1", "arithmetic.fused: must be auto or true or false, not 1"),
        ("arithmetic.fused=no", "arithmetic.fused: must be auto or true or false, not 'no'"),
        ("arithmetic.threads='5'", "arithmetic.threads: must be auto or a number, not '5'"),
        ("arithmetic.threads=true", "arithmetic.threads: must be auto or a number, not true"),
        ("arithmetic.threads=-1", "arithmetic.threads: must be 'auto' or must be greater than 0, not -1"),
        (
            "arithmetic=plian",
            "arithmetic.preset: unknown preset 'plian': did you mean 'plain'? (accepted: auto, plain)",
        ),
        ("arithmetic.preset=[a]", "arithmetic.preset: unknown preset ['a']: accepted: auto, plain"),
        ("model=5", "model: must be a kind or a section with a kind (deep, wide), not 5"),
        ("model=wade", "model.kind: unknown models kind 'wade': did you mean 'wide'? (accepted: deep, wide)"),
        ("model.kind=3", "model.kind: unknown models kind '3': accepted: deep, wide"),
        ("model.kind=deep", "model.layers: is required"),
    ],
)
def test_wrong_value_is_refused_in_one_line(override: str, message: str) -> None:
    assert _mistakes(None, override) == [f"{message}  (command line)"]


@pytest.mark.parametrize("override", ["seed", "=5", "model.=wide", ".seed=1", "model..dim=3", ""])
def test_override_without_key_and_value_is_refused(override: str) -> None:
    assert _mistakes(None, override) == [f"{override!r} is not an override; write key=value, such as stop.steps=200"]


def test_override_inside_a_value_that_is_no_section_is_refused(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "batch: 5\n")
    listing = _mistakes(recipe, "batch.size=3")
    assert listing[1] == "batch: is 5 and not a section, so batch.size cannot be set in it  (x.yaml:1)"


def test_empty_section_is_filled_by_an_override(tmp_path: Path) -> None:
    assert load(Root, _recipe(tmp_path, "batch:\n"), ["batch.size=3"]).config.batch == Batch(size=3)


def test_value_of_an_override_may_contain_equals_signs() -> None:
    assert load(Root, None, ["label=a=b"]).config.label == "a=b"


def test_whole_number_written_as_float_is_a_count() -> None:
    assert load(Root, None, ["batch.size=1e3"]).config.batch.size == 1000


def test_required_component_needs_a_kind(tmp_path: Path) -> None:
    for overrides in ([], ["model={layers: 3}"]):
        with pytest.raises(ConfigError, match="model: needs a kind: deep, wide"):
            load(NeedsModel, None, overrides)
    assert load(NeedsModel, None, ["model=wide"]).config == NeedsModel(model=Wide())


def test_check_across_keys_waits_until_the_keys_are_right() -> None:
    assert _mistakes(None, "batch.size=7", "batch.parts=0") == [
        "batch.parts: must be greater than 0, not 0  (command line)"
    ]
    misspelt = _mistakes(None, "batch.size=7", "batch.part=2", "batch.parts=4")
    assert misspelt == [
        "batch.part: unknown key: did you mean 'parts'? (accepted: parts, size, weights)  (command line)"
    ]


def test_mistake_of_the_whole_recipe_names_its_file(tmp_path: Path) -> None:
    assert _mistakes(_recipe(tmp_path, "parts: 1\n"))[0].startswith("parts: unknown key: accepted: arithmetic")
    with pytest.raises(ConfigError, match=r"^the recipe: size 3 must be a multiple of parts 2  \(.*x\.yaml\)$"):
        load(Batch, _recipe(tmp_path, "size: 3\nparts: 2\n"))


def test_missing_recipe_names_the_nearest_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "retnet.yaml").touch()
    with pytest.raises(ConfigError) as caught:
        load(Root, tmp_path / "retent.yaml")
    near = "did you mean 'retnet.yaml'? (accepted: retnet.yaml)"
    assert str(caught.value) == f"no recipe {tmp_path}/retent.yaml; in {tmp_path}: {near}"


def test_missing_recipe_in_a_missing_folder_looks_in_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"no recipe gone/x.yaml; in {re.escape(str(tmp_path))}: there are none"):
        load(Root, Path("gone/x.yaml"))


def test_recipe_that_is_no_text_or_no_mapping_is_refused(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "- a\n- b\n")
    assert _mistakes(recipe) == ["x.yaml must be a mapping of keys to values, not list"]
    recipe.write_bytes(b"seed: \xff\n")
    assert _mistakes(recipe)[0].startswith("cannot read the recipe x.yaml: byte 6 (line 1) is 0xff")
    assert _mistakes(tmp_path)[0].startswith("cannot read the recipe")


def test_empty_recipe_is_all_defaults(tmp_path: Path) -> None:
    assert load(Root, _recipe(tmp_path, "# later\n")).config == Root()
