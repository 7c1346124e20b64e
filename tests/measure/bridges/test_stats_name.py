"""What a recipe's ``stats`` may say, and what is built from it."""

import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.runs.synthetic import finished_run

from perjoule.config import Config, resolve
from perjoule.core.errors import ConfigError
from perjoule.measure.bridges.codecarbon_stats import CodeCarbonStats, device_label
from perjoule.measure.bridges.simple_stats import SimpleStats
from perjoule.measure.bridges.stats_name import BUILT_IN, StatsName, build_stats, check_name
from perjoule.measure.bridges.trainer_stats import NoOpStats, find_hooks


class Recipe(Config):
    stats: StatsName | None = None


class Mine(NoOpStats):
    def __init__(self, device: str, num_train_steps: int = 0, colour: str = "red") -> None:
        self.got = (device, num_train_steps, colour)


class Needy(NoOpStats):
    def __init__(self, wandb: object, device: str) -> None: ...


class Refusing(NoOpStats):
    def __init__(self) -> None:
        raise RuntimeError("no GPU\nat all")


class Taking(NoOpStats):
    def __init__(self, **everything: Any) -> None:
        self.got = everything


class Abstract(ABC):
    @abstractmethod
    def start_train(self) -> None: ...


@pytest.fixture(autouse=True)
def _module() -> Iterator[None]:
    module = types.ModuleType("users_stats")
    module.__dict__.update(Mine=Mine, Needy=Needy, Refusing=Refusing, Taking=Taking, Abstract=Abstract)
    sys.modules["users_stats"] = module
    yield
    del sys.modules["users_stats"]


def test_every_built_in_name_builds_a_trainer_stats(tmp_path: Path) -> None:
    offered = {"device": "cpu", "run": tmp_path, "fence": lambda: None}
    for name in BUILT_IN:
        assert find_hooks(build_stats(name, offered)), name
    assert isinstance(build_stats("simple", offered), SimpleStats)
    assert type(build_stats("no-op", offered)) is type(build_stats("noop", offered)) is NoOpStats


def test_a_class_gets_what_its_constructor_names() -> None:
    built = build_stats("users_stats:Mine", {"device": "cuda:0", "num_train_steps": 100, "run": Path("x")})
    assert built.got == ("cuda:0", 100, "red")


def test_a_class_with_keyword_arguments_gets_all_and_options_go_before_what_is_offered() -> None:
    offered = {"conf": "c", "device": "cpu", "num_train_steps": 5}
    assert build_stats("users_stats:Taking", offered).got == offered
    options = {"colour": "blue", "device": "cuda:1"}
    assert build_stats("users_stats:Taking", offered, {}, options).got == {**offered, **options}
    assert build_stats("users_stats:Mine", offered, {}, options).got == ("cuda:1", 5, "blue")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Stats", "stats: cannot import no_such_module: No module named 'no_such_module'"),
        ("users_stats:Mime", "stats: users_stats has no Mime: did you mean 'Mine'"),
        ("users_stats:Needy", "stats: users_stats:Needy needs wandb; the loop offers device; .*stats_options.wandb="),
        (
            "users_stats:Refusing",
            r"^stats: users_stats:Refusing cannot be built: RuntimeError: no GPU at all \(test_.*:",
        ),
        ("users_stats:Abstract", "^stats: users_stats:Abstract cannot be built: TypeError: .*start_train"),
        ("broken_stats:Stats", r"^stats: broken_stats cannot be imported: ZeroDivisionError: .* \(broken_stats.py:1\)"),
        ("unread_stats:Stats", "^stats: unread_stats cannot be imported: SyntaxError: "),
        ("folder_stats.deep:Stats", "No module named 'folder_stats'; it lies in this folder, .* PYTHONPATH=.$"),
    ],
)
def test_what_cannot_be_built_says_what_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "broken_stats.py").write_text("1 / 0\n", encoding="utf-8")
    (tmp_path / "unread_stats.py").write_text("def (\n", encoding="utf-8")
    (tmp_path / "here" / "folder_stats").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        build_stats(name, {"device": "cpu"})


@pytest.mark.parametrize("name", ["simpel", "users_stats", "a:b:c", "a b:C", ":C", "a."])
def test_a_name_of_nothing_is_refused_in_the_recipe(name: str) -> None:
    with pytest.raises(ConfigError, match=r"names no stats: .*or module:Class of your own"):
        resolve.load(Recipe, None, [f"stats='{name}'"])


def test_an_option_that_a_class_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stats_options: users_stats:Mine takes no color: did you mean 'colour'\?"):
        build_stats("users_stats:Mine", {"device": "cpu"}, {}, {"color": "blue"})


def test_a_recipe_may_name_a_class() -> None:
    assert resolve.load(Recipe, None, ["stats=users.stats:Mine"]).config.stats == "users.stats:Mine"
    assert check_name("codecarbon") == "codecarbon"


@pytest.mark.parametrize(("device", "label"), [("cuda:1", "1"), ("cuda", "0"), ("cpu", "cpu")])
def test_a_device_has_a_label_that_is_never_none(device: str, label: str) -> None:
    assert device_label(device) == label


def test_codecarbon_stats_write_their_files_into_the_run_and_print_a_table(tmp_path: Path) -> None:
    run, lines = finished_run(tmp_path / "run"), list[str]()
    stats = CodeCarbonStats(run, number=3, device="cuda:1", say=lines.append)
    stats.log_stats()
    assert (run / "codecarbon" / "losses" / "run_3_cc_loss_rank_1.csv").is_file()
    assert lines == ["no energy: no meter"], "no sampler ran in this one"
