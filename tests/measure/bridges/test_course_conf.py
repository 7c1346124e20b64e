"""What ``construct_trainer_stats`` is handed: the contract of the course toolkit, by a stand-in of a few lines.

The toolkit's own files: ``benchmarks/course_toolkit.py``.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

from perjoule.core.errors import ConfigError
from perjoule.measure.bridges.stats_name import build_stats

CONFIG = """
class Section:
    def __init__(self, **flags):
        self._flags = flags
    def add_arguments(self, parser, prefix=""):
        for name, (kind, default) in self._flags.items():
            if kind is bool:
                parser.add_argument(f"--{prefix}{name}", action="store_true")
            else:
                parser.add_argument(f"--{prefix}{name}", type=kind, default=default, help="100 % of it")
        for name, section in vars(self).items():
            if isinstance(section, Section):
                section.add_arguments(parser, f"{prefix}{name}.")
    def parse_arguments(self, parsed, prefix=""):
        for name in self._flags:
            setattr(self, name, getattr(parsed, f"{prefix}{name}"))
        for name, section in list(vars(self).items()):
            if isinstance(section, Section):
                section.parse_arguments(parsed, f"{prefix}{name}.")

class Config(Section):
    def __init__(self):
        super().__init__(batch_size=(int, 4), learning_rate=(float, 1e-6), model=(str, None), trainer_stats=(str, "x"))
        self.trainer_stats_configs = Section()
        self.trainer_stats_configs.meter = Section(run_num=(int, 0), output_dir=(str, "."), verbose=(bool, False))
"""
STATS = """
import {root}.config as config
trainer_stats_name = "meter"

def construct_trainer_stats(conf{annotation}, **kwargs):
    return conf, kwargs
"""
FLAGS = {"batch_size": 16, "learning_rate": 3e-4, "model": "retnet", "data": "stdlib", "output_dir": "runs/a/stats"}


@pytest.fixture(params=[": config.Config", "", ': "Missing"'])
def toolkit(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Lay out the toolkit's packages, with and without an annotation of ``conf``; return the name of the stats."""
    root = f"toolkit{len(request.param)}"
    (tmp_path / root / "config").mkdir(parents=True)
    (tmp_path / root / "config" / "__init__.py").write_text(CONFIG, encoding="utf-8")
    (tmp_path / root / "meter.py").write_text(STATS.format(root=root, annotation=request.param), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in (root, f"{root}.config", f"{root}.meter"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return f"{root}.meter:construct_trainer_stats"


def test_the_toolkits_own_configuration_is_built_as_its_launcher_does(toolkit: str) -> None:
    offered = {"device": "cuda:0", "num_train_steps": 7, "run": Path("runs/a"), "say": print}
    conf, keywords = build_stats(toolkit, offered, FLAGS, {"run_num": "3", "verbose": True})
    assert keywords == {"device": "cuda:0", "num_train_steps": 7}, "what the toolkit's trainer hands over"
    own = conf.trainer_stats_configs.meter
    assert type(conf).__name__ == "Config"
    assert (conf.batch_size, conf.learning_rate, conf.model, conf.trainer_stats) == (16, 3e-4, "retnet", "meter")
    assert (own.run_num, own.output_dir, own.verbose) == (3, "runs/a/stats", True)
    nested: dict[str, Any] = {"trainer_stats_configs": {"meter": {"run_num": 5}}, "batch_size": 2}
    conf, _ = build_stats(toolkit, offered, FLAGS, nested)
    assert (conf.trainer_stats_configs.meter.run_num, conf.batch_size) == (5, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run_nim": 3}, "stats_options: Config has no run_nim: .*trainer_stats_configs.meter.run_num"),
        ({"run_num": "three"}, "stats_options: argument --trainer_stats_configs.meter.run_num: invalid int value"),
    ],
)
def test_an_option_that_the_toolkit_does_not_know_is_refused(
    toolkit: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_stats(toolkit, {"device": "cpu"}, FLAGS, options)


def test_without_the_toolkits_class_an_object_has_the_same_attributes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = STATS.format(root="os", annotation="").replace("import os.config as config", "")
    (tmp_path / "lonely_stats.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "lonely_stats:construct_trainer_stats"
    conf, _ = build_stats(name, {"device": "cpu"}, FLAGS, {"run_num": 3, "model_configs.gpt2.layers": 2})
    assert (conf.batch_size, conf.trainer, conf.trainer_stats) == (16, "simple", "meter")
    assert conf.trainer_stats_configs.meter.run_num == 3 and conf.model_configs.gpt2.layers == 2
