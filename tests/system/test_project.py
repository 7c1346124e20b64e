"""The project keeps its own promises: one lock, one licence, documents whose examples run."""

import importlib.util
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

import perjoule
from perjoule.measure import SHELF
from perjoule.measure.contract import Form, Meter, Site, Unavailable

ROOT = Path(__file__).parents[2]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_everything_installed_is_pinned_in_the_lock() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {normal(name): version for name, version in pinned.items()}
    tools = {"pip", "setuptools", "perjoule"}
    installed = {
        normal(found.name): found.version.partition("+")[0]
        for found in distributions(path=[sysconfig.get_path("purelib")])
        if normal(found.name) not in tools
    }
    assert {name: version for name, version in installed.items() if pinned.get(name) != version} == {}


def test_version_is_the_same_in_code_and_metadata() -> None:
    assert f'version = "{perjoule.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_meter_of_the_guide_works_with_one_file_and_one_line(tmp_path: Path) -> None:
    file, line = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/add_a_meter.md").read_text(), re.M | re.S)
    kind, target = re.findall(r'"([^"]+)"', line)
    path = tmp_path / "battery.py"
    path.write_text(file)
    (tmp_path / "BAT0").mkdir()
    (tmp_path / "BAT0" / "energy_full").write_text("50000000\n")
    (tmp_path / "BAT0" / "energy_now").write_text("49000000\n")
    spec = importlib.util.spec_from_file_location(target.partition(":")[0], path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        shelf = type(SHELF)(SHELF.name, {**SHELF.entries, kind: target})
        (meter,) = shelf.load(kind)(root=tmp_path).build(Site(()))
        assert isinstance(meter, Meter)
        assert (meter.sensor.form, meter.read()) == (Form.COUNTER, 3_600_000_000)
        (missing,) = shelf.load(kind)(root=tmp_path / "BAT0").build(Site(()))
        assert isinstance(missing, Unavailable)
    finally:
        del sys.modules[spec.name]


def test_links_of_the_documents_lead_somewhere() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in tracked.stdout.split():
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            if "://" not in target:
                assert ((ROOT / name).parent / target).exists(), f"{name} links to {target}"
