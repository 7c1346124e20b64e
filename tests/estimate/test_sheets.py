"""Data sheets that a user writes."""

from pathlib import Path

import pytest

from perjoule.core.errors import ConfigError
from perjoule.estimate.sheets import read_sheets

SHEET = """\
name: My GPU
tflops: {fp32: 10, tf32: 20}
bandwidth_gb_per_s: 500
memory_gb: 16
tdp_w: 200
num_cores: 5000
memory: gddr
"""


def write(folder: Path, text: str, name: str = "sheet.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_sheet_is_a_device_in_si_units_with_the_idle_power_of_its_class(tmp_path: Path) -> None:
    device = read_sheets([write(tmp_path, SHEET)])["My GPU"]
    assert (device.peak("bf16"), device.bandwidth, device.memory_bytes) == (20e12, 500e9, 16e9)
    assert device.idle_w == pytest.approx(56)
    stacked = read_sheets([write(tmp_path, SHEET.replace("gddr", "hbm"))])["My GPU"]
    assert stacked.idle_w == pytest.approx(28)
    measured = read_sheets([write(tmp_path, SHEET.replace("memory: gddr", "idle_w: 33"))])["My GPU"]
    assert measured.idle_w == 33


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("memory: gddr", "", "give memory .gddr or hbm. or idle_w"),
        ("fp32: 10, ", "", "tflops.*needs fp32"),
        ("tf32", "tf23", "unknown precision 'tf23': did you mean 'tf32'"),
        ("tdp_w: 200", "tdp_w: -1", "tdp_w"),
        ("tdp_w: 200", "tdpw: 200", "tdpw"),
        ("memory: gddr", "idle_w: 300", "idle_w .300. must be below tdp_w .200."),
    ],
)
def test_a_sheet_that_cannot_be_is_refused_by_name(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_sheets([write(tmp_path, SHEET.replace(old, new))])


def test_a_folder_is_a_shelf_and_a_name_is_there_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data sheet"):
        read_sheets([tmp_path])
    write(tmp_path, SHEET)
    write(tmp_path, SHEET.replace("My GPU", "Other"), "other.yml")
    assert set(read_sheets([tmp_path])) == {"My GPU", "Other"}
    with pytest.raises(ConfigError, match="a second data sheet of 'My GPU'"):
        read_sheets([tmp_path, tmp_path / "sheet.yaml"])
