"""CodeCarbon's data files, from a package of the same shape that holds three places of each kind."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from perjoule.core.errors import ConfigError, MissingExtra
from perjoule.measure.carbon import CarbonConfig, Intensity

FILES: dict[str, Any] = {
    "global_energy_mix.json": {
        "DEU": {"country_name": "Germany", "carbon_intensity": 380.95, "year": 2023},
        "ATA": {"country_name": "Antarctica", "carbon_intensity": None, "year": 2009},
    },
    "2023/usa_emissions.json": {
        "_unit": {"emissions": "lbs/MWh"},
        "_source": {"year": 2023},
        "new york": {"emissions": 500.0, "regionCode": "NY"},
    },
    "2023/china_provincial_emissions.json": {
        "data": {"CN-BJ": {"emission_factor": 555.4, "description": "Beijing", "year": 2023}}
    },
    "2023/canada_energy_mix.json": {
        "nova scotia": {"coal": 50.0, "petroleum": 10.0, "naturalGas": 20.0, "hydro": 20.0, "total": 100.0}
    },
    "nordic_emissions.json": {
        "data": {
            "SE3": {"emission_factor": 27.0, "description": "Sweden zone 3", "year": 2025},
            "NO1": {"emission_factor": 26.0, "description": "Norway zone 1", "year": 2025},
        }
    },
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``codecarbon`` whose code must not be run."""
    root = tmp_path / "codecarbon"
    for name, content in FILES.items():
        path = root / "data" / "private_infra" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    (root / "__init__.py").write_text("raise AssertionError('its code is not imported')", encoding="utf-8")
    info = tmp_path / "codecarbon-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: codecarbon\nVersion: 9.9\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "codecarbon"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    return root


def resolved(location: str) -> Intensity:
    found = CarbonConfig(source="codecarbon", location=location).resolve()
    assert isinstance(found, Intensity)
    return found


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("location", "g_per_kwh", "year"),
    [
        ("DEU", 380.95, 2023),
        ("USA-new-york", 500 * 0.45359237, 2023),
        ("CAN-nova-scotia", 0.5 * 995.7 + 0.1 * 816.7 + 0.2 * 743.8, 2023),
        ("CHN-bj", 555.4, 2023),
        ("SWE-se3", 27.0, 2025),
        ("NOR-NO1", 26.0, 2025),
    ],
)
def test_a_place_has_the_number_of_codecarbons_file(location: str, g_per_kwh: float, year: int) -> None:
    found = resolved(location)
    assert found.g_per_kwh == pytest.approx(g_per_kwh)
    assert found.year == year and found.source.startswith("CodeCarbon 9.9 (")


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("location", ["Germny", "ATA", "CAN-quebbec", "SWE-no1"])
def test_a_place_without_a_factor_is_named(location: str) -> None:
    with pytest.raises(ConfigError, match=f"'{location}'.* is not in CodeCarbon 9.9's tables"):
        resolved(location)


def test_a_file_of_another_shape_is_one_clear_line(package: Path) -> None:
    (package / "data" / "private_infra" / "global_energy_mix.json").write_text("[", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"CodeCarbon 9\.9's tables cannot be read .*; use carbon\.source=table"):
        resolved("DEU")


def test_without_codecarbon_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perjoule.measure.carbon.codecarbon_tables.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"pip install 'perjoule\[codecarbon\]'"):
        resolved("DEU")
